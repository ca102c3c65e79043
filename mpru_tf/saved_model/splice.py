"""Put a filter into a graph at the class scores, and take it out again.

The filter's nodes are added right behind the tensor that holds the raw class scores, and everything that used to read
that tensor reads the filter's output instead: other nodes, what the function returns and, in a main graph, the
SignatureDefs. Callers of an edited function need no edit: they see only what it returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import CorruptModelError, explain
from mpru_tf.saved_model.bundle import FILTER_PREFIX
from mpru_tf.saved_model.candidates import LOGITS
from mpru_tf.saved_model.graph import MAIN, Graph, Scope, Tensor, op_def
from mpru_tf.saved_model.score_site import SitePoint

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.op_def_pb2 import OpDef

    from mpru_tf.filters import FilterSpec
    from mpru_tf.saved_model.bundle import Bundle


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

    Edits the MetaGraphDef in place; ``graph`` stays true to it.

    Args:
        graph: the MetaGraph that holds the tensor.
        point: which tensor, and whether it holds logits or probabilities.
        spec: the filter.
        prefix: name for the filter's nodes; must be unused in the main graph and in all functions.
    """
    scope = graph.scope(point.tensor.scope)
    nodes, output = _filter_nodes(spec, point, prefix, scope.ref(point.tensor), scope.name)
    if graph.in_loop(point.tensor):
        _bring_into_loop(nodes, point.tensor.node)
    filtered = output if scope.name == MAIN else f"{output}:output:0"
    _rewire(graph, scope, point.tensor, filtered)
    present = len(scope.node_defs)
    scope.node_defs.extend(nodes)
    graph.edited(scope, scope.node_defs[present:])
    _register_ops(graph, nodes)
    return Splice(graph.index, scope.name, scope.ref(point.tensor), filtered, prefix, point.kind, point.classes)


def unsplice(graph: Graph, done: Splice) -> None:
    """Undo :func:`splice`: every reader of the filter reads the raw class scores again, and the filter is gone.

    Edits the MetaGraphDef in place; ``graph`` is stale afterwards.

    Raises:
        CorruptModelError: there is no such filter.
    """
    scope = graph.scope(done.function)
    filtered = _end(scope, done)
    _rewire(graph, scope, filtered, done.raw)
    for position in reversed(range(len(scope.node_defs))):
        if scope.node_defs[position].name.startswith(f"{done.prefix}/"):
            del scope.node_defs[position]


def filter_alone(graph: Graph, done: Splice) -> GraphDef:
    """The filter as it stands in the graph, cut out: from a placeholder ``raw`` to ``prefix/filtered``.

    Raises:
        CorruptModelError: it is not there, or reads anything but the raw class scores.
    """
    from tensorflow.core.framework.graph_pb2 import GraphDef

    scope = graph.scope(done.function)
    end, raw = _end(scope, done), scope.tensor(done.raw)
    result = GraphDef()
    result.node.add(name="raw", op="Placeholder").attr["dtype"].type = graph.dtype(end) or 0
    for node in scope.node_defs:
        if not node.name.startswith(f"{done.prefix}/"):
            continue
        result.node.add().CopyFrom(node)
        data = [ref for ref in node.input if not ref.startswith("^")]
        del result.node[-1].input[len(data) :]  # what brings it into a loop
        for position, tensor in enumerate(scope.inputs(node)):
            if tensor != raw and not tensor.node.startswith(f"{done.prefix}/"):
                raise CorruptModelError(explain("A filter reads more than the class scores.", received=str(tensor)))
            port = tensor.port
            if tensor.arg and tensor != raw:
                outputs = _definition(scope.nodes[tensor.node].op).output_arg
                port += [output.name for output in outputs].index(tensor.arg)
            result.node[-1].input[position] = "raw" if tensor == raw else f"{tensor.node}:{port}"
    return result


def _end(scope: Scope, done: Splice) -> Tensor:
    tensor = scope.tensor(done.filtered)
    if tensor is None or tensor.node not in scope.nodes:
        raise CorruptModelError(explain("There is no filter where one should be.", received=done.filtered))
    return tensor


def unused_prefixes(bundle: Bundle) -> Iterator[str]:
    """Yield names that nothing in the SavedModel is called by or below yet, in any main graph or function."""
    taken: set[str] = set()
    if bundle.names_filter:
        for meta_graph in bundle.proto.meta_graphs:
            bodies = (meta_graph.graph_def.node, *(body.node_def for body in meta_graph.graph_def.library.function))
            taken |= {node.name.partition("/")[0] for body in bodies for node in body}
    for number in itertools.count():
        prefix = f"{FILTER_PREFIX}_{number}" if number else FILTER_PREFIX
        if prefix not in taken:
            yield prefix


# ------------------------------------------------------------------------------------------------ the filter's nodes
def _filter_nodes(spec: FilterSpec, point: SitePoint, prefix: str, raw: str, scope: str) -> tuple[list[NodeDef], str]:
    """Trace the filter and rename its nodes so that they read ``raw``; returns them and the last one's name."""
    import tensorflow as tf

    from mpru_tf.layer import filter_tensor

    with tf.Graph().as_default() as traced:
        # Of the shape that the graph proves, no more: a width that is only claimed is compared at run time. A filter
        # for another rank than 2 takes any rank, so that it can be tried alone on a batch.
        shape = point.shape if point.shape is not None and len(point.shape) == 2 else None
        x = tf.compat.v1.placeholder(tf.dtypes.as_dtype(point.dtype), shape, name="raw")
        tf.identity(filter_tensor(x, spec, point.kind == LOGITS), name="filtered")
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


def _bring_into_loop(nodes: list[NodeDef], raw_node: str) -> None:
    """Let a filter's constants run in each turn of a TensorFlow 1 loop.

    Without an input they would run once, outside, and the executor lets nothing pass from one frame into another
    except through Enter. A control input from within puts them inside.
    """
    for node in nodes:
        if not node.input:
            node.input.append(f"^{raw_node}")


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
    output_args = _definition(traced.get_operation_by_name(name).type).output_arg
    return f"{prefix}/{name}:{output_args[int(port or 0)].name}:0"


def _definition(op: str) -> OpDef:
    found = op_def(op)
    assert found is not None  # the op was traced in this process
    return found


def _strip_attributes(node: NodeDef) -> None:
    """Remove what an older server might not know: default-valued and private attributes."""
    defaults = {attr.name: attr.default_value for attr in _definition(node.op).attr if attr.HasField("default_value")}
    for name in list(node.attr):
        if name.startswith("_") or (name in defaults and node.attr[name] == defaults[name]):
            del node.attr[name]


def _register_ops(graph: Graph, nodes: list[NodeDef]) -> None:
    """Name the filter's ops in the list of ops that a consumer of this MetaGraph must know."""
    listed = graph.meta_graph.meta_info_def.stripped_op_list
    known = {op.name for op in listed.op}
    for name in sorted({node.op for node in nodes} - known):
        listed.op.add().CopyFrom(_definition(name))


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
