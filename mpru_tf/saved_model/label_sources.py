"""Labels of the classes as a SavedModel's graph tells them: constants, tables and their files. Nothing is executed.

What answers a client in words is the best witness. From every string output of a signature the walk goes back through
what only moves strings about to a constant, or to a table that maps class indices to strings. It is taken only if the
class index is used as it is (an ArgMax or a TopK): where something is added to it or it is mapped on, the order of the
strings is not known to be that of the classes.

========== ==========================================================================================
strength   found as
========== ==========================================================================================
ANSWERED   a constant or a table from which a string output of a client's signature is answered
FILE       a file called like labels (these are found by :mod:`mpru_tf.labels`)
VOCABULARY a table from strings to ids 0 to n - 1 whose name speaks of labels or classes
========== ==========================================================================================

Everything else with as many strings as there are classes is left alone: it may be the vocabulary of the model's input.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpru_tf.saved_model.dataflow import Dataflow
from mpru_tf.saved_model.graph import MAIN, Call, Graph, Place, Tensor, is_for_clients
from mpru_tf.saved_model.packed_strings import unpack

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef

VOCABULARY, FILE, ANSWERED = 1, 2, 3
"""How strong a source is; the larger number wins."""

LARGEST_FILE = 16 << 20
"""Bytes that a file with labels may have: 160 for each of 100,000 classes."""

_MOST_STEPS = 1000  # from one output; an honest way from labels to an answer has about ten

_DT_INT32, _DT_STRING, _DT_INT64 = 3, 7, 9  # types.proto; importing it would import TensorFlow
_TABLE_OPS = frozenset({"HashTable", "HashTableV2"})
_FIND_OPS = frozenset({"LookupTableFind", "LookupTableFindV2"})
_FILL_OPS = frozenset({"InitializeTable", "InitializeTableV2", "LookupTableImport", "LookupTableImportV2"})
_FILE_OPS = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"})
_LINE_NUMBER, _WHOLE_LINE = -1, -2  # tf.lookup.TextFileIndex

# Ops that only arrange what their first input holds.
_ARRANGING_OPS = frozenset({"Tile", "ExpandDims", "Reshape", "Squeeze", "BroadcastTo"})
_INDEX_OPS = frozenset({"ArgMax", "TopK", "TopKV2"})
_GATHER_OPS = frozenset({"Gather", "GatherV2", "ResourceGather"})
_CHOICE_OPS = frozenset({"Select", "SelectV2"})
# Which of the answered ids is looked at does not change what an id means.
_PICKING_OPS = _ARRANGING_OPS | {"StridedSlice", "Slice"}


@dataclass(frozen=True)
class LabelSource:
    """One place that names the classes.

    Attributes:
        labels: one per class, in the order of the class indices.
        where: the place, in words.
        strength: :data:`ANSWERED`, :data:`FILE` or :data:`VOCABULARY`.
    """

    labels: tuple[str, ...]
    where: str
    strength: int


@dataclass(frozen=True)
class _Table:
    """What a table is filled with: a node, and the calls through which it is run."""

    node: NodeDef
    scope: str
    calls: tuple[Call, ...]
    name: str
    shared_name: str


def find_label_sources(graphs: Sequence[Graph], directory: Path, classes: int) -> tuple[LabelSource, ...]:
    """Find every place in the graphs of a SavedModel that names its classes, strongest first.

    Args:
        graphs: its MetaGraphs.
        directory: the version directory, for tables that are read from its assets.
        classes: number n of classes; places with another number of strings are passed over.

    Raises:
        CorruptModelError: a graph is damaged.
    """
    found = [source for graph in graphs for source in _of_graph(graph, directory, classes)]
    unique = {(source.labels, source.where): source for source in found}
    return tuple(sorted(unique.values(), key=lambda source: -source.strength))


def input_vocabularies(graph: Graph) -> tuple[frozenset[tuple[str, str]], frozenset[str]]:
    """The strings by which a model looks up what clients send: to change one would change the model's answers.

    A table from labels to something else that is asked for the answered class is none: what it is asked for comes from
    an ArgMax or a TopK. Tables that are asked within a While loop are not found.

    Returns:
        The constants, each as scope and node name, and the asset files, relative to the version directory.
    """
    constants: set[tuple[str, str]] = set()
    files: set[str] = set()
    tables = _tables(graph)
    flow = Dataflow(graph, lambda tensor: (node := graph.node(tensor)) is not None and node.op in _INDEX_OPS)
    for scope, calls, node in _nodes(graph, _FIND_OPS) if tables else ():
        inputs = [Place(tensor, calls) for tensor in graph.scope(scope).inputs(node)]
        filled = tables.get(_table_name(graph, inputs[0]), []) if len(inputs) == 3 else []
        if not filled or not flow.depends_on_request(inputs[1]):
            continue
        for table in filled:
            if table.node.op in _FILE_OPS:
                asset = _asset(graph, table)
                files.update([asset] if asset else [])
                continue
            keys = graph.scope(table.scope).inputs(table.node)[1:2]
            sources = [graph.source(Place(tensor, table.calls)).tensor for tensor in keys]
            constants.update((source.scope, source.node) for source in sources)
    return frozenset(constants), frozenset(files)


def string_elements(tensor: TensorProto) -> list[bytes] | None:
    """The elements of a string tensor, in order; None if they are not whole.

    Trailing elements equal to the last one may be left out of ``string_val``; they are not filled up here.
    """
    if tensor.string_val or not tensor.tensor_content:
        return list(tensor.string_val)
    return unpack(tensor.tensor_content, _size(tensor))


# ------------------------------------------------------------------------------------------------------------ graphs
def _of_graph(graph: Graph, directory: Path, classes: int) -> Iterator[LabelSource]:
    tables = _tables(graph)
    for name, signature in sorted(graph.meta_graph.signature_def.items()):
        if not is_for_clients(name, signature):
            continue
        for _, info in sorted(signature.outputs.items()):
            tensor = graph.scope(MAIN).tensor(info.name) if info.dtype == _DT_STRING and info.name else None
            if tensor is not None:
                yield from _answering(graph, Place(tensor), tables, directory, classes)
    for filled in tables.values():
        for table in filled:
            if any(word in f"{table.name} {table.shared_name}".lower() for word in ("label", "class")):
                ids = _entries(graph, table, directory, classes, from_strings=True)
                labels = _in_order(ids, None, classes)
                if labels is not None:
                    yield LabelSource(labels, f"the vocabulary of table {table.name}", VOCABULARY)


def _answering(
    graph: Graph, start: Place, tables: Mapping[str, list[_Table]], directory: Path, classes: int
) -> Iterator[LabelSource]:
    """The constants and tables from which one string output is answered."""
    queue, seen = [start], set[Place]()
    while queue and len(seen) < _MOST_STEPS:
        place = graph.source(queue.pop())
        node = graph.node(place.tensor)
        if place in seen or node is None or graph.is_request(place.tensor):
            continue
        seen.add(place)
        inputs = graph.inputs_of(place)
        if node.op == "Const":
            labels = _labels_in(node, classes)
            if labels is not None:
                yield LabelSource(labels, f"constant {_named(place)}", ANSWERED)
        elif node.op in _FIND_OPS and len(inputs) == 3 and _is_class_index(graph, inputs[1]):
            default = _string(graph, inputs[2])
            for table in tables.get(_table_name(graph, inputs[0]), []):
                labels = _in_order(_entries(graph, table, directory, classes), default, classes)
                if labels is not None:
                    yield LabelSource(labels, _said(graph, table), ANSWERED)
        elif (
            node.op in _ARRANGING_OPS
            or (node.op == "StridedSlice" and _keeps_all(graph, inputs))
            or (node.op == "Pack" and len(inputs) == 1)
            or (node.op in _GATHER_OPS and len(inputs) > 1 and _is_class_index(graph, inputs[1]))
        ):
            queue.extend(inputs[:1])
        elif node.op in ("StringJoin", "ReduceJoin"):
            queue.extend(inputs)
        elif node.op in _CHOICE_OPS:
            queue.extend(inputs[1:])


def _labels_in(node: NodeDef, classes: int) -> tuple[str, ...] | None:
    tensor = _constant(node, _DT_STRING)
    if tensor is None or _size(tensor) != classes:
        return None
    elements = string_elements(tensor)
    if not elements or len(elements) > classes:
        return None
    return _decoded([*elements, *elements[-1:] * (classes - len(elements))])


def _is_class_index(graph: Graph, place: Place) -> bool:
    """Whether a tensor holds indices as an ArgMax or a TopK gave them, and nothing was done to them since."""
    for _ in range(_MOST_STEPS):
        place = graph.source(place)
        node = graph.node(place.tensor)
        if node is None:
            return False
        if node.op in ("TopK", "TopKV2"):
            return place.tensor.arg == "indices" or place.tensor.port == 1
        inputs = graph.inputs_of(place)
        if node.op not in _PICKING_OPS or not inputs:
            return bool(node.op == "ArgMax")
        place = inputs[0]
    return False


def _keeps_all(graph: Graph, inputs: Sequence[Place]) -> bool:
    """Whether a StridedSlice begins at the beginning and leaves out and turns round nothing (``labels[None]``)."""
    if len(inputs) != 4:
        return False
    begin, strides = _integers(graph, inputs[1]), _integers(graph, inputs[3])
    return begin is not None and strides is not None and not any(begin) and all(step == 1 for step in strides)


# ------------------------------------------------------------------------------------------------------------ tables
def _tables(graph: Graph) -> dict[str, list[_Table]]:
    """Everything that fills a table, by the table's name. Initialisers may lie in functions."""
    found: dict[str, list[_Table]] = {}
    if any(node.op in _TABLE_OPS for node in graph.scope(MAIN).node_defs):
        for scope, calls, node in _nodes(graph, _FILL_OPS | _FILE_OPS):
            inputs = graph.scope(scope).inputs(node)
            if inputs:
                handle = Place(inputs[0], calls)
                shared_name, name = _table_name(graph, handle), _named(graph.source(handle))
                found.setdefault(shared_name, []).append(_Table(node, scope, calls, name, shared_name))
    return found


def _nodes(graph: Graph, ops: Collection[str]) -> Iterator[tuple[str, tuple[Call, ...], NodeDef]]:
    """Nodes of some ops, with the calls from the main graph by which they are run."""
    wanted = _functions_with(graph, ops)
    queue: list[tuple[str, tuple[Call, ...]]] = [(MAIN, ())]
    for where, calls in queue:
        if len(calls) > 8 or len(queue) > _MOST_STEPS:
            continue
        scope = graph.scope(where)
        for node in scope.node_defs:
            if node.op in ops:
                yield where, calls, node
                continue
            for function, offset in graph.callees(scope, node):
                if function in wanted:
                    queue.append((function, (*calls, Call(where, node.name, offset))))


def _functions_with(graph: Graph, ops: Collection[str]) -> set[str]:
    """Names of the functions with nodes of some ops, in themselves or in others that they call."""
    calls: dict[str, set[str]] = {}
    wanted: set[str] = set()
    for name in graph.functions:
        scope = graph.scope(name)
        for node in scope.node_defs:
            if node.op in ops:
                wanted.add(name)
            calls.setdefault(name, set()).update(function for function, _ in graph.callees(scope, node))
    while True:
        more = {name for name, called in calls.items() if name not in wanted and called & wanted}
        if not more:
            return wanted
        wanted |= more


def _table_name(graph: Graph, handle: Place) -> str:
    """What tells a table from another one: its shared name, else its node's."""
    handle = graph.source(handle)
    node = graph.node(handle.tensor)
    if node is None:
        return _named(handle)
    shared = node.attr["shared_name"].s if "shared_name" in node.attr else b""
    return shared.decode("utf-8", "replace") or _named(handle)


def _said(graph: Graph, table: _Table) -> str:
    if table.node.op in _FILE_OPS:
        asset = _asset(graph, table)
        return f"asset {asset}" if asset else f"table {table.name}"
    return f"table {table.name}"


def _entries(
    graph: Graph, table: _Table, directory: Path, classes: int, *, from_strings: bool = False
) -> dict[int, bytes] | None:
    """What a table maps each id to, or, with ``from_strings``, from which string each id is looked up."""
    inputs = [Place(tensor, table.calls) for tensor in graph.scope(table.scope).inputs(table.node)]
    if table.node.op in _FILE_OPS:
        return _entries_of_file(graph, table, directory, classes, from_strings)
    if len(inputs) != 3:
        return None
    ids, strings = (inputs[2], inputs[1]) if from_strings else (inputs[1], inputs[2])
    keys, node = _integers(graph, ids, classes), _producer(graph, strings)
    tensor = _constant(node, _DT_STRING) if node is not None else None
    values = string_elements(tensor) if tensor is not None and _size(tensor) <= classes else None
    if keys is None or values is None or len(keys) != len(values):
        return None
    return dict(zip(keys, values, strict=True))


def _entries_of_file(
    graph: Graph, table: _Table, directory: Path, classes: int, from_strings: bool
) -> dict[int, bytes] | None:
    asset = _asset(graph, table)
    attributes = table.node.attr
    if asset is None or ("offset" in attributes and attributes["offset"].i):
        return None
    columns = [attributes[name].i if name in attributes else 0 for name in ("key_index", "value_index")]
    number, string = reversed(columns) if from_strings else columns
    delimiter = attributes["delimiter"].s if "delimiter" in attributes else b"\t"
    data = _read(directory / asset)
    if data is None or not delimiter:
        return None
    lines = [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]
    entries: dict[int, bytes] = {}
    if len(lines) > classes:
        return None
    for position, line in enumerate(lines):
        cells = line.split(delimiter)
        try:
            key = position if number == _LINE_NUMBER else int(cells[number]) if number >= 0 else -1
            value = line if string == _WHOLE_LINE else cells[string] if string >= 0 else b""
        except (ValueError, IndexError):
            return None
        entries[key] = value
    return entries


def _asset(graph: Graph, table: _Table) -> str | None:
    """The file that a table is read from, relative to the version directory."""
    inputs = graph.scope(table.scope).inputs(table.node)
    if len(inputs) != 2:
        return None
    names = _written(graph, graph.source(Place(inputs[1], table.calls)))
    for asset in _assets(graph):
        parts = Path(asset.filename).parts
        if graph.scope(MAIN).tensor(asset.tensor_info.name) in names and parts and ".." not in parts:
            return None if Path(asset.filename).is_absolute() else f"assets/{asset.filename}"
    return None


def _assets(graph: Graph) -> list[AssetFileDef]:
    """The assets of a MetaGraph; TensorFlow 1 keeps the list in a collection."""
    from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef

    meta_graph = graph.meta_graph
    if meta_graph.asset_file_def or "saved_model_assets" not in meta_graph.collection_def:
        return list(meta_graph.asset_file_def)
    found = []
    for packed in meta_graph.collection_def["saved_model_assets"].any_list.value:
        asset = AssetFileDef()
        if packed.Unpack(asset):
            found.append(asset)
    return found


def _written(graph: Graph, place: Place) -> set[Tensor]:
    """A tensor, or what is written into the variable that it is read from (as TensorFlow 2 keeps names of assets)."""
    node = graph.node(place.tensor)
    inputs = graph.inputs_of(place)
    if node is None or node.op != "ReadVariableOp" or not inputs:
        return {place.tensor}
    variable, scope = graph.source(inputs[0]).tensor, graph.scope(MAIN)
    written = [scope.inputs(writer) for writer in scope.node_defs if writer.op == "AssignVariableOp"]
    return {both[1] for both in written if len(both) == 2 and both[0] == variable}


def _in_order(entries: Mapping[int, bytes] | None, default: bytes | None, classes: int) -> tuple[str, ...] | None:
    """The labels of classes 0 to n - 1; where a table begins at 1, class 0 (out of vocabulary) is its default."""
    if not entries or not entries.keys() <= set(range(classes)):
        return None
    missing = set(range(classes)) - entries.keys()
    if missing and (missing != {0} or default is None):
        return None
    return _decoded([entries.get(index, default or b"") for index in range(classes)])


# --------------------------------------------------------------------------------------------------------- constants
def _named(place: Place) -> str:
    return f"{place.tensor.scope}/{place.tensor.node}" if place.tensor.scope else place.tensor.node


def _producer(graph: Graph, place: Place) -> NodeDef | None:
    return graph.node(graph.source(place).tensor)


def _constant(node: NodeDef, *dtypes: int) -> TensorProto | None:
    if node.op != "Const" or "value" not in node.attr:
        return None
    tensor = node.attr["value"].tensor
    return tensor if tensor.dtype in dtypes else None


def _size(tensor: TensorProto) -> int:
    size = 1
    for dim in tensor.tensor_shape.dim:
        size *= max(int(dim.size), 0)
    return size


def _string(graph: Graph, place: Place) -> bytes | None:
    node = _producer(graph, place)
    tensor = _constant(node, _DT_STRING) if node is not None else None
    values = string_elements(tensor) if tensor is not None and _size(tensor) == 1 else None
    return values[0] if values else None


def _integers(graph: Graph, place: Place, most: int = 64) -> list[int] | None:
    """The values of an integer constant, or of a Range of constants, with at most ``most`` elements."""
    source = graph.source(place)
    node = graph.node(source.tensor)
    if node is None:
        return None
    if node.op == "Range":
        bounds = [_integers(graph, step, 1) for step in graph.inputs_of(source)]
        if len(bounds) != 3 or not all(bounds):
            return None
        start, limit, delta = (bound[0] for bound in bounds if bound)
        values = range(start, limit, delta) if delta else range(0)
        # Not len(): it cannot count as far as an int64 can.
        return list(values) if abs(limit - start) <= most * abs(delta) else None
    tensor = _constant(node, _DT_INT32, _DT_INT64)
    if tensor is None or not 0 < _size(tensor) <= most:
        return None
    size = _size(tensor)
    if tensor.tensor_content:
        width = 4 if tensor.dtype == _DT_INT32 else 8
        if len(tensor.tensor_content) != size * width:
            return None
        return list(struct.unpack(f"<{size}{'i' if width == 4 else 'q'}", tensor.tensor_content))
    found = list(tensor.int_val if tensor.dtype == _DT_INT32 else tensor.int64_val)
    return [*found, *(found[-1:] or [0]) * (size - len(found))] if len(found) <= size else None


def _decoded(values: Sequence[bytes]) -> tuple[str, ...] | None:
    """As text; None unless each is a label as a person would read one."""
    try:
        labels = tuple(value.decode("utf-8").strip() for value in values)
    except UnicodeDecodeError:
        return None
    return labels if all(label and len(label.splitlines()) == 1 for label in labels) else None


def _read(path: Path) -> bytes | None:
    """A small file's bytes; None if it is missing, unreadable or too large to name classes."""
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST_FILE else None
    except (OSError, ValueError):  # ValueError: a name that no file can have, with a zero byte in it
        return None
