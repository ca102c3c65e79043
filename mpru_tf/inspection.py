"""What a SavedModel answers, where its class scores are, and what was already forgotten in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import CorruptModelError, LabelsError, ManifestError, ModelError, explain
from mpru_tf.labels import labels_of_model
from mpru_tf.manifest import Manifest, read_manifest
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.graph import is_for_clients
from mpru_tf.saved_model.score_site import Choice, ScoreSite, SeenTensor
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import unsplice
from mpru_tf.unlearning.record import unlearned_in
from mpru_tf.versions import find_version

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

    from mpru_tf.saved_model.bundle import Bundle
    from mpru_tf.saved_model.graph import Graph


@dataclass(frozen=True)
class Inspection:
    """What reading a SavedModel shows. Nothing was executed.

    Attributes:
        path: the version directory.
        version: its servable version, or None when its name is no number.
        signatures: per signature key, 'method_name', 'inputs' and 'outputs'; of each tensor 'dtype' and 'shape' (a
            list with None for open axes, or None for an unknown rank).
        score_sites: where the class scores are. One in a model that can be filtered as it is.
        seen: every tensor at which the way back from the outputs ended, whether it was taken, and why not.
        labels: one per class, as found with or in the model; None if there are none, or places contradict each other.
        labels_where: where they were found or, without labels, what stood against taking any; None if there are none.
        forgotten: indices of the classes forgotten in this version.
        method: the filter's method, None in an unfiltered version.
        unlearned: indices of the classes that :func:`mpru_tf.unsir` unlearned in the weights, by their record.
        refusal: why no class could be forgotten in this model; None if one could.
    """

    path: Path
    version: int | None
    signatures: dict[str, dict[str, Any]]
    score_sites: tuple[ScoreSite, ...]
    seen: tuple[SeenTensor, ...]
    labels: tuple[str, ...] | None
    labels_where: str | None
    forgotten: tuple[int, ...]
    method: str | None
    unlearned: tuple[int, ...]
    refusal: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "path": str(self.path),
            "version": self.version,
            "signatures": self.signatures,
            "score_sites": [site.to_dict() for site in self.score_sites],
            "seen": [entry.to_dict() for entry in self.seen],
            "labels": list(self.labels) if self.labels is not None else None,
            "labels_where": self.labels_where,
            "forgotten": list(self.forgotten),
            "method": self.method,
            "unlearned": list(self.unlearned),
            "refusal": self.refusal,
        }


def inspect(
    model: str | os.PathLike[str],
    *,
    outputs: Sequence[str] = (),
    sites: Sequence[str] = (),
    scores: str | None = None,
    num_classes: int | None = None,
    multi_label: bool = False,
) -> Inspection:
    """Read a SavedModel and find its class scores.

    Args:
        model: a version directory, or a base path, which stands for its newest version.
        outputs, sites, scores, num_classes, multi_label: what the graph leaves open, as :func:`mpru_tf.forget` takes
            it. Default: what was said when classes were forgotten in it.

    Raises:
        ModelNotFoundError: there is no SavedModel.
        CorruptModelError: it is damaged or incomplete.
        UnsupportedModelError: it is stored in a form that is not read. (A model that *can* be read but has no class
            scores is no error here: see :attr:`Inspection.refusal`.)
        ManifestError: it carries a manifest, or a record of UNSIR, that cannot be read or is about other weights.
    """
    found = find_version(model)
    bundle = bundles.read(found.path)
    manifest = read_manifest(found.path)
    given = Choice.of(outputs, sites, scores, num_classes, multi_label)
    with bundles.damaged_as_error(found.path):
        graphs = unfiltered_graphs(bundle, manifest)
        survey_of = survey(graphs, given.or_that_of(manifest.choice if manifest is not None else None))
        refusal: ModelError | None = survey_of.refusal
        labels, where = _labels(found.path, graphs, survey_of.sites)
        return Inspection(
            path=found.path,
            version=found.version,
            signatures={
                name: _signature(signature)
                for graph in graphs
                for name, signature in sorted(graph.meta_graph.signature_def.items())
                if is_for_clients(name, signature)
            },
            score_sites=survey_of.sites,
            seen=survey_of.seen,
            labels=labels,
            labels_where=where,
            forgotten=manifest.forgotten if manifest is not None else (),
            method=manifest.method if manifest is not None else None,
            unlearned=unlearned_in(found.path),
            refusal=str(refusal) if refusal is not None else None,
        )


def _labels(
    directory: Path, graphs: Sequence[Graph], sites: Sequence[ScoreSite]
) -> tuple[tuple[str, ...] | None, str | None]:
    if len(sites) != 1:
        return None, None
    try:
        found = labels_of_model(directory, graphs, sites[0].classes)
    except LabelsError as error:
        return None, str(error)
    return (found.labels, found.where) if found is not None else (None, None)


def unfiltered_graphs(bundle: Bundle, manifest: Manifest | None) -> list[Graph]:
    """The graphs with any filter of ours taken out again. Edits the bundle in place.

    Raises:
        ManifestError: the filter is not where the manifest says.
    """
    for done in manifest.splices if manifest is not None else ():
        try:
            unsplice(bundle.graphs()[done.meta_graph], done)
        except (IndexError, CorruptModelError) as error:
            raise ManifestError(
                explain(
                    "The filter is not where the manifest says.",
                    received=f"{done.filtered} in {done.function or 'the main graph'} of {bundle.directory}",
                    valid="a version as mpru_tf published it",
                    hint="Start from the version that this one was made from.",
                )
            ) from error
    return bundle.graphs()


def _signature(signature: SignatureDef) -> dict[str, Any]:
    return {
        "method_name": signature.method_name,
        "inputs": {key: _tensor(info) for key, info in sorted(signature.inputs.items())},
        "outputs": {key: _tensor(info) for key, info in sorted(signature.outputs.items())},
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    from tensorflow.core.framework import types_pb2

    shape = shapes.from_proto(info.tensor_shape)
    dtype = types_pb2.DataType.DESCRIPTOR.values_by_number.get(info.dtype)
    return {
        "dtype": dtype.name.removeprefix("DT_").lower() if dtype is not None else f"unknown ({info.dtype})",
        "shape": None if shape is None else list(shape),
    }
