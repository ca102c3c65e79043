"""Where the class scores are: from the signatures' outputs back to the tensors that a filter has to replace.

A score site is a tensor whose last axis counts the classes. If the scores leave the model through a Softmax, the site
is the Softmax's *input*: whatever else is computed from it (an argmax, a top k, labels looked up by index) is then
filtered too, by construction. If there is no Softmax, the site is the tensor that leaves the model. Found here by
reading the graph alone; nothing is executed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpru_tf.errors import AmbiguousSiteError, UnsupportedModelError, explain
from mpru_tf.saved_model.candidates import (
    DT_BFLOAT16,
    DT_HALF,
    FLOATS,
    LOGITS,
    PROBABILITIES,
    Candidate,
    candidate_of,
    held,
    weights_behind,
)
from mpru_tf.saved_model.graph import MAIN, Dataflow, Graph, Place, Tensor
from mpru_tf.saved_model.shapes import from_proto, spell


@dataclass(frozen=True)
class SitePoint:
    """One physical tensor to replace.

    Attributes:
        meta_graph: position of its MetaGraphDef in the SavedModel.
        tensor: the raw class scores.
        kind: 'logits' or 'probabilities', what the tensor holds.
        classes: length n of its last axis.
        dtype: its DataType, one of the four floating-point ones.
    """

    meta_graph: int
    tensor: Tensor
    kind: str
    classes: int
    dtype: int


@dataclass(frozen=True)
class ScoreSite:
    """The class scores of a model: one tensor, or its copies in several functions and MetaGraphs.

    Attributes:
        kind: 'logits' or 'probabilities', what the filter takes and gives.
        classes: number n of classes.
        points: every physical tensor to replace.
        output_kinds: for each output 'SIG:KEY' that is computed from the site, what it holds: 'probabilities',
            'log_probabilities', 'logits', or 'derived' (ids, labels, ranked scores and the like).
        reason: why this tensor was taken for the class scores, one sentence.
    """

    kind: str
    classes: int
    points: tuple[SitePoint, ...]
    output_kinds: dict[str, str]
    reason: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that are computed from the site, as SIG:KEY, sorted."""
        return tuple(sorted(self.output_kinds))

    @property
    def is_half(self) -> bool:
        """Whether the scores are of a 16-bit dtype somewhere."""
        return any(point.dtype in (DT_HALF, DT_BFLOAT16) for point in self.points)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "kind": self.kind,
            "classes": self.classes,
            "outputs": list(self.outputs),
            "output_kinds": dict(sorted(self.output_kinds.items())),
            "tensors": [str(point.tensor) for point in self.points],
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Survey:
    """What is known about a model's class scores: the sites, or the reason why there is none."""

    sites: tuple[ScoreSite, ...]
    refusal: UnsupportedModelError | AmbiguousSiteError | None

    def the_site(self) -> ScoreSite:
        """The one score site.

        Raises:
            UnsupportedModelError: the model has none.
            AmbiguousSiteError: it has several that differ.
        """
        if self.refusal is not None:
            raise self.refusal
        return self.sites[0]


def survey(graphs: Sequence[Graph], outputs: Sequence[str] = ()) -> Survey:
    """Find the class scores of all MetaGraphs together.

    Args:
        graphs: the MetaGraphs of one SavedModel.
        outputs: SIG:KEY names; when given, only class scores from which one of these is computed are considered.
    """
    found: list[tuple[Graph, Candidate]] = []
    for graph in graphs:
        for name, signature in sorted(graph.meta_graph.signature_def.items()):  # maps of a proto have no order
            for key, info in sorted(signature.outputs.items()):
                candidate = candidate_of(graph, name, signature, key, info)
                if candidate is not None:
                    found.append((graph, candidate))
    if not found:
        return Survey((), _no_outputs())
    chosen, kind, reason = _choose(found)
    suited = [entry for entry in chosen if _is_class_vector(entry[1])]
    refusal = _binary(found, suited) or (None if suited else _unsuitable(found, chosen))
    if refusal is not None:
        return Survey((), refusal)
    try:
        groups = _group(suited, kind, reason)
    except UnsupportedModelError as error:
        return Survey((), error)
    sites = tuple(_with_all_outputs(graphs, site, found) for site in groups)
    if outputs:
        named = tuple(site for site in sites if not set(outputs).isdisjoint(site.output_kinds))
        if not named:
            return Survey(sites, _not_named(outputs, sites))
        sites = _joined(named)
    return Survey(sites, _ambiguous(sites) if len(sites) > 1 else None)


def _choose(found: list[tuple[Graph, Candidate]]) -> tuple[list[tuple[Graph, Candidate]], str, str]:
    """The candidates of the strongest kind of evidence, what they hold, and why they were taken."""
    evidence = (
        ("softmax", LOGITS, "It is the input of the Softmax from which these outputs are computed."),
        ("forest", PROBABILITIES, "It is what the decision forest op answers."),
        ("normalised", PROBABILITIES, "It leaves the model as probabilities, normalised in the graph."),
        ("linear", LOGITS, "No Softmax in the graph: the output of the last linear layer is taken for the logits."),
    )
    for ending, kind, reason in evidence:
        chosen = [entry for entry in found if entry[1].ending == ending]
        if chosen:
            return chosen, kind, reason
    return [], LOGITS, ""


# ------------------------------------------------------------------------------------------- from candidates to sites
def _is_class_vector(candidate: Candidate) -> bool:
    """One vector per example, at least two classes wide."""
    shape = candidate.shape
    if shape is None or not shape or shape[-1] is None or shape[-1] < 2:
        return False
    return len(shape) == 2 or (len(shape) == 1 and candidate.ending == "softmax")


def _group(chosen: list[tuple[Graph, Candidate]], kind: str, reason: str) -> tuple[ScoreSite, ...]:
    """Put together the copies of one class vector.

    Two tensors are copies of each other when they have the same number of classes and come from the same weights: Keras
    exports one function per endpoint, TensorFlow 1 graphs one head per MetaGraph, hand-written functions call the
    model twice. Where the graph does not tell the weights, two class vectors of one signature are two different sites,
    even when they have the same length.
    """
    used_by: dict[SitePoint, set[tuple[int, str]]] = {}
    weights: dict[SitePoint, frozenset[str | bytes]] = {}
    for graph, candidate in chosen:
        width = candidate.shape[-1] if candidate.shape else None
        assert width is not None  # _is_class_vector has seen to it
        tensor = _widened(graph, candidate.place.tensor)
        dtype = graph.dtype(tensor)
        if dtype not in FLOATS:
            raise _no_floats(candidate, tensor, dtype)
        if graph.is_request(tensor):
            raise _sent_by_client(candidate)
        point = SitePoint(graph.index, tensor, kind, width, dtype)
        if point not in weights and len(chosen) > 1:
            weights[point] = weights_behind(graph, candidate.place)
        used_by.setdefault(point, set()).add((graph.index, candidate.signature))
    groups: list[list[SitePoint]] = []
    for point in used_by:
        for group in groups:
            if group[0].classes != point.classes:
                continue
            one, other = weights[group[0]], weights[point]
            shared = not one.isdisjoint(other)
            untold = not one or not other
            if shared or (untold and all(used_by[point].isdisjoint(used_by[member]) for member in group)):
                group.append(point)
                break
        else:
            groups.append([point])
    return tuple(ScoreSite(kind, group[0].classes, tuple(group), {}, reason) for group in groups)


def _joined(named: tuple[ScoreSite, ...]) -> tuple[ScoreSite, ...]:
    """One site of all that were named, if they have as many classes as each other."""
    first = named[0]
    if any(site.classes != first.classes for site in named):
        return named
    points = tuple(point for site in named for point in site.points)
    kinds = {output: kind for site in named for output, kind in site.output_kinds.items()}
    return (dataclasses.replace(first, points=points, output_kinds=kinds),)


def _sent_by_client(candidate: Candidate) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            f"The class scores behind {candidate.output} are sent by the client, who knows them anyway.",
            received=f"{candidate.place.tensor}, an input of the signature",
            valid="a model that computes class scores",
            hint="Forget the class in the model whose answers this one is sent.",
        )
    )


def _widened(graph: Graph, tensor: Tensor) -> Tensor:
    """The same numbers in a wider dtype, where everything that reads a float16 tensor reads it through one Cast.

    Filtered there, the class scores lose no precision to being rounded to 16 bits once more.
    """
    if graph.dtype(tensor) not in (DT_HALF, DT_BFLOAT16) or graph.is_shown(tensor):
        return tensor
    readers = graph.readers(tensor)
    if len(readers) != 1 or readers[0].op != "Cast":
        return tensor
    arg = "" if tensor.scope == MAIN else "y"
    wide = Tensor(tensor.scope, readers[0].name, arg, 0)
    return wide if graph.dtype(wide) in FLOATS else tensor


def _no_floats(candidate: Candidate, tensor: Tensor, dtype: int | None) -> UnsupportedModelError:
    from tensorflow.core.framework import types_pb2

    return UnsupportedModelError(
        explain(
            f"The class scores behind {candidate.output} are not floating-point numbers.",
            received=f"{tensor} of "
            + (types_pb2.DataType.Name(dtype) if dtype is not None else "a dtype that the graph does not tell"),
            valid="float32, float64, float16 or bfloat16",
        )
    )


def _with_all_outputs(graphs: Sequence[Graph], site: ScoreSite, found: list[tuple[Graph, Candidate]]) -> ScoreSite:
    """The site with every output that is computed from it, ids and labels included, and what each one holds."""
    kinds: dict[str, str] = {}
    for graph, candidate in found:
        signature = graph.meta_graph.signature_def[candidate.signature]
        key = candidate.output[len(candidate.signature) + 1 :]
        start = Place(graph.signature_tensor(signature.outputs[key].name))
        targets = {point.tensor for point in site.points if point.meta_graph == graph.index}
        if _depends_on(graph, start.tensor, targets):
            kinds[candidate.output] = held(graph, start, targets, site.kind)
    return dataclasses.replace(site, output_kinds=kinds)


def _depends_on(graph: Graph, tensor: Tensor, targets: set[Tensor]) -> bool:
    hits: set[Tensor] = set()

    def barrier(passed: Tensor) -> bool:
        if passed in targets:
            hits.add(passed)
        return passed in targets

    Dataflow(graph, barrier).origins(tensor)
    return bool(hits)


def _binary(
    found: list[tuple[Graph, Candidate]], suited: list[tuple[Graph, Candidate]]
) -> UnsupportedModelError | None:
    """Refuse two-class models that answer one number: one of two classes forgotten leaves nothing to tell apart."""
    if any(entry[1].shape is None or entry[1].shape[-1] != 2 for entry in suited):
        return None
    lone: set[str] = set()
    shows_both = False
    for graph, candidate in found:
        key = candidate.output[len(candidate.signature) + 1 :]
        shape = from_proto(graph.meta_graph.signature_def[candidate.signature].outputs[key].tensor_shape)
        if not candidate.is_float or shape is None or len(shape) > 2:
            continue
        shows_both = shows_both or (len(shape) > 0 and shape[-1] == 2)
        if len(shape) < 2 or shape[-1] == 1:
            one_score = candidate.ending in ("linear", "sigmoid")
            lone |= {f"{candidate.output} {spell(shape)}"} if one_score or not shows_both else set()
    if not suited and not any(entry[1].ending == "sigmoid" for entry in found):
        return None
    return _refuse_binary(", ".join(sorted(lone))) if lone else None


def _unsuitable(found: list[tuple[Graph, Candidate]], chosen: list[tuple[Graph, Candidate]]) -> UnsupportedModelError:
    """Why none of the candidates is a class vector."""
    shown = ", ".join(sorted({f"{candidate.output} {spell(candidate.shape)}" for _, candidate in found}))
    considered = chosen or [entry for entry in found if entry[1].ending == "sigmoid"]
    for _, candidate in considered:
        shape = candidate.shape
        if shape is not None and len(shape) > 2:
            return UnsupportedModelError(
                explain(
                    "The model answers scores at every position (pixel, frame or token), not one class vector per "
                    "example, which is what the filter is defined for.",
                    received=f"{candidate.output} of shape {spell(shape)}",
                    valid="an output of shape [batch, n]",
                )
            )
    if considered and not chosen:
        return UnsupportedModelError(
            explain(
                "The model ends in a Sigmoid per class: a multi-label model, whose scores are not one distribution "
                "over which removed probability could be redistributed.",
                received=shown,
                valid="a model with one score per class whose probabilities sum to one",
            )
        )
    for _, candidate in chosen:
        shape = candidate.shape
        if shape is not None and (len(shape) < 2 or shape[-1] == 1):
            return UnsupportedModelError(
                explain(
                    "The model answers one number per example: a regression model has no class to forget, and a "
                    "binary model with one score would have no class left to tell from the other.",
                    received=shown,
                    valid="an output of shape [batch, n] with one probability or logit for each of n >= 2 classes",
                )
            )
        return UnsupportedModelError(
            explain(
                "The number of classes cannot be read from the graph: the last axis of the class scores has no static "
                "length.",
                received=f"{candidate.output} of shape {spell(shape)}",
                valid="class scores whose last axis has a fixed length",
                hint="Export the model with the number of classes in its output shape.",
            )
        )
    return UnsupportedModelError(
        explain(
            "No output of this model is seen to be computed from class scores: on the way back from each output there "
            "is no Softmax, no normalised vector and no final linear layer with one value per class. A regression "
            "model, an embedding or a detector has no class to forget; class scores that are made inside the branches "
            "of a condition or a loop are not found.",
            received=shown,
            valid="an output of shape [batch, n] with one probability or logit for each of n >= 2 classes",
        )
    )


def _refuse_binary(shown: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "The model answers one probability p for two classes. Forgetting one of two classes leaves a model that "
            "can only ever say the other: no classifier remains.",
            received=shown,
            valid="a model with a score for each of n >= 2 classes, of which at least one is retained",
            hint="Take the model out of service instead.",
        )
    )


def _no_outputs() -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "The model has no signature with an output that depends on its input, so no client could ask it anything.",
            received="no usable SignatureDef",
            valid="a SavedModel that TensorFlow Serving can answer requests from",
            hint="Export it with signatures, e.g. model.export(path) or tf.saved_model.save(..., signatures=...).",
        )
    )


def _not_named(outputs: Sequence[str], sites: tuple[ScoreSite, ...]) -> AmbiguousSiteError:
    return AmbiguousSiteError(
        explain(
            "No class scores lead to the outputs that were named.",
            received=", ".join(outputs),
            valid=", ".join(output for site in sites for output in site.outputs),
        )
    )


def _ambiguous(sites: tuple[ScoreSite, ...]) -> AmbiguousSiteError:
    listed = "; ".join(f"{site.classes} classes at {' and '.join(site.outputs)}" for site in sites)
    return AmbiguousSiteError(
        explain(
            "The model has several class vectors, and which of them counts the classes to forget is not for a program "
            "to guess.",
            received=listed,
            valid="one class vector",
            hint="Name an output that is computed from the right one with --output SIG:KEY, or one of each if all of "
            "them count the same classes.",
        )
    )
