"""Remove from a spliced SavedModel every door that does not pass through the filter.

Besides its SignatureDefs, a TensorFlow 2 SavedModel carries an object graph through which Python loaders rebuild
``loaded(x)``, ``loaded.layers[3]`` and the like, each from a function of its own. Functions that would answer past the
filter lose their place there and are deleted from the library, and the Keras metadata from which
``tf_keras.models.load_model`` would rebuild the *unfiltered* model goes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpru_tf.errors import UnsupportedModelError, explain
from mpru_tf.saved_model.graph import MAIN, Graph

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.saved_object_graph_pb2 import SavedObject, SavedObjectGraph

    from mpru_tf.saved_model.leaks import LeakGate


@dataclass(frozen=True)
class Pruned:
    """What was taken out.

    Attributes:
        endpoints: attribute paths (like ``root.layers.0.__call__``) that Python loaders offer no more.
        functions: how many library functions were deleted.
    """

    endpoints: tuple[str, ...]
    functions: int


def prune(graph: Graph, gate: LeakGate) -> Pruned:
    """Drop unfiltered endpoints, Keras metadata and functions that nothing reaches any more. Edits in place."""
    meta_graph = graph.meta_graph
    if not meta_graph.HasField("object_graph_def"):  # TensorFlow 1: the SignatureDefs are the only doors
        return Pruned((), 0)
    doors = len(meta_graph.object_graph_def.concrete_functions)
    endpoints = _drop_endpoints(graph, gate)
    if len(meta_graph.object_graph_def.concrete_functions) == doors:
        return Pruned(endpoints, 0)
    return Pruned(endpoints, _drop_unreachable_functions(graph))


# ---------------------------------------------------------------------------------------------------- object graph
def _drop_endpoints(graph: Graph, gate: LeakGate) -> tuple[str, ...]:
    objects = graph.meta_graph.object_graph_def
    captured = {name: len(function.bound_inputs) for name, function in objects.concrete_functions.items()}
    dirty_functions = {
        name for name, count in captured.items() if name in graph.functions and not gate.function_is_clean(name, count)
    }
    dirty_nodes = _nodes_of(objects, dirty_functions) if dirty_functions else set()
    names = _paths(objects) if dirty_nodes else {}
    dropped = []
    for number, node in enumerate(objects.nodes):
        keras = node.user_object.identifier.startswith("_tf_keras_")
        if not keras and not dirty_nodes:
            continue
        for position in reversed(range(len(node.children))):
            child = node.children[position]
            if child.node_id in dirty_nodes:
                dropped.append(f"{names.get(number, 'root')}.{child.local_name}")
            elif not (keras and child.local_name == "keras_api"):
                continue
            del node.children[position]
        if keras:
            # With these, Keras loaders would rebuild the original, unfiltered layers from their configuration.
            node.user_object.identifier = "_generic_user_object"
            node.user_object.metadata = ""
    # Only what these objects offered: gradients of custom functions belong to no object, but are needed.
    offered = {name for number in dirty_nodes for name in _functions_of(objects.nodes[number])}
    for number in dirty_nodes:
        _neutralise(objects.nodes[number])
    if offered:
        for name in offered.difference(*(_functions_of(node) for node in objects.nodes)):
            objects.concrete_functions.pop(name, None)
    return tuple(sorted(name for name in dropped if ".keras_api." not in name and ".trace_" not in name))


def _nodes_of(objects: SavedObjectGraph, functions: set[str]) -> set[int]:
    """Objects that offer one of these functions to be called, not counting what the checkpoint needs them for."""
    checkpointing = {
        node_id
        for node in objects.nodes
        for saveable in node.saveable_objects.values()
        for node_id in (saveable.save_function, saveable.restore_function)
    }
    return {
        number
        for number, node in enumerate(objects.nodes)
        if number not in checkpointing and not functions.isdisjoint(_functions_of(node))
    }


def _functions_of(node: SavedObject) -> list[str]:
    kind = node.WhichOneof("kind")
    if kind == "function":
        return list(node.function.concrete_functions)
    if kind == "bare_concrete_function":
        return [node.bare_concrete_function.concrete_function_name]
    return []


def _neutralise(node: SavedObject) -> None:
    """Leave an empty object in a function's place: other objects and the checkpoint count on its position."""
    node.Clear()
    node.user_object.identifier = "_generic_user_object"
    node.user_object.version.producer = 1
    node.user_object.version.min_consumer = 1


def _paths(objects: SavedObjectGraph) -> dict[int, str]:
    """A shortest attribute path to each object from the root."""
    paths = {0: "root"}
    queue = [0]
    for number in queue:
        for child in objects.nodes[number].children:
            if child.node_id not in paths and child.node_id < len(objects.nodes):
                paths[child.node_id] = f"{paths[number]}.{child.local_name}"
                queue.append(child.node_id)
    return paths


# ------------------------------------------------------------------------------------------------ function library
def _drop_unreachable_functions(graph: Graph) -> int:
    """Delete library functions that neither the main graph nor a remaining endpoint can reach."""
    meta_graph = graph.meta_graph
    library = meta_graph.graph_def.library
    gradients = {gradient.function_name: gradient.gradient_func for gradient in library.gradient}
    registered = {gradient.registered_op_type: gradient.gradient_func for gradient in library.registered_gradients}
    queue = [name for node in meta_graph.graph_def.node for name in graph.function_references(node)]
    queue.extend(_attribute_references(meta_graph))
    queue.extend(meta_graph.object_graph_def.concrete_functions)
    reached: set[str] = set()
    while queue:
        name = queue.pop()
        function = graph.functions.get(name)
        if name in reached or function is None:
            continue
        reached.add(name)
        queue.append(gradients.get(name, ""))
        for value in function.attr.values():
            queue.extend((value.func.name, value.s.decode("utf-8", "replace")))
        for node in function.node_def:
            queue.extend(graph.function_references(node))
            if "_gradient_op_type" in node.attr:
                queue.append(registered.get(node.attr["_gradient_op_type"].s.decode("utf-8", "replace"), ""))
    before = len(library.function)
    if len(reached) == before:
        return 0
    for position in reversed(range(before)):
        if library.function[position].signature.name not in reached:
            del library.function[position]
    for position in reversed(range(len(library.gradient))):
        if library.gradient[position].function_name not in reached:
            del library.gradient[position]
    for position in reversed(range(len(library.registered_gradients))):
        if library.registered_gradients[position].gradient_func not in reached:
            del library.registered_gradients[position]
    return before - len(library.function)


def _attribute_references(meta_graph: MetaGraphDef) -> list[str]:
    """Functions that main-graph nodes name by a custom gradient."""
    registered = {
        gradient.registered_op_type: gradient.gradient_func
        for gradient in meta_graph.graph_def.library.registered_gradients
    }
    kinds = (
        node.attr["_gradient_op_type"].s.decode("utf-8", "replace")
        for node in meta_graph.graph_def.node
        if "_gradient_op_type" in node.attr
    )
    return [registered[kind] for kind in kinds if kind in registered]


# ------------------------------------------------------------------------------------------------ dropping an output
def drop_output(graph: Graph, signature_name: str, key: str) -> None:
    """Remove one output from a SignatureDef and, in a TensorFlow 2 model, from the function behind it.

    Edits in place; ``graph`` is stale afterwards.

    Raises:
        UnsupportedModelError: it is the signature's last output, or something else needs the function's output.
    """
    meta_graph = graph.meta_graph
    signature = meta_graph.signature_def[signature_name]
    if len(signature.outputs) == 1:
        raise UnsupportedModelError(
            explain(
                "Dropping this output would leave its signature without any.",
                received=f"{signature_name}:{key}",
                valid="an output of a signature that has others",
            )
        )
    tensor = graph.signature_tensor(signature.outputs[key].name)
    del signature.outputs[key]
    scope = graph.scope(MAIN)
    node = scope.nodes.get(tensor.node)
    callees = graph.callees(scope, node) if node is not None else []
    wrapper = callees[0][0] if len(callees) == 1 else None
    if wrapper is None or wrapper not in meta_graph.object_graph_def.concrete_functions:
        return  # TensorFlow 1: the SignatureDef is the only door
    _drop_returned(graph, wrapper, tensor.port, key)


def _drop_returned(graph: Graph, function_name: str, index: int, key: str) -> None:
    graph.returned(function_name, index)  # refuses an output that the function does not have
    meta_graph = graph.meta_graph
    scope = graph.scope(MAIN)
    callers = [node for node in scope.node_defs if function_name in graph.function_references(node)]
    for inner in graph.functions.values():
        if any(function_name in graph.function_references(node) for node in inner.node_def):
            raise UnsupportedModelError(
                explain(
                    f"Output {key!r} cannot be dropped: function {inner.signature.name} uses the function behind it.",
                    received=function_name,
                    hint="Export the model with a signature that does not have this output.",
                )
            )
    names = {node.name for node in callers}
    for info in (info for sig in meta_graph.signature_def.values() for info in sig.outputs.values()):
        shown = graph.signature_tensor(info.name)
        if shown.node in names and shown.port == index:
            raise UnsupportedModelError(
                explain(
                    f"Output {key!r} cannot be dropped: another signature shows the same value.",
                    received=info.name,
                    hint="Drop it from that signature in the same command.",
                )
            )
        if shown.node in names and shown.port > index:
            info.name = f"{shown.node}:{shown.port - 1}"
    for node in scope.node_defs:
        for position, ref in enumerate(node.input):
            used = scope.tensor(ref)
            if used is not None and used.node in names and used.port > index:
                node.input[position] = f"{used.node}:{used.port - 1}"
    for node in callers:
        del node.attr["Tout"].list.type[index]
        if "_output_shapes" in node.attr:
            del node.attr["_output_shapes"].list.shape[index]
    function = graph.functions[function_name]
    output = function.signature.output_arg[index].name
    del function.signature.output_arg[index]
    function.ret.pop(output, None)
    structure = meta_graph.object_graph_def.concrete_functions[function_name].output_signature
    if key in structure.dict_value.fields:
        del structure.dict_value.fields[key]
