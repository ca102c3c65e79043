"""From one output of a signature back to the tensor in which its class scores arise.

The walk passes over whatever only reshapes, picks, names or does arithmetic on scores, enters the functions that are
called on the way, and ends at a Softmax, at a linear layer, or at something that is no classifier's last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.graph import Dataflow, Graph, Place, Tensor, is_for_clients

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

LOGITS = "logits"
PROBABILITIES = "probabilities"
DT_HALF, DT_BFLOAT16 = 19, 14  # types.proto; importing it would import TensorFlow
FLOATS = (1, 2, DT_HALF, DT_BFLOAT16)  # and DT_FLOAT, DT_DOUBLE


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


# The value changes its shape, not its numbers or their order.
_RESHAPING_OPS = _ops("Reshape Squeeze ExpandDims")
# Picks, orders or names classes by their scores: the first input is what it picks from.
_SELECTING_OPS = _ops(
    """
    ArgMax ArgMin TopK TopKV2 Max Min GatherV2 Gather GatherNd StridedSlice Slice LookupTableFind LookupTableFindV2
    AsString StringFormat ConcatV2 Pack Unpack Split SplitV Tile ReverseV2 OneHot Equal Greater GreaterEqual Less
    LessEqual Transpose
    """
)
# Arithmetic after the scores (percentages, rounding, clipping, ensembles of several heads).
_ARITHMETIC_OPS = _ops(
    """
    Add AddV2 AddN Sub Mul Div RealDiv DivNoNan Maximum Minimum Pow Log Exp Round ClipByValue Mean Sum Select SelectV2
    Neg Log1p Sqrt Square
    """
)
# What may lie between a sum and the division by it.
_AROUND_SUM_OPS = _ops("Maximum Add AddV2 ExpandDims Reshape ClipByValue BroadcastTo")
# What the last layer of a classifier without a Softmax looks like.
_LINEAR_OPS = _ops(
    """
    MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum BiasAdd BiasAddV1 Conv2D Conv1D SparseTensorDenseMatMul
    SparseMatMul _FusedMatMul _FusedConv2D XlaDot XlaDotV2
    """
)
# TensorFlow Decision Forests and YDF answer class probabilities from one op.
_FOREST_OPS = _ops("SimpleMLInferenceOp SimpleMLInferenceOpWithHandle")
_MAX_STEPS = 200


@dataclass(frozen=True)
class Candidate:
    """What walking back from one output ended at."""

    output: str
    signature: str
    place: Place
    ending: str  # softmax | linear | forest | normalised | sigmoid | other
    is_float: bool  # whether the output itself holds floating-point numbers
    shape: shapes.Shape | None  # of the tensor at `place`


def candidate_of(graph: Graph, name: str, signature: SignatureDef, key: str, info: TensorInfo) -> Candidate | None:
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
    direct, reshaped = shown_tensor(graph, start)
    if {ending for _, ending in endings} == {"softmax"}:
        if len(endings) == 1:
            site = endings[0][0]
            shown = held(graph, start, {site.tensor}, LOGITS) != "derived" and not reshaped
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


def shown_tensor(graph: Graph, start: Place) -> tuple[Place, bool]:
    """The tensor that an output shows, looked at through reshapes, and whether there was one."""
    place, reshaped = graph.source(start), False
    for _ in range(_MAX_STEPS):
        node = graph.node(place.tensor)
        if node is None or node.op not in _RESHAPING_OPS:
            break
        place, reshaped = graph.source(graph.inputs_of(place)[0]), True
    return place, reshaped


def held(graph: Graph, start: Place, targets: set[Tensor], kind: str) -> str:
    """What an output shows that is computed from the class scores ``targets``, which hold ``kind``.

    Returns:
        ``kind`` for the scores themselves, 'probabilities' or 'log_probabilities' for what a Softmax makes of them, or
        'derived'.
    """
    direct, _ = shown_tensor(graph, start)
    if direct.tensor in targets or graph.source(start).tensor in targets:
        return kind
    node = graph.node(direct.tensor)
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
    return info.dtype in FLOATS


def weights_behind(graph: Graph, place: Place) -> frozenset[str | bytes]:
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
            if value.dtype in FLOATS and any(dim.size > 1 for dim in value.tensor_shape.dim):
                found.add(value.SerializeToString(deterministic=True))
        elif not inputs and not graph.is_request(place.tensor):
            found.add(node.name)
        elif node.op in _ARITHMETIC_OPS | _RESHAPING_OPS | {"BiasAdd", "BiasAddV1", "Softmax"}:
            queue.extend(inputs)
        else:
            queue.extend(step for step in inputs if not flow.depends_on_request(step))
    return frozenset(found)
