"""Do the parts of a SavedModel fit together? Checked when one is read, before anything walks over it.

A SavedModel may come from a stranger. Looked at here is what a server would refuse or, worse, follow out of the version
directory, as far as it costs little: signatures, the main graph's nodes, what functions say of themselves, objects and
asset files; and, for the one or two functions that a filter is put into, every reference. What lies within other
functions is checked by the walk that enters it (:mod:`mpru_tf.saved_model.graph`), and what only an op's kernel can
judge by the load check.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from mpru_tf.errors import CorruptModelError, explain

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, TensorInfo
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    from mpru_tf.saved_model.graph import Scope

MOST_CLASSES = 2**24
"""A filter holds a number or more for each class; more classes than this no honest classifier has."""

_LARGEST_CONSTANT = 2**33  # elements; what is written out must fit into a protocol buffer, one repeated value need not
_MOST_SHOWN = 3
_CALL_OPS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_STRING = 7  # types.proto; importing it would import TensorFlow
# Bytes of one element in tensor_content, by DataType; of other dtypes the length is not judged.
_SIZES = {1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 14: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8}


def check(proto: SavedModel, directory: Path) -> None:
    """Refuse a SavedModel whose parts do not fit together.

    Args:
        proto: the SavedModel.
        directory: its version directory, in which its asset files must lie.

    Raises:
        CorruptModelError: with the first few things that are wrong.
    """
    _refuse(f"The SavedModel in {directory}", _problems(proto, directory))


def check_body(scope: Scope) -> None:
    """Refuse a main graph or a function in which a node reads what nothing produces.

    Raises:
        CorruptModelError: with the first few such references.
    """
    where = f"function {_shown(scope.name)}" if scope.name else "the main graph"
    read: set[str] = set()
    for node in scope.node_defs:
        read.update(node.input)
    read.update(scope.outputs)
    missing = {ref.partition(":")[0].removeprefix("^") for ref in read} - scope.nodes.keys() - scope.args.keys()
    _refuse("The SavedModel", (f"{where} reads {_shown(name)}, which nothing produces" for name in sorted(missing)))


def _refuse(what: str, problems: Iterator[str]) -> None:
    found = list(itertools.islice(problems, _MOST_SHOWN + 1))
    if not found:
        return
    more = ["and more"] if len(found) > _MOST_SHOWN else []
    raise CorruptModelError(
        explain(
            f"{what} is damaged or was put together wrongly.",
            received="; ".join([*found[:_MOST_SHOWN], *more]),
            valid="a SavedModel as an exporter wrote it, with all of its files",
            hint="Copy the whole version directory again, or export the model again.",
        )
    )


def _problems(proto: SavedModel, directory: Path) -> Iterator[str]:
    for meta_graph in proto.meta_graphs:
        nodes = {node.name: node for node in meta_graph.graph_def.node}
        if len(nodes) < len(meta_graph.graph_def.node):
            doubled = _doubled([node.name for node in meta_graph.graph_def.node])
            yield from (f"two nodes of the main graph are called {_shown(name)}" for name in doubled)
        for node in nodes.values():
            op = node.op
            if op == "Const" and (wrong := _wrong_constant(node)) is not None:
                yield f"constant {_shown(node.name)} {wrong}"
            # TensorFlow itself counts on it so much that it crashes when it takes the model's fingerprint (2.19).
            elif op in _CALL_OPS and not ("f" in node.attr and node.attr["f"].HasField("func")):
                yield f"node {_shown(node.name)} calls a function, but does not say which"
        yield from _of_functions(meta_graph)
        yield from _of_signatures(meta_graph, nodes)
        yield from _of_objects(meta_graph)
        yield from _of_assets(meta_graph, directory)


# ----------------------------------------------------------------------------------------------- functions and nodes
def _of_functions(meta_graph: MetaGraphDef) -> Iterator[str]:
    library = meta_graph.graph_def.library.function
    for name in _doubled([function.signature.name for function in library]):
        yield f"two functions are called {_shown(name)}"
    for function in library:
        signature = function.signature
        for name in _doubled([arg.name for arg in signature.input_arg]):
            yield f"two arguments of function {_shown(signature.name)} are called {_shown(name)}"
        for output in signature.output_arg:
            if output.name not in function.ret:
                yield f"function {_shown(signature.name)} does not say what it returns as {_shown(output.name)}"


def _wrong_constant(node: NodeDef) -> str | None:
    if "value" not in node.attr:
        return "has no value"
    tensor = node.attr["value"].tensor
    dims = [dim.size for dim in tensor.tensor_shape.dim]
    if any(size < 0 for size in dims) or tensor.tensor_shape.unknown_rank:
        return "has an axis of no known length"
    count = math.prod(dims) if len(dims) < 255 else _LARGEST_CONSTANT + 1  # TensorFlow's own limit on axes
    if count > _LARGEST_CONSTANT:
        return f"says that it has {'x'.join(map(str, dims[:8]))} elements"
    held, size = len(tensor.tensor_content), _SIZES.get(tensor.dtype)
    if held and size is not None and held != count * size:
        return f"says that it has {count} elements, but holds {held} bytes"
    return None


# -------------------------------------------------------------------------------------------------------- signatures
def _of_signatures(meta_graph: MetaGraphDef, nodes: Mapping[str, NodeDef]) -> Iterator[str]:
    named = [
        (f"{kind} {_shown(f'{name}:{key}')}", tensor)
        for name, signature in meta_graph.signature_def.items()
        for kind, tensors in (("input", signature.inputs), ("output", signature.outputs))
        for key, info in tensors.items()
        for tensor in (tensor_names(info) or [""])
    ]
    counts: dict[str, int | None] = {}
    for what, tensor in named:
        name, colon, port = tensor.partition(":")
        if not tensor:
            yield f"{what} names no tensor"
        elif name not in nodes:
            yield f"{what} names {_shown(tensor)}, which nothing produces"
        elif colon and not (port.isascii() and port.isdigit() and len(port) < 10):
            yield f"{what} names {_shown(tensor)}, which is no tensor's name"
        elif colon and port != "0":
            if name not in counts:
                counts[name] = _output_count(meta_graph, nodes[name])
            count = counts[name]
            if count is not None and int(port) >= count:
                yield f"{what} names {_shown(tensor)}, but {_shown(name)} has {count} outputs"


def tensor_names(info: TensorInfo) -> list[str]:
    """All tensors of a TensorInfo: one, or the parts of a sparse or composite one."""
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        sparse = info.coo_sparse
        names = (sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name)
        return [name for name in names if name]
    if kind == "composite_tensor":
        return [name for part in info.composite_tensor.components for name in tensor_names(part)]
    return [info.name] if info.name else []


def _output_count(meta_graph: MetaGraphDef, node: NodeDef) -> int | None:
    """How many outputs a node of the main graph has; None where its op is not known."""
    from mpru_tf.saved_model.graph import op_def

    definition = next((f.signature for f in meta_graph.graph_def.library.function if f.signature.name == node.op), None)
    if definition is None:
        listed = meta_graph.meta_info_def.stripped_op_list.op
        definition = op_def(node.op) or next((op for op in listed if op.name == node.op), None)
    if definition is None:
        return None
    count = 0
    for output in definition.output_arg:
        if output.number_attr:
            if output.number_attr not in node.attr:
                return None
            count += node.attr[output.number_attr].i
        elif output.type_list_attr:
            if output.type_list_attr not in node.attr:
                return None
            count += len(node.attr[output.type_list_attr].list.type)
        else:
            count += 1
    return count


# ------------------------------------------------------------------------------------------------ objects and assets
def _of_objects(meta_graph: MetaGraphDef) -> Iterator[str]:
    if not meta_graph.HasField("object_graph_def"):
        return
    objects = meta_graph.object_graph_def
    count, assets = len(objects.nodes), len(meta_graph.asset_file_def)
    for number, node in enumerate(objects.nodes):
        if any(not 0 <= child.node_id < count for child in node.children):
            yield f"object {number} has a child that is not among the {count}"
        if node.HasField("asset") and not 0 <= node.asset.asset_file_def_index < assets:
            yield f"object {number} stands for asset file number {node.asset.asset_file_def_index} of {assets}"
    for name, function in objects.concrete_functions.items():
        bound = function.bound_inputs
        if bound and not (min(bound) >= 0 and max(bound) < count):
            yield f"function {_shown(name)} is bound to an object that is not among the {count}"


def _of_assets(meta_graph: MetaGraphDef, directory: Path) -> Iterator[str]:
    for name in dict.fromkeys(_asset_files(meta_graph)):
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        if posix.is_absolute() or windows.drive or ".." in posix.parts + windows.parts or "\0" in name:
            yield f"asset file {_shown(name)} does not lie in the version directory"
        elif not name or not os.path.isfile(directory / "assets" / name):
            yield f"asset file {_shown(f'assets/{name}')} is missing"


def _asset_files(meta_graph: MetaGraphDef) -> Iterator[str]:
    from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef

    for asset in meta_graph.asset_file_def:
        yield asset.filename
    if "saved_model_assets" in meta_graph.collection_def:  # where TensorFlow 1 keeps the same list
        for packed in meta_graph.collection_def["saved_model_assets"].any_list.value:
            asset = AssetFileDef()
            if packed.Unpack(asset):
                yield asset.filename


# ----------------------------------------------------------------------------------------------------------- helpers
def _doubled(names: list[str]) -> list[str]:
    if len(set(names)) == len(names):
        return []
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _shown(name: str) -> str:
    """A name from the model as one short piece of a message: no line breaks, no terminal codes."""
    return repr(name if len(name) <= 100 else f"{name[:100]}…")
