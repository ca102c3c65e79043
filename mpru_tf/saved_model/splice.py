"""Put a filter into a graph at the class scores, and take it out again.

The filter's nodes are added right behind the tensor that holds the raw class scores, and everything that used to read
that tensor reads the filter's output instead: other nodes, what the function returns and, in a main graph, the
SignatureDefs. Callers of an edited function need no edit: they see only what it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import UnsupportedModelError, explain
from mpru_tf.saved_model.bundle import all_nodes
from mpru_tf.saved_model.graph import MAIN, Graph, Scope, Tensor
from mpru_tf.saved_model.sites import LOGITS, SitePoint

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.op_def_pb2 import OpDef

    from mpru_tf.filters import FilterSpec

PREFIX = "mpru_filter"
"""Every node of a filter lies below a name that begins like this."""


@dataclass(frozen=True)
class Splice:
    """One filter in one place, as the manifest records it: enough to take it out again.

    Attributes:
        meta_graph: position of the MetaGraphDef.
        function: name of the edited function, '' for the main graph.
        raw: reference of the raw class scores within it.
        filtered: reference of the filtered class scores within it.
        prefix: name below which all of the filter's nodes lie.
        kind: 'logits' or 'probabilities'.
        classes: number n of classes.
    """

    meta_graph: int
    function: str
    raw: str
    filtered: str
    prefix: str
    kind: str
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def splice(graph: Graph, point: SitePoint, spec: FilterSpec, prefix: str) -> Splice:
    """Add the filter behind one tensor and make every reader of the tensor read the filter instead.

    Edits the MetaGraphDef in place; ``graph`` is stale afterwards.

    Args:
        graph: the MetaGraph that holds the tensor.
        point: which tensor, and whether it holds logits or probabilities.
        spec: the filter.
        prefix: name for the filter's nodes; must be unused in the main graph and in all functions.

    Raises:
        UnsupportedModelError: the tensor is not of a floating-point dtype.
    """
    scope = graph.scope(point.tensor.scope)
    dtype = _dtype(graph, point.tensor)
    nodes, output = _filter_nodes(spec, point.kind == LOGITS, dtype, prefix, scope.ref(point.tensor), scope.name)
    filtered = output if scope.name == MAIN else f"{output}:output:0"
    _rewire(graph, scope, point.tensor, filtered)
    scope.node_defs.extend(nodes)
    _register_ops(graph, nodes)
    return Splice(graph.index, scope.name, scope.ref(point.tensor), filtered, prefix, point.kind, point.classes)


def unsplice(graph: Graph, done: Splice) -> None:
    """Undo :func:`splice`: every reader of the filter reads the raw class scores again, and the filter is gone."""
    scope = graph.scope(done.function)
    filtered = scope.tensor(done.filtered)
    assert filtered is not None
    _rewire(graph, scope, filtered, done.raw)
    for position in reversed(range(len(scope.node_defs))):
        if scope.node_defs[position].name.startswith(f"{done.prefix}/"):
            del scope.node_defs[position]


def unused_prefixes(graphs: list[Graph]) -> Iterator[str]:
    """Yield prefixes that no node of the SavedModel uses yet, in the main graphs or in any function."""
    taken = {
        node.name.partition("/")[0]
        for graph in graphs
        for node in all_nodes(graph.meta_graph)
        if node.name.startswith(PREFIX)
    }
    number = 0
    while True:
        prefix = PREFIX if number == 0 else f"{PREFIX}_{number}"
        if prefix not in taken:
            yield prefix
        number += 1


def has_filter(graph: Graph) -> bool:
    """Whether a filter of ours lies anywhere in this MetaGraph."""
    return any(node.name.startswith(PREFIX) for node in all_nodes(graph.meta_graph))


# ------------------------------------------------------------------------------------------------ the filter's nodes
def _filter_nodes(
    spec: FilterSpec, logits: bool, dtype: int, prefix: str, raw: str, scope: str
) -> tuple[list[NodeDef], str]:
    """Trace the filter and rename its nodes so that they read ``raw``; returns them and the last one's name."""
    import tensorflow as tf

    from mpru_tf.layer import filter_tensor

    with tf.Graph().as_default() as traced:
        x = tf.compat.v1.placeholder(tf.dtypes.as_dtype(dtype), [None, spec.classes], name="raw")
        tf.identity(filter_tensor(x, spec, logits), name="filtered")
    result: list[NodeDef] = []
    for node in traced.as_graph_def().node:
        if node.op == "Placeholder":
            continue
        renamed = _copy(node)
        renamed.name = f"{prefix}/{node.name}"
        del renamed.input[:]
        for ref in node.input:
            renamed.input.append(_renamed_input(ref, prefix, raw, scope, traced))
        _strip_attributes(renamed)
        result.append(renamed)
    return result, f"{prefix}/filtered"


def _renamed_input(ref: str, prefix: str, raw: str, scope: str, traced: Any) -> str:
    if ref.startswith("^"):
        return f"^{prefix}/{ref[1:]}"
    name, _, port = ref.partition(":")
    if name == "raw":
        return raw
    if scope == MAIN:
        return f"{prefix}/{ref}"
    # A function body names an output by its argument in the OpDef. All ops of the filter have plain outputs, one
    # tensor per argument, so that the flat position in the traced graph is the position of the argument.
    output_args = _op_def(traced.get_operation_by_name(name).type).output_arg
    return f"{prefix}/{name}:{output_args[int(port or 0)].name}:0"


def _op_def(op: str) -> OpDef:
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(op)


def _strip_attributes(node: NodeDef) -> None:
    """Remove what an older server might not know: default-valued and private attributes."""
    defaults = {attr.name: attr.default_value for attr in _op_def(node.op).attr if attr.HasField("default_value")}
    for name in list(node.attr):
        if name.startswith("_") or (name in defaults and node.attr[name] == defaults[name]):
            del node.attr[name]


def _register_ops(graph: Graph, nodes: list[NodeDef]) -> None:
    """Name the filter's ops in the list of ops that a consumer of this MetaGraph must know."""
    listed = graph.meta_graph.meta_info_def.stripped_op_list
    known = {op.name for op in listed.op}
    for name in sorted({node.op for node in nodes} - known):
        op = listed.op.add()
        op.CopyFrom(_op_def(name))
        for field in ("summary", "description"):
            op.ClearField(field)
        for described in (*op.input_arg, *op.output_arg, *op.attr):
            described.ClearField("description")


def _dtype(graph: Graph, tensor: Tensor) -> int:
    """The DataType of a tensor, from the op that produces it.

    Raises:
        UnsupportedModelError: it is unknown, or not one that the filter computes with.
    """
    from tensorflow.core.framework import types_pb2

    dtype = _declared_dtype(graph, tensor)
    computable = (types_pb2.DT_FLOAT, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16, types_pb2.DT_DOUBLE)
    if dtype not in computable:
        shown = types_pb2.DataType.Name(dtype) if dtype is not None else "a dtype that the graph does not tell"
        raise UnsupportedModelError(
            explain(
                f"The class scores at {tensor} are not floating-point numbers.",
                received=shown,
                valid="float32, float64, float16 or bfloat16",
            )
        )
    return int(dtype)


def _declared_dtype(graph: Graph, tensor: Tensor) -> int | None:
    node = graph.node(tensor)
    if node is None:
        function = graph.scope(tensor.scope).function
        assert function is not None
        return next((int(arg.type) for arg in function.signature.input_arg if arg.name == tensor.node), None)
    known = {op.name: op for op in graph.meta_graph.meta_info_def.stripped_op_list.op}
    op_def = known.get(node.op) or _op_def(node.op)
    if op_def is None:
        return int(node.attr["T"].type) if "T" in node.attr else None
    outputs = [arg for arg in op_def.output_arg if arg.name == tensor.arg] if tensor.arg else []
    if not outputs and tensor.port < len(op_def.output_arg):
        outputs = [op_def.output_arg[tensor.port]]
    if not outputs:
        return None
    output = outputs[0]
    if output.type:
        return int(output.type)
    if output.type_attr not in node.attr:  # left out because it has its default value
        return next((int(attr.default_value.type) for attr in op_def.attr if attr.name == output.type_attr), None)
    return int(node.attr[output.type_attr].type)


# ------------------------------------------------------------------------------------------------------- rewiring
def _rewire(graph: Graph, scope: Scope, old: Tensor, new: str) -> None:
    """Make everything in a scope that reads ``old`` read ``new``."""
    for node in scope.node_defs:
        for position, ref in enumerate(node.input):
            if ref.startswith(old.node) and scope.tensor(ref) == old:
                node.input[position] = new
    if scope.function is not None:
        for name, ref in scope.function.ret.items():
            if scope.tensor(ref) == old:
                scope.function.ret[name] = new
        return
    for signature in graph.meta_graph.signature_def.values():
        for info in signature.outputs.values():
            if info.name and scope.tensor(info.name) == old:
                info.name = new if ":" in new else f"{new}:0"


def _copy(node: NodeDef) -> NodeDef:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy
