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
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import AmbiguousSiteError, UnsupportedModelError, explain
from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.graph import MAIN, Dataflow, Graph, Place, Tensor, is_for_clients

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

LOGITS = "logits"
PROBABILITIES = "probabilities"

# The value changes its shape, not its numbers or their order.
_RESHAPING_OPS = frozenset({"Reshape", "Squeeze", "ExpandDims"})
# Picks, orders or names classes by their scores: the first input is what it picks from.
_SELECTING_OPS = frozenset(
    {
        *(
            "ArgMax",
            "ArgMin",
            "TopK",
            "TopKV2",
            "Max",
            "Min",
            "GatherV2",
            "Gather",
            "GatherNd",
            "StridedSlice",
            "Slice",
        ),
        *("LookupTableFind", "LookupTableFindV2", "AsString", "StringFormat", "ConcatV2", "Pack", "Unpack", "Split"),
        *(
            "SplitV",
            "Tile",
            "ReverseV2",
            "OneHot",
            "Equal",
            "Greater",
            "GreaterEqual",
            "Less",
            "LessEqual",
            "Transpose",
        ),
    }
)
# Arithmetic after the scores (percentages, rounding, clipping, ensembles of several heads).
_ARITHMETIC_OPS = frozenset(
    {
        *(
            "Add",
            "AddV2",
            "AddN",
            "Sub",
            "Mul",
            "Div",
            "RealDiv",
            "DivNoNan",
            "Maximum",
            "Minimum",
            "Pow",
            "Log",
            "Exp",
        ),
        *("Round", "ClipByValue", "Mean", "Sum", "Select", "SelectV2", "Neg", "Log1p", "Sqrt", "Square"),
    }
)
# What may lie between a sum and the division by it.
_AROUND_SUM_OPS = frozenset({"Maximum", "Add", "AddV2", "ExpandDims", "Reshape", "ClipByValue", "BroadcastTo"})
# What the last layer of a classifier without a Softmax looks like.
_LINEAR_OPS = frozenset(
    {
        *(
            "MatMul",
            "BatchMatMul",
            "BatchMatMulV2",
            "BatchMatMulV3",
            "Einsum",
            "BiasAdd",
            "BiasAddV1",
            "Conv2D",
            "Conv1D",
        ),
        *("SparseTensorDenseMatMul", "SparseMatMul", "_FusedMatMul", "_FusedConv2D", "XlaDot", "XlaDotV2"),
    }
)
# TensorFlow Decision Forests and YDF answer class probabilities from one op.
_FOREST_OPS = frozenset(
    {"SimpleMLInferenceOp", "SimpleMLInferenceOpWithHandle", "SimpleMLInferenceLeafIndexOpWithHandle"}
)
_MAX_STEPS = 200
_DT_HALF, _DT_BFLOAT16 = 19, 14  # types.proto; importing it would import TensorFlow
_FLOATS = (1, 2, _DT_HALF, _DT_BFLOAT16)  # and DT_FLOAT, DT_DOUBLE


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
        return any(point.dtype in (_DT_HALF, _DT_BFLOAT16) for point in self.points)

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
class Candidate:
    """What walking back from one output ended at."""

    output: str
    signature: str
    place: Place
    ending: str  # softmax | linear | forest | normalised | sigmoid | other
    is_float: bool  # whether the output itself holds floating-point numbers
    shape: shapes.Shape | None  # of the tensor at `place`


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
                candidate = _candidate(graph, name, signature, key, info)
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


# ------------------------------------------------------------------------------------------------- walking back
def _candidate(graph: Graph, name: str, signature: SignatureDef, key: str, info: TensorInfo) -> Candidate | None:
    """What one output is computed from; None when nothing that a client sends reaches it."""
    if not info.name:  # sparse and composite outputs have no single tensor
        return None
    start = Place(graph.signature_tensor(info.name))
    flow = graph.requests
    if not is_for_clients(name, signature) or not flow.depends_on_request(start):
        return None
    declared = shapes.from_proto(info.tensor_shape)

    def candidate(place: Place, ending: str, declared: shapes.Shape | None) -> Candidate:
        return Candidate(f"{name}:{key}", name, place, ending, _is_float(info), _known_shape(graph, place, declared))

    endings = _endings(graph, flow, start)
    direct, reshaped = _direct(graph, start)
    if {ending for _, ending in endings} == {"softmax"}:
        if len(endings) == 1:
            site = endings[0][0]
            shown = _leaves_as(graph, start, site) != "derived" and not reshaped
            return candidate(site, "softmax", declared if shown else None)
        if _is_float(info):  # several heads vote: what leaves the model is the vote, as probabilities
            return candidate(graph.source(start), "normalised", declared)
    kind = _classify(graph, flow, direct)
    if _is_float(info) and kind in ("linear", "forest", "normalised", "sigmoid"):
        return candidate(graph.source(start) if reshaped else direct, kind, declared)
    if len(endings) == 1 and endings[0][1] in ("linear", "forest", "normalised"):
        return candidate(endings[0][0], endings[0][1], None)  # only ids or ranked scores leave the model
    return candidate(direct, "other", declared)


def _endings(graph: Graph, flow: Dataflow, start: Place) -> list[tuple[Place, str]]:
    """Every tensor at which walking back over post-processing ends, and what it is there."""
    ends: dict[Place, str] = {}
    seen: set[Place] = set()
    queue = [start]
    while queue and len(seen) < _MAX_STEPS:
        place = graph.source(queue.pop())
        if place in seen:
            continue
        seen.add(place)
        node = graph.node(place.tensor)
        op = node.op if node is not None else "argument"
        if op in ("Softmax", "LogSoftmax"):
            ends[_before_reshapes(graph, graph.source(graph.inputs_of(place)[0]))] = "softmax"
            continue
        post_processing = op in _RESHAPING_OPS | _SELECTING_OPS or (
            op in _ARITHMETIC_OPS and _classify(graph, flow, place) == "arithmetic"
        )
        if post_processing:
            queue.extend(
                step
                for step in graph.inputs_of(place)
                if flow.depends_on_request(step) and not _shape_only(graph, step)
            )
        else:
            ends[place] = _classify(graph, flow, place)
    return list(ends.items())


def _before_reshapes(graph: Graph, place: Place) -> Place:
    """The same [batch, n] numbers before reshapes that change nothing, as TF-slim has around its Softmax.

    What else is computed from them, the logits as an output of their own above all, is then filtered too.
    """
    for _ in range(_MAX_STEPS):
        node = graph.node(place.tensor)
        if node is None or node.op not in _RESHAPING_OPS:
            break
        inner = graph.source(graph.inputs_of(place)[0])
        outside, inside = shapes.static_shape(graph, place), shapes.static_shape(graph, inner)
        if outside is None or inside is None or (len(outside), len(inside)) != (2, 2):
            break
        if outside[-1] is None or outside[-1] != inside[-1]:
            break
        place = inner
    return place


def _shape_only(graph: Graph, place: Place) -> bool:
    node = graph.node(graph.source(place).tensor)
    return node is not None and node.op in ("Shape", "ShapeN", "Size", "Rank")


def _classify(graph: Graph, flow: Dataflow, place: Place) -> str:
    """What the producer of a tensor makes of it: linear, forest, normalised, sigmoid, arithmetic or other."""
    node = graph.node(place.tensor)
    if node is None:
        return "other"
    if node.op in _LINEAR_OPS:
        return "normalised" if _mixes_softmaxes(graph, flow, place) else "linear"
    if node.op in _FOREST_OPS:
        return "forest"
    if node.op == "Sigmoid":
        return "sigmoid"
    inputs = [graph.source(step) for step in graph.inputs_of(place)]
    if node.op in ("RealDiv", "Div", "DivNoNan") and len(inputs) == 2 and _is_sum_of(graph, inputs[1], inputs[0]):
        return "normalised"
    if node.op in ("Add", "AddV2", "Sub", "AddN", "Mul", "RealDiv", "Div"):
        moving = [step for step in inputs if flow.depends_on_request(step)]
        kinds = {_classify(graph, flow, step) for step in moving}
        if len(moving) == 1 and len(inputs) == 2 and kinds == {"linear"}:
            return "linear"  # a bias, a scale or a temperature on one linear layer
        if kinds == {"linear"} and node.op in ("Add", "AddV2", "AddN"):
            return "linear"  # several linear layers added up, as wide-and-deep models do
    if node.op == "Mean" and inputs and _classify(graph, flow, inputs[0]) == "linear":
        return "linear"  # class scores per position, pooled
    return "arithmetic" if node.op in _ARITHMETIC_OPS else "other"


def _mixes_softmaxes(graph: Graph, flow: Dataflow, place: Place) -> bool:
    """Whether a product weighs probabilities with probabilities, as a mixture of experts does."""
    moving = [step for step in graph.inputs_of(place) if flow.depends_on_request(step)]
    return len(moving) > 1 and all(ending == "softmax" for step in moving for _, ending in _endings(graph, flow, step))


def _is_sum_of(graph: Graph, divisor: Place, dividend: Place) -> bool:
    """Whether ``divisor`` is the dividend's own sum (perhaps clipped away from zero, or plus a constant)."""
    for _ in range(3):
        node = graph.node(divisor.tensor)
        if node is None:
            return False
        inputs = [graph.source(step) for step in graph.inputs_of(divisor)]
        if node.op == "Sum":
            return inputs[0] == dividend
        if node.op not in _AROUND_SUM_OPS or not inputs:
            return False
        divisor = inputs[0]
    return False


def _direct(graph: Graph, start: Place) -> tuple[Place, bool]:
    """The tensor that an output shows, looked at through reshapes, and whether there was one."""
    place, reshaped = graph.source(start), False
    for _ in range(_MAX_STEPS):
        node = graph.node(place.tensor)
        if node is None or node.op not in _RESHAPING_OPS:
            break
        place, reshaped = graph.source(graph.inputs_of(place)[0]), True
    return place, reshaped


def _leaves_as(graph: Graph, start: Place, site: Place) -> str:
    """What an output holds that is computed from the Softmax input ``site``."""
    place, _ = _direct(graph, start)
    if place == site:
        return LOGITS
    node = graph.node(place.tensor)
    if node is not None and node.op in ("Softmax", "LogSoftmax"):
        return PROBABILITIES if node.op == "Softmax" else "log_probabilities"
    return "derived"


def _known_shape(graph: Graph, place: Place, declared: shapes.Shape | None) -> shapes.Shape | None:
    inferred = shapes.static_shape(graph, place)
    if declared is None:
        return inferred
    if inferred is not None and len(inferred) == len(declared):
        return tuple(b if b is not None else a for a, b in zip(inferred, declared, strict=True))
    return declared


def _is_float(info: TensorInfo) -> bool:
    return info.dtype in _FLOATS


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
        if dtype not in _FLOATS:
            raise _no_floats(candidate, tensor, dtype)
        if graph.is_request(tensor):
            raise _sent_by_client(candidate)
        point = SitePoint(graph.index, tensor, kind, width, dtype)
        if point not in weights and len(chosen) > 1:
            weights[point] = _weights(graph, candidate.place)
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


def _weights(graph: Graph, place: Place) -> frozenset[str | bytes]:
    """The variables and large constants of the layer that makes class scores: names, or the constants themselves."""
    flow = graph.requests
    found: set[str | bytes] = set()
    seen: set[Place] = set()
    queue = [place]
    while queue and len(seen) < _MAX_STEPS:
        place = graph.source(queue.pop())
        node = graph.node(place.tensor)
        if place in seen or node is None:
            continue
        seen.add(place)
        inputs = graph.inputs_of(place)
        if node.op == "Const":
            value = node.attr["value"].tensor
            if value.dtype in _FLOATS and any(dim.size > 1 for dim in value.tensor_shape.dim):
                found.add(value.SerializeToString(deterministic=True))
        elif not inputs and not graph.is_request(place.tensor):
            found.add(node.name)
        elif node.op in _ARITHMETIC_OPS | _RESHAPING_OPS | {"BiasAdd", "BiasAddV1", "Softmax"}:
            queue.extend(inputs)
        else:
            queue.extend(step for step in inputs if not flow.depends_on_request(step))
    return frozenset(found)


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
    if graph.dtype(tensor) not in (_DT_HALF, _DT_BFLOAT16) or graph.is_shown(tensor):
        return tensor
    readers = graph.readers(tensor)
    if len(readers) != 1 or readers[0].op != "Cast":
        return tensor
    arg = "" if tensor.scope == MAIN else "y"
    wide = Tensor(tensor.scope, readers[0].name, arg, 0)
    return wide if graph.dtype(wide) in _FLOATS else tensor


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
            kinds[candidate.output] = _holds(graph, start, targets, site.kind)
    return dataclasses.replace(site, output_kinds=kinds)


def _depends_on(graph: Graph, tensor: Tensor, targets: set[Tensor]) -> bool:
    hits: set[Tensor] = set()

    def barrier(passed: Tensor) -> bool:
        if passed in targets:
            hits.add(passed)
        return passed in targets

    Dataflow(graph, barrier).origins(tensor)
    return bool(hits)


def _holds(graph: Graph, start: Place, targets: set[Tensor], kind: str) -> str:
    direct, _ = _direct(graph, start)
    if direct.tensor in targets or graph.source(start).tensor in targets:
        return kind
    node = graph.node(direct.tensor)
    if node is not None and node.op in ("Softmax", "LogSoftmax"):
        return PROBABILITIES if node.op == "Softmax" else "log_probabilities"
    return "derived"


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
        shape = shapes.from_proto(graph.meta_graph.signature_def[candidate.signature].outputs[key].tensor_shape)
        if not candidate.is_float or shape is None or len(shape) > 2:
            continue
        shows_both = shows_both or (len(shape) > 0 and shape[-1] == 2)
        if len(shape) < 2 or shape[-1] == 1:
            one_score = candidate.ending in ("linear", "sigmoid")
            lone |= {f"{candidate.output} {_spell(shape)}"} if one_score or not shows_both else set()
    if not suited and not any(entry[1].ending == "sigmoid" for entry in found):
        return None
    return _refuse_binary(", ".join(sorted(lone))) if lone else None


def _unsuitable(found: list[tuple[Graph, Candidate]], chosen: list[tuple[Graph, Candidate]]) -> UnsupportedModelError:
    """Why none of the candidates is a class vector."""
    shown = ", ".join(sorted({f"{candidate.output} {_spell(candidate.shape)}" for _, candidate in found}))
    considered = chosen or [entry for entry in found if entry[1].ending == "sigmoid"]
    for _, candidate in considered:
        shape = candidate.shape
        if shape is not None and len(shape) > 2:
            return UnsupportedModelError(
                explain(
                    "The model answers scores at every position (pixel, frame or token), not one class vector per "
                    "example, which is what the filter is defined for.",
                    received=f"{candidate.output} of shape {_spell(shape)}",
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
                received=f"{candidate.output} of shape {_spell(shape)}",
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


def _spell(shape: shapes.Shape | None) -> str:
    if shape is None:
        return "of unknown shape"
    return (
        "["
        + ", ".join(
            "batch" if axis is None and i == 0 else "?" if axis is None else str(axis) for i, axis in enumerate(shape)
        )
        + "]"
    )
