"""Labels of classes: read them, find them beside a model, and turn what a person names into class indices."""

from __future__ import annotations

import csv
import difflib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from mpru_tf.errors import ForgetListError, LabelsError, explain
from mpru_tf.saved_model.label_sources import FILE, LARGEST_FILE, LabelSource, find_label_sources

if TYPE_CHECKING:
    from mpru_tf.saved_model.graph import Graph

LABELS_FILE = Path("assets.extra") / "labels.txt"
"""Where the labels of a servable version lie, relative to its version directory. TensorFlow Serving ignores it."""

_FORMS = 'a .txt file with one label per line, or JSON: a list of labels or an object {"0": "cat", ...}'
_COLUMNS = "one column of labels, or two columns of which one counts the classes from 0"

_FILE_NAMES = frozenset(
    f"{name}{suffix}"
    for name in ("labels", "label", "classes", "class_names", "class_labels", "labelmap", "label_map", "label_names")
    for suffix in (".txt", ".json", ".csv", ".tsv", "")
)
# Teachable Machine puts labels.txt beside the folder of the SavedModel.
_NAMES_BESIDE = ("labels.txt", "labels.json", "classes.txt", "class_names.txt", "class_names.json")
_MOST_FILES = 1000  # assets looked at; a directory with more holds anything but one label file


@dataclass(frozen=True)
class FoundLabels:
    """What looking for labels with a model showed.

    Attributes:
        labels: one per class in the order of the class indices; None where sources contradict each other.
        where: where they were found, in words; else which sources contradict each other.
    """

    labels: tuple[str, ...] | None
    where: str


def read_labels(path: str | Path) -> list[str]:
    """Return the labels in a file, in the order of the class indices.

    ============= =================================================================================================
    file          holds
    ============= =================================================================================================
    text          one label per line, UTF-8; empty lines at its end do not count. Where every line begins with its
                  own number from 0 and a blank (``0 cat``, as Teachable Machine writes it), that number is no part
                  of the label
    .csv, .tsv    one column of labels, or two of which one counts the classes from 0 in any order; a line above
                  that does not count is taken for a heading
    .json         a list of labels, or an object from class index to label
    ============= =================================================================================================

    Returns:
        One label per class. Labels may repeat (ImageNet has two classes "crane"); such a class has to be named by
        its index.

    Raises:
        LabelsError: the file is missing, unreadable, empty, or leaves a class without a label.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(
            explain("The labels cannot be read.", received=f"{path} ({error.strerror})", valid=_FORMS)
        ) from error
    except UnicodeDecodeError as error:
        raise LabelsError(
            explain("The labels are not UTF-8 text.", received=f"{path} ({error.reason} at byte {error.start})")
        ) from error
    read = {".json": _from_json, ".csv": _from_columns, ".tsv": _from_columns}.get(path.suffix.lower(), _from_lines)
    labels = read(text, path)
    if not labels:
        raise LabelsError(explain("There are no labels in the file.", received=path, valid=_FORMS))
    return labels


def find_labels(version_dir: str | Path) -> list[str] | None:
    """Return the labels that lie with a servable version (``assets.extra/labels.txt``), or None if there are none."""
    path = Path(version_dir) / LABELS_FILE
    return read_labels(path) if path.is_file() else None


def labels_of_model(directory: Path, graphs: Sequence[Graph], classes: int) -> FoundLabels | None:
    """Find the labels of a model: in ``assets.extra/labels.txt``, else in its graph, else in files with it.

    The explicit file wins, however many labels it has: a wrong one is to be told, not passed over. Of the others the
    strongest kind of source is believed (see :mod:`mpru_tf.saved_model.label_sources`), and only where all sources of
    that kind say the same.

    Args:
        directory: the version directory.
        graphs: its MetaGraphs.
        classes: number n of classes.

    Returns:
        The labels, or the contradiction that kept them from being taken; None if nothing names the classes.

    Raises:
        LabelsError: ``assets.extra/labels.txt`` is there, but cannot be read as labels.
        CorruptModelError: a graph is damaged.
    """
    explicit = find_labels(directory)
    if explicit is not None:
        return FoundLabels(tuple(explicit), LABELS_FILE.as_posix())
    sources = [*find_label_sources(graphs, directory, classes), *_files_of(directory, classes)]
    strongest = max((source.strength for source in sources), default=0)
    believed = [source for source in sources if source.strength == strongest]
    if not believed:
        return None
    first = believed[0]
    other = next((source for source in believed if source.labels != first.labels), None)
    if other is not None:
        index = next(i for i, (one, two) in enumerate(zip(first.labels, other.labels, strict=True)) if one != two)
        contradiction = (
            f"{first.where} calls class {index} {first.labels[index]!r}, {other.where} calls it {other.labels[index]!r}"
        )
        return FoundLabels(None, contradiction)
    return FoundLabels(first.labels, first.where)


def write_labels(version_dir: str | Path, labels: Sequence[str]) -> Path:
    """Write ``labels`` where :func:`find_labels` looks for them, and return the file's path.

    Raises:
        LabelsError: a label is empty or spans lines, so that it could not be read back.
    """
    for index, label in enumerate(labels):
        if not label.strip() or len(label.splitlines()) != 1:
            raise LabelsError(
                explain(f"The label of class {index} cannot be written on one line.", received=repr(label))
            )
    path = Path(version_dir) / LABELS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{label.strip()}\n" for label in labels), encoding="utf-8")
    return path


def parse_classes(
    specs: Sequence[str | SupportsIndex],
    labels: Sequence[str] | None,
    classes: int,
    *,
    contradiction: str | None = None,
) -> tuple[int, ...]:
    """Return the class indices that ``specs`` name, sorted.

    ============== =====================================================================================
    form           names
    ============== =====================================================================================
    ``3`` or ``"3"`` the class with index 3, or the one labelled "3" if that is the same or the only reading
    ``"cat"``      the class labelled "cat"
    ``"index:3"``  the class with index 3, whatever the labels say
    ``"label:3"``  the class labelled "3", whatever its index
    ``"3,cat"``    both; quoted as in CSV where a label holds a comma: ``'"crane, bird",cat'``
    ============== =====================================================================================

    A string that is a label as a whole, commas and all, is taken whole. Upper and lower case differ.

    Args:
        specs: what a person named; at least one class.
        labels: one label per class, or None if the model has none.
        classes: number n of classes, so that indices are 0 to n - 1.
        contradiction: why labels that were found were not taken, for the message about a class named by its label.

    Raises:
        ForgetListError: nothing is named, a class is unknown, ambiguous or named twice. All such problems are told
            at once.
        LabelsError: the number of labels is not the number of classes.
    """
    if labels is not None and len(labels) != classes:
        raise LabelsError(
            explain(
                "The labels do not fit the model.",
                received=f"{len(labels)} labels for {classes} classes",
                valid=f"exactly {classes} labels, in the order of the class indices",
            )
        )
    names = [] if labels is None else list(labels)
    wanted = [spec] if isinstance(spec := specs, str) else list(spec)
    found: dict[int, str] = {}
    problems: list[str] = []
    for part in (part for spec in wanted for part in _split(spec, names)):
        index, problem = _resolve(part, names, classes, contradiction)
        if index is None:
            problems.append(problem)
        elif index in found:
            problems.append(
                f"Class {_shown(index, names)} is named twice, as {found[index]} and as {part!r}; name each class once."
            )
        else:
            found[index] = repr(part)
    if problems:
        raise ForgetListError(" ".join(problems))
    if not found:
        raise ForgetListError(
            explain("No class to forget is named.", received=repr(specs), valid=_valid(names, classes))
        )
    return tuple(sorted(found))


def _files_of(directory: Path, classes: int) -> Iterator[LabelSource]:
    """Files called like labels, with as many as there are classes: among the assets, beside the model, one level up."""
    paths = [directory.parent / name for name in _NAMES_BESIDE] + [directory / name for name in _NAMES_BESIDE]
    for folder in ("assets", "assets.extra"):
        listed = sorted((directory / folder).glob("*"))[:_MOST_FILES]
        paths.extend(path for path in listed if path.name.lower() in _FILE_NAMES or path.suffix.lower() == ".labels")
    for path in paths:
        try:
            labels = read_labels(path) if path.is_file() and path.stat().st_size <= LARGEST_FILE else []
        except (LabelsError, OSError):  # what only looks like labels is no reason to refuse the model
            continue
        if len(labels) == classes:
            inside = path.is_relative_to(directory)
            where = (
                path.relative_to(directory).as_posix() if inside else f"{path.name} in the directory above the model"
            )
            yield LabelSource(tuple(labels), where, FILE)


def _from_lines(text: str, path: Path) -> list[str]:
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    numbered = [line.split(maxsplit=1) for line in lines]
    if len(lines) > 1 and all(len(parts) == 2 and parts[0] == str(index) for index, parts in enumerate(numbered)):
        return [label for _, label in numbered]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise LabelsError(
                explain(
                    "An empty line stands between the labels, so the classes after it cannot be counted.",
                    received=f"{path}, line {number}",
                    valid=_FORMS,
                )
            )
    return lines


def _from_columns(text: str, path: Path) -> list[str]:
    """Labels of a CSV or TSV file."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except csv.Error as error:
        raise LabelsError(
            explain("The labels are not valid CSV.", received=f"{path} ({error})", valid=_COLUMNS)
        ) from error
    while rows and not any(rows[-1]):
        rows.pop()
    if all(len(row) == 1 for row in rows):
        return _from_lines("\n".join(row[0] for row in rows), path)
    for column in (0, 1) if all(len(row) == 2 for row in rows) else ():
        body = rows if rows[0][column].isdigit() else rows[1:]
        counted = {row[column]: row[1 - column] for row in body}
        indices = [str(index) for index in range(len(body))]
        if counted.keys() == set(indices) and all(counted.values()) and set(counted.values()) != set(indices):
            return [counted[index] for index in indices]
    raise LabelsError(
        explain("The columns of the labels cannot be told apart.", received=path, valid=f"{_COLUMNS}; or {_FORMS}")
    )


def _from_json(text: str, path: Path) -> list[str]:
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise LabelsError(
            explain("The labels are not valid JSON.", received=f"{path} ({error})", valid=_FORMS)
        ) from error
    if isinstance(value, dict):
        try:
            by_index = {int(key): label for key, label in value.items()}
        except ValueError as error:
            raise LabelsError(
                explain("The keys of the labels are not class indices.", received=f"{path} ({error})", valid=_FORMS)
            ) from error
        missing = sorted(set(range(len(value))) - set(by_index))
        if missing:
            raise LabelsError(
                explain(
                    "The labels leave out a class.",
                    received=f"{path}, {len(value)} labels but none for class {missing[0]}",
                    valid=f"one label for each class from 0 to {len(value) - 1}",
                )
            )
        value = [by_index[index] for index in range(len(value))]
    if not isinstance(value, list) or not all(isinstance(label, str) and label.strip() for label in value):
        raise LabelsError(explain("The labels are not non-empty strings.", received=path, valid=_FORMS))
    return [label.strip() for label in value]


def _split(spec: str | SupportsIndex, names: Sequence[str]) -> list[str | int]:
    """Return the single names within one spec."""
    if isinstance(spec, bool):
        return [repr(spec)]
    if not isinstance(spec, str):
        try:
            return [operator.index(spec)]
        except TypeError:
            return [repr(spec)]
    whole = spec.strip()
    if whole in names or whole.removeprefix("label:").strip() in names:
        return [whole]
    try:
        rows = list(csv.reader([whole], skipinitialspace=True, strict=True))
    except csv.Error:
        return [whole]
    return [part.strip() for row in rows for part in row]


def _resolve(part: str | int, names: Sequence[str], classes: int, contradiction: str | None) -> tuple[int | None, str]:
    """Return the class that one name means, or None and the sentences that say why it means none."""
    as_index = part if isinstance(part, int) else _index_in(part)
    as_label: list[int] = []
    if isinstance(part, str):
        label = part.removeprefix("label:").strip() if part.startswith("label:") and part not in names else part
        as_label = [index for index, name in enumerate(names) if name == label]
    readings = sorted({*as_label, *([as_index] if as_index is not None and 0 <= as_index < classes else [])})
    if len(readings) == 1:
        return readings[0], ""
    if readings and as_index not in readings:
        return None, explain(
            f"{len(as_label)} classes have the label {part!r}.",
            received=f"{part!r}, the label of classes {_listed(as_label)}",
            hint=f"Name the one that is meant by its index, for example index:{as_label[0]}.",
        )
    if readings:
        return None, explain(
            f"{part!r} can be read in two ways: class {as_index} ({names[as_index or 0]!r}) by its index, "
            f"or class {_listed(as_label)} by its label.",
            hint=f"Write index:{as_index} or label:{part}.",
        )
    return None, _unknown(part, as_index, names, classes, contradiction)


def _index_in(part: str) -> int | None:
    match = re.fullmatch(r"(?:index:)?\s*([+-]?[0-9]+)", part)
    return int(match.group(1)) if match else None


def _unknown(
    part: str | int, as_index: int | None, names: Sequence[str], classes: int, contradiction: str | None
) -> str:
    if as_index is not None:
        return explain("There is no such class.", received=part, valid=_valid(names, classes))
    if not part:
        return explain("A class to forget is empty.", received="''", valid=_valid(names, classes))
    if not names:
        return explain(
            "A class is named by a label, but the model has no labels."
            if contradiction is None
            else f"A class is named by a label, but labels found with the model disagree: {contradiction}.",
            received=repr(part),
            valid=_valid(names, classes),
            hint=f"Give labels (--labels FILE), or put them into the version directory as {LABELS_FILE.as_posix()}.",
        )
    folded = {name.casefold(): name for name in reversed(names)}
    asked = str(part).removeprefix("label:").strip().casefold()
    close = [folded[match] for match in difflib.get_close_matches(asked, folded, n=3, cutoff=0.6)]
    hints = [f"Closest: {', '.join(map(repr, close))}."] if close else []
    if any(re.fullmatch(r"forgotten_[0-9]+_*", name) for name in names):
        hints.append("Classes called forgotten_... lost their labels to --redact-labels; name one by its index.")
    return explain(
        "There is no class with this label.",
        received=repr(part),
        valid=_valid(names, classes),
        hint=" ".join(hints) or None,
    )


def _valid(names: Sequence[str], classes: int) -> str:
    indices = f"an index from 0 to {classes - 1}"
    if not names:
        return indices
    shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    return f"{indices}, or one of the {len(names)} labels {shown}"


def _shown(index: int, names: Sequence[str]) -> str:
    return f"{index} ({names[index]!r})" if names else str(index)


def _listed(indices: Sequence[int]) -> str:
    return " and ".join(map(str, indices)) if len(indices) < 3 else ", ".join(map(str, indices))
