"""The main job, told in order: read, plan, splice, gate, prune, stage, check, publish."""

from __future__ import annotations

import copy as copying
import datetime
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import (
    AmbiguousSiteError,
    ForgetListError,
    LabelsError,
    ManifestError,
    PublishError,
    UnsupportedModelError,
    explain,
)
from mpru_tf.filters import DEFAULT_METHOD, DEFAULT_TEMPERATURE, MASK, METHODS, check_method, make_filter
from mpru_tf.inspection import unfiltered_graphs
from mpru_tf.labels import FoundLabels, labels_of_model, parse_classes, read_labels
from mpru_tf.manifest import MANIFEST, Manifest, read_manifest
from mpru_tf.redaction import Redaction
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.graph import is_for_clients
from mpru_tf.saved_model.leaks import LeakGate, refuse, score_family
from mpru_tf.saved_model.prune import drop_output, prune
from mpru_tf.saved_model.sites import Choice, survey
from mpru_tf.saved_model.splice import splice, unused_prefixes
from mpru_tf.versions import VersionDirectory, find_version, link_tree, list_versions, publish, staged
from mpru_tf.worker import prepare

if TYPE_CHECKING:
    from mpru_tf.filters import FilterSpec
    from mpru_tf.saved_model.bundle import Bundle
    from mpru_tf.saved_model.graph import Graph
    from mpru_tf.saved_model.sites import ScoreSite
    from mpru_tf.saved_model.splice import Splice


@dataclass(frozen=True)
class ForgetResult:
    """What :func:`forget` did.

    Attributes:
        version: the servable version that forgets (the existing one if nothing new was to be forgotten).
        path: its version directory; with ``dry_run``, where it would be.
        source: the version directory it was made from.
        forgotten: indices of all classes forgotten in it, earlier ones included, ascending.
        labels: their labels in the same order, or None when labels are not known.
        classes: number n of classes of the model.
        method: the filter's method.
        leak_gate: 'passed'.
        load_check: 'status' ('passed' or 'skipped') and 'detail'.
        score_site: what was taken for the class scores, and why, in words.
        outputs: the outputs that are filtered, as SIG:KEY.
        dropped_outputs: outputs that were removed from their signatures, as SIG:KEY.
        dropped_endpoints: attributes that Python loaders offer no more, because they answered past the filter.
        files: how the files came over: 'reflink', 'hard link' or 'copy'; None if nothing was written.
        seconds: time of the re-export itself: read, plan, splice, gate, link, write, publish.
        seconds_load_check: time of the load check.
        already_forgotten: True if all classes were forgotten before and nothing was written.
        dry_run: True if nothing was written because that was asked for.
    """

    version: int
    path: Path
    source: Path
    forgotten: tuple[int, ...]
    labels: tuple[str, ...] | None
    classes: int
    method: str
    leak_gate: str
    load_check: dict[str, Any]
    score_site: str
    outputs: tuple[str, ...]
    dropped_outputs: tuple[str, ...]
    dropped_endpoints: tuple[str, ...]
    files: str | None
    seconds: float
    seconds_load_check: float
    already_forgotten: bool = False
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, tuple):
                values[name] = list(value)
        return values


@dataclass(frozen=True)
class _Plan:
    """What was decided, and the edited SavedModel, before anything is written.

    The SavedModel is held as bytes: its parsed form takes ten times as much memory and is of no more use.
    """

    found: VersionDirectory
    base: Path
    earlier: Manifest | None
    source_sha256: str
    data: bytes
    choice: Choice
    site: ScoreSite
    spec: FilterSpec
    labels: tuple[str, ...] | None
    splices: tuple[Splice, ...]
    dropped_endpoints: tuple[str, ...]
    dropped_outputs: tuple[str, ...]
    allowed_outputs: tuple[str, ...]
    preconditions: dict[str, Any] | None
    redaction: Redaction | None


@dataclass(frozen=True)
class _NothingNew:
    """All classes are forgotten in the version already."""

    found: VersionDirectory
    earlier: Manifest
    site: ScoreSite


def forget(
    model: str | os.PathLike[str],
    classes: Sequence[str | SupportsIndex] | str | int,
    *,
    method: str | None = None,
    class_means: ClassMeans | str | os.PathLike[str] | None = None,
    temperature: float | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    into: str | os.PathLike[str] | None = None,
    outputs: Sequence[str] = (),
    sites: Sequence[str] = (),
    scores: str | None = None,
    num_classes: int | None = None,
    multi_label: bool = False,
    allow_outputs: Sequence[str] = (),
    drop_outputs: Sequence[str] = (),
    force: bool = False,
    redact_labels: bool = False,
    copy: bool = False,
    load_check: bool = True,
    dry_run: bool = False,
) -> ForgetResult:
    """Publish the next version of a served model, in which no output answers the given classes.

    The filter is baked into the graph at the class scores; weights, signatures and assets stay as they are, and the
    version directory is published with one rename. On a version that already forgets classes, one filter with the
    union takes the old one's place.

    The weights still hold what was learned: whoever has the files can take the filter off. And as long as an
    unfiltered version lies in the base path, it answers clients that ask for it by number.

    Args:
        model: a version directory, or a base path, which stands for its newest version.
        classes: indices in [0, n) or labels of the classes to forget, at least one, not all.
        method: 'renormalize', 'mean', 'gram_schmidt' or 'tempered'; 'mask' for multi-label models, and only for them.
            Default: that of the version's present filter, or 'tempered'.
        class_means: a :class:`ClassMeans`, or the path of one saved as JSON; required by 'mean' and 'gram_schmidt'.
        temperature: of 'tempered', in [1, 1000]. Default: that of the version's present filter, or 1.5.
        labels: one per class, or the path of a file with them. Default: those found with or in the model.
        into: base path for the new version. Default: that of ``model``.
        outputs: SIG:KEY of outputs that are computed from the class scores, to tell several class vectors apart.
        sites: names of the tensors that hold the class scores, as :func:`inspect` shows them, likewise.
        scores: 'logits' or 'probabilities', what the class scores hold, where the graph does not tell.
        num_classes: n, where the graph does not tell.
        multi_label: each class is judged on its own by a Sigmoid: forgotten classes answer 0, the others stay as they
            are. The method is then 'mask'.
        allow_outputs: SIG:KEY of outputs to keep although they are computed before the class scores (embeddings).
        drop_outputs: SIG:KEY of outputs to remove from their signatures.
        force: go on when the class means do not meet the preconditions.
        redact_labels: remove the labels of the forgotten classes too, from constants, tables, assets and the manifest;
            refused where that cannot be done. A version made from a redacted one is redacted as well.
        copy: copy the weights instead of sharing their bytes with the source version.
        load_check: load the new version in a Session before it is published, ask it, and compare with the reference.
        dry_run: do everything but write.

    Returns:
        A :class:`ForgetResult`.

    Raises:
        ModelError: the model cannot be found, read or filtered.
        ForgetListError, LabelsError: about ``classes`` or ``labels``; also if the newest version in the target base
            path forgets a class that the new one would answer again, or if a label cannot be removed.
        ClassMeansError: about ``class_means``; :class:`PreconditionError` if they are not trustworthy.
        LeakError: an output would still answer a forgotten class.
        ManifestError: the version was filtered before, but what its manifest says does not hold.
        VerificationError: the new version does not answer as it must, or crashes or hangs when it is loaded or asked;
            it is not published.
        PublishError: it could not be written.

    Source: MPRU, arXiv 2510.26230 (an output filter: projection, then redistribution); the splice is ours.
    """
    found = find_version(model)
    if load_check and not dry_run:
        prepare()  # imports TensorFlow in a process of its own, while this one reads and plans
    import mpru_tf.layer  # noqa: F401  imports TensorFlow, which `seconds` is not to count

    started = time.perf_counter()
    several = [classes] if isinstance(classes, str | SupportsIndex) else classes
    plan = _plan(
        found,
        several,
        method=method,
        class_means=class_means,
        temperature=temperature,
        labels=labels,
        into=into,
        choice=Choice(tuple(outputs), tuple(sites), scores, num_classes, multi_label),
        allow_outputs=allow_outputs,
        drop_outputs=drop_outputs,
        force=force,
        redact_labels=redact_labels,
    )
    seconds = time.perf_counter() - started
    if isinstance(plan, _NothingNew):
        return _nothing_new(plan, seconds)
    if dry_run:
        version = max(list_versions(plan.base), default=0) + 1
        return _result(version, plan, {"status": "skipped", "detail": "dry run"}, None, seconds, 0.0, True)
    return _write(plan, copy, load_check, seconds)


# ------------------------------------------------------------------------------------------------------ before writing
def _plan(
    found: VersionDirectory,
    classes: Sequence[str | SupportsIndex],
    *,
    method: str | None,
    class_means: ClassMeans | str | os.PathLike[str] | None,
    temperature: float | None,
    labels: Sequence[str] | str | os.PathLike[str] | None,
    into: str | os.PathLike[str] | None,
    choice: Choice,
    allow_outputs: Sequence[str],
    drop_outputs: Sequence[str],
    force: bool,
    redact_labels: bool,
) -> _Plan | _NothingNew:
    """Read, plan, splice, gate and prune, all in memory."""
    base = _base_path(found, into)
    bundle = bundles.read(found.path)
    earlier = _earlier(bundle, found)
    unfiltered_graphs(bundle, earlier)
    dropped = _drop(bundle, drop_outputs)
    graphs = bundle.graphs()
    choice = choice.or_that_of(earlier.choice if earlier is not None else None)
    site = survey(graphs, choice).the_site()
    _check_same_scores(earlier, graphs, site)
    in_model = labels_of_model(found.path, graphs, site.classes)
    names = _labels(labels, in_model)
    contradiction = in_model.where if in_model is not None and in_model.labels is None else None
    wanted = parse_classes(classes, names, site.classes, contradiction=contradiction)
    redacted_before = earlier is not None and earlier.redacted
    before = earlier.forgotten if earlier is not None else ()
    same_filter = (
        earlier is not None
        and method in (None, earlier.method)
        and temperature in (None, earlier.temperature)
        and class_means is None
    )
    if (
        earlier is not None
        and same_filter
        and set(wanted) <= set(before)
        and not dropped
        and base == found.base
        and not (redact_labels and not redacted_before)
    ):
        return _NothingNew(found, earlier, site)
    method = _method(method, site, earlier)
    if temperature is None:
        temperature = (earlier.temperature if earlier is not None else None) or DEFAULT_TEMPERATURE
    means = class_means if class_means is None or isinstance(class_means, ClassMeans) else ClassMeans.load(class_means)
    spec = make_filter(site.classes, sorted({*wanted, *before}), method, class_means=means, temperature=temperature)
    _check_nothing_comes_back(base, spec)
    preconditions = _preconditions(means, spec, force)
    allowed = (*allow_outputs, *(earlier.allowed_outputs if earlier is not None else ()))
    _check_outputs_exist(bundle, allow_outputs, "--allow-output")
    splices, endpoints = _edit(bundle, graphs, site, spec, allowed)
    known = _labels_of(spec.forgotten, names, earlier)
    redaction = None
    if redact_labels or redacted_before:
        redaction = _redaction(spec.forgotten, known, names, in_model)
        redaction.edit_graphs(bundle.proto)
        redaction.check_graphs(bundle.proto)
    return _Plan(
        found=found,
        base=base,
        earlier=earlier,
        source_sha256=bundle.sha256,
        data=bundle.proto.SerializeToString(),
        choice=choice,
        site=site,
        spec=spec,
        labels=known,
        redaction=redaction,
        splices=splices,
        dropped_endpoints=(*(earlier.dropped_endpoints if earlier is not None else ()), *endpoints),
        dropped_outputs=(*(earlier.dropped_outputs if earlier is not None else ()), *dropped),
        allowed_outputs=allowed,
        preconditions=preconditions,
    )


def _method(method: str | None, site: ScoreSite, earlier: Manifest | None) -> str:
    """The method asked for, or else the present one, or else the default of this kind of model."""
    fits = (MASK,) if site.multi_label else METHODS
    default = MASK if site.multi_label else DEFAULT_METHOD
    present = earlier.method if earlier is not None and earlier.method in fits else default
    chosen = check_method(method or present)
    if chosen not in fits:
        many = "judges each class on its own" if site.multi_label else "answers one distribution over its classes"
        raise UnsupportedModelError(
            explain(
                f"This method does not fit a model that {many}.",
                received=chosen,
                valid=" or ".join(fits),
                hint=None if site.multi_label else "If each class is judged on its own, say so with --multi-label.",
            )
        )
    return chosen


def _base_path(found: VersionDirectory, into: str | os.PathLike[str] | None) -> Path:
    if into is not None:
        base = Path(into).absolute()
        if bundles.has_saved_model(base):
            raise PublishError(
                explain(
                    "The target is itself a version directory; a new version would lie inside it.",
                    received=os.fspath(into),
                    valid="a base path, whose children are numbered version directories",
                )
            )
        if base.exists() and not base.is_dir():
            raise PublishError(explain("The target is a file.", received=os.fspath(into), valid="a base path"))
        return base
    if found.base is None:
        raise PublishError(
            explain(
                "The model's directory has no version number, so there is no telling where its next version belongs.",
                received=str(found.path),
                valid="a version directory such as models/resnet/1, or a base path such as models/resnet",
                hint="Name a base path for the new version with --into.",
            )
        )
    return found.base


def _earlier(bundle: Bundle, found: VersionDirectory) -> Manifest | None:
    """The manifest of an already filtered version, held against its files."""
    manifest = read_manifest(found.path)
    if manifest is None:
        if bundle.names_filter:
            raise ManifestError(
                explain(
                    f"This version carries a filter (nodes named {bundles.FILTER_PREFIX}), but its manifest is gone: "
                    "what it forgets is not known.",
                    received=str(found.path),
                    valid=f"a version with its {MANIFEST}",
                    hint="Start from the version that this one was made from, and name all classes.",
                )
            )
        return None
    wrong = manifest.mismatches(found.path)
    if wrong:
        raise ManifestError(
            explain(
                "This version is not what its manifest says.",
                received="; ".join(wrong),
                valid="a version as mpru_tf published it",
                hint="Start from the version that this one was made from, and name all classes.",
            )
        )
    return manifest


def _check_same_scores(earlier: Manifest | None, graphs: list[Graph], site: ScoreSite) -> None:
    """One filter takes the earlier one's place: in other class scores it would bring back what was forgotten there."""
    if earlier is None:
        return
    filtered = {
        (done.meta_graph, graphs[done.meta_graph].scope(done.function).tensor(done.raw)) for done in earlier.splices
    }
    if filtered.isdisjoint((point.meta_graph, point.tensor) for point in site.points):
        raise AmbiguousSiteError(
            explain(
                "This version forgets classes in other class scores than these; a version has one filter.",
                received=", ".join(site.outputs),
                valid="an output that is computed from the class scores that are filtered already",
                hint="To forget in these class scores instead, start from the version that this one was made from.",
            )
        )


def _check_nothing_comes_back(base: Path, spec: FilterSpec) -> None:
    """The new version takes the newest one's place: it must forget at least what that one forgets."""
    if not list_versions(base):
        return
    newest = find_version(base)
    manifest = read_manifest(newest.path)
    back = sorted(set(manifest.forgotten) - set(spec.forgotten)) if manifest is not None else []
    if back:
        listed = ", ".join(map(str, back))
        raise ForgetListError(
            explain(
                f"The new version would answer classes again that version {newest.version}, the newest in {base}, "
                "forgets.",
                received=f"a forget list without {listed}",
                valid=f"a forget list with {listed}, or version {newest.version} as the model to start from",
                hint="To bring classes back on purpose, write into another base path with --into.",
            )
        )


def _labels(labels: Sequence[str] | str | os.PathLike[str] | None, in_model: FoundLabels | None) -> list[str] | None:
    if labels is None:
        return list(in_model.labels) if in_model is not None and in_model.labels is not None else None
    return read_labels(os.fspath(labels)) if isinstance(labels, str | os.PathLike) else list(labels)


def _labels_of(
    forgotten: Sequence[int], names: Sequence[str] | None, earlier: Manifest | None
) -> tuple[str, ...] | None:
    """Labels of the forgotten classes, from the labels at hand or, for earlier ones, from the manifest."""
    known = dict(zip(earlier.forgotten, earlier.labels, strict=False)) if earlier is not None and earlier.labels else {}
    known.update(enumerate(names or ()))
    return tuple(known[index] for index in forgotten) if known.keys() >= set(forgotten) else None


def _redaction(
    forgotten: Sequence[int],
    known: Sequence[str] | None,
    names: Sequence[str] | None,
    in_model: FoundLabels | None,
) -> Redaction:
    """What to remove: what the forgotten classes are called in the labels given and in those found in the model."""
    if known is None:
        raise LabelsError(
            explain(
                "The labels of the forgotten classes are not known, so they cannot be removed.",
                received="no labels with the model" if in_model is None else in_model.where,
                valid="one label per class",
                hint="Give them with --labels FILE.",
            )
        )
    sources = [source for source in (names, in_model.labels if in_model is not None else None) if source]
    labels = {
        index: tuple(dict.fromkeys((label, *(source[index] for source in sources if index < len(source)))))
        for index, label in zip(forgotten, known, strict=True)
    }
    retained = [label for source in sources for index, label in enumerate(source) if index not in labels]
    return Redaction(labels, retained)


def _preconditions(means: ClassMeans | None, spec: FilterSpec, force: bool) -> dict[str, Any] | None:
    if means is None or spec.coefficients is None:
        return None
    preconditions = means.check(spec.method, spec.forgotten)
    if not force:
        preconditions.require()
    return preconditions.to_dict()


def _check_outputs_exist(bundle: Bundle, named: Sequence[str], option: str) -> None:
    valid = sorted(
        {
            f"{name}:{key}"
            for graph in bundle.graphs()
            for name, signature in graph.meta_graph.signature_def.items()
            for key in signature.outputs
            if is_for_clients(name, signature)
        }
    )
    unknown = [output for output in named if output not in valid]
    if unknown:
        raise UnsupportedModelError(
            explain(f"{option} names no output of this model.", received=", ".join(unknown), valid=", ".join(valid))
        )


def _drop(bundle: Bundle, drop_outputs: Sequence[str]) -> tuple[str, ...]:
    _check_outputs_exist(bundle, drop_outputs, "--drop-output")
    for output in dict.fromkeys(drop_outputs):
        for index in range(len(bundle.proto.meta_graphs)):
            for name, signature in bundle.proto.meta_graphs[index].signature_def.items():
                key = output.removeprefix(f"{name}:")
                if key != output and key in signature.outputs:
                    drop_output(bundle.graphs()[index], name, key)
                    break
    return tuple(dict.fromkeys(drop_outputs))


def _edit(
    bundle: Bundle, graphs: list[Graph], site: ScoreSite, spec: FilterSpec, allowed: Sequence[str]
) -> tuple[tuple[Splice, ...], tuple[str, ...]]:
    """Splice the filter in at every copy of the site, pass the leak gate, prune. Edits the bundle in place.

    Raises:
        LeakError: at least one output is reached past the filter.
    """
    families = [score_family(graph, site.points) for graph in graphs]
    splices = tuple(
        splice(graphs[point.meta_graph], point, spec, prefix)
        for point, prefix in zip(site.points, unused_prefixes(bundle), strict=False)
    )
    gates = [LeakGate(graph, splices, family, allowed) for graph, family in zip(graphs, families, strict=True)]
    leaks = [leak for gate in gates for leak in gate.signature_leaks()]
    if leaks:
        raise refuse(leaks)
    endpoints = [name for gate in gates for name in prune(gate.graph, gate).endpoints]
    return splices, tuple(dict.fromkeys(endpoints))


def _nothing_new(plan: _NothingNew, seconds: float) -> ForgetResult:
    found, earlier, site = plan.found, plan.earlier, plan.site
    return ForgetResult(
        version=found.version or 0,
        path=found.path,
        source=found.path,
        forgotten=earlier.forgotten,
        labels=earlier.labels,
        classes=earlier.classes,
        method=earlier.method,
        leak_gate=earlier.leak_gate,
        load_check=earlier.load_check,
        score_site=f"{site.kind}. {site.reason}",
        outputs=site.outputs,
        dropped_outputs=earlier.dropped_outputs,
        dropped_endpoints=earlier.dropped_endpoints,
        files=None,
        seconds=seconds,
        seconds_load_check=0.0,
        already_forgotten=True,
    )


# -------------------------------------------------------------------------------------------------------- writing
def _write(plan: _Plan, copy: bool, load_check: bool, seconds: float) -> ForgetResult:
    started = time.perf_counter()
    source = plan.found.path
    left_out = {*bundles.SAVED_MODEL_FORMS, bundles.KERAS_METADATA_PB, bundles.FINGERPRINT_PB, MANIFEST}
    with staged(plan.base) as staging:
        files = link_tree(source, staging, without=left_out, copy=copy)
        (staging / bundles.SAVED_MODEL_PB).write_bytes(plan.data)
        if plan.redaction is not None:
            plan.redaction.rewrite_files(staging)
        if (source / bundles.FINGERPRINT_PB).is_file():
            (staging / bundles.FINGERPRINT_PB).write_bytes(_fingerprint(staging))
        checked, seconds_load_check = _checked(staging, plan, load_check)
        _manifest(plan, staging, checked).write(staging)
        if plan.redaction is not None:
            plan.redaction.check(staging)
        version = publish(staging, plan.base)
    own = seconds + time.perf_counter() - started - seconds_load_check
    return _result(version, plan, checked, files, own, seconds_load_check, False)


def _fingerprint(directory: Path) -> bytes:
    # TensorFlow has no public function that writes a fingerprint (2.19 to 2.21 write one only inside saved_model.save).
    from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

    return bytes(fingerprinting.CreateFingerprintDef(str(directory)))


def _checked(staging: Path, plan: _Plan, load_check: bool) -> tuple[dict[str, Any], float]:
    if not load_check:
        return {"status": "skipped", "detail": "not asked for"}, 0.0
    from mpru_tf.verification import check_before_publishing

    started = time.perf_counter()
    # A version that carries a filter already cannot be asked for the raw answers.
    source = plan.found.path if plan.earlier is None else None
    checked = check_before_publishing(staging, source, plan.site, plan.spec)
    return checked, time.perf_counter() - started


def _manifest(plan: _Plan, staging: Path, checked: dict[str, Any]) -> Manifest:
    from mpru_tf import __version__

    index_sha256 = bundles.index_digest(staging)
    earlier = plan.earlier
    history = (*earlier.history, earlier.step()) if earlier is not None else ()
    redact = plan.redaction.values if plan.redaction is not None else copying.deepcopy
    return Manifest(
        tool_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        source={
            "path": redact(str(plan.found.path)),
            "version": plan.found.version,
            "saved_model_sha256": plan.source_sha256,
            "variables_index_sha256": index_sha256,
            "same_base_path": plan.base == plan.found.base,
        },
        saved_model_sha256=hashlib.sha256(plan.data).hexdigest(),
        variables_index_sha256=index_sha256,
        classes=plan.spec.classes,
        forgotten=plan.spec.forgotten,
        labels=_manifest_labels(plan),
        method=plan.spec.method,
        temperature=plan.spec.temperature,
        choice=plan.choice,
        constants_sha256=plan.spec.digest(),
        preconditions=plan.preconditions,
        splices=plan.splices,
        dropped_outputs=plan.dropped_outputs,
        allowed_outputs=tuple(dict.fromkeys(plan.allowed_outputs)),
        dropped_endpoints=plan.dropped_endpoints,
        leak_gate="passed",
        load_check=redact(checked),
        history=tuple(_redacted(step, plan.redaction) for step in history),
        redacted=plan.redaction is not None,
    )


def _redacted(step: dict[str, Any], redaction: Redaction | None) -> dict[str, Any]:
    """A step of the history without the labels and the path in which a forgotten label may stand."""
    if redaction is None:
        return step
    changed: dict[str, Any] = {}
    if step.get("labels") is not None:
        changed["labels"] = [redaction.placeholder(index) for index in step["forgotten"]]
    if "source" in step:
        changed["source"] = {**step["source"], "path": redaction.text(step["source"]["path"])}
    return {**step, **changed}


def _manifest_labels(plan: _Plan) -> tuple[str, ...] | None:
    if plan.redaction is None:
        return plan.labels
    return tuple(plan.redaction.placeholder(index) for index in plan.spec.forgotten)


def _result(
    version: int,
    plan: _Plan,
    checked: dict[str, Any],
    files: str | None,
    seconds: float,
    seconds_load_check: float,
    dry_run: bool,
) -> ForgetResult:
    return ForgetResult(
        version=version,
        path=plan.base / str(version),
        source=plan.found.path,
        forgotten=plan.spec.forgotten,
        labels=plan.labels,
        classes=plan.spec.classes,
        method=plan.spec.method,
        leak_gate="passed",
        load_check=checked,
        score_site=f"{plan.site.kind}. {plan.site.reason}",
        outputs=plan.site.outputs,
        dropped_outputs=plan.dropped_outputs,
        dropped_endpoints=plan.dropped_endpoints,
        files=files,
        seconds=seconds,
        seconds_load_check=seconds_load_check,
        dry_run=dry_run,
    )
