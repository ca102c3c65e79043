"""What the graph itself says about a tensor's shape, without running it and without registering its ops.

Only as much inference as finding class scores needs: how many axes, and how long the last one is. A shape is a tuple
of axis lengths with None for an unknown length, or None when not even the number of axes is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpru_tf.saved_model.graph import IDENTITY_OPS, PLACEHOLDER_OPS, Graph, Place

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto

Shape = tuple["int | None", ...]

_SAME_SHAPE_OPS = frozenset(
    {
        *("Softmax", "LogSoftmax", "Sigmoid", "Relu", "Relu6", "Elu", "Selu", "Tanh", "Softplus", "Exp", "Log", "Neg"),
        *("Round", "ClipByValue", "Abs", "Sqrt", "Square", "Reciprocal", "Log1p", "Expm1", "LeakyRelu"),
    }
)
_BROADCAST_OPS = frozenset(
    {"Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "DivNoNan", "Maximum", "Minimum", "Pow", "AddN", "SelectV2"}
)
_VARIABLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"})
_MAX_DEPTH = 64


def from_proto(proto: TensorShapeProto) -> Shape | None:
    """A TensorShapeProto as a shape."""
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)


def static_shape(graph: Graph, place: Place, depth: int = 0) -> Shape | None:
    """The shape that the graph's attributes, weights and constants imply for a tensor."""
    place = graph.source(place)
    node = graph.node(place.tensor)
    if node is None or depth > _MAX_DEPTH:
        return None
    noted = _noted(node, place.tensor.port)
    if noted is not None and noted and noted[-1] is not None:
        return noted
    return _merge(noted, _inferred(graph, place, node, depth + 1))


def _noted(node: NodeDef, port: int) -> Shape | None:
    """The shape written down at the node, if any."""
    if "_output_shapes" in node.attr:
        shapes = node.attr["_output_shapes"].list.shape
        if port < len(shapes):
            return from_proto(shapes[port])
    if node.op in PLACEHOLDER_OPS | _VARIABLE_OPS and "shape" in node.attr:
        return from_proto(node.attr["shape"].shape)
    return None


def _inferred(graph: Graph, place: Place, node: NodeDef, depth: int) -> Shape | None:
    inputs = graph.inputs_of(place)

    def shape(position: int) -> Shape | None:
        return static_shape(graph, inputs[position], depth) if position < len(inputs) else None

    if node.op == "Const":
        return from_proto(node.attr["value"].tensor.tensor_shape)
    if node.op in IDENTITY_OPS | _SAME_SHAPE_OPS or node.op in ("ReadVariableOp", "Enter", "RefEnter"):
        return shape(0)
    if node.op == "BiasAdd":
        data, bias = shape(0), shape(1)
        channels_first = node.attr["data_format"].s == b"NCHW"
        return (
            data if channels_first or bias is None else _merge(data, (*([None] * (len(data or (0, 0)) - 1)), bias[-1]))
        )
    if node.op in _BROADCAST_OPS:
        return _broadcast([shape(position) for position in range(len(inputs))])
    if node.op == "MatMul":
        weights = shape(1)
        if weights is None or len(weights) != 2:
            return (None, None)
        return (None, weights[0] if node.attr["transpose_b"].b else weights[1])
    if node.op == "ConcatV2":
        parts = [shape(position) for position in range(len(inputs) - 1)]
        first = parts[0] if parts else None
        return None if first is None else (*first[:-1], None)
    if node.op in ("Conv2D", "DepthwiseConv2dNative", "MaxPool", "AvgPool"):
        return (None,) * 4
    return None


def _merge(one: Shape | None, other: Shape | None) -> Shape | None:
    """Both say the same tensor's shape: keep whatever either knows."""
    if one is None or other is None or len(one) != len(other):
        return one if one is not None else other
    return tuple(a if a is not None else b for a, b in zip(one, other, strict=True))


def _broadcast(shapes: list[Shape | None]) -> Shape | None:
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
        return "of unknown shape"
    axes = (("batch" if position == 0 else "?") if axis is None else str(axis) for position, axis in enumerate(shape))
    return f"[{', '.join(axes)}]"
