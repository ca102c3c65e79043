"""The chain of versions that led to one, told from manifests and held against the files that are still there.

Each manifest carries what the earlier ones said, so the newest version tells the whole chain also when older version
directories were retired. Only digests are taken here: nothing is parsed, nothing is run, TensorFlow is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import ForgetListError, ManifestError, ModelNotFoundError, explain
from mpru_tf.manifest import MANIFEST, Manifest, changed_files, model_digest, read_manifest
from mpru_tf.saved_model.bundle import FILTER_PREFIX, SAVED_MODEL_FORMS, has_saved_model, index_digest
from mpru_tf.unlearning.record import unlearned_in
from mpru_tf.versions import VersionDirectory, find_version, list_versions, parse_version

if TYPE_CHECKING:
    from rich.console import Console

UNFILTERED, VERIFIED, CHANGED, MISSING = "unfiltered", "verified", "changed", "missing"

# What a manifest and its copies in later ones must agree on. Labels may have been redacted since, and paths moved.
_LASTING = ("created", "forgotten", "method", "temperature", "saved_model_sha256", "variables_index_sha256")


@dataclass(frozen=True)
class HistoryStep:
    """One version in the chain.

    Attributes:
        version: its servable version, or None where its directory had no number.
        path: its version directory; None when it is gone.
        created: UTC time, ISO 8601; None for the original.
        forgotten: indices of all classes forgotten in it, ascending; none in the original.
        labels: their labels in the same order, or None when they are not known.
        newly_forgotten: those that the version before it still answered.
        method: the filter's method, None in the original.
        temperature: of method 'tempered', else None.
        saved_model_sha256: hex digest of saved_model.pb as it was recorded.
        variables_index_sha256: that of variables.index, None for a model without variables.
        status: 'unfiltered', the original as it was when the chain began; 'verified', a filtered version whose
            saved_model.pb and variables.index have the digests recorded; 'changed', one of them has another;
            'missing', the directory is gone, and only later manifests tell of it.
        problems: what does not hold about it, one phrase each.
        unlearned: classes that its record says were unlearned in its weights, ascending, which guarantees no answer;
            none where the directory is gone or changed.
    """

    version: int | None
    path: Path | None
    created: str | None
    forgotten: tuple[int, ...]
    labels: tuple[str, ...] | None
    newly_forgotten: tuple[int, ...]
    method: str | None
    temperature: float | None
    saved_model_sha256: str
    variables_index_sha256: str | None
    status: str
    problems: tuple[str, ...] = ()
    unlearned: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The version in words."""
        return "the original" if self.created is None else _name(self.version)


@dataclass(frozen=True)
class History:
    """How a version came to forget what it forgets.

    Attributes:
        path: the version directory that was asked about.
        steps: the original, then each filtered version, the one asked about last.
    """

    path: Path
    steps: tuple[HistoryStep, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not hold, one phrase each, with the version that it is about."""
        return tuple(f"{step.name}: {problem}" for step in self.steps for problem in step.problems)

    @property
    def verified(self) -> bool:
        """Whether every digest of what is still there matches, and no manifest contradicts another."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        steps = []
        for step in self.steps:
            values = {name: getattr(step, name) for name in step.__dataclass_fields__}
            values["path"] = None if step.path is None else str(step.path)
            steps.append({name: list(value) if isinstance(value, tuple) else value for name, value in values.items()})
        return {"path": str(self.path), "verified": self.verified, "steps": steps}


def history(model: str | os.PathLike[str]) -> History:
    """Tell what was forgotten in a model when, and see whether the versions are as they were published.

    Of each version that is still there, saved_model.pb and variables.index are held against the digests that it and
    later versions recorded (``verify(..., full=True)`` reads the weights, too). A version that is gone is no fault.

    Args:
        model: a version directory, or a base path, which stands for its newest version.

    Returns:
        A :class:`History`; of a version that was never filtered, it has one step.

    Raises:
        ModelNotFoundError: there is no SavedModel.
        ManifestError: its manifest cannot be read, or it carries a filter without one.
    """
    found = find_version(model)
    if not has_saved_model(found.path):
        raise ModelNotFoundError(
            explain("There is no SavedModel here.", received=str(found.path), valid="a complete version directory")
        )
    manifest = read_manifest(found.path)
    if manifest is None:
        return History(found.path, (_never_filtered(found),))
    return History(found.path, tuple(reversed(list(_backwards(found, manifest)))))


def _never_filtered(found: VersionDirectory) -> HistoryStep:
    path = found.path
    model = next(path / name for name in SAVED_MODEL_FORMS if (path / name).is_file())
    if FILTER_PREFIX.encode() in model.read_bytes():
        raise ManifestError(
            explain(
                f"This version carries a filter (nodes named {FILTER_PREFIX}), but its manifest is gone: what it "
                "forgets is not known.",
                received=str(path),
                valid=f"a version with its {MANIFEST}",
                hint="Ask for the version that this one was made from.",
            )
        )
    digests = {"saved_model_sha256": model_digest(path), "variables_index_sha256": index_digest(path)}
    return _original({"version": found.version, **digests}, path, ())


# ------------------------------------------------------------------------------------------------ from the newest back
def _backwards(found: VersionDirectory, manifest: Manifest) -> Iterator[HistoryStep]:
    """The steps, newest first. There are as many as the manifest tells of, whatever lies in the directories."""
    told: list[Mapping[str, Any]] = [*manifest.history, manifest.step()]
    link: Mapping[str, Any] | None = {**told[-1], "version": found.version}
    path: Path | None = found.path
    base, seen = found.base, [found.path]
    later = None
    while told:
        step = told.pop()
        before = told[-1]["forgotten"] if told else ()
        problems = _changed(path, link)
        status = MISSING if path is None else CHANGED if problems else VERIFIED
        problems.extend(_contradictions(step, link, before, later, told[-1] if told else None))
        source = step.get("source")
        if path is not None and path != found.path:
            own, problem = _own_manifest(path, step, later)
            problems.extend(problem)
            if source is None and own is not None and status == VERIFIED:
                source = own.source  # written before manifests told where the versions before them came from
        unlearned, problem = _unlearned(path, status)
        problems.extend(problem)
        version = link["version"] if link is not None else None
        yield HistoryStep(
            version=version,
            path=path,
            created=step["created"],
            forgotten=tuple(sorted(step["forgotten"])),
            labels=tuple(step["labels"]) if step.get("labels") is not None else None,
            newly_forgotten=tuple(sorted(set(step["forgotten"]) - set(before))),
            method=step["method"],
            temperature=step.get("temperature"),
            saved_model_sha256=step["saved_model_sha256"],
            variables_index_sha256=step.get("variables_index_sha256", (link or {}).get("variables_index_sha256")),
            status=status,
            problems=tuple(problems),
            unlearned=unlearned,
        )
        link, later = source, _name(version)
        path = _located(link, base, seen) if link is not None else None
        if path is not None:
            seen.append(path)
            base = path.parent
        elif link is not None and not link.get("same_base_path", True):
            base = Path(link["path"]).parent
    if link is not None:
        problems = _changed(path, link)
        if path is not None and not problems and (path / MANIFEST).is_file():
            problems = [f"a manifest lies in it, although {later} says that nothing was forgotten before"]
        yield _original(link, path, problems)


def _original(link: Mapping[str, Any], path: Path | None, problems: Sequence[str]) -> HistoryStep:
    status = MISSING if path is None else CHANGED if problems else UNFILTERED
    unlearned, doubts = _unlearned(path, status)
    return HistoryStep(
        version=link["version"],
        path=path,
        created=None,
        forgotten=(),
        labels=None,
        newly_forgotten=(),
        method=None,
        temperature=None,
        saved_model_sha256=link["saved_model_sha256"],
        variables_index_sha256=link["variables_index_sha256"],
        status=status,
        problems=(*problems, *doubts),
        unlearned=unlearned,
    )


def _unlearned(path: Path | None, status: str) -> tuple[tuple[int, ...], list[str]]:
    """The classes of the record in a version directory, and what is wrong with that record."""
    if path is None or status == CHANGED:  # a record is about the files that were published
        return (), []
    try:
        return unlearned_in(path), []
    except ManifestError as error:
        return (), [str(error).rstrip(".")]


def _changed(path: Path | None, link: Mapping[str, Any] | None) -> list[str]:
    """What about a version directory is not as recorded."""
    if path is None or link is None:
        return []
    try:
        changed = changed_files(path, link["saved_model_sha256"], link["variables_index_sha256"])
    except OSError as error:
        return [f"{error.filename} cannot be read ({error.strerror})"]
    return [f"{name} does not have the digest that was recorded" for name in changed]


def _contradictions(
    step: Mapping[str, Any],
    link: Mapping[str, Any] | None,
    before: Sequence[int],
    later: str | None,
    earlier: Mapping[str, Any] | None,
) -> Iterator[str]:
    """What the manifests do not agree on."""
    digests = ("saved_model_sha256", "variables_index_sha256")
    if link is not None and any(step.get(name, link[name]) != link[name] for name in digests):
        yield f"{later} was made from other files than the history records"
    back = sorted(set(before) - set(step["forgotten"]))
    if back and earlier is not None:
        yield f"it answers classes again that the version before it forgot: {', '.join(map(str, back))}"


def _own_manifest(path: Path, step: Mapping[str, Any], later: str | None) -> tuple[Manifest | None, list[str]]:
    """The manifest of an earlier version, held against what later ones say it said."""
    try:
        own = read_manifest(path)
    except ManifestError as error:
        return None, [str(error)]
    if own is None:
        return None, ["its manifest is gone"]
    says = own.step()
    other = [name for name in _LASTING if name in step and says[name] != step[name]]
    return own, [f"its manifest says otherwise than that of {later}: {', '.join(other)}"] if other else []


# ------------------------------------------------------------------------------------------------------------- places
def _located(link: Mapping[str, Any], base: Path | None, seen: Sequence[Path]) -> Path | None:
    """Where a version lies: beside the later ones, which may have moved together, or where it lay when it was recorded.

    What lies there and has other digests counts only in the place where it has to be.
    """
    recorded, sibling = Path(link["path"]), None
    expected: Path | None = recorded
    if base is not None and link.get("same_base_path", True):
        expected = sibling = _sibling(base, link["version"])
    places = [place for place in (sibling, recorded) if place is not None and _is_version(place, seen)]
    matching = (place for place in places if not _changed(place, link))
    return next(matching, expected if expected in places else None)


def _sibling(base: Path, version: int | None) -> Path | None:
    if version is None or not base.is_dir():
        return None
    return next((child for child in base.iterdir() if parse_version(child.name) == version), None)


def _is_version(path: Path, seen: Sequence[Path]) -> bool:
    """Whether a version directory lies there that is none of the later ones."""
    try:
        return path.is_absolute() and has_saved_model(path) and not any(path.samefile(other) for other in seen)
    except OSError:  # of another user, or no path at all
        return False


def _name(version: int | None) -> str:
    return "a version without a number" if version is None else f"version {version}"


# ------------------------------------------------------------------------------------------------------------ showing
def show(found: History, console: Console) -> None:
    """Print the chain as a table, oldest first."""
    from rich.markup import escape
    from rich.table import Table

    colours = {UNFILTERED: "yellow", VERIFIED: "green", CHANGED: "bold red", MISSING: "dim"}
    headings = ("version", "created (UTC)", "forgotten", "method", "files")
    table = Table(*headings, title=escape(str(found.path)), title_style="bold")
    for step in found.steps:
        method = step.method or ""
        if step.temperature is not None:
            method += f", T = {step.temperature:g}"
        where = [str(step.path)] if step.path is not None and step.path.parent != found.path.parent else []
        notes = "".join(f"\n{escape(line)}" for line in (*where, *step.problems))
        colour = "bold red" if step.problems else colours[step.status]
        table.add_row(
            "?" if step.version is None else str(step.version),
            (step.created or "").replace("T", " ").removesuffix("+00:00"),
            escape(_forgotten(step)),
            method,
            f"[{colour}]{step.status}[/]{notes}",
        )
    console.print(table, highlight=False)


def _forgotten(step: HistoryStep) -> str:
    """All forgotten classes, those that came new marked with a plus."""
    labels = step.labels or [None] * len(step.forgotten)
    named = (
        f"{'+' if index in step.newly_forgotten else ''}{index}{f' ({label})' if label is not None else ''}"
        for index, label in zip(step.forgotten, labels, strict=True)
    )
    told = [", ".join(named)] if step.forgotten else []
    if step.unlearned:
        unlearned = ", ".join(map(str, step.unlearned))
        without = "" if set(step.unlearned) <= set(step.forgotten) else " (not guaranteed: no filter)"
        told.append(f"unlearned in the weights: {unlearned}{without}")
    return "\n".join(told) or "nothing forgotten"


def check_nothing_comes_back(
    base: Path, forgotten: Collection[int], otherwise: str, *, unlearned: Collection[int]
) -> None:
    """A new version takes the newest one's place: it must forget at least what that one forgets.

    Args:
        base: base path that the new version is for; it need not exist.
        forgotten: indices of the classes that a filter in the new version forgets.
        otherwise: what to do to bring classes back on purpose, in words.
        unlearned: those that were unlearned in its weights. Where the newest version has a record of such classes, each
            must be forgotten in one way or the other.

    Raises:
        ForgetListError: a class would come back.
        ManifestError: the manifest or the record of the newest version cannot be read.
    """
    if not list_versions(base):
        return
    newest = find_version(base)
    manifest = read_manifest(newest.path)
    back = sorted(set(manifest.forgotten) - set(forgotten)) if manifest is not None else []
    if back:
        listed = ", ".join(map(str, back))
        raise ForgetListError(
            explain(
                f"The new version would answer classes again that version {newest.version}, the newest in {base}, "
                "forgets.",
                received=f"a forget list without {listed}" if forgotten else "no class to forget",
                valid=f"a forget list with {listed}, or version {newest.version} as the model to start from",
                hint=f"To bring classes back on purpose, {otherwise}.",
            )
        )
    back = sorted(set(unlearned_in(newest.path)) - set(forgotten) - set(unlearned))
    if back:
        listed = ", ".join(map(str, back))
        raise ForgetListError(
            explain(
                f"The new version would answer classes again that were unlearned in the weights of version "
                f"{newest.version}, the newest in {base}.",
                received=f"classes to unlearn or to forget without {listed}",
                valid=f"a list with {listed} as well",
                hint=f"To bring classes back on purpose, {otherwise}.",
            )
        )
