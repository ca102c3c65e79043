"""What runs a model, in the worker: load it, make up requests, look at its answers, compare them with the reference.

The load uses the C++ loader and executor of TensorFlow Serving in a Session, because the Python loader accepts models
that a server cannot answer from. Called through :func:`mpru_tf.worker.ask`, by :mod:`mpru_tf.verification`; each job
tells its first argument what it is about to do, so that the parent knows what it was that did not come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf import probes
from mpru_tf.errors import (
    CorruptModelError,
    ModelNotFoundError,
    MPRUError,
    UnsupportedModelError,
    VerificationError,
    explain,
)
from mpru_tf.filters import MASK
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.graph import Graph
from mpru_tf.warmup_replay import Replay, warm_up
from mpru_tf.worker import ASKING, LOADING, Report

if TYPE_CHECKING:
    from mpru_tf.filters import FilterSpec
    from mpru_tf.saved_model.score_site import ScoreSite
    from mpru_tf.saved_model.session import LoadedModel
    from mpru_tf.saved_model.splice import Splice

    Values = dict[str, npt.NDArray[Any]]

NEW, SOURCE = "the new version", "the source version"
"""What a step is about."""

# float32 arithmetic in another order than the reference's; float16 rows sum to one only as well as float16 can.
_TOLERANCE = 1e-4
_SUM_TOLERANCE = 5e-3
_ROWS = 16  # made-up rows of each kind that a filter alone is tried on


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        passed: True or False; None if it could not be looked at.
        detail: what was seen, or why not, one sentence.
    """

    name: str
    passed: bool | None
    detail: str


# ---------------------------------------------------------------------------------------------------------------- jobs
def compare(
    report: Report,
    staged: Path,
    source: Path | None,
    site: ScoreSite,
    spec: FilterSpec,
    replay: Replay | None = None,
) -> dict[str, Any]:
    """Load a staged version, ask it, hold its answers against the reference and the source's, and warm it up.

    Returns and raises as :func:`mpru_tf.verification.check_before_publishing` does.
    """
    with _load(report, staged, NEW) as loaded:
        if isinstance(loaded, Check):
            if loaded.passed is None:
                return {"status": "skipped", "detail": loaded.detail}
            raise _does_not_load(report, loaded, source)
        found = _asked(report, loaded, source, site, spec)
        return found if replay is None else {**found, "warmup": warm_up(report, NEW, loaded, staged, replay)}


def try_source(report: Report, source: Path, site: ScoreSite) -> None:
    """Load and ask the source version, only to see whether it survives that."""
    with _load(report, source, SOURCE) as original:
        if not isinstance(original, Check):
            for name, keys in _shown(site, original).items():
                _first_answer(report, original, SOURCE, name, keys)


def answers(
    report: Report, directory: Path, site: ScoreSite, forgotten: tuple[int, ...], multi_label: bool
) -> list[dict[str, Any]]:
    """Load a published version and look at every output that shows the class scores; one `Check` each, as a dict."""
    with _load(report, directory, "the version") as loaded:
        if isinstance(loaded, Check):
            return [asdict(loaded)]
        shown = _shown(site, loaded).items()
        asked = {name: _first_answer(report, loaded, "the version", name, keys) for name, keys in shown}
        checks = [Check("load", True, "a Session loads it"), *_judged(asked, site, forgotten, multi_label)]
    return [asdict(check) for check in checks]


def filters(report: Report, cut_out: list[tuple[bytes, Splice]], forgotten: tuple[int, ...], multi_label: bool) -> str:
    """Run filters alone on class scores made up here; what is wrong with an answer, or ''.

    Args:
        report: called before each filter runs.
        cut_out: GraphDefs as :func:`mpru_tf.saved_model.splice.filter_alone` cuts them out, and where they lay.
        forgotten: the classes that must come out with nothing.
        multi_label: whether rows need not sum to one.

    Raises:
        VerificationError: a GraphDef is no filter.
    """
    for definition, done in cut_out:
        report(ASKING, "the filter")
        answer = _run_filter(definition, done, forgotten, multi_label)
        wrong = _wrong(answer, done.kind, forgotten, done.classes, multi_label)
        if wrong:
            return wrong
    return ""


JOBS: dict[str, Callable[..., object]] = {job.__name__: job for job in (compare, try_source, answers, filters)}


# --------------------------------------------------------------------------------------------------- loading and asking
@contextmanager
def _load(report: Report, directory: Path, about: str) -> Iterator[LoadedModel | Check]:
    """A loaded model, or the check that says why there is none."""
    from mpru_tf.saved_model.session import LoadedModel

    report(LOADING, about)
    loaded: LoadedModel | None = None
    try:
        loaded = LoadedModel(directory, _tags(directory))
    except (UnsupportedModelError, ModelNotFoundError) as error:  # the latter: in a form that the loader does not read
        passed, said = None, f"not loaded here: {error}"
    except CorruptModelError as error:
        passed, said = False, str(error)
    if loaded is None:  # a staged version has a name for minutes only
        yield Check("load", passed, said.replace(str(directory), about))
        return
    with loaded:
        yield loaded


def _tags(directory: Path) -> list[str]:
    """The tag set to load: that of servers by default, or else of the first MetaGraph that is for serving at all."""
    sets = [list(meta_graph.meta_info_def.tags) for meta_graph in bundles.read(directory).meta_graphs]
    return min(sets, key=lambda tags: (tags != ["serve"], "serve" not in tags))


def _asked(
    report: Report, loaded: LoadedModel, source: Path | None, site: ScoreSite, spec: FilterSpec
) -> dict[str, Any]:
    """Ask a loaded version, and hold its answers against the reference and the source's."""
    asked = {name: _first_answer(report, loaded, NEW, name, keys) for name, keys in _shown(site, loaded).items()}
    for answer in asked.values():
        for values in answer[1].values() if not isinstance(answer, str) else ():
            _check_width(values, site)
    checks = _judged(asked, site, spec.forgotten, spec.method == MASK)
    failed = [check for check in checks if check.passed is False]
    if failed:
        raise VerificationError(
            explain(
                "The re-exported version answers wrongly; it was not published.",
                received="; ".join(check.detail for check in failed),
                hint="Please report this model: the graph was read wrongly.",
            )
        )
    unasked = all(check.passed is None for check in checks)
    skipped = {"status": "skipped", "detail": "it loads; " + "; ".join(check.detail for check in checks)}
    if source is None:
        passed = {"status": "passed", "detail": "it loads, and no forgotten class gets any probability"}
        return skipped if unasked else passed
    with _load(report, source, SOURCE) as original:
        if isinstance(original, Check):
            passed = {"status": "passed", "detail": "it loads and answers; the source could not be compared"}
            return skipped if unasked else passed
        for name, answer in asked.items():
            if isinstance(answer, str):
                _check_source_fails_too(report, original, name, _shown(site, loaded)[name], site, answer)
        return skipped if unasked else _compared(report, asked, original, site, spec)


def _does_not_load(report: Report, found: Check, source: Path | None) -> MPRUError:
    """Tell a model that never loaded from one that the re-export broke."""
    if source is not None:
        with _load(report, source, SOURCE) as original:
            if isinstance(original, Check):
                return source_is_broken("does not load, so neither would", original.detail)
    return VerificationError(
        explain("The re-exported version does not load; it was not published.", received=found.detail)
    )


def source_is_broken(how: str, detail: str) -> CorruptModelError:
    """The refusal of a model that was broken before anything was done to it."""
    return CorruptModelError(
        explain(
            f"The source version {how} a version made from it.",
            received=detail,
            hint="Export the model again, or look whether its files are complete.",
        )
    )


def _shown(site: ScoreSite, loaded: LoadedModel) -> dict[str, list[str]]:
    """Signature -> keys of its outputs that show all class scores."""
    shown: dict[str, list[str]] = {}
    for name, signature in sorted(loaded.signatures.items()):
        for key in sorted(signature.outputs):
            if site.output_kinds.get(f"{name}:{key}", "derived") != "derived":
                shown.setdefault(name, []).append(key)
    return shown


def _first_answer(
    report: Report, loaded: LoadedModel, about: str, name: str, keys: list[str]
) -> tuple[Values, Values] | str:
    """The first made-up request to which a signature answers numbers, with its answer; or why there is none."""
    import tensorflow as tf

    reason = "no request could be made up"
    answered: tuple[Values, Values] | None = None
    for request in probes.requests(loaded.signatures[name], Graph(loaded.meta_graph)):
        report(ASKING, f"{about} ({name})")
        try:
            values = loaded.run(name, request, keys)
        except (tf.errors.OpError, MPRUError, ValueError) as error:
            lines = str(error).strip().splitlines()
            reason = f"no valid request could be made up ({lines[0] if lines else type(error).__name__})"
            continue
        if all(_tells_something(value) for value in values.values()):
            return request, values
        answered = answered or (request, values)
    return answered or reason


def _tells_something(values: npt.NDArray[Any]) -> bool:
    """Whether any row is free of NaN."""
    x = np.asarray(values, np.float64)
    return bool(x.ndim and np.any(~np.isnan(x).any(axis=-1)))


# ---------------------------------------------------------------------------------------------------- judging answers
def _judged(
    asked: dict[str, tuple[Values, Values] | str], site: ScoreSite, forgotten: tuple[int, ...], multi_label: bool
) -> list[Check]:
    """A check of each output that shows the class scores."""
    checks = []
    for name, answer in asked.items():
        if isinstance(answer, str):
            checks.append(Check(f"answers of {name}", None, answer))
            continue
        for key, values in answer[1].items():
            wrong = _wrong(
                _in_rows(values, site.classes), site.output_kinds[f"{name}:{key}"], forgotten, site.classes, multi_label
            )
            right = "forgotten probability exactly 0" + ("" if multi_label else ", rows sum to 1")
            checks.append(Check(f"answers of {name}:{key}", not wrong, wrong or right))
    return checks or [Check("answers", None, "no output shows the class scores as such")]


def _wrong(
    values: npt.NDArray[Any], kind: str, forgotten: tuple[int, ...], classes: int, multi_label: bool = False
) -> str:
    """What is wrong with an output, or ''."""
    width = _width(values)
    if width != classes:
        return f"the class scores are {width} wide, not {classes}"
    p = _as_probabilities(values, kind, multi_label)
    # Probabilities of a forgotten class are 0 also in a row that holds a NaN, unless a Softmax behind the filter has
    # made NaN of all of them; of logits, such a row tells nothing.
    rows = p[~np.isnan(p).any(axis=-1)]
    theirs = (p if kind == PROBABILITIES or multi_label else rows)[..., list(forgotten)]
    largest = float(np.max(theirs, initial=0.0, where=~np.isnan(theirs)))
    if largest != 0.0:
        return f"a forgotten class still gets probability {largest:g}"
    if multi_label:
        outside = rows[(rows < 0.0) | (rows > 1.0 + _SUM_TOLERANCE)]
        return f"{outside[0]:g} is no probability" if outside.size else ""
    worst = float(np.max(np.abs(rows.sum(axis=-1) - 1.0), initial=0.0))
    return f"a row sums to one only within {worst:g}" if worst > _SUM_TOLERANCE else ""


def _in_rows(values: npt.NDArray[Any], classes: int) -> npt.NDArray[Any]:
    """Class scores of a whole batch that leave the model in one long row, as rows of n again."""
    is_long = values.ndim == 1 and values.size > classes and values.size % classes == 0
    return values.reshape(-1, classes) if is_long else values


def _width(values: npt.NDArray[Any]) -> int:
    return int(values.shape[-1]) if values.ndim else 1


def _as_probabilities(values: npt.NDArray[Any], kind: str, multi_label: bool) -> npt.NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if kind == PROBABILITIES:
        return x
    with np.errstate(invalid="ignore", over="ignore"):
        if multi_label:
            return np.asarray(1.0 / (1.0 + np.exp(-x)) if kind == LOGITS else np.exp(x), np.float64)
        e = np.exp(x - np.max(x, axis=-1, keepdims=True, initial=-np.inf))
        return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float64)


def _run_filter(definition: bytes, done: Splice, forgotten: tuple[int, ...], multi_label: bool) -> npt.NDArray[Any]:
    """What one filter answers to random rows and to rows sure of a forgotten class."""
    import tensorflow as tf

    z = np.random.default_rng(0).normal(0.0, 3.0, (2 * _ROWS, done.classes))
    z[np.arange(_ROWS), np.resize(forgotten, _ROWS)] += 12.0
    x = z if done.kind == LOGITS else _as_probabilities(z, LOGITS, multi_label)
    try:
        with tf.Graph().as_default() as alone, tf.compat.v1.Session() as session:
            tf.graph_util.import_graph_def(tf.compat.v1.GraphDef.FromString(definition), name="")
            raw = alone.get_tensor_by_name("raw:0")
            answer = session.run(f"{done.prefix}/filtered:0", {raw: x.astype(raw.dtype.as_numpy_dtype)})
    except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
        lines = str(error).strip().splitlines()
        raise VerificationError(lines[0] if lines else type(error).__name__) from error
    return np.asarray(answer)


# ------------------------------------------------------------------------------------------- against the source version
def _check_source_fails_too(
    report: Report, original: LoadedModel, name: str, keys: list[str], site: ScoreSite, reason: str
) -> None:
    """A signature that answers no made-up request any more, though it did before the re-export, is broken.

    Raises:
        UnsupportedModelError: because the filter is for another number of classes than the model has.
        VerificationError: for another reason.
    """
    answer = _first_answer(report, original, SOURCE, name, keys)
    if isinstance(answer, str):
        return
    for values in answer[1].values():
        _check_width(values, site)
    raise VerificationError(
        explain(
            f"The re-exported version fails a request of signature {name!r} that the source version answers; it was "
            "not published.",
            received=reason,
            hint="Please report this model: the graph was read wrongly.",
        )
    )


def _check_width(values: npt.NDArray[Any], site: ScoreSite) -> None:
    if _width(_in_rows(values, site.classes)) != site.classes:
        raise UnsupportedModelError(
            explain(
                f"The class scores are {_width(values)} wide, not {site.classes}.",
                received=f"an answer of shape {list(values.shape)}",
                valid=f"class scores whose last axis is {site.classes} long",
                hint="Say how many classes there are with --num-classes, or name their scores with --output or --site.",
            )
        )


def _compared(
    report: Report,
    asked: dict[str, tuple[Values, Values] | str],
    original: LoadedModel,
    site: ScoreSite,
    spec: FilterSpec,
) -> dict[str, Any]:
    """Ask the source the same and hold the answers against what the reference makes of it."""
    largest, requests = 0.0, 0
    random: list[str] = []
    unnormalised: list[str] = []
    for name, answer in asked.items():
        if isinstance(answer, str):
            continue
        request, filtered = answer
        report(ASKING, f"{SOURCE} ({name})")
        raw = original.run(name, request, list(filtered))
        requests += 1
        for key, values in filtered.items():
            output, kind = f"{name}:{key}", site.output_kinds[f"{name}:{key}"]
            _check_width(raw[key], site)
            before, after = _in_rows(raw[key], site.classes), _in_rows(values, site.classes)
            difference = _difference(after, before, kind, output, spec)
            if kind == PROBABILITIES and spec.method != MASK and not _are_probabilities(before, False):
                unnormalised.append(output)
            tolerance = _SUM_TOLERANCE if site.is_half or raw[key].dtype.itemsize < 4 else _TOLERANCE
            if not difference <= tolerance:  # NaN is not
                again = _in_rows(original.run(name, request, [key])[key], site.classes)
                if not np.allclose(again, before, atol=tolerance, equal_nan=True):
                    random.append(output)
                    continue
                raise VerificationError(
                    explain(
                        "The re-exported version's answers differ from the reference; it was not published.",
                        received=f"a difference of {difference:g} at {output}",
                        valid=f"at most {tolerance:g}",
                        hint="Please report this model: the graph was read wrongly.",
                    )
                )
            largest = max(largest, difference)
    detail = "it loads, and its answers are the reference's"
    if random:
        detail = (
            "it loads, and no forgotten class gets any probability; the source does not answer the same twice at "
            f"{', '.join(random)}, so the rest could not be compared there"
        )
    if unnormalised:
        detail += f"; rows of {', '.join(unnormalised)} summed to other numbers than 1 before, and sum to 1 now"
    return {
        "status": "passed",
        "detail": detail,
        "requests": requests,
        "largest_difference": largest,
    }


def _difference(filtered: npt.NDArray[Any], raw: npt.NDArray[Any], kind: str, output: str, spec: FilterSpec) -> float:
    """The largest difference from the reference, in probability."""
    multi_label = spec.method == MASK
    before = np.asarray(raw, np.float64)
    if kind == LOGITS and _are_probabilities(before, multi_label):
        raise _not_logits(output, multi_label)
    p = _as_probabilities(before, kind, multi_label)
    expected = _as_probabilities(spec.logits(before), LOGITS, multi_label) if kind == LOGITS else spec.probabilities(p)
    # Where hardly any probability was retained, probabilities alone do not tell what logits would.
    retained = np.sum(p[..., list(spec.retained)], axis=-1)
    settled = ~np.isnan(p).any(axis=-1) if multi_label else retained > 1e-3
    got = _as_probabilities(filtered, kind, multi_label)
    return float(np.max(np.abs(got - expected)[settled], initial=0.0))


def _are_probabilities(rows: npt.NDArray[np.float64], multi_label: bool) -> bool:
    if multi_label:  # numbers that are all 0 are those of a layer that was never trained
        return bool(np.all((rows >= 0) & (rows <= 1)) and np.any(rows > 0))
    return bool(np.all(rows >= 0) and np.allclose(rows.sum(axis=-1), 1.0, atol=_SUM_TOLERANCE))


def _not_logits(output: str, multi_label: bool) -> UnsupportedModelError:
    if multi_label:
        return UnsupportedModelError(
            explain(
                f"What {output} answers is taken for logits, since no Sigmoid makes it, but it looks like "
                "probabilities.",
                received="no number below 0 or above 1",
                valid="logits, or probabilities that a Sigmoid makes",
                hint="If they are probabilities, say so with --scores probabilities.",
            )
        )
    return UnsupportedModelError(
        explain(
            f"What {output} answers is taken for logits, since no Softmax makes it, but the rows are probabilities.",
            received="rows without negative numbers that sum to 1",
            valid="logits, or probabilities that a Softmax or a division by their own sum makes",
            hint="If they are probabilities, say so with --scores probabilities.",
        )
    )
