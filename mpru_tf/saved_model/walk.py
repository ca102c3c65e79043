"""Walking back from an output over its post-processing, to a Softmax, a linear layer, or whatever made its numbers.

The walk passes over whatever only reshapes, picks, names or does arithmetic on scores, enters the functions that are
called on the way, the branches of conditions and the bodies of loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.dataflow import Dataflow
from mpru_tf.saved_model.graph import CASE_OPS, FIRST_INPUT_OPS, IF_OPS, WHILE_OPS, Call, Graph, Place


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


# The value changes its shape, not its numbers or their order.
RESHAPING_OPS = _ops("Reshape Squeeze ExpandDims")
# Picks, orders or names classes by their scores: the first input is what it picks from.
_SELECTING_OPS = _ops(
    """
    ArgMax ArgMin TopK TopKV2 Max Min GatherV2 Gather GatherNd StridedSlice Slice LookupTableFind LookupTableFindV2
    AsString StringFormat ConcatV2 Pack Unpack Split SplitV Tile ReverseV2 OneHot Equal Greater GreaterEqual Less
    LessEqual Transpose Where LogicalAnd LogicalOr LogicalNot StringJoin ReduceJoin UnsortedSegmentJoin StringUpper
    StringLower StaticRegexReplace RegexReplace EncodeBase64 SerializeTensor
    """
)
# Arithmetic after the scores (percentages, rounding, clipping, ensembles of several heads).
ARITHMETIC_OPS = _ops(
    """
    Add AddV2 AddN Sub Mul Div RealDiv DivNoNan Maximum Minimum Pow Log Exp Round ClipByValue Mean Sum Select SelectV2
    Neg Log1p Sqrt Square FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVarsPerChannel
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
    """
)
# With a constant, a class of probability 0 comes out with another one.
_FLOOR_OPS = _ops("Add AddV2 ClipByValue Maximum")
# Behind these a class may have another index.
_RENUMBERING_OPS = _ops("GatherV2 ReverseV2 StridedSlice Slice ConcatV2")
# The same numbers, some of them or in another order.
CUTTING_OPS = _ops("StridedSlice Slice Transpose ConcatV2 Pack")
# What may lie between a sum and the division by it.
_AROUND_SUM_OPS = _ops("Maximum Add AddV2 ExpandDims Reshape ClipByValue BroadcastTo")
# What the last layer of a classifier without a Softmax looks like.
LINEAR_OPS = _ops(
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
MERGE_OPS = _ops("Merge RefMerge")
SOFTMAX_OPS = _ops("Softmax LogSoftmax")
SIGMOID_OPS = _ops("Sigmoid")
MAX_STEPS = 200
MAX_DEPTH = 64


@dataclass
class Walk:
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


def walk_back(
    graph: Graph,
    flow: Dataflow,
    start: Place,
    heads: frozenset[str] = SOFTMAX_OPS,
    seen: set[Place] | None = None,
) -> Walk:
    """Walk back from ``start`` to the ``heads`` and to whatever is no post-processing, past what was ``seen``."""
    walk = Walk()
    head = "sigmoid" if heads is SIGMOID_OPS else "softmax"
    seen = set() if seen is None else seen
    queue = [start]
    while queue and len(seen) < MAX_STEPS:
        place = graph.source(queue.pop())
        if place in seen:
            continue
        seen.add(place)
        node = graph.node(place.tensor)
        op = node.op if node is not None else "argument"
        inputs = graph.inputs_of(place)
        scores = head_input(graph, place, heads)
        if scores is not None:
            walk.ends[before_reshapes(graph, scores)] = head
        elif op in IF_OPS | CASE_OPS | MERGE_OPS:
            ways = branches(graph, place) if op not in MERGE_OPS else _not_from_last_turn(graph, inputs)
            moving = [way for way in ways if flow.depends_on_request(way)]
            if len(moving) == len(ways):
                queue.extend(ways)
            elif len(ways) == len(inputs) or op not in MERGE_OPS:
                # One branch answers a constant: only behind the condition are all answers to be had.
                kinds = {kind for way in moving for kind in walk_back(graph, flow, way, heads, seen).ends.values()}
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
            queue.extend(inputs[at] for at in _WRITTEN_VALUE[op] if at < len(inputs) and moves(graph, flow, inputs[at]))
        elif op in _LIST_READ_OPS | FIRST_INPUT_OPS and inputs:
            queue.append(inputs[0])
        elif op in _ARRAY_READ_OPS and inputs:
            queue.append(inputs[-1])
        elif op in _FLOOR_OPS | _RENUMBERING_OPS and _is_another_vector(graph, flow, place, heads, head):
            walk.ends[place] = _behind({head}, head)
        elif op in RESHAPING_OPS | _SELECTING_OPS or (
            op in ARITHMETIC_OPS and classify(graph, flow, place) == "arithmetic"
        ):
            steps = [step for step in inputs if moves(graph, flow, step)]
            walk.mixed = walk.mixed or len(steps) > 1
            walk.calculated = walk.calculated or op in ARITHMETIC_OPS
            queue.extend(steps)
        else:
            walk.ends[place] = classify(graph, flow, place)
    return walk


def _is_another_vector(graph: Graph, flow: Dataflow, place: Place, heads: frozenset[str], head: str) -> bool:
    """Whether probabilities go in and come out with a class at another index, or with none of probability 0.

    Filtered before that, the class that answers to the forgotten index would be another one, or not get 0. (One number
    picked from each row is no vector: it follows what is filtered before.)
    """
    known: dict[Place, bool] = graph.known(f"another vector than a {head} makes")
    if place not in known:
        known[place] = False
        known[place] = _changes_vector(graph, flow, place, heads, head)
    return known[place]


def _changes_vector(graph: Graph, flow: Dataflow, place: Place, heads: frozenset[str], head: str) -> bool:
    node = graph.node(place.tensor)
    assert node is not None
    inputs = graph.inputs_of(place)
    steps = [step for step in inputs if moves(graph, flow, step)]
    if len(steps) != 1 or (node.op not in _FLOOR_OPS and steps[0] != inputs[0]):
        return False
    if set(walk_back(graph, flow, steps[0], heads).ends.values()) != {head}:
        return False
    before, after = shapes.static_shape(graph, steps[0]), shapes.static_shape(graph, place)
    if before is None or after is None or len(before) != len(after) or not 0 < len(after) < 3:
        return False
    if after[-1] is None or after[-1] < 2:
        return False
    if node.op in _FLOOR_OPS:  # what is added in the turns of a loop is an argument, and no constant
        others = (graph.node(graph.source(step).tensor) for step in inputs if step != steps[0])
        return all(other is not None and other.op == "Const" for other in others)
    return before[-1] != after[-1] or node.op in ("GatherV2", "ReverseV2")


def head_input(graph: Graph, place: Place, heads: frozenset[str]) -> Place | None:
    """What goes into the Softmax (or the Sigmoid) that makes a tensor; None if another op makes it.

    exp(z), or exp(z - max z), divided by its own sum is a Softmax too: so it is written by hand, and by JAX.
    """
    node = graph.node(place.tensor)
    inputs = graph.inputs_of(place)
    if node is None or not inputs:
        return None
    if node.op in heads:
        return graph.source(inputs[0])
    if heads is not SOFTMAX_OPS or node.op not in ("RealDiv", "Div") or len(inputs) != 2:
        return None
    power, total = (graph.source(step) for step in inputs)
    made_by = graph.node(power.tensor)
    if made_by is None or made_by.op != "Exp" or not _is_sum_of(graph, total, power, exactly=True):
        return None
    z = graph.source(graph.inputs_of(power)[0])
    made_by = graph.node(z.tensor)
    if made_by is not None and made_by.op == "Sub":
        left, right = (graph.source(step) for step in graph.inputs_of(z))
        largest = graph.node(right.tensor)
        if largest is not None and largest.op == "Max" and graph.source(graph.inputs_of(right)[0]) == left:
            return left
    return z


def moves(graph: Graph, flow: Dataflow, step: Place) -> bool:
    return flow.depends_on_request(step) and not _shape_only(graph, step)


def _behind(kinds: set[str], head: str) -> str:
    """What comes out of a condition or a loop in which class scores of these kinds are made."""
    if kinds and kinds <= {head, "normalised", "mixture"}:
        return "mixture" if head == "sigmoid" else "normalised"
    return kinds.pop() if len(kinds) == 1 else "other"


def branches(graph: Graph, place: Place) -> list[Place]:
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
    for ops in (("Exit", "RefExit"), ("Switch", "RefSwitch"), MERGE_OPS):
        node = graph.node(place.tensor)
        inputs = graph.inputs_of(place)
        if node is None or node.op not in ops or not inputs:
            return None
        if node.op not in MERGE_OPS:
            place = inputs[0]
            continue
        for step in inputs:
            turn = graph.node(step.tensor)
            if turn is not None and turn.op in ("NextIteration", "RefNextIteration"):
                return graph.source(graph.inputs_of(step)[0])
    return None


def before_reshapes(graph: Graph, place: Place) -> Place:
    """The same [batch, n] numbers before reshapes that change nothing, as TF-slim has around its Softmax.

    What else is computed from them, the logits as an output of their own above all, is then filtered too.
    """
    for _ in range(MAX_STEPS):
        node = graph.node(place.tensor)
        if node is None or node.op not in RESHAPING_OPS:
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


def classify(graph: Graph, flow: Dataflow, place: Place, depth: int = 0) -> str:
    """What the producer of a tensor makes of it: linear, forest, normalised, sigmoid, arithmetic or other."""
    if depth > MAX_DEPTH:
        return "other"
    known: dict[Place, str] = graph.known("kinds")
    if place not in known:
        known[place] = _kind_of(graph, flow, place, depth + 1)
    return known[place]


def _kind_of(graph: Graph, flow: Dataflow, place: Place, depth: int) -> str:
    node = graph.node(place.tensor)
    if node is None:
        return "other"
    if node.op in LINEAR_OPS:
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
        kinds = {classify(graph, flow, step, depth) for step in moving}
        if len(moving) == 1 and len(inputs) == 2 and kinds == {"linear"}:
            return "linear"  # a bias, a scale or a temperature on one linear layer
        if kinds == {"linear"} and node.op in ("Add", "AddV2", "AddN"):
            return "linear"  # several linear layers added up, as wide-and-deep models do
    if node.op == "Mean" and inputs and classify(graph, flow, inputs[0], depth) == "linear":
        return "linear"  # class scores per position, pooled
    return "arithmetic" if node.op in ARITHMETIC_OPS else "other"


def _mixes_softmaxes(graph: Graph, flow: Dataflow, place: Place) -> bool:
    """Whether a product weighs probabilities with probabilities, as a mixture of experts does."""
    moving = [step for step in graph.inputs_of(place) if flow.depends_on_request(step)]
    return len(moving) > 1 and all(set(walk_back(graph, flow, step).ends.values()) == {"softmax"} for step in moving)


def _is_sum_of(graph: Graph, divisor: Place, dividend: Place, exactly: bool = False) -> bool:
    """Whether ``divisor`` is the dividend's own sum (perhaps clipped away from zero, or plus a constant).

    Args:
        graph: the MetaGraph.
        divisor: what is divided by.
        dividend: what is divided.
        exactly: whether nothing that changes the sum may lie between.
    """
    for _ in range(3):
        node = graph.node(divisor.tensor)
        if node is None:
            return False
        inputs = [graph.source(step) for step in graph.inputs_of(divisor)]
        if node.op == "Sum":
            summed = graph.node(inputs[0].tensor) if inputs else None
            if summed is not None and summed.op == "Abs":  # an L1 norm
                inputs = [graph.source(step) for step in graph.inputs_of(inputs[0])]
            return bool(inputs) and inputs[0] == dividend and _is_over_classes(graph, divisor)
        around = RESHAPING_OPS | {"BroadcastTo"} if exactly else _AROUND_SUM_OPS
        if node.op not in around or not inputs:
            return False
        divisor = inputs[0]
    return False


def _is_over_classes(graph: Graph, place: Place) -> bool:
    """Whether a sum is taken over the last axis, as far as the graph tells; over the batch it normalises no row."""
    inputs = graph.inputs_of(place)
    axes = shapes.integers_of(graph, inputs[1]) if len(inputs) > 1 else None
    if axes is None or None in axes:
        return True
    shape = shapes.static_shape(graph, inputs[0])
    return len(axes) == 1 and (axes[0] == -1 or shape is None or axes[0] == len(shape) - 1)


def shown_tensor(graph: Graph, start: Place) -> tuple[Place, bool]:
    """The tensor that an output shows, looked at through reshapes, and whether there was one."""
    place, reshaped = graph.source(start), False
    for _ in range(MAX_STEPS):
        node = graph.node(place.tensor)
        if node is None or node.op not in RESHAPING_OPS:
            break
        place, reshaped = graph.source(graph.inputs_of(place)[0]), True
    return place, reshaped


def is_collected(graph: Graph, place: Place) -> bool:
    """Whether a tensor is put together from what the turns of a loop left in a list or an array."""
    node = graph.node(place.tensor)
    return node is not None and node.op in _LIST_READ_OPS | _ARRAY_READ_OPS


def collected(graph: Graph, place: Place) -> list[Place]:
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
