"""What the graph itself says about a tensor's shape, without running it and without registering its ops.

Only as much inference as finding class scores needs: how many axes, and how long the last one is. A shape is a tuple
of axis lengths with None for an unknown length, or None when not even the number of axes is known. A rule that is not
sure says None; a length that is not so would put a filter of the wrong width into a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpru_tf.saved_model.graph import (
    CASE_OPS,
    FIRST_INPUT_OPS,
    IDENTITY_OPS,
    IF_OPS,
    PLACEHOLDER_OPS,
    WHILE_OPS,
    Graph,
    Place,
)

if TYPE_CHECKING:
    from tensorflow.core.framework.attr_value_pb2 import AttrValue
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto

Shape = tuple["int | None", ...]

_VARIABLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"})
_INTEGERS = {3: "<i4", 9: "<i8"}  # DT_INT32 and DT_INT64; types.proto, importing it would import TensorFlow
_LARGEST_VECTOR = 64  # shapes, permutations and lists of axes are not longer
_MAX_DEPTH = 64


def from_proto(proto: TensorShapeProto) -> Shape | None:
    """A TensorShapeProto as a shape."""
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)


def static_shape(graph: Graph, place: Place, depth: int = 0) -> Shape | None:
    """The shape that the graph's attributes, weights and constants imply for a tensor."""
    place = graph.source(place)
    known: dict[Place, Shape | None] = graph.known("shapes")
    if place in known:
        return known[place]
    known[place] = None  # the answer to whoever asks again in a loop
    node = graph.node(place.tensor)
    if node is None:
        found = _argument(graph, place)
    elif depth > _MAX_DEPTH:
        del known[place]
        return None
    else:
        found = _noted(node, place.tensor.port)
        if not found or found[-1] is None:
            rule = _RULES.get(node.op)
            found = _merge(found, rule(_Node(graph, place, node, depth + 1)) if rule is not None else None)
    known[place] = found
    return found


def last_axis(graph: Graph, place: Place) -> int | None:
    """The length of a tensor's last axis, also where the number of axes is not known; None where that is not either.

    A weight or a bias tells it: whatever is broadcast with [n] has n entries in its last axis, if n is not 1.
    """
    seen: set[Place] = set()
    queue = [place]
    while queue and len(seen) < _MAX_DEPTH:
        place = graph.source(queue.pop())
        shape = static_shape(graph, place)
        if shape and shape[-1] not in (None, 1):
            return shape[-1]
        node = graph.node(place.tensor)
        if node is None or place in seen:
            continue
        seen.add(place)
        rule = _RULES.get(node.op)
        if rule in (_elementwise, _add_bias):
            queue.extend(graph.inputs_of(place))
        elif rule is _same:
            queue.extend(graph.inputs_of(place)[:1])
    return None


def _argument(graph: Graph, place: Place) -> Shape | None:
    """What a function notes down about an argument that no caller is known of."""
    scope = graph.scope(place.tensor.scope)
    if scope.function is None:
        return None
    noted = scope.function.arg_attr.get(scope.args[place.tensor.node])
    if noted is None or "_output_shapes" not in noted.attr:
        return None
    shapes = noted.attr["_output_shapes"].list.shape
    return from_proto(shapes[0]) if len(shapes) == 1 else None


def _noted(node: NodeDef, port: int) -> Shape | None:
    """The shape written down at the node, if any."""
    names = ("_output_shapes", "output_shapes") if node.op in IF_OPS | CASE_OPS | WHILE_OPS else ("_output_shapes",)
    for name in names:
        if name in node.attr:
            shapes = node.attr[name].list.shape
            if port < len(shapes) and (found := from_proto(shapes[port])) is not None:
                return found
    if node.op in PLACEHOLDER_OPS | _VARIABLE_OPS and "shape" in node.attr:
        return from_proto(node.attr["shape"].shape)
    return None


@dataclass(frozen=True)
class _Node:
    """A node as the rules see it."""

    graph: Graph
    place: Place
    node: NodeDef
    depth: int

    @property
    def inputs(self) -> list[Place]:
        return self.graph.inputs_of(self.place)

    def shape(self, position: int) -> Shape | None:
        """The shape of one input; negative positions count from the end."""
        inputs = self.inputs
        if not -len(inputs) <= position < len(inputs):
            return None
        return static_shape(self.graph, inputs[position], self.depth)

    def vector(self, position: int) -> Shape | None:
        """The integers in one input, None for each that is not known."""
        inputs = self.inputs
        return integers_of(self.graph, inputs[position], self.depth) if -len(inputs) <= position < len(inputs) else None

    def scalar(self, position: int) -> int | None:
        found = self.vector(position)
        return found[0] if found is not None and len(found) == 1 else None

    def attr(self, name: str) -> AttrValue | None:
        return self.node.attr.get(name)

    def flag(self, *names: str) -> bool:
        return any(name in self.node.attr and self.node.attr[name].b for name in names)

    def number(self, name: str, default: int = 0) -> int:
        return int(self.node.attr[name].i) if name in self.node.attr else default

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(self.node.attr[name].list.i) if name in self.node.attr else ()

    def channels_first(self) -> bool:
        return "data_format" in self.node.attr and self.node.attr["data_format"].s.startswith(b"NC")


# ------------------------------------------------------------------------------------------------------------ integers
def integers(tensor: TensorProto) -> tuple[int, ...] | None:
    """The values of a small integer TensorProto, flat; None for a large one, or one of another dtype."""
    if tensor.dtype not in _INTEGERS:
        return None
    count = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    if not 0 <= count <= _LARGEST_VECTOR:
        return None
    if tensor.tensor_content:
        dtype = np.dtype(_INTEGERS[tensor.dtype])
        if len(tensor.tensor_content) != count * dtype.itemsize:
            return None
        return tuple(np.frombuffer(tensor.tensor_content, dtype).tolist())
    values = list(tensor.int_val if tensor.dtype == 3 else tensor.int64_val)
    if len(values) > count:
        return None
    # A TensorProto leaves out what repeats at its end.
    return tuple(values + (values[-1:] or [0]) * (count - len(values)))


def integers_of(graph: Graph, place: Place, depth: int = 0) -> Shape | None:
    """What is known of an integer vector or scalar that a shape is made of."""
    place = graph.source(place)
    node = graph.node(place.tensor)
    if node is None or depth > _MAX_DEPTH:
        return None
    look = _Node(graph, place, node, depth + 1)
    if node.op == "Const":
        return integers(node.attr["value"].tensor)
    if node.op == "Shape":
        return look.shape(0)
    if node.op == "Pack":
        parts = [look.vector(position) for position in range(len(look.inputs))]
        if all(part is None or len(part) == 1 for part in parts):
            return tuple(None if part is None else part[0] for part in parts)
    if node.op == "ConcatV2" and len(look.inputs) > 1:
        whole: list[int | None] = []
        for position in range(len(look.inputs) - 1):
            part = look.vector(position)
            if part is None:
                return None
            whole.extend(part)
        return tuple(whole)
    if node.op == "StridedSlice":
        entries, begin, end, step = (look.vector(position) for position in range(4))
        if entries is None or begin is None or end is None or step != (1,):
            return None
        first = 0 if look.number("begin_mask") & 1 else begin[0]
        last = len(entries) if look.number("end_mask") & 1 else end[0]
        if first is not None and look.number("shrink_axis_mask"):
            return entries[first : first + 1 or None]
        return None if first is None or last is None else entries[first:last]
    return None


# --------------------------------------------------------------------------------------------------------------- rules
def _const(look: _Node) -> Shape | None:
    return from_proto(look.node.attr["value"].tensor.tensor_shape)


def _same(look: _Node) -> Shape | None:
    return look.shape(0)


def _add_bias(look: _Node) -> Shape | None:
    data, bias = look.shape(0), look.shape(1)
    if look.channels_first() or bias is None or len(bias) != 1:
        return data
    return _merge(data, (*([None] * (len(data or (0, 0)) - 1)), bias[-1]))


def _elementwise(look: _Node) -> Shape | None:
    return _broadcast([look.shape(position) for position in range(len(look.inputs))])


def _select(look: _Node) -> Shape | None:
    # Select (version 1) has data of one shape, and a condition that may have fewer axes.
    return _merge(look.shape(1), look.shape(2)) if look.node.op == "Select" else _elementwise(look)


def _matmul(look: _Node) -> Shape | None:
    weights = look.shape(1)
    if weights is None or len(weights) != 2:
        return (None, None)
    return (None, weights[0] if look.flag("transpose_b") else weights[1])


def _sparse_matmul(look: _Node) -> Shape | None:
    weights = look.shape(3)
    if weights is None or len(weights) != 2:
        return (None, None)
    return (None, weights[0] if look.flag("adjoint_b") else weights[1])


def _batch_matmul(look: _Node) -> Shape | None:
    rows, weights = look.shape(0), look.shape(1)
    if rows is None or weights is None or len(rows) < 2 or len(weights) < 2:
        return None
    row = rows[-1] if look.flag("adj_x") else rows[-2]
    column = weights[-2] if look.flag("adj_y") else weights[-1]
    batch = _broadcast([rows[:-2], weights[:-2]])
    return None if batch is None else (*batch, row, column)


def _einsum(look: _Node) -> Shape | None:
    equation = look.node.attr["equation"].s.decode("ascii", "replace").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    lengths: dict[str, int | None] = {}
    dots: Shape = ()
    for position, letters in enumerate(operands.split(",")):
        shape = look.shape(position)
        if "..." in letters and shape is None:
            return None
        if shape is None:
            continue
        before, _, after = letters.partition("...")
        if "..." in letters:
            dots = max(dots, shape[len(before) : len(shape) - len(after)], key=len)
            lengths.update(_lengths(before, shape[: len(before)], lengths))
            lengths.update(_lengths(after, shape[len(shape) - len(after) :], lengths))
        else:
            lengths.update(_lengths(letters, shape, lengths))
    if not arrow:
        return None
    before, _, after = result.partition("...")
    middle: Shape = dots if "..." in result and operands.count("...") == 1 else (None,) * len(dots)
    return (*(lengths.get(letter) for letter in before), *middle, *(lengths.get(letter) for letter in after))


def _lengths(letters: str, shape: Shape, known: dict[str, int | None]) -> dict[str, int | None]:
    return {letter: length for letter, length in zip(letters, shape, strict=False) if known.get(letter) is None}


def _convolution(look: _Node) -> Shape | None:
    data, filters = look.shape(0), look.shape(1)
    if filters is None:
        return None if data is None else (None,) * len(data)
    channels = filters[-1]
    if look.node.op.startswith("Depthwise"):
        known = len(filters) == 4 and filters[2] is not None and filters[3] is not None
        channels = filters[2] * filters[3] if known else None  # type: ignore[operator]
    return _slid(look, data, len(filters), list(filters[:-2]), channels)


def _pool(look: _Node) -> Shape | None:
    data, window = look.shape(0), look.numbers("ksize")
    if data is None or len(data) < 3:
        return None
    axes = range(2, len(data)) if look.channels_first() else range(1, len(data) - 1)
    sizes = [window[axis] if len(window) == len(data) else None for axis in axes]
    return _slid(look, data, len(data), sizes, data[1 if look.channels_first() else -1])


def _slid(look: _Node, data: Shape | None, rank: int, window: list[int | None], channels: int | None) -> Shape:
    """What remains of the axes over which a window slides."""
    strides, dilations = look.numbers("strides"), look.numbers("dilations") or (1,) * rank
    padding = look.node.attr["padding"].s
    first = 2 if look.channels_first() else 1
    sizes: list[int | None] = [None] * (rank - 2)
    if data is not None and len(data) == len(strides) == len(dilations) == rank and padding in (b"SAME", b"VALID"):
        for number, width in enumerate(window):
            length, stride = data[first + number], strides[first + number]
            if length is None or width is None or stride < 1:
                continue
            if padding == b"VALID":
                length -= (width - 1) * dilations[first + number]
            sizes[number] = max(0, -(-length // stride))
    rows = data[0] if data else None
    return (rows, channels, *sizes) if look.channels_first() else (rows, *sizes, channels)


def _reshape(look: _Node) -> Shape | None:
    target = look.vector(1)
    if target is None:
        wanted = look.shape(1)
        return (None,) * wanted[0] if wanted and len(wanted) == 1 and wanted[0] is not None and wanted[0] < 9 else None
    given = look.shape(0)
    shape = tuple(None if length is not None and length < 0 else length for length in target)
    if given is not None and None not in given and shape.count(None) == 1 and -1 in target:
        rest = math.prod(length for length in shape if length is not None)
        whole = math.prod(length for length in given if length is not None)
        return tuple(whole // rest if length is None and rest else length for length in shape)
    return shape


def _squeeze(look: _Node) -> Shape | None:
    data, dims = look.shape(0), look.attr("squeeze_dims") or look.attr("axis")
    if data is None:
        return None
    axes = {axis % len(data) for axis in dims.list.i} if dims is not None and data else set()
    if not axes:
        return tuple(length for length in data if length != 1) if None not in data else None
    return tuple(length for position, length in enumerate(data) if position not in axes)


def _expand(look: _Node) -> Shape | None:
    data, axis = look.shape(0), look.scalar(1)
    return None if data is None or axis is None else _inserted(data, axis, 1)


def _inserted(data: Shape, axis: int, length: int | None) -> Shape | None:
    position = axis if axis >= 0 else axis + len(data) + 1
    return (*data[:position], length, *data[position:]) if 0 <= position <= len(data) else None


def _transpose(look: _Node) -> Shape | None:
    data, order = look.shape(0), look.vector(1)
    if data is None:
        return None
    if order is None or sorted(axis if axis is not None else -1 for axis in order) != list(range(len(data))):
        return (None,) * len(data)
    return tuple(data[axis] for axis in order if axis is not None)


def _reduce(look: _Node) -> Shape | None:
    data, axes = look.shape(0), look.vector(1)
    if data is None or axes is None or None in axes:
        return None if data is None or not look.flag("keep_dims") else (None,) * len(data)
    gone = {axis % len(data) for axis in axes if axis is not None} if data else set()
    if look.flag("keep_dims"):
        return tuple(1 if position in gone else length for position, length in enumerate(data))
    return tuple(length for position, length in enumerate(data) if position not in gone)


def _concat(look: _Node) -> Shape | None:
    count = len(look.inputs)
    axis = look.scalar(0 if look.node.op == "Concat" else -1)
    parts = [look.shape(position) for position in (range(1, count) if look.node.op == "Concat" else range(count - 1))]
    ranks = {len(part) for part in parts if part is not None}
    if len(ranks) != 1:
        return None
    rank = ranks.pop()
    if axis is None or not -rank <= axis < rank:
        return (None,) * rank
    axis %= rank
    shape: list[int | None] = [None] * rank
    for position in range(rank):
        lengths = [None if part is None else part[position] for part in parts]
        if position == axis:
            shape[position] = None if None in lengths else sum(length for length in lengths if length is not None)
        else:
            shape[position] = next((length for length in lengths if length is not None), None)
    return tuple(shape)


def _pack(look: _Node) -> Shape | None:
    parts = [shape for position in range(len(look.inputs)) if (shape := look.shape(position)) is not None]
    if not parts or len({len(part) for part in parts}) != 1:
        return None
    return _inserted(
        tuple(next((length for length in axis if length is not None), None) for axis in zip(*parts, strict=True)),
        look.number("axis"),
        len(look.inputs),
    )


def _unpack(look: _Node) -> Shape | None:
    data, axis = look.shape(0), look.number("axis")
    if data is None or not -len(data) <= axis < len(data):
        return None
    return tuple(length for position, length in enumerate(data) if position != axis % len(data))


def _split(look: _Node) -> Shape | None:
    data, axis = look.shape(1), look.scalar(0)
    return _cut(data, axis, lambda length: length // max(1, look.number("num_split", 1)))


def _split_unevenly(look: _Node) -> Shape | None:
    sizes, port = look.vector(1), look.place.tensor.port
    size = sizes[port] if sizes is not None and port < len(sizes) else None
    return _cut(look.shape(0), look.scalar(2), lambda length: size if size is None or size >= 0 else None)


def _cut(data: Shape | None, axis: int | None, change: Callable[[int], int | None]) -> Shape | None:
    if data is None or axis is None or not -len(data) <= axis < len(data):
        return None if data is None else (None,) * len(data)
    axis %= len(data)
    return tuple(
        change(length) if position == axis and length is not None else length for position, length in enumerate(data)
    )


def _gather(look: _Node) -> Shape | None:
    data, indices = look.shape(0), look.shape(1)
    axis = look.scalar(2) if look.node.op == "GatherV2" else 0
    if data is None or indices is None or axis is None or look.number("batch_dims"):
        return None
    if not -len(data) <= axis < len(data):
        return None
    axis %= len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _slice(look: _Node) -> Shape | None:
    data, sizes = look.shape(0), look.vector(2)
    if sizes is None:
        return None if data is None else (None,) * len(data)
    return tuple(None if size is None or size < 0 else size for size in sizes)


def _strided_slice(look: _Node) -> Shape | None:
    data = look.shape(0)
    begin, end, steps = (look.vector(position) for position in (1, 2, 3))
    if data is None or begin is None or end is None or steps is None:
        return None
    masks = {name: look.number(name) for name in ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask")}
    shrink = look.number("shrink_axis_mask")
    entries = len(begin)
    consuming = sum(
        not (masks["new_axis_mask"] >> index & 1 or masks["ellipsis_mask"] >> index & 1) for index in range(entries)
    )
    result: list[int | None] = []
    axis = 0
    for index in range(entries):
        if masks["ellipsis_mask"] >> index & 1:
            skipped = len(data) - consuming
            result.extend(data[axis : axis + skipped])
            axis += skipped
        elif masks["new_axis_mask"] >> index & 1:
            result.append(1)
        elif axis >= len(data):
            return None
        else:
            if not shrink >> index & 1:
                result.append(_sliced(data[axis], begin[index], end[index], steps[index], masks, index))
            axis += 1
    return (*result, *data[axis:])


def _sliced(
    length: int | None, begin: int | None, end: int | None, step: int | None, masks: dict[str, int], index: int
) -> int | None:
    from_start, to_end = masks["begin_mask"] >> index & 1, masks["end_mask"] >> index & 1
    if from_start and to_end and step in (1, -1):
        return length
    if length is None or step is None or step == 0 or (begin is None and not from_start):
        return None
    if end is None and not to_end:
        return None
    return len(range(length)[slice(None if from_start else begin, None if to_end else end, step)])


def _tile(look: _Node) -> Shape | None:
    data, times = look.shape(0), look.vector(1)
    if data is None or times is None or len(times) != len(data):
        return None if data is None else (None,) * len(data)
    return tuple(
        None if length is None or factor is None else length * factor
        for length, factor in zip(data, times, strict=True)
    )


def _spelled_out(look: _Node) -> Shape | None:
    """The shape stands in an input: Fill, BroadcastTo, TensorListStack and the like."""
    position = {"Fill": 0, "TensorListGetItem": 2}.get(look.node.op, 1)
    vector, length = look.vector(position), look.shape(position)
    if vector is None or (length == () and vector == (-1,)):
        return None
    shape = tuple(None if size is None or size < 0 else size for size in vector)
    return (None, *shape) if look.node.op == "TensorListStack" else shape


def _array_element(look: _Node) -> Shape | None:
    for name in ("element_shape", "element_shape_except0"):
        if name in look.node.attr and (shape := from_proto(look.node.attr[name].shape)) is not None:
            return shape if look.node.op == "TensorArrayReadV3" else (None, *shape)
    return None


def _top(look: _Node) -> Shape | None:
    data = look.shape(0)
    count = look.scalar(1) if look.node.op == "TopKV2" else look.number("k")
    return None if not data else (*data[:-1], count)


def _best(look: _Node) -> Shape | None:
    data, axis = look.shape(0), look.scalar(1)
    if data is None or axis is None or not -len(data) <= axis < len(data):
        return None
    return tuple(length for position, length in enumerate(data) if position != axis % len(data))


def _one_hot(look: _Node) -> Shape | None:
    data, depth, axis = look.shape(0), look.scalar(1), look.number("axis", -1)
    return None if data is None else _inserted(data, axis, depth)


def _forest(look: _Node) -> Shape | None:
    width = look.number("dense_output_dim")
    return (None, width if width > 0 else None) if look.place.tensor.port == 0 else None


def _normalised_batch(look: _Node) -> Shape | None:
    return look.shape(0) if look.place.tensor.port == 0 and look.place.tensor.arg in ("", "y") else None


def _joined(look: _Node) -> Shape | None:
    """Merge of TensorFlow 1: one of its inputs; in a loop the first value and what comes around."""
    if look.place.tensor.port:
        return ()
    shapes = [look.shape(position) for position in range(len(look.inputs))]
    known = [shape for shape in shapes if shape is not None]
    if not known or len({len(shape) for shape in known}) != 1:
        return None
    return tuple(axis[0] if len(set(axis)) == 1 else None for axis in zip(*known, strict=True))


def _rules(*entries: tuple[Callable[[_Node], Shape | None], str]) -> dict[str, Callable[[_Node], Shape | None]]:
    return {op: rule for rule, ops in entries for op in ops.split()}


_RULES = _rules(
    (_const, "Const"),
    (_same, " ".join(IDENTITY_OPS | FIRST_INPUT_OPS)),
    (
        _same,
        "ReadVariableOp Softmax LogSoftmax Sigmoid LogSigmoid Relu Relu6 Elu Selu Tanh Softplus Softsign Exp Expm1",
    ),
    (_same, "Log Log1p Neg Round Rint ClipByValue Abs Sqrt Rsqrt Square Reciprocal Inv LeakyRelu Erf Sign Floor Ceil"),
    (_same, "ZerosLike OnesLike ReverseV2 Cumsum IsNan IsInf IsFinite LogicalNot LRN QuantizeAndDequantizeV2"),
    (_same, "FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVarsPerChannel Dequantize"),
    (_add_bias, "BiasAdd BiasAddV1"),
    (_elementwise, "Add AddV2 Sub Mul Div RealDiv DivNoNan Maximum Minimum Pow AddN SelectV2 SquaredDifference"),
    (_elementwise, "Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd LogicalOr FloorMod MulNoNan Xdivy"),
    (_select, "Select"),
    (_matmul, "MatMul SparseMatMul _FusedMatMul"),
    (_sparse_matmul, "SparseTensorDenseMatMul"),
    (_batch_matmul, "BatchMatMul BatchMatMulV2 BatchMatMulV3"),
    (_einsum, "Einsum"),
    (_convolution, "Conv2D Conv3D DepthwiseConv2dNative _FusedConv2D"),
    (_pool, "MaxPool MaxPoolV2 AvgPool MaxPool3D AvgPool3D"),
    (_reshape, "Reshape"),
    (_squeeze, "Squeeze"),
    (_expand, "ExpandDims"),
    (_transpose, "Transpose"),
    (_reduce, "Mean Sum Max Min Prod All Any EuclideanNorm"),
    (_concat, "ConcatV2 Concat"),
    (_pack, "Pack"),
    (_unpack, "Unpack"),
    (_split, "Split"),
    (_split_unevenly, "SplitV"),
    (_gather, "GatherV2 Gather ResourceGather"),
    (_slice, "Slice"),
    (_strided_slice, "StridedSlice"),
    (_tile, "Tile"),
    (_spelled_out, "Fill BroadcastTo TensorListStack TensorListGetItem"),
    (_array_element, "TensorArrayGatherV3 TensorArrayReadV3"),
    (_top, "TopKV2 TopK"),
    (_best, "ArgMax ArgMin"),
    (_one_hot, "OneHot"),
    (_forest, "SimpleMLInferenceOp SimpleMLInferenceOpWithHandle"),
    (_normalised_batch, "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3"),
    (_joined, "Merge RefMerge"),
)


# ------------------------------------------------------------------------------------------------------------- helpers
def _merge(one: Shape | None, other: Shape | None) -> Shape | None:
    """Both say the same tensor's shape: keep whatever either knows."""
    if one is None or other is None or len(one) != len(other):
        return one if one is not None else other
    return tuple(a if a is not None else b for a, b in zip(one, other, strict=True))


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    if not known or (len(known) < len(shapes) and max(len(shape) for shape in known) < 2):
        return None
    rank = max(len(shape) for shape in known)
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    result: list[int | None] = []
    for axis in zip(*padded, strict=True):
        wide = [length for length in axis if length not in (1, None)]
        result.append(wide[0] if wide else (None if None in axis or len(known) < len(shapes) else 1))
    return tuple(result)


def spell(shape: Shape | None) -> str:
    """A shape for people: ``[batch, 10]``."""
    if shape is None:
        return "of unknown rank"
    axes = (("batch" if position == 0 else "?") if axis is None else str(axis) for position, axis in enumerate(shape))
    return f"[{', '.join(axes)}]"
