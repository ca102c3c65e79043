"""The answers of a new version, held against what its filter makes of the old version's answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import MPRUError, VerificationError, explain
from mpru_tf.filters import MASK, FilterSpec, make_filter
from mpru_tf.manifest import Manifest
from mpru_tf.operations.client import Answer
from mpru_tf.operations.sampling import Request, Shown
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES

Array = npt.NDArray[np.float64]

# A server computes in float32, in batches and on devices of its own choosing.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-3
_LEAST_RETAINED = 1e-3  # below that, probabilities alone do not tell what logits would


@dataclass(frozen=True)
class Latency:
    """Seconds per request.

    Attributes:
        median: of all requests.
        slowest: of all requests.
    """

    median: float
    slowest: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Latency:
        """Of the answers to the sampled requests."""
        seconds = [answer.seconds for answer in answers]
        return cls(statistics.median(seconds), max(seconds))


@dataclass(frozen=True)
class Comparison:
    """What asking two versions the same showed.

    Attributes:
        requests: how many were sent to each.
        rows: how many examples there were in them.
        outputs: the outputs that were looked at, as SIG:KEY.
        against: what the answers of the new version were held against, in words.
        largest_difference: from that, in probability; None if only forgotten classes and the ranking were looked at.
        old: latency of the old version, None if it could not be asked.
        new: latency of the new version.
    """

    requests: int
    rows: int
    outputs: tuple[str, ...]
    against: str
    largest_difference: float | None
    old: Latency | None
    new: Latency

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**asdict(self), "outputs": list(self.outputs)}


def compare(
    requests: Sequence[Request],
    old: Sequence[Answer] | None,
    new: Sequence[Answer],
    shown: Shown,
    before: Manifest | None,
    after: Manifest | None,
    class_means: ClassMeans | None = None,
) -> Comparison:
    """Compare the answers of two versions to the same requests.

    Forgotten classes must have probability exactly 0. What is retained must be as the filter makes it of the old
    answers, where those are unfiltered and the filter is known (methods without class means, or with them at hand);
    the same, where both versions carry one filter; else the retained class that the new version ranks first must be
    the one that the old one ranks first. A version without a filter may be of another training: it only has to answer.

    Args:
        requests: what was asked.
        old: the old version's answers; None if it could not be asked.
        new: the new version's answers.
        shown: the outputs with the class scores.
        before: manifest of the old version.
        after: manifest of the new version.
        class_means: those that the filter was made with.

    Raises:
        VerificationError: an answer is wrong.
    """
    forgotten = after.forgotten if after is not None else ()
    spec, against = _reference(shown, before, after, class_means)
    if old is None:
        against = "no old version to compare with: only that forgotten classes answer 0"
    outputs: dict[str, None] = {}
    tolerance = _HALF_TOLERANCE if shown.is_half else _TOLERANCE
    largest: float | None = None
    for number, (request, answer) in enumerate(zip(requests, new, strict=True)):
        for key, kind in shown.kinds.get(request.signature, {}).items():
            name = f"{request.signature}:{key}"
            outputs[name] = None
            got = _probabilities(answer, key, kind, shown, name)
            theirs = got[..., list(forgotten)]
            leaked = float(np.max(theirs, initial=0.0, where=~np.isnan(theirs)))
            if leaked != 0.0:
                raise _wrong(name, f"a forgotten class has probability {leaked:g}", "exactly 0")
            if old is None or spec == "nothing":
                continue
            expected = _probabilities(old[number], key, kind, shown, name)
            raw = _rows(old[number], key, shown, name)
            if spec == "same":
                difference = _distance(got, expected, np.ones(got.shape[:-1], np.bool_))
            elif isinstance(spec, FilterSpec):
                settled = expected[..., list(spec.retained)].sum(axis=-1) > _LEAST_RETAINED
                filtered = (
                    _softmax(spec.logits(raw), shown.multi_label) if kind == LOGITS else spec.probabilities(expected)
                )
                difference = _distance(got, filtered, settled | (spec.method == MASK))
            else:
                _check_ranking(got, expected, forgotten, tolerance, name)
                continue
            if not difference <= tolerance:  # NaN is not
                raise _wrong(name, f"an answer differs by {difference:g} from {against}", f"at most {tolerance:g}")
            largest = max(largest or 0.0, difference)
    return Comparison(
        requests=len(requests),
        rows=sum(request.rows for request in requests),
        outputs=tuple(outputs),
        against=against,
        largest_difference=largest,
        old=None if old is None else Latency.of(old),
        new=Latency.of(new),
    )


def _reference(
    shown: Shown, before: Manifest | None, after: Manifest | None, class_means: ClassMeans | None
) -> tuple[FilterSpec | str, str]:
    """What new answers must be: what a filter makes of the old ones, the 'same', in one 'order', or 'nothing'."""
    if after is None:
        return "nothing", "nothing, as it carries no filter"
    if before is not None and before.constants_sha256 == after.constants_sha256:
        return "same", "the old version's answers"
    spec = _spec(shown, after, class_means)
    if spec is None:
        return "order", "the old version's ranking (the class means of the filter are not at hand)"
    if before is None or {before.method, after.method} <= {MASK, "renormalize"}:
        # These two forget one class after another as they forget both at once.
        return spec, f"what the filter ({spec.method}) makes of the old version's answers"
    return "order", "the old version's ranking (its own filter cannot be taken out of its answers)"


def _spec(shown: Shown, after: Manifest, class_means: ClassMeans | None) -> FilterSpec | None:
    """The filter as the manifest describes it, if it is the one whose constants have the recorded digest."""
    for means in (class_means, None):
        try:
            temperature = {} if after.temperature is None else {"temperature": after.temperature}
            spec = make_filter(shown.classes, after.forgotten, after.method, class_means=means, **temperature)
        except MPRUError:  # a method that needs class means
            continue
        if spec.digest() == after.constants_sha256:
            return spec
    return None


def _rows(answer: Answer, key: str, shown: Shown, name: str) -> npt.NDArray[Any]:
    """An output as rows of n numbers."""
    values = np.asarray(answer.outputs.get(key, np.zeros(0)))
    if values.ndim == 1 and values.size > shown.classes and values.size % shown.classes == 0:
        values = values.reshape(-1, shown.classes)
    if not values.ndim or values.shape[-1] != shown.classes:
        raise _wrong(name, f"version {answer.version} answers shape {list(values.shape)}", f"[..., {shown.classes}]")
    return values


def _probabilities(answer: Answer, key: str, kind: str, shown: Shown, name: str) -> Array:
    values = _rows(answer, key, shown, name)
    if kind == PROBABILITIES:
        return np.asarray(values, np.float64)
    if kind == LOGITS:
        return _softmax(values, shown.multi_label)
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(values, np.float64))


def _softmax(values: npt.NDArray[Any], multi_label: bool) -> Array:
    z = np.asarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if multi_label:
            return np.asarray(1.0 / (1.0 + np.exp(-z)))
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _distance(got: Array, expected: Array, settled: npt.NDArray[np.bool_]) -> float:
    whole = settled & ~np.isnan(expected).any(axis=-1)
    return float(np.max(np.abs(got - expected)[whole], initial=0.0))


def _check_ranking(got: Array, old: Array, forgotten: Sequence[int], tolerance: float, name: str) -> None:
    retained = np.setdiff1d(np.arange(got.shape[-1]), forgotten)
    kept, was = got[..., retained], old[..., retained]
    first = np.take_along_axis(was, kept.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    whole = ~np.isnan(was).any(axis=-1)
    behind = float(np.max(was.max(axis=-1) - first, initial=0.0, where=whole))
    if np.isnan(kept[whole]).any():
        raise _wrong(name, "NaN where the old version answered numbers", "numbers")
    if behind > tolerance:
        raise _wrong(
            name,
            f"the first of the retained classes was {behind:g} behind the first one before",
            "the same first class",
        )


def _wrong(name: str, received: str, valid: str) -> VerificationError:
    return VerificationError(explain(f"The new version answers wrongly at {name}.", received=received, valid=valid))


def load_means(path: str | Path | None) -> ClassMeans | None:
    """Class means from a file, if one is named."""
    return None if path is None else ClassMeans.load(path)
