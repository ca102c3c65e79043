"""Judge a version that forgets: against retraining, against other ways of forgetting, and by what attackers can tell.

:func:`evaluate` asks the models, and returns one JSON-able dictionary; ``report`` draws it, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

import mpru_tf
from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import (
    DataError,
    ForgetListError,
    LabelsError,
    ManifestError,
    MissingExtraError,
    PublishError,
    UnsupportedModelError,
    explain,
)
from mpru_tf.evaluation import asking, baselines
from mpru_tf.evaluation.asking import MOST_TRAIN_ROWS, TRAIN_ROWS, Answered, Examples, Floats
from mpru_tf.evaluation.judge import BINS, Judge
from mpru_tf.evaluation.limits import limits
from mpru_tf.inspection import Inspection, inspect
from mpru_tf.labels import parse_classes, read_labels
from mpru_tf.manifest import Manifest, model_digest, read_manifest
from mpru_tf.versions import find_version

FORMAT = 1
UNFILTERED, UNLEARNED, RETRAINED, SECOND = "unfiltered", "unlearned", "retrained", "second_retrained"
JSON_FILE, REPORT_FILE = "evaluation.json", "report.html"

DRAWN = (UNFILTERED, UNLEARNED, RETRAINED)
"""The answers that are drawn: of them the evaluation holds histograms and the curves of attacks."""

Model = str | os.PathLike[str]


def evaluate(
    original: Model,
    unlearned: Model,
    data: Model,
    *,
    retrained: Model | None = None,
    second_retrained: Model | None = None,
    train_data: Model | None = None,
    candidates: Mapping[str, Model] | None = None,
    class_means: ClassMeans | Model | None = None,
    classes: Sequence[str | SupportsIndex] = (),
    labels: Model | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Judge a version that forgets classes. Nothing is written.

    Args:
        original: the unfiltered version, as a version directory or a base path (then its newest version).
        unlearned: the version that is judged, likewise.
        data: labelled test examples: an .npz file with ``x`` (or one array per input) and ``y``, or with ``x_test`` and
            ``y_test`` and, in the place of ``train_data``, ``x_train`` and ``y_train``.
        retrained: a model that never saw the forgotten classes, with all n outputs or without theirs: a version, or an
            .npz file of its answers, ``answers`` or ``test`` ``[N, n]`` (probabilities, or logits, which may be called
            ``logits``; in the order of ``data``) and, for membership inference, ``answers_train``, ``train`` or
            ``logits_train``. Distances are taken to its answers given a retained class; what probability it
            leaves to forgotten ones is told beside them.
        second_retrained: another one, trained with another seed: how far the two are apart is the floor. Answers that
            average over seeds can lie below it.
        train_data: labelled examples that the original was trained on; without them there is no membership inference.
        candidates: other ways to forget, by name, given as ``retrained`` is.
        class_means: means of the original for the baselines that need them; default: taken from the training examples
            or, without those, from the test examples.
        classes: the forgotten classes, where the version has no manifest that tells.
        labels: a file of labels; default: those found with the original.
        progress: show progress bars on stderr.

    Returns:
        What ``evaluation.json`` holds. Shares and probabilities are fractions, times seconds, logarithms natural.

    Raises:
        ModelError: a version cannot be read or loaded, or is no single-label classifier of the same classes.
        DataError: the examples or a file of answers cannot be used.
        ForgetListError: nothing says which classes were forgotten, or two sources say different things.
        MissingExtraError: scikit-learn is not installed.
    """
    _require_report_extra()
    manifest = read_manifest(find_version(unlearned).path)
    versions = {UNFILTERED: _inspect_original(original, manifest), UNLEARNED: inspect(unlearned)}
    _check_single_label(versions.values())
    n = asking.classes_of(versions[UNFILTERED])
    names = versions[UNFILTERED].labels if labels is None else tuple(read_labels(Path(labels)))
    if names is not None and len(names) != n:
        raise LabelsError(explain("The labels do not fit the model.", received=len(names), valid=f"{n} labels"))
    forgotten = _forgotten(manifest, classes, names, n, versions[UNLEARNED])
    test, train = _examples(data, train_data, n)
    means = class_means if class_means is None or isinstance(class_means, ClassMeans) else ClassMeans.load(class_means)
    files: dict[str, Path] = {}
    for name, model in {RETRAINED: retrained, SECOND: second_retrained, **_checked(candidates)}.items():
        if model is None:
            continue
        if asking.is_file_of_answers(model):
            files[name] = Path(model)
        else:
            versions[name] = inspect(model)
            _check_single_label([versions[name]])
    answered = {
        name: asking.read_answers(file, n, forgotten, test, train) for name, file in files.items()
    }  # first: reading is quick, and what is refused is refused before the models are asked
    for name, version in versions.items():
        answered[name] = asking.ask(version, n, forgotten, test, train, progress)
    _check_retrained(answered)
    sources = {name: _described(version) for name, version in versions.items()}
    sources |= {name: {"path": str(file), "answers": True, "kind": answered[name].kind} for name, file in files.items()}
    return _judged(n, forgotten, manifest, names, test, train, answered, sources, means, _lineage(manifest, sources))


def write(evaluation: Mapping[str, Any], page: str, out: Model) -> tuple[Path, Path]:
    """Write ``evaluation.json`` and ``report.html`` into a folder, which is made if missing.

    Returns:
        Their paths.

    Raises:
        PublishError: they cannot be written; no half of a file is left.
    """
    folder = Path(out)
    texts = {JSON_FILE: to_json(evaluation), REPORT_FILE: page}
    partial: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            handle, partial[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)  # temporary files are private, these are for others to read
        for name, path in partial.items():
            os.replace(path, folder / name)
    except OSError as error:
        for path in partial.values():
            Path(path).unlink(missing_ok=True)
        raise PublishError(
            explain("The report cannot be written.", received=f"{folder} ({error.strerror})", valid="a writable folder")
        ) from error
    return folder / JSON_FILE, folder / REPORT_FILE


def to_json(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as text; a number that JSON has not is null."""
    return json.dumps(_plain(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _require_report_extra() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            explain(f"An evaluation needs {error.name}.", hint="Install it: pip install 'mpru_tf[report]'.")
        ) from error


# ---------------------------------------------------------------------------------------------------------- the models
def _inspect_original(original: Model, manifest: Manifest | None) -> Inspection:
    choice = manifest.choice if manifest is not None else None
    inspection = (
        inspect(original)
        if choice is None
        else inspect(
            original,
            outputs=choice.outputs,
            sites=choice.sites,
            scores=choice.scores,
            num_classes=choice.classes,
            multi_label=choice.multi_label,
        )
    )
    if inspection.forgotten:
        raise UnsupportedModelError(
            explain(
                f"{inspection.path} forgets classes itself, so it cannot stand for the original.",
                received=f"a version without classes {', '.join(map(str, inspection.forgotten))}",
                valid="the unfiltered version",
            )
        )
    return inspection


def _check_single_label(versions: Iterable[Inspection]) -> None:
    for version in versions:
        if asking.is_multi_label(version.score_sites):
            raise UnsupportedModelError(
                explain(
                    f"{version.path} judges each class on its own.",
                    received="a multi-label model",
                    valid="a classifier whose probabilities sum to 1",
                    hint="Its filter leaves the retained classes as they are: there is nothing to compare.",
                )
            )


def _forgotten(
    manifest: Manifest | None,
    classes: Sequence[str | SupportsIndex],
    names: Sequence[str] | None,
    n: int,
    unlearned: Inspection,
) -> tuple[int, ...]:
    said = parse_classes(classes, names, n) if classes else None
    path = unlearned.path
    recorded = manifest.forgotten if manifest is not None else unlearned.unlearned or None
    if manifest is not None and manifest.classes != n:
        raise ManifestError(
            explain(
                f"{path} was not made from the original.",
                received=f"{manifest.classes} classes, the original has {n}",
                valid="versions of one model",
            )
        )
    if said is not None and recorded is not None and said != recorded:
        raise ForgetListError(
            explain(
                f"{path} forgets other classes than were named.",
                received=", ".join(map(str, said)),
                valid=", ".join(map(str, recorded)),
                hint="Leave --classes away: the version knows them.",
            )
        )
    forgotten = recorded if recorded is not None else said
    if forgotten is None:
        raise ForgetListError(
            explain(
                f"Nothing says which classes {path} forgets.",
                received="a version without our manifest",
                hint="Name them with --classes.",
            )
        )
    if len(forgotten) == n:
        raise ForgetListError(explain("All classes are forgotten; none is left to answer.", received=len(forgotten)))
    return forgotten


def _checked(candidates: Mapping[str, Model] | None) -> Mapping[str, Model]:
    given = candidates or {}
    taken = {UNFILTERED, UNLEARNED, RETRAINED, SECOND, *baselines.NAMES}
    for name in given:
        if name in taken or not name.strip():
            raise DataError(
                explain(
                    "A candidate needs a name of its own.",
                    received=repr(name),
                    valid=f"any other than {', '.join(sorted(taken))}",
                )
            )
    return given


def _check_retrained(answered: Mapping[str, Answered]) -> None:
    """Refuse models that stand for a retrained one and are none."""
    for name, others in {RETRAINED: (UNFILTERED, UNLEARNED), SECOND: (UNFILTERED, UNLEARNED, RETRAINED)}.items():
        for other in others:
            if name in answered and other in answered and np.array_equal(answered[name].test, answered[other].test):
                raise DataError(
                    explain(
                        f"The {name.replace('_', ' ')} model answers every example exactly as the {other} one.",
                        received="the same model, or the same answers, twice",
                        valid="a model that was trained on its own, without the forgotten classes",
                    )
                )


def _described(version: Inspection) -> dict[str, Any]:
    """What the report says about a version, in the words of its manifest, if it has one."""
    manifest = read_manifest(version.path)
    return {
        "path": str(version.path),
        "version": version.version,
        "saved_model_sha256": model_digest(version.path),
        "created": None if manifest is None else manifest.created,
        "method": None if manifest is None else manifest.method,
        "temperature": None if manifest is None else manifest.temperature,
        "unlearned_in_weights": list(version.unlearned),
        "changed": [] if manifest is None else manifest.mismatches(version.path),
        "answers": False,
    }


def _lineage(manifest: Manifest | None, sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is odd about the versions, one sentence each."""
    odd = [f"{sources[UNLEARNED]['path']}: {problem}." for problem in sources[UNLEARNED]["changed"]]
    if manifest is not None:
        steps = [*manifest.history, manifest.step()]
        made_from = {step["source"]["saved_model_sha256"] for step in steps if "source" in step}
        # Between the original and a filter on unlearned weights lies a training: that is no oddity.
        in_weights = sources[UNLEARNED]["unlearned_in_weights"]
        if not in_weights and sources[UNFILTERED]["saved_model_sha256"] not in made_from:
            odd.append(
                "By its manifest, the unlearned version was not made from this original: differences between the two "
                "need not come from the filter."
            )
    return odd


# ---------------------------------------------------------------------------------------------------------- the data
def _examples(data: Model, train_data: Model | None, n: int) -> tuple[Examples, Examples | None]:
    test, train = asking.read_examples(data)
    if train_data is not None:
        first, second = asking.read_examples(train_data)
        train = second if second is not None else first
    if test is None:
        raise DataError(
            explain(f"{data} holds training examples only.", received="x_train, y_train", valid="x_test and y_test")
        )
    for part in (test, train):
        if part is not None:
            asking.check_labels(part, n)
    if train is not None:
        per_class = max(1, min(TRAIN_ROWS, MOST_TRAIN_ROWS // n))
        order = np.concatenate([np.flatnonzero(train.y == c)[:per_class] for c in range(n)])
        train = train.take(np.sort(order))
    return test, train


def _class_means(
    given: ClassMeans | None, test: Examples, train: Examples | None, answered: Answered
) -> tuple[ClassMeans, Floats | None, str, str | None]:
    """Return class means, those of logits, where they come from, and a warning."""
    if train is not None and answered.train is not None:
        p, y, source, warning = answered.train, train.y, train.file, None
    else:
        p, y, source = answered.test, test.y, test.file
        warning = (
            "Class means were taken from the test examples, for want of training examples: mean, gram_schmidt and "
            "linear_filtration look better here than they are."
        )
    n = p.shape[1]
    logit_means = baselines.logit_class_means(p, y, n) if len(np.unique(y)) == n else None
    if given is not None:
        return given, logit_means, given.source, warning
    return ClassMeans.from_outputs(p, y, source=source), logit_means, source, warning


# ---------------------------------------------------------------------------------------------------------- judging
def _judged(
    n: int,
    forgotten: tuple[int, ...],
    manifest: Manifest | None,
    names: Sequence[str] | None,
    test: Examples,
    train: Examples | None,
    answered: Mapping[str, Answered],
    sources: Mapping[str, dict[str, Any]],
    class_means: ClassMeans | None,
    odd: list[str],
) -> dict[str, Any]:
    means, logit_means, means_source, means_warning = _class_means(class_means, test, train, answered[UNFILTERED])
    rules, left_out = baselines.baseline_rules(n, forgotten, means, logit_means)
    reference, second, floor = None, None, None
    if RETRAINED in answered:
        reference = asking.over_retained(answered[RETRAINED].test, forgotten)
    original = answered[UNFILTERED]
    judge = Judge(n, forgotten, test, train, original.test, reference)
    if reference is not None and SECOND in answered:
        second = asking.over_retained(answered[SECOND].test, forgotten)
        floor = {
            "retained": judge.distance(second, reference, judge.kept),
            "forgotten": judge.distance(second, reference, judge.gone),
        }
    candidates = [name for name in answered if name not in (UNFILTERED, UNLEARNED, RETRAINED, SECOND)]
    judged, histograms = {}, {}
    for name in (UNLEARNED, *rules, *candidates, RETRAINED):
        if name in rules:  # made when its turn comes: of large test sets, one baseline at a time fits into memory
            p, p_train = rules[name](original.test), None if original.train is None else rules[name](original.train)
        elif name in answered:
            p, p_train = answered[name].test, answered[name].train
        else:
            continue
        judged[name] = judge.judge(p, p_train, name in DRAWN)
        if name in DRAWN:
            histograms[name] = judge.histograms(p)
    evaluation = {
        "format": FORMAT,
        "mpru_tf": mpru_tf.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "original": sources[UNFILTERED],
        "unlearned": sources[UNLEARNED],
        "retrained": sources.get(RETRAINED),
        "second_retrained": sources.get(SECOND),
        "data": {
            "file": test.file,
            "test": len(test),
            "train_file": None if train is None else train.file,
            "train": 0 if train is None else len(train),
            "per_class": np.bincount(test.y, minlength=n).tolist(),
            "class_means": means_source,
        },
        "classes": n,
        "labels": _shown_labels(names, manifest, forgotten),
        "forgotten": list(forgotten),
        "redacted": manifest is not None and manifest.redacted,
        "method": manifest.method if manifest is not None else None,
        "temperature": manifest.temperature if manifest is not None else None,
        "answers": judged,
        "floor": floor,
        "retrained_mass_on_forgotten": (
            float(answered[RETRAINED].test[:, list(forgotten)].sum(axis=1).mean()) if RETRAINED in answered else None
        ),
        "mean_confidence_histograms": {
            "edges": np.linspace(0, 1, BINS + 1).tolist(),
            **{name: histograms[name] for name in DRAWN if name in histograms},
        },
        "seconds": {name: one.seconds for name, one in answered.items()},
        "left_out": dict(left_out),
    }
    evaluation["limits"] = limits(evaluation, manifest is not None, means_warning, odd)
    return {key: _plain(value) for key, value in evaluation.items()}


# ---------------------------------------------------------------------------------------------------------- words
def _shown_labels(
    names: Sequence[str] | None, manifest: Manifest | None, forgotten: Sequence[int]
) -> list[str | None] | None:
    """The labels that may be shown: redacted ones are None, however the original calls these classes."""
    recorded: dict[int, str | None] = {}
    if manifest is not None and manifest.redacted:
        recorded = dict.fromkeys(forgotten)
    elif manifest is not None and manifest.labels is not None:
        recorded = dict(zip(forgotten, manifest.labels, strict=True))
    n = manifest.classes if manifest is not None else len(names or ())
    if names is None and not any(recorded.values()):
        return None
    shown: list[str | None] = list(names) if names is not None else [None] * n
    for index, label in recorded.items():
        shown[index] = label
    return shown


def _plain(value: Any) -> Any:
    """The value as JSON has it: lists for arrays, None for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
