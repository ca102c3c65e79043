"""Does a version directory do what its manifest says? Read it, walk it, load it, ask it.

The load uses the C++ loader and executor of TensorFlow Serving in a Session, because the Python loader accepts models
that a server cannot answer from. Loading runs the model; reading and splicing never do.
"""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf import probes
from mpru_tf.errors import (
    CorruptModelError,
    ManifestError,
    MPRUError,
    UnsupportedModelError,
    VerificationError,
    explain,
)
from mpru_tf.inspection import unfiltered_graphs
from mpru_tf.manifest import Manifest, read_manifest
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.leaks import LeakGate, refuse, score_family
from mpru_tf.saved_model.sites import ScoreSite, SitePoint, survey
from mpru_tf.saved_model.splice import Splice, filter_alone
from mpru_tf.versions import find_version

if TYPE_CHECKING:
    from mpru_tf.filters import FilterSpec
    from mpru_tf.saved_model.bundle import Bundle
    from mpru_tf.saved_model.graph import Graph
    from mpru_tf.saved_model.session import LoadedModel

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


@dataclass(frozen=True)
class Verification:
    """What verifying one version directory showed.

    Attributes:
        path: the version directory.
        forgotten: the classes that its manifest says are forgotten.
        checks: everything that was looked at, in order.
    """

    path: Path
    forgotten: tuple[int, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that could be looked at was wrong."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "path": str(self.path),
            "forgotten": list(self.forgotten),
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
        }


def verify(version_dir: str | os.PathLike[str], full: bool = False, load_check: bool = True) -> Verification:
    """Check a filtered version against its manifest, its graph and its answers.

    Args:
        version_dir: a version directory, or a base path, which stands for its newest version.
        full: also read every byte of the variables and hold each tensor against the checksum in variables.index.
        load_check: also load the version in a Session and ask it.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError: there is no readable SavedModel.
        ManifestError: it carries no manifest, so there is nothing to hold it against.
    """
    directory = find_version(version_dir).path
    manifest = read_manifest(directory)
    if manifest is None:
        raise ManifestError(
            explain(
                "This version carries no manifest, so nothing was forgotten in it by mpru_tf.",
                received=str(directory),
                valid="a version directory that `mpru-tf forget` wrote",
                hint="See what the model answers with `mpru-tf inspect`.",
            )
        )
    bundle = bundles.read(directory)
    checks = [_digests(directory, manifest), _gate(bundle, manifest), _filters(bundle, manifest)]
    if full:
        checks.append(_every_byte(directory))
    if load_check:
        checks.extend(_asked(directory, manifest))
    return Verification(directory, manifest.forgotten, tuple(checks))


def _digests(directory: Path, manifest: Manifest) -> Check:
    wrong = manifest.mismatches(directory)
    return Check("digests", not wrong, "; ".join(wrong) or "saved_model.pb and variables.index are as published")


def _gate(bundle: Bundle, manifest: Manifest) -> Check:
    """Walk the graph on disk, whatever the manifest says about it."""
    if not manifest.splices:
        return Check("leak gate", False, "the manifest names no filter")
    original = copy.deepcopy(bundle.proto)
    raw = bundles.Bundle(bundle.directory, original, bundle.sha256, True)
    try:
        unfiltered_graphs(raw, manifest)
        points = [_point(raw, done) for done in manifest.splices]
        leaks = [
            leak
            for graph, before in zip(bundle.graphs(), raw.graphs(), strict=True)
            for leak in LeakGate(
                graph, manifest.splices, score_family(before, points), manifest.allowed_outputs
            ).signature_leaks()
        ]
    except (IndexError, KeyError, AssertionError, MPRUError) as error:
        return Check("leak gate", False, f"the filter is not where the manifest says ({error})")
    if leaks:
        return Check("leak gate", False, str(refuse(leaks)))
    return Check("leak gate", True, "every output is reached only through the filter")


def _filters(bundle: Bundle, manifest: Manifest) -> Check:
    """Run the filters as they stand in the graph on class scores made up here, also when the model cannot be asked."""
    wrong = []
    for done in manifest.splices:
        try:
            answer = _run_filter(bundle.graphs()[done.meta_graph], done, manifest.forgotten)
        except (IndexError, KeyError, ValueError, MPRUError) as error:
            return Check("filter", False, f"the filter is not where the manifest says ({error})")
        wrong.append(_wrong(answer, done.kind, manifest.forgotten))
    if any(wrong):
        return Check("filter", False, next(filter(None, wrong)))
    return Check("filter", True, "run alone, it leaves the forgotten classes nothing, and rows sum to 1")


def _run_filter(graph: Graph, done: Splice, forgotten: tuple[int, ...]) -> npt.NDArray[Any]:
    """What one filter answers to random rows and to rows sure of a forgotten class."""
    import tensorflow as tf

    z = np.random.default_rng(0).normal(0.0, 3.0, (2 * _ROWS, done.classes))
    z[np.arange(_ROWS), np.resize(forgotten, _ROWS)] += 12.0
    definition = filter_alone(graph, done)
    with tf.Graph().as_default() as alone, tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(definition, name="")
        raw = alone.get_tensor_by_name("raw:0")
        x = z if done.kind == LOGITS else _as_probabilities(z, LOGITS)
        answer = session.run(f"{done.prefix}/filtered:0", {raw: x.astype(raw.dtype.as_numpy_dtype)})
    return np.asarray(answer)


def _point(raw: Bundle, done: Splice) -> SitePoint:
    tensor = raw.graphs()[done.meta_graph].scope(done.function).tensor(done.raw)
    assert tensor is not None
    return SitePoint(done.meta_graph, tensor, done.kind, done.classes, raw.graphs()[done.meta_graph].dtype(tensor) or 0)


def _every_byte(directory: Path) -> Check:
    import tensorflow as tf

    prefix = directory / "variables" / "variables"
    if not (directory / bundles.VARIABLES_INDEX).is_file():
        return Check("variables", None, "the model has no variables")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        for name in names:
            reader.get_tensor(name)  # compares the bytes with the CRC32C in the index
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        return Check("variables", False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Check("variables", True, f"{len(names)} tensors match their checksums")


def _asked(directory: Path, manifest: Manifest) -> list[Check]:
    try:
        graphs = unfiltered_graphs(bundles.read(directory), manifest)
    except ManifestError:  # the gate has said so; whoever took the filter out left the scores where they were
        graphs = bundles.read(directory).graphs()
    spliced = {(done.meta_graph, done.function, done.raw) for done in manifest.splices}
    sites = [site for site in survey(graphs).sites if not spliced.isdisjoint(_refs(graphs, site))]
    if not sites:
        return [Check("answers", None, "the class scores were not found again, so no answer can be judged")]
    with _load(directory) as loaded:
        if isinstance(loaded, Check):
            return [loaded]
        return [Check("load", True, "a Session loads it"), *_answers(loaded, sites[0], manifest.forgotten)]


def _refs(graphs: list[Graph], site: ScoreSite) -> set[tuple[int, str, str]]:
    """The site's tensors as a manifest names them."""
    places = ((point.meta_graph, point.tensor) for point in site.points)
    return {(index, tensor.scope, graphs[index].scope(tensor.scope).ref(tensor)) for index, tensor in places}


# ------------------------------------------------------------------------------------------------------- load check
def check_before_publishing(staged: Path, source: Path | None, site: ScoreSite, spec: FilterSpec) -> dict[str, Any]:
    """Load a staged version as a server would, ask it, and hold its answers against the NumPy reference.

    Args:
        staged: the complete version directory, not yet published.
        source: the unfiltered version it was made from, which is asked the same requests; None if there is none.
        site: the score site, for what each output holds.
        spec: the filter.

    Returns:
        'status' ('passed' or 'skipped') and 'detail'; 'requests' and 'largest_difference' from the reference (in
        probability) where answers were compared.

    Raises:
        VerificationError: it loads but answers wrongly, or it does not load although the source does.
    """
    with _load(staged) as loaded:
        if isinstance(loaded, Check):
            if loaded.passed is None:
                return {"status": "skipped", "detail": loaded.detail}
            raise _does_not_load(loaded, source)
        checks = _answers(loaded, site, spec.forgotten)
        failed = [check for check in checks if check.passed is False]
        if failed:
            raise VerificationError(
                explain(
                    "The re-exported version answers wrongly; it was not published.",
                    received="; ".join(check.detail for check in failed),
                    hint="Please report this model: the graph was read wrongly.",
                )
            )
        if all(check.passed is None for check in checks):
            return {"status": "skipped", "detail": "it loads; " + "; ".join(check.detail for check in checks)}
        if source is None:
            return {"status": "passed", "detail": "it loads, and no forgotten class gets any probability"}
        with _load(source) as original:
            if isinstance(original, Check):
                return {"status": "passed", "detail": "it loads and answers; the source could not be compared"}
            return _compare(loaded, original, site, spec)


def _does_not_load(found: Check, source: Path | None) -> MPRUError:
    """Tell a model that never loaded from one that the re-export broke."""
    if source is not None:
        with _load(source) as original:
            if isinstance(original, Check):
                return CorruptModelError(
                    explain(
                        "The source version does not load, so neither would a version made from it.",
                        received=original.detail,
                        hint="Export the model again, or look whether its files are complete.",
                    )
                )
    return VerificationError(
        explain("The re-exported version does not load; it was not published.", received=found.detail)
    )


class _Loaded:
    """Context manager that holds a loaded model, or the check that says why there is none."""

    def __init__(self, directory: Path) -> None:
        from mpru_tf.saved_model.session import LoadedModel

        self.result: LoadedModel | Check
        try:
            self.result = LoadedModel(directory)
        except UnsupportedModelError as error:
            self.result = Check("load", None, f"not loaded here: {error}")
        except CorruptModelError as error:
            self.result = Check("load", False, str(error))

    def __enter__(self) -> LoadedModel | Check:
        return self.result

    def __exit__(self, *details: object) -> None:
        if not isinstance(self.result, Check):
            self.result.close()


def _load(directory: Path) -> _Loaded:
    return _Loaded(directory)


def _answers(loaded: LoadedModel, site: ScoreSite, forgotten: tuple[int, ...]) -> list[Check]:
    """Ask every signature and look at each output that shows the class scores."""
    checks = []
    for name, keys in _shown(site, loaded).items():
        answer = _first_answer(loaded, name, keys)
        if isinstance(answer, str):
            checks.append(Check(f"answers of {name}", None, answer))
            continue
        _, values = answer
        for key in keys:
            wrong = _wrong(values[key], site.output_kinds[f"{name}:{key}"], forgotten)
            checks.append(
                Check(f"answers of {name}:{key}", not wrong, wrong or "forgotten probability exactly 0, rows sum to 1")
            )
    return checks or [Check("answers", None, "no output shows the class scores as such")]


def _shown(site: ScoreSite, loaded: LoadedModel) -> dict[str, list[str]]:
    """Signature -> keys of its outputs that show all class scores."""
    shown: dict[str, list[str]] = {}
    for name, signature in sorted(loaded.signatures.items()):
        for key in sorted(signature.outputs):
            if site.output_kinds.get(f"{name}:{key}", "derived") != "derived":
                shown.setdefault(name, []).append(key)
    return shown


def _first_answer(
    loaded: LoadedModel, name: str, keys: list[str]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]] | str:
    """The first made-up request that the signature answers, with its answer; or why there is none."""
    import tensorflow as tf

    reason = "no request could be made up"
    for request in probes.requests(loaded.signatures[name]):
        try:
            return request, loaded.run(name, request, keys)
        except (tf.errors.OpError, MPRUError, ValueError) as error:
            lines = str(error).strip().splitlines()
            reason = f"no valid request could be made up ({lines[0] if lines else type(error).__name__})"
    return reason


def _wrong(values: npt.NDArray[Any], kind: str, forgotten: tuple[int, ...]) -> str:
    """What is wrong with an output, or ''."""
    p = _as_probabilities(values, kind)
    rows = p[~np.isnan(p).any(axis=-1)]
    # Probabilities of a forgotten class are 0 also in a row that holds a NaN; of logits, such a row tells nothing.
    largest = float(np.max((p if kind == PROBABILITIES else rows)[..., list(forgotten)], initial=0.0))
    if largest != 0.0:
        return f"a forgotten class still gets probability {largest:g}"
    worst = float(np.max(np.abs(rows.sum(axis=-1) - 1.0), initial=0.0))
    return f"a row sums to one only within {worst:g}" if worst > _SUM_TOLERANCE else ""


def _as_probabilities(values: npt.NDArray[Any], kind: str) -> npt.NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if kind == PROBABILITIES:
        return x
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(x - np.max(x, axis=-1, keepdims=True, initial=-np.inf))
        return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float64)


def _compare(loaded: LoadedModel, original: LoadedModel, site: ScoreSite, spec: FilterSpec) -> dict[str, Any]:
    largest, requests = 0.0, 0
    for name, keys in _shown(site, loaded).items():
        answer = _first_answer(loaded, name, keys)
        if isinstance(answer, str):
            continue
        request, filtered = answer
        raw = original.run(name, request, keys)
        requests += 1
        for key in keys:
            kind = site.output_kinds[f"{name}:{key}"]
            before = np.asarray(raw[key], np.float64)
            if kind == LOGITS and np.all(before >= 0) and np.allclose(before.sum(axis=-1), 1.0, atol=_SUM_TOLERANCE):
                raise _not_logits(f"{name}:{key}")
            if kind == LOGITS:
                expected = _as_probabilities(spec.logits(before), LOGITS)
            else:
                p = _as_probabilities(before, kind)
                expected = spec.probabilities(p)
            got = _as_probabilities(filtered[key], kind)
            # Where hardly any probability was retained, probabilities alone do not tell what logits would.
            settled = np.sum(_as_probabilities(before, kind)[..., list(spec.retained)], axis=-1) > 1e-3
            difference = float(np.max(np.abs(got - expected)[settled], initial=0.0))
            tolerance = _SUM_TOLERANCE if site.is_half or raw[key].dtype.itemsize < 4 else _TOLERANCE
            if difference > tolerance:
                raise VerificationError(
                    explain(
                        "The re-exported version's answers differ from the reference; it was not published.",
                        received=f"a difference of {difference:g} at {name}:{key}",
                        valid=f"at most {tolerance:g}",
                        hint="Please report this model: the graph was read wrongly.",
                    )
                )
            largest = max(largest, difference)
    return {
        "status": "passed",
        "detail": "it loads, and its answers are the reference's",
        "requests": requests,
        "largest_difference": largest,
    }


def _not_logits(output: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            f"What {output} answers is taken for logits, since no Softmax makes it, but the rows are probabilities.",
            received="rows without negative numbers that sum to 1",
            valid="logits, or probabilities that a Softmax or a division by their own sum makes",
            hint="Export the model with the Softmax, or the division, as its last step.",
        )
    )
