"""What a re-export will do, decided and carried out in memory: read, choose, splice, gate, prune, redact.

Nothing is written and the model is not run. What is refused is refused here, before there is anything to clean up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import (
    AmbiguousSiteError,
    LabelsError,
    ManifestError,
    PublishError,
    UnsupportedModelError,
    explain,
)
from mpru_tf.filters import DEFAULT_METHOD, DEFAULT_TEMPERATURE, MASK, METHODS, check_method, make_filter
from mpru_tf.inspection import unfiltered_graphs
from mpru_tf.labels import FoundLabels, labels_of_model, parse_classes, read_labels
from mpru_tf.lineage import check_nothing_comes_back
from mpru_tf.manifest import MANIFEST, Manifest, read_manifest
from mpru_tf.redaction import Redaction
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model import structure
from mpru_tf.saved_model.graph import is_for_clients
from mpru_tf.saved_model.leaks import LeakGate, refuse, score_family
from mpru_tf.saved_model.prune import drop_output, prune
from mpru_tf.saved_model.score_site import Choice
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import splice, unused_prefixes
from mpru_tf.unlearning.record import unlearned_in
from mpru_tf.versions import VersionDirectory, target_base_path
from mpru_tf.warmup_plan import WarmUpPlan, WarmUpWish, plan_warm_up

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    from mpru_tf.filters import FilterSpec
    from mpru_tf.saved_model.bundle import Bundle
    from mpru_tf.saved_model.graph import Graph
    from mpru_tf.saved_model.score_site import ScoreSite
    from mpru_tf.saved_model.splice import Splice


@dataclass(frozen=True)
class Wishes:
    """What the caller of :func:`mpru_tf.forget` asked for; see there."""

    classes: Sequence[str | SupportsIndex]
    method: str | None
    class_means: ClassMeans | str | os.PathLike[str] | None
    temperature: float | None
    labels: Sequence[str] | str | os.PathLike[str] | None
    into: str | os.PathLike[str] | None
    choice: Choice
    allow_outputs: tuple[str, ...]
    drop_outputs: tuple[str, ...]
    force: bool
    redact_labels: bool
    warm_up: WarmUpWish


@dataclass(frozen=True)
class Plan:
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
    warm_up: WarmUpPlan


@dataclass(frozen=True)
class NothingNew:
    """All classes are forgotten in the version already."""

    found: VersionDirectory
    earlier: Manifest
    site: ScoreSite


@dataclass(frozen=True)
class _Read:
    """A version as it was read, any filter of ours taken out, and its class scores."""

    bundle: Bundle
    earlier: Manifest | None
    graphs: list[Graph]
    choice: Choice
    site: ScoreSite
    dropped_outputs: tuple[str, ...]
    labels: FoundLabels | None


def plan(found: VersionDirectory, wishes: Wishes) -> Plan | NothingNew:
    """Decide everything, and edit the SavedModel in memory."""
    base = _base_path(found, wishes.into)
    read = _read(found, wishes)
    earlier, site = read.earlier, read.site
    names = _labels(wishes.labels, read.labels)
    contradiction = read.labels.where if read.labels is not None and read.labels.labels is None else None
    wanted = parse_classes(wishes.classes, names, site.classes, contradiction=contradiction)
    if earlier is not None and _asks_for_nothing_new(wishes, wanted, read, earlier) and base == found.base:
        return NothingNew(found, earlier, site)
    means = wishes.class_means
    if means is not None and not isinstance(means, ClassMeans):
        means = ClassMeans.load(means)
    spec = _filter(wishes, wanted, means, site, earlier)
    check_nothing_comes_back(
        base, spec.forgotten, "write into another base path with --into", unlearned=unlearned_in(found.path)
    )
    preconditions = _preconditions(means, spec, wishes.force)
    _check_outputs_exist(read.bundle, wishes.allow_outputs, "--allow-output")
    known = _labels_of(spec.forgotten, names, earlier)
    redaction = None
    if wishes.redact_labels or (earlier is not None and earlier.redacted):
        redaction = _redaction(spec.forgotten, known, names, read.labels)
    allowed = (*wishes.allow_outputs, *(earlier.allowed_outputs if earlier is not None else ()))
    with bundles.damaged_as_error(found.path):
        splices, endpoints = _edit(read.bundle, read.graphs, site, spec, allowed)
        if redaction is not None:
            redaction.edit_graphs(read.bundle.proto)
            redaction.check_graphs(read.bundle.proto)
        data = read.bundle.proto.SerializeToString()
        signatures = _loaded_signatures(read.bundle.proto)
    dropped = (*(earlier.dropped_outputs if earlier is not None else ()), *read.dropped_outputs)
    return Plan(
        found=found,
        base=base,
        earlier=earlier,
        source_sha256=read.bundle.sha256,
        data=data,
        choice=read.choice,
        site=site,
        spec=spec,
        labels=known,
        redaction=redaction,
        splices=splices,
        dropped_endpoints=(*(earlier.dropped_endpoints if earlier is not None else ()), *endpoints),
        dropped_outputs=dropped,
        allowed_outputs=allowed,
        preconditions=preconditions,
        warm_up=plan_warm_up(wishes.warm_up, found.path, signatures, dropped),
    )


def _read(found: VersionDirectory, wishes: Wishes) -> _Read:
    bundle = bundles.read(found.path)
    earlier = _earlier(bundle, found)
    choice = wishes.choice.or_that_of(earlier.choice if earlier is not None else None)
    with bundles.damaged_as_error(found.path):
        unfiltered_graphs(bundle, earlier)
        dropped = _drop(bundle, wishes.drop_outputs)
        graphs = bundle.graphs()
        site = survey(graphs, choice).the_site()
        _check_same_scores(earlier, graphs, site)
        labels = labels_of_model(found.path, graphs, site.classes)
    return _Read(bundle, earlier, graphs, choice, site, dropped, labels)


def _asks_for_nothing_new(wishes: Wishes, wanted: Sequence[int], read: _Read, earlier: Manifest) -> bool:
    return (
        set(wanted) <= set(earlier.forgotten)
        and wishes.method in (None, earlier.method)
        and wishes.temperature in (None, earlier.temperature)
        and wishes.class_means is None
        and not read.dropped_outputs
        and (earlier.redacted or not wishes.redact_labels)
        and wishes.warm_up.is_fulfilled(read.bundle.directory, earlier.warmup)
    )


def _filter(
    wishes: Wishes, wanted: Sequence[int], means: ClassMeans | None, site: ScoreSite, earlier: Manifest | None
) -> FilterSpec:
    """The one filter for what was forgotten before and what is to be forgotten now."""
    before = earlier.forgotten if earlier is not None else ()
    temperature = wishes.temperature
    if temperature is None:
        temperature = (earlier.temperature if earlier is not None else None) or DEFAULT_TEMPERATURE
    method = _method(wishes.method, site, earlier)
    return make_filter(site.classes, sorted({*wanted, *before}), method, class_means=means, temperature=temperature)


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
        return target_base_path(into)
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


def _loaded_signatures(model: SavedModel) -> dict[str, SignatureDef]:
    """The signatures of the MetaGraph that servers load, apart from the model, which is large."""
    by_tags = {frozenset(meta_graph.meta_info_def.tags): meta_graph for meta_graph in reversed(model.meta_graphs)}
    found = by_tags.get(frozenset({"serve"}), model.meta_graphs[0]).signature_def
    return {name: type(found[name]).FromString(found[name].SerializeToString()) for name in found}


def _edit(
    bundle: Bundle, graphs: list[Graph], site: ScoreSite, spec: FilterSpec, allowed: Sequence[str]
) -> tuple[tuple[Splice, ...], tuple[str, ...]]:
    """Splice the filter in at every copy of the site, pass the leak gate, prune. Edits the bundle in place.

    Raises:
        LeakError: at least one output is reached past the filter.
    """
    for point in site.points:
        structure.check_body(graphs[point.meta_graph].scope(point.tensor.scope))
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
