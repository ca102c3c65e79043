"""Publish a model that has unlearned classes as the next version of a base path, with a filter on top if asked for."""

from __future__ import annotations

import copy
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, LabelsError, ModelError, PublishError, VerificationError, explain
from mpru_tf.labels import write_labels
from mpru_tf.lineage import check_nothing_comes_back
from mpru_tf.manifest import read_manifest
from mpru_tf.unlearning.record import write_record
from mpru_tf.versions import publish, staged, target_base_path

if TYPE_CHECKING:
    from mpru_tf.reexport import ForgetResult
    from mpru_tf.unlearning.unsir import UnsirResult

FILTERS = ("tempered", "renormalize")
"""Methods of the filter that fit on top: the others project along the mean answer to a class that is not answered."""

_LEAST_KEPT = 0.8  # of the accuracy on retained classes; what loses more is no model that somebody wants served
_HARDLY_FORGOTTEN = 0.1

# How far answers may be apart, as a share of the largest score, by what the model computes with: a Session rounds to 16
# bits at other places than Keras.
_TOLERANCES = {"bfloat16": 0.05, "float16": 0.01}
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Published:
    """Where an unlearned model went.

    Attributes:
        version: its servable version.
        path: its version directory.
        filtered: what forgetting on top did; None where there is no filter, and the classes may still be answered.
        largest_difference: between the answers of the version in a Session and of the Keras model.
        seconds: time of exporting, filtering, checking and publishing.
    """

    version: int
    path: Path
    filtered: ForgetResult | None
    largest_difference: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "version": self.version,
            "path": str(self.path),
            "filtered": None if self.filtered is None else self.filtered.to_dict(),
            "largest_difference": self.largest_difference,
            "seconds": self.seconds,
        }


def publish_unlearned(
    result: UnsirResult,
    into: str | os.PathLike[str],
    examples: npt.ArrayLike,
    *,
    labels: Sequence[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    then_filter: str | None = None,
    temperature: float | None = None,
    redact_labels: bool = False,
) -> Published:
    """Publish what :func:`mpru_tf.unsir` made as the next version of a base path.

    The version carries a record of what was unlearned (:mod:`mpru_tf.unlearning.record`). With ``then_filter`` it is
    made by :func:`mpru_tf.forget` and has a manifest, a passed leak gate and a passed load check; the unfiltered one
    is not published at all. Without, it has no manifest, because nothing holds an answer back.

    Args:
        result: the model and what is known of it.
        into: base path; made if missing.
        examples: a few inputs [N, ...], N >= 1, to compare the version's answers with the model's on.
        labels: one per class; they stay with the version.
        source: the file that the model was loaded from.
        then_filter: 'tempered' or 'renormalize'.
        temperature, redact_labels: as of :func:`mpru_tf.forget`.

    Returns:
        A :class:`Published`.

    Raises:
        DataError: the filter is no such one, or the examples are none for the model.
        ForgetListError: the newest version in ``into`` forgets a class that the new one may answer, or has unlearned
            one that the new one has not.
        LabelsError: the labels do not fit the model.
        VerificationError: the version answers otherwise than the model. Nothing was published.
        PublishError: it could not be written.
        MPRUError: what :func:`mpru_tf.forget` raises.
    """
    started = time.perf_counter()
    check_filter(then_filter, temperature, redact_labels)
    base = target_base_path(into)
    if labels is not None and len(labels) != result.classes:
        raise LabelsError(
            explain("The labels do not fit the model.", received=f"{len(labels)} labels for {result.classes} classes")
        )
    check_classes_stay_gone(base, result.forgotten, then_filter)
    inputs, wanted = np.asarray(examples), tuple(result.model.inputs[0].shape)
    fits = inputs.ndim == len(wanted) and all(b in (None, a) for a, b in zip(inputs.shape[1:], wanted[1:], strict=True))
    if not fits or not len(inputs):
        raise DataError(
            explain("The examples do not fit the model.", received=f"{inputs.shape}", valid=f"[N, *{list(wanted[1:])}]")
        )
    origin = None if source is None else Path(source).absolute()
    with staged(base) as staging:
        directory = staging / "unlearned"
        result.model.export(str(directory), verbose=False)
        if labels is not None:
            write_labels(directory, labels)
        told = None if origin is None else {"path": _shown(origin, redact_labels), "sha256": _digest(origin)}
        write_record(directory, result.to_dict(), told)
        difference = _compare(directory, result, inputs)
        filtered = None
        if then_filter is not None:
            from mpru_tf.reexport import forget

            filtered = forget(
                directory,
                [f"index:{index}" for index in result.forgotten],
                method=then_filter,
                temperature=temperature,
                into=staging / "filtered",
                redact_labels=redact_labels,
                copy=True,  # what it would share bytes with is about to go, and was never made durable
            )
            directory = filtered.path
            _name_source(directory, _shown(origin, redact_labels) if origin is not None else "a model in memory")
        version = publish(directory, base)
    path = base / str(version)
    if filtered is not None:
        filtered = replace(filtered, version=version, path=path, source=origin or Path("a model in memory"))
    return Published(version, path, filtered, difference, time.perf_counter() - started)


def check_filter(then_filter: str | None, temperature: float | None = None, redact_labels: bool = False) -> None:
    """Refuse what does not fit together before anything is trained.

    Raises:
        DataError: there is no such filter on top, or its options come without it.
    """
    if then_filter not in (None, *FILTERS):
        raise DataError(
            explain(
                "There is no such filter on top of unlearned weights.",
                received=repr(then_filter),
                valid=", ".join(FILTERS),
                hint="The projecting ones need the mean answer to a class, which the weights no longer give.",
            )
        )
    if then_filter is None and (temperature is not None or redact_labels):
        raise DataError(
            explain(
                "This says how answers are filtered, but no filter is named.",
                received="a temperature" if temperature is not None else "redact labels",
                hint="Name one with --then-filter.",
            )
        )
    if temperature is not None and then_filter != "tempered":
        raise DataError(explain("Only the filter tempered has a temperature.", received=then_filter))


@contextmanager
def saved(model: Any, file: Path | None) -> Iterator[None]:
    """Save a Keras model beside its place, and move it there once the context has ended well; else, nothing is left.

    Raises:
        PublishError: there is a file by now.
    """
    if file is None:
        yield
        return
    temporary = file.with_name(f".{secrets.token_hex(8)}.keras")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            raise PublishError(explain("The Keras model would replace a file; nothing was published.", received=file))
        model.save(temporary)
        yield
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)


def check_classes_stay_gone(base: Path, forgotten: Sequence[int], then_filter: str | None) -> None:
    """Refuse to publish into a base path whose newest version has forgotten what the new one would answer.

    Args:
        base: the base path; it need not exist.
        forgotten: indices of the classes to unlearn.
        then_filter: the filter on top, if any.

    Raises:
        ForgetListError: a class would come back.
    """
    otherwise = "publish into another base path; to go on hiding them, filter"
    check_nothing_comes_back(base, forgotten if then_filter else (), otherwise, unlearned=forgotten)


def check_retained(result: UnsirResult) -> None:
    """Refuse an outcome that is not worth publishing, unless a floor was set, which is held to in training.

    Raises:
        ModelError: the accuracy on the retained classes fell below four fifths of what it was.
    """
    before, after = result.before.retained, result.after.retained
    if result.config.retained_floor is None and after < _LEAST_KEPT * before:
        raise ModelError(
            explain(
                "The model has lost too much of the classes that stay; nothing was published.",
                received=f"accuracy {after:.4f} on them, {before:.4f} before",
                valid=f"{_LEAST_KEPT * before:.4f} or more, {_LEAST_KEPT} of what it was",
                hint="Take --preset gentle if this was another, give more retained data, or say with "
                f"--retained-floor X, X below {after:.4f}, that such a model will do.",
            )
        )


def remarks(result: UnsirResult, then_filter: str | None) -> list[str]:
    """What somebody must know who publishes an outcome, one sentence each; none if all went well."""
    share = result.after.forgotten
    if share is None:
        return [
            "Whether the weights have forgotten the classes was not measured: there are no examples of them among "
            "those that accuracies were taken on."
        ]
    if share > _HARDLY_FORGOTTEN and then_filter is None:
        return [
            f"The weights still recognise the forgotten classes in {share:.0%} of their examples, and no filter is put "
            "on top."
        ]
    return []


def _compare(directory: Path, result: UnsirResult, examples: npt.NDArray[Any]) -> float:
    """Load the version as a server does, and hold its answers against the model's."""
    import keras
    import tensorflow as tf

    from mpru_tf.saved_model.session import LoadedModel

    with LoadedModel(directory) as loaded:
        signature = loaded.signatures["serving_default"]
        (given,), (shown,) = signature.inputs, signature.outputs
        x = examples.astype(tf.as_dtype(signature.inputs[given].dtype).as_numpy_dtype)
        answers = loaded.run("serving_default", {given: x})[shown].astype(np.float32)
    expected = keras.ops.convert_to_numpy(keras.ops.cast(result.model(x, training=False), "float32"))
    difference = float(np.max(np.abs(answers - expected))) if answers.shape == expected.shape else np.inf
    used = {layer.compute_dtype for layer in result.model._flatten_layers()}
    tolerance = max((_TOLERANCES.get(dtype, _TOLERANCE) for dtype in used), default=_TOLERANCE)
    if not difference <= tolerance * max(1.0, float(np.max(np.abs(expected)))):
        raise VerificationError(
            explain(
                "The exported version answers otherwise than the model; it was not published.",
                received=f"a difference of {difference:.2g}",
                valid=f"at most {tolerance} of the largest score",
            )
        )
    return difference


def _name_source(directory: Path, name: str) -> None:
    """Have the manifest say what the version was made from: the file, not the directory that only lay between."""
    manifest = read_manifest(directory)
    assert manifest is not None
    replace(manifest, source={**copy.deepcopy(manifest.source), "path": name}).write(directory)


def _shown(path: Path, redact: bool) -> str:
    # A forgotten label may stand in a file's name; which part of it is one cannot be told for sure.
    return "a file whose name is redacted" if redact else str(path)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
