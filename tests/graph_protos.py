"""Graphs for tests: node by node where a corner matters, traced by TensorFlow where reality does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, TensorInfo

from mpru_tf.saved_model.graph import MAIN, Graph, Place, Tensor, op_def

FLOAT = tf.float32.as_datatype_enum
RESOURCE = tf.resource.as_datatype_enum


def node(name: str, op: str, *inputs: str, **attributes: Any) -> NodeDef:
    """A node; an attribute that is a str names a function, a list of str several, an int is a dtype."""
    result = NodeDef(name=name, op=op, input=list(inputs))
    for key, value in attributes.items():
        if isinstance(value, str):
            result.attr[key].func.name = value
        elif isinstance(value, list):
            for function_name in value:
                result.attr[key].list.func.add(name=function_name)
        else:
            result.attr[key].type = value
    return result


def function(name: str, args: Mapping[str, int] | Iterable[str], nodes: Iterable[NodeDef], **ret: str) -> FunctionDef:
    """A library function: argument names (of float32 unless dtypes are given), a body, and what it returns."""
    result = FunctionDef()
    result.signature.name = name
    dtypes = args if isinstance(args, Mapping) else dict.fromkeys(args, FLOAT)
    for arg, dtype in dtypes.items():
        result.signature.input_arg.add(name=arg, type=dtype)
    for output, ref in ret.items():
        result.signature.output_arg.add(name=output, type=FLOAT)
        result.ret[output] = ref
    result.node_def.extend(nodes)
    return result


def graph(
    nodes: Iterable[NodeDef],
    functions: Iterable[FunctionDef] = (),
    outputs: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Graph:
    """A graph with one signature ``serving_default`` of the given tensor names."""
    meta_graph = MetaGraphDef()
    meta_graph.graph_def.node.extend(nodes)
    meta_graph.graph_def.library.function.extend(functions)
    signature = meta_graph.signature_def["serving_default"]
    for key, name in (outputs or {}).items():
        signature.outputs[key].name = name
    for key, name in (inputs or {}).items():
        signature.inputs[key].name = name
    return Graph(meta_graph)


Answer = Callable[[tf.Tensor], Mapping[str, tf.Tensor]]


def traced(f: Answer, columns: int = 10, **others: Answer) -> Graph:
    """A graph that calls a tf.function of ``x`` [batch, columns] for each signature.

    ``f`` answers the signature ``serving_default``, whose outputs are main-graph nodes of the outputs' names, each of
    the others the signature of its name.
    """
    meta_graph = MetaGraphDef()
    with tf.Graph().as_default() as built:
        for name, answer in {"serving_default": f, **others}.items():
            prefix = "" if name == "serving_default" else f"{name.lstrip('_')}_"
            x = tf.compat.v1.placeholder(tf.float32, [None, columns], name=f"{prefix}x")
            signature = meta_graph.signature_def[name]
            signature.inputs["x"].CopyFrom(_info(x))
            for key, value in tf.function(answer, autograph=False)(x).items():
                signature.outputs[key].CopyFrom(_info(tf.identity(value, name=f"{prefix}{key}")))
    meta_graph.graph_def.CopyFrom(built.as_graph_def(add_shapes=True))
    return Graph(meta_graph)


def _info(tensor: tf.Tensor) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto())


def main(name: str, port: int = 0) -> Tensor:
    """An output of a main-graph node."""
    return Tensor(MAIN, name, "", port)


def at(name: str, port: int = 0) -> Place:
    """The place of an output of a main-graph node."""
    return Place(main(name, port))


def op_of(read: Graph, place: Place) -> str:
    """The op that produces the tensor at a place; '' for an argument."""
    producer = read.node(place.tensor)
    return producer.op if producer is not None else ""


def tensor_of(read: Graph, op: str) -> Tensor:
    """The first output of the first node with an op, wherever it lies."""
    for name in (MAIN, *read.functions):
        for one in read.scope(name).node_defs:
            if one.op == op:
                return Tensor(name, one.name, op_def(op).output_arg[0].name if name else "", 0)
    raise AssertionError(op)
