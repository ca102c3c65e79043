"""From one output of a signature back to the tensor in which its class scores arise.

The walk passes over whatever only reshapes, picks, names or does arithmetic on scores, enters the functions that are
called on the way, the branches of conditions and the bodies of loops, and ends at a Softmax (at a Sigmoid, for a
multi-label model), at a linear layer, or at something that is no classifier's last step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.dataflow import Dataflow, of_requests
from mpru_tf.saved_model.graph import (
    CASE_OPS,
    FIRST_INPUT_OPS,
    IF_OPS,
    WHILE_OPS,
    Call,
    Graph,
    Place,
    Tensor,
    is_for_clients,
)

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
    Neg Log1p Sqrt Square FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVarsPerChannel
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
    """
)
# The same numbers, some of them or in another order.
_CUTTING_OPS = _ops("StridedSlice Slice Transpose ConcatV2 Pack")
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
# Lists and arrays that a loop fills: what was put in is taken from the first or the last input.
_LIST_READ_OPS = _ops("TensorListStack TensorListConcat TensorListConcatV2 TensorListGetItem TensorListGather")
_ARRAY_READ_OPS = _ops("TensorArrayGatherV3 TensorArrayConcatV3 TensorArrayReadV3")
_WRITTEN_VALUE = {"TensorListSetItem": (2, 0), "TensorListPushBack": (1, 0), "TensorArrayWriteV3": (2, 3)}
_MERGE_OPS = _ops("Merge RefMerge")
_SOFTMAX_OPS = _ops("Softmax LogSoftmax")
_SIGMOID_OPS = _ops("Sigmoid")
_MAX_STEPS = 200
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Candidate:
    """What walking back from one output ended at.

    Attributes:
        output: the output, as SIG:KEY.
        signature: its signature.
        places: the tensor; several where a condition decides which of them answers.
        ending: 'softmax', 'sigmoid', 'linear', 'forest', 'normalised', 'mixture' (of sigmoids) or 'other'.
        is_float: whether the output itself holds floating-point numbers.
        shape: of the tensor at :attr:`place`, None for an unknown rank.
        width: length of its last axis, None if the graph does not tell.
    """

    output: str
    signature: str
    places: tuple[Place, ...]
    ending: str
    is_float: bool
    shape: shapes.Shape | None
    width: int | None

    @property
    def place(self) -> Place:
        return self.places[0]


def candidate_of(
    graph: Graph, name: str, signature: SignatureDef, key: str, info: TensorInfo, multi_label: bool = False
) -> Candidate | None:
    """What one output is computed from; None when nothing that a client sends reaches it.

    Args:
        graph: the MetaGraph.
        name: the signature's key.
        signature: the SignatureDef.
        key: the output's key.
        info: the output.
        multi_label: look for a Sigmoid, where else a Softmax is looked for.
    """
    if not info.name:  # sparse and composite outputs have no single tensor
        return None
    start = Place(graph.signature_tensor(info.name))
    flow = of_requests(graph)
    if not is_for_clients(name, signature) or not flow.depends_on_request(start):
        return None
    declared = shapes.from_proto(info.tensor_shape)
    head, heads = ("sigmoid", _SIGMOID_OPS) if multi_label else ("softmax", _SOFTMAX_OPS)

    def candidate(places: Iterable[Place], ending: str, declared: shapes.Shape | None = None) -> Candidate:
        found = tuple(places)
        shape = _known_shape(graph, found[0], declared)
        width = shape[-1] if shape and shape[-1] is not None else shapes.last_axis(graph, found[0])
        if walk.collected and found[0] != shown and shape is not None:
            shape = (None, *shape)  # one for each turn of a loop
        return Candidate(f"{name}:{key}", name, found, ending, _is_float(info), shape, width)

    walk = _walk(graph, flow, start, heads)
    kinds = set(walk.ends.values())
    shown, (direct, reshaped) = graph.source(start), shown_tensor(graph, start)
    if kinds == {head} and not walk.turns and (len(walk.ends) == 1 or not walk.mixed):
        scores = {place.tensor for place in walk.ends}
        shows = held(graph, start, scores, LOGITS, multi_label) != "derived" and not reshaped and not walk.collected
        return candidate(walk.ends, head, declared if shows else None)
    if kinds == {head} and _is_float(info):  # several heads vote: what leaves the model is the vote, as probabilities
        return candidate([shown], "mixture" if multi_label else "normalised", declared)
    kind = _classify(graph, flow, direct)
    if _is_float(info) and kind in ("linear", "forest", "normalised", "sigmoid"):
        flattened = reshaped and declared is not None and len(declared) == 1
        return candidate([direct], kind) if flattened else candidate([shown if reshaped else direct], kind, declared)
    if kinds == {"linear"} and walk.calculated and _is_float(info):
        kinds = {"other"}  # features: nobody takes a logarithm of logits
    if len(kinds) == 1 and not walk.turns and not kinds.isdisjoint(("linear", "forest", "normalised", "mixture")):
        if len(walk.ends) == 1:  # only ids or ranked scores leave the model, or what comes out of a loop
            (place,) = walk.ends
            return candidate([place], kinds.pop(), declared if place == shown else None)
        if not walk.mixed and _is_float(info):
            return candidate([shown], kinds.pop(), declared)
    return candidate([shown], "other", declared)


@dataclass
class _Walk:
    """Where walking back over post-processing ended.

    Attributes:
        ends: every tensor at which it ended, and what it is there.
        mixed: whether several of them were computed with together; otherwise one of them answers at a time.
        calculated: whether there was arithmetic on the way.
        turns: whether a loop computed with what its turns made of one of them.
        collected: whether one of them lies in a loop that puts what its turns make into a list.
    """

    ends: dict[Place, str] = field(default_factory=dict)
    mixed: bool = False
    calculated: bool = False
    turns: bool = False
    collected: bool = False


def _walk(
    graph: Graph,
    flow: Dataflow,
    start: Place,
    heads: frozenset[str] = _SOFTMAX_OPS,
    seen: set[Place] | None = None,
) -> _Walk:
    """Walk back from ``start`` to the ``heads`` and to whatever is no post-processing, past what was ``seen``."""
    walk = _Walk()
    head = "sigmoid" if heads is _SIGMOID_OPS else "softmax"
    seen = set() if seen is None else seen
    queue = [start]
    while queue and len(seen) < _MAX_STEPS:
        place = graph.source(queue.pop())
        if place in seen:
            continue
        seen.add(place)
        node = graph.node(place.tensor)
        op = node.op if node is not None else "argument"
        inputs = graph.inputs_of(place)
        if op in heads and inputs:
            walk.ends[_before_reshapes(graph, graph.source(inputs[0]))] = head
        elif op in IF_OPS | CASE_OPS | _MERGE_OPS:
            ways = _branches(graph, place) if op not in _MERGE_OPS else _not_from_last_turn(graph, inputs)
            moving = [way for way in ways if flow.depends_on_request(way)]
            if len(moving) == len(ways):
                queue.extend(ways)
            elif len(ways) == len(inputs) or op not in _MERGE_OPS:
                # One branch answers a constant: only behind the condition are all answers to be had.
                kinds = {kind for way in moving for kind in _walk(graph, flow, way, heads, seen).ends.values()}
                walk.ends[place] = _behind(kinds, head)
        elif op in WHILE_OPS | {"Exit", "RefExit"}:
            value = _loop_value(graph, place)
            made_by = graph.node(value.tensor) if value is not None else None
            if value is None or made_by is None:
                walk.ends[place] = "other"
            elif made_by.op in _WRITTEN_VALUE:  # a list that each turn adds to
                walk.collected = True
                queue.append(value)
            elif made_by.op in heads:  # each turn starts from the last one's scores, which must stay what they are
                walk.ends[place] = _behind({head}, head)
            else:
                walk.turns = True
                queue.append(value)
        elif op in _WRITTEN_VALUE:
            queue.extend(
                inputs[at] for at in _WRITTEN_VALUE[op] if at < len(inputs) and _moves(graph, flow, inputs[at])
            )
        elif op in _LIST_READ_OPS | FIRST_INPUT_OPS and inputs:
            queue.append(inputs[0])
        elif op in _ARRAY_READ_OPS and inputs:
            queue.append(inputs[-1])
        elif op in _RESHAPING_OPS | _SELECTING_OPS or (
            op in _ARITHMETIC_OPS and _classify(graph, flow, place) == "arithmetic"
        ):
            steps = [step for step in inputs if _moves(graph, flow, step)]
            walk.mixed = walk.mixed or len(steps) > 1
            walk.calculated = walk.calculated or op in _ARITHMETIC_OPS
            queue.extend(steps)
        else:
            walk.ends[place] = _classify(graph, flow, place)
    return walk


def _moves(graph: Graph, flow: Dataflow, step: Place) -> bool:
    return flow.depends_on_request(step) and not _shape_only(graph, step)


def _behind(kinds: set[str], head: str) -> str:
    """What comes out of a condition or a loop in which class scores of these kinds are made."""
    if kinds and kinds <= {head, "normalised", "mixture"}:
        return "mixture" if head == "sigmoid" else "normalised"
    return kinds.pop() if len(kinds) == 1 else "other"


def _branches(graph: Graph, place: Place) -> list[Place]:
    """What each branch of a condition returns as the output at ``place``."""
    node = graph.node(place.tensor)
    assert node is not None
    scope = graph.scope(place.tensor.scope)
    index = graph.output_index(place.tensor, node)
    return [
        Place(graph.returned(function, index), (*place.calls, call))
        for function, offset in graph.callees(scope, node)
        if (call := Call(scope.name, node.name, offset)) not in place.calls
    ]


def _not_from_last_turn(graph: Graph, inputs: list[Place]) -> list[Place]:
    """Of what a Merge of TensorFlow 1 lets through, all but what comes around in a loop."""
    nodes = [(step, graph.node(step.tensor)) for step in inputs]
    return [step for step, node in nodes if node is None or node.op not in ("NextIteration", "RefNextIteration")]


def _loop_value(graph: Graph, place: Place) -> Place | None:
    """What one turn of a loop makes of the loop variable that leaves it at ``place``."""
    node = graph.node(place.tensor)
    assert node is not None
    scope = graph.scope(place.tensor.scope)
    if node.op in WHILE_OPS:
        call = Call(scope.name, node.name, 0)
        if call in place.calls:
            return None
        value = graph.returned(node.attr["body"].func.name, graph.output_index(place.tensor, node))
        return graph.source(Place(value, (*place.calls, call)))
    # TensorFlow 1: Exit <- Switch <- Merge <- NextIteration <- the value
    for ops in (("Exit", "RefExit"), ("Switch", "RefSwitch"), _MERGE_OPS):
        node = graph.node(place.tensor)
        inputs = graph.inputs_of(place)
        if node is None or node.op not in ops or not inputs:
            return None
        if node.op not in _MERGE_OPS:
            place = inputs[0]
            continue
        for step in inputs:
            turn = graph.node(step.tensor)
            if turn is not None and turn.op in ("NextIteration", "RefNextIteration"):
                return graph.source(graph.inputs_of(step)[0])
    return None


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


def _classify(graph: Graph, flow: Dataflow, place: Place, depth: int = 0) -> str:
    """What the producer of a tensor makes of it: linear, forest, normalised, sigmoid, arithmetic or other."""
    if depth > _MAX_DEPTH:
        return "other"
    if place not in graph.known_kinds:
        graph.known_kinds[place] = _kind_of(graph, flow, place, depth + 1)
    return graph.known_kinds[place]


def _kind_of(graph: Graph, flow: Dataflow, place: Place, depth: int) -> str:
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
        kinds = {_classify(graph, flow, step, depth) for step in moving}
        if len(moving) == 1 and len(inputs) == 2 and kinds == {"linear"}:
            return "linear"  # a bias, a scale or a temperature on one linear layer
        if kinds == {"linear"} and node.op in ("Add", "AddV2", "AddN"):
            return "linear"  # several linear layers added up, as wide-and-deep models do
    if node.op == "Mean" and inputs and _classify(graph, flow, inputs[0], depth) == "linear":
        return "linear"  # class scores per position, pooled
    return "arithmetic" if node.op in _ARITHMETIC_OPS else "other"


def _mixes_softmaxes(graph: Graph, flow: Dataflow, place: Place) -> bool:
    """Whether a product weighs probabilities with probabilities, as a mixture of experts does."""
    moving = [step for step in graph.inputs_of(place) if flow.depends_on_request(step)]
    return len(moving) > 1 and all(set(_walk(graph, flow, step).ends.values()) == {"softmax"} for step in moving)


def _is_sum_of(graph: Graph, divisor: Place, dividend: Place) -> bool:
    """Whether ``divisor`` is the dividend's own sum (perhaps clipped away from zero, or plus a constant)."""
    for _ in range(3):
        node = graph.node(divisor.tensor)
        if node is None:
            return False
        inputs = [graph.source(step) for step in graph.inputs_of(divisor)]
        if node.op == "Sum":
            return bool(inputs) and inputs[0] == dividend
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


def held(
    graph: Graph,
    start: Place,
    targets: set[Tensor],
    kind: str,
    multi_label: bool = False,
    known: dict[Tensor, str] | None = None,
) -> str:
    """What an output shows that is computed from the class scores ``targets``, which hold ``kind``.

    Returns:
        ``kind`` for the scores themselves, 'probabilities' or 'log_probabilities' for what a Softmax (in a multi-label
        model, a Sigmoid) makes of them, or 'derived'.
    """
    direct, _ = shown_tensor(graph, start)
    if direct.tensor in targets or graph.source(start).tensor in targets:
        return kind
    node = graph.node(direct.tensor)
    if node is None:
        return "derived"
    if node.op in _SIGMOID_OPS if multi_label else node.op in _SOFTMAX_OPS:
        return "log_probabilities" if node.op == "LogSoftmax" else PROBABILITIES
    known = {} if known is None else known
    if direct.tensor in known:
        return known[direct.tensor]
    ways: list[Place] = []
    if len(direct.calls) > _MAX_DEPTH:
        return "derived"
    if node.op in IF_OPS | CASE_OPS:
        ways = _branches(graph, direct)
    elif node.op in _MERGE_OPS:
        ways = graph.inputs_of(direct)
    elif _is_collected(graph, direct):
        ways = _collected(graph, direct)
    known[direct.tensor] = "derived"  # the answer to whoever comes by again in a circle
    kinds = {held(graph, way, targets, kind, multi_label, known) for way in ways}
    known[direct.tensor] = kinds.pop() if len(kinds) == 1 else "derived"
    return known[direct.tensor]


def _is_collected(graph: Graph, place: Place) -> bool:
    """Whether a tensor is put together from what the turns of a loop left in a list or an array."""
    node = graph.node(place.tensor)
    return node is not None and node.op in _LIST_READ_OPS | _ARRAY_READ_OPS


def _collected(graph: Graph, place: Place) -> list[Place]:
    """What a loop adds to the list or array that ``place`` is put together from."""
    node = graph.node(place.tensor)
    inputs = graph.inputs_of(place)
    if node is None or not inputs:
        return []
    filled = graph.source(inputs[0] if node.op in _LIST_READ_OPS else inputs[-1])
    loop = graph.node(filled.tensor)
    value = _loop_value(graph, filled) if loop is not None and loop.op in WHILE_OPS | {"Exit", "RefExit"} else None
    written = graph.node(value.tensor) if value is not None else None
    if value is None or written is None or written.op not in _WRITTEN_VALUE:
        return []
    return graph.inputs_of(value)[_WRITTEN_VALUE[written.op][0] :][:1]


def head_behind(graph: Graph, place: Place, multi_label: bool) -> Place | None:
    """If a tensor is what a Softmax (in a multi-label model, a Sigmoid) answers: what goes into that; else None."""
    node = graph.node(place.tensor)
    inputs = graph.inputs_of(place)
    if node is None or not inputs or node.op not in (_SIGMOID_OPS if multi_label else _SOFTMAX_OPS):
        return None
    return graph.source(inputs[0])


def kind_at(graph: Graph, place: Place, multi_label: bool) -> str | None:
    """Whether a tensor holds logits or probabilities, from what reads it and what makes it; None if neither tells."""
    heads = _SIGMOID_OPS if multi_label else _SOFTMAX_OPS
    if any(node.op in heads for node in graph.readers(place.tensor)):
        return LOGITS
    made = _classify(graph, of_requests(graph), graph.source(place))
    return {"linear": LOGITS, "forest": PROBABILITIES, "normalised": PROBABILITIES}.get(made)


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
    flow = of_requests(graph)
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
        elif node.op in _ARITHMETIC_OPS | _RESHAPING_OPS | _CUTTING_OPS | {"BiasAdd", "BiasAddV1", "Softmax"}:
            queue.extend(inputs)
        else:
            queue.extend(step for step in inputs if not flow.depends_on_request(step))
    return frozenset(found)
