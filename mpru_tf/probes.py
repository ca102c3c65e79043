"""Requests made up from a SignatureDef, to try a version before it is published.

They are random numbers of the declared dtypes and shapes and, where the graph shows what becomes of an input, what it
takes: serialized tf.Examples with the features that are parsed from them, pictures, numbers in digits, short
sentences, and vectors as long as the weights that they are multiplied with. Enough to compare two versions of one model
with each other and with the NumPy reference, not to say anything about accuracy.
"""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import CorruptModelError
from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.graph import FIRST_INPUT_OPS, IDENTITY_OPS, WHILE_OPS, Call, Graph, Place, Tensor

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

    Draw = Callable[[tuple[int, ...], np.random.Generator], npt.NDArray[Any]]

ROWS = 4
# Lengths to try for axes that the signature leaves open, the likeliest first; also sides of pictures.
_LENGTHS = (32, 224, 8, 1, 128)
_SENTENCES = (
    b"The quick brown fox jumps over the lazy dog.",
    b"What a wonderful film this was!",
    b"It rained all day and nobody came.",
    b"Please send the invoice by Friday.",
)
_LARGEST = 1 << 26  # numbers in one input; no honest model wants more for four examples

_DT_FLOAT, _DT_STRING, _DT_VARIANT = 1, 7, 21  # types.proto; importing it would import TensorFlow
_EXAMPLES, _PICTURE, _NUMBER, _TEXT = "examples", "picture", "number", "text"
_PARSING_OPS = frozenset({"ParseExample", "ParseExampleV2", "ParseSingleExample"})
_DECODING_OPS = {
    **dict.fromkeys(("DecodeJpeg", "DecodePng", "DecodeImage", "DecodeAndCropJpeg"), _PICTURE),
    "StringToNumber": _NUMBER,
}
# Arithmetic that leaves a vector as long as it is: scaling of what a client sends.
_SCALING_OPS = frozenset({"Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Maximum", "Minimum", "ClipByValue"})
# Products of a vector and weights, and the attribute that says that the weights lie the other way.
_PRODUCT_OPS = {"MatMul": "transpose_b", **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), "adj_y")}
_LARGEST_WALK = 20_000
_DEEPEST = 3  # examples in examples


@dataclass(frozen=True)
class _Use:
    """What a graph does with the strings of an input or of a feature."""

    kind: str
    features: tuple[_Feature, ...] = ()
    is_base64: bool = False

    @property
    def has_pictures(self) -> bool:
        return self.kind == _PICTURE or any(feature.use.has_pictures for feature in self.features)


@dataclass(frozen=True)
class _Feature:
    """One feature of the tf.Examples that a graph parses: ``values`` of them, of a DataType."""

    key: str
    dtype: int
    values: int
    use: _Use


def requests(
    signature: SignatureDef, graph: Graph | None = None, seed: int = 0
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield requests for a signature, the likeliest to be answered first.

    Floats are standard normal at first, then 0 or 1 and then 0 (for models that look ids up); integers are 0 or 1,
    then 0; strings are sentences at first, then digits and then empty. Axes that the signature leaves open have several
    lengths in turn.

    Args:
        signature: its inputs give dtypes and shapes; an open first axis is the batch, of :data:`ROWS` examples.
        graph: the MetaGraph that the signature is of, for what becomes of the inputs; None if that is not at hand.
        seed: of the random numbers.

    Yields:
        One array per input key.
    """
    inputs = [_Input(key, info, graph) for key, info in sorted(signature.inputs.items())]
    rounds = max((len(one.lengths) for one in inputs), default=1)
    for draw in (_normal, _zero_or_one, _zeros):
        for number in range(rounds):
            random = np.random.default_rng(seed)
            lengths = [one.lengths[min(number, len(one.lengths) - 1)] for one in inputs]
            if all(one.size(length) <= _LARGEST for one, length in zip(inputs, lengths, strict=True)):
                yield {one.key: one.values(length, draw, random) for one, length in zip(inputs, lengths, strict=True)}


def _normal(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    return random.standard_normal(shape)


def _zero_or_one(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    return random.integers(0, 2, shape)


def _zeros(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    return np.zeros(shape)


class _Input:
    """One input of a signature, and what is known of it."""

    def __init__(self, key: str, info: TensorInfo, graph: Graph | None) -> None:
        import tensorflow as tf

        dtype = tf.dtypes.as_dtype(info.dtype)
        self.key = key
        self.dtype = np.dtype(np.object_ if dtype == tf.string else dtype.as_numpy_dtype)
        self.use = _Use(_TEXT)
        found: tuple[int, ...] = ()
        if graph is not None and info.name:
            try:
                start = Place(graph.signature_tensor(info.name))
                if dtype == tf.string:
                    self.use = _use(graph, [start])
                elif dtype.is_floating:
                    found = _lengths(graph, start)
            except CorruptModelError:  # TensorFlow loads graphs that hold broken functions which nothing calls
                pass
        sizes = [dim.size for dim in info.tensor_shape.dim]
        if info.tensor_shape.unknown_rank:
            sizes = [-1, -1] if dtype.is_floating else [-1]
        self.sizes = sizes
        axes = sum(size < 0 for size in sizes[1:])
        self.lengths: tuple[int, ...] = _LENGTHS if axes or self.use.has_pictures else _LENGTHS[:1]
        if axes == 1:
            self.lengths = tuple(dict.fromkeys((*found, *_LENGTHS)))

    def shape(self, length: int) -> tuple[int, ...]:
        return tuple(size if size >= 0 else (ROWS if axis == 0 else length) for axis, size in enumerate(self.sizes))

    def size(self, length: int) -> int:
        return math.prod(self.shape(length))

    def values(self, length: int, draw: Draw, random: np.random.Generator) -> npt.NDArray[Any]:
        shape = self.shape(length)
        if self.dtype == np.object_:
            strings = np.empty(shape, self.dtype)
            for number, index in enumerate(np.ndindex(shape)):
                strings[index] = _string(self.use, number, length, draw, random)
            return strings
        if not np.issubdtype(self.dtype, np.floating):
            draw = _zero_or_one if draw is _normal else draw
        return draw(shape, random).astype(self.dtype)


# ------------------------------------------------------------------------------------------------------------ strings
def _string(use: _Use, number: int, length: int, draw: Draw, random: np.random.Generator) -> bytes:
    """The string number ``number`` of an input or a feature."""
    if use.is_base64:
        plain = _string(replace(use, is_base64=False), number, length, draw, random)
        return base64.urlsafe_b64encode(plain).rstrip(b"=")
    if use.kind == _EXAMPLES:
        return _example(use.features, number, length, draw, random)
    if use.kind == _PICTURE:
        import tensorflow as tf

        side = min(length, max(_LENGTHS))
        return bytes(tf.io.encode_jpeg(random.integers(0, 256, (side, side, 3)).astype(np.uint8)).numpy())
    if use.kind == _TEXT and draw is _normal:
        return _SENTENCES[number % len(_SENTENCES)]
    if use.kind == _TEXT and draw is _zeros:
        return b""
    return b"%d" % (number % 2)


def _example(
    features: tuple[_Feature, ...], number: int, length: int, draw: Draw, random: np.random.Generator
) -> bytes:
    from tensorflow.core.example.example_pb2 import Example

    example = Example()
    for feature in features:
        values = example.features.feature[feature.key]
        if feature.dtype == _DT_STRING:
            strings = [_string(feature.use, number + n, length, draw, random) for n in range(feature.values)]
            values.bytes_list.value.extend(strings)
        elif feature.dtype == _DT_FLOAT:
            values.float_list.value.extend(draw((feature.values,), random).tolist())
        else:
            integers = _zero_or_one if draw is _normal else draw
            values.int64_list.value.extend(integers((feature.values,), random).astype(np.int64).tolist())
    return bytes(example.SerializeToString())


# ------------------------------------------------------------------------------------------- what becomes of an input
@dataclass(frozen=True)
class _Reader:
    """A node that reads a value, as its input number ``position``; reached through calls."""

    scope: str
    node: NodeDef
    position: int
    calls: tuple[Call, ...]

    def input(self, graph: Graph, position: int) -> Place | None:
        inputs = graph.scope(self.scope).inputs(self.node)
        return Place(inputs[position], self.calls) if position < len(inputs) else None


class _Onwards:
    """The way of a value through a graph, forwards: into functions and loops and out of them again."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._read: dict[str, dict[str, dict[Tensor, list[tuple[NodeDef, int]]]]] = {}

    def readers(self, start: list[Place], passes: Callable[[_Reader], bool]) -> Iterator[_Reader]:
        """Every node that reads a value, or what nodes make of it that ``passes`` lets through; nearest first."""
        queue, seen = deque(start), set(start)
        while queue and len(seen) < _LARGEST_WALK:
            place = queue.popleft()
            following: list[Place] = list(self._returned(place))
            for node, position in self._in(place.tensor.scope).get(place.tensor.node, {}).get(place.tensor, ()):
                reader = _Reader(place.tensor.scope, node, position, place.calls)
                called = self._called(reader)
                if called is not None:
                    following.extend(called)
                    continue
                yield reader
                if passes(reader):
                    following.extend(self.outputs(reader))
            queue.extend(place for place in following if place not in seen)
            seen.update(following)

    def outputs(self, reader: _Reader, of: Callable[[Tensor], bool] = lambda tensor: True) -> Iterator[Place]:
        """The outputs of a node that anything reads."""
        for tensor in self._in(reader.scope).get(reader.node.name, ()):
            if of(tensor):
                yield Place(tensor, reader.calls)

    def _in(self, name: str) -> dict[str, dict[Tensor, list[tuple[NodeDef, int]]]]:
        """Of one scope: by node, each of its outputs that is read or returned, with the nodes that read it."""
        if name not in self._read:
            scope = self.graph.scope(name)
            read = self._read[name] = {}
            for node in scope.node_defs:
                for position, tensor in enumerate(scope.inputs(node)):
                    read.setdefault(tensor.node, {}).setdefault(tensor, []).append((node, position))
            for ref in scope.outputs:
                returned = scope.tensor(ref)
                if returned is not None:
                    read.setdefault(returned.node, {}).setdefault(returned, [])
        return self._read[name]

    def _returned(self, place: Place) -> Iterator[Place]:
        """Where a value comes out of the function in which it lies."""
        scope = self.graph.scope(place.tensor.scope)
        if not place.calls:
            return
        *before, call = place.calls
        node = self.graph.scope(call.scope).nodes[call.node]
        caller = _Reader(call.scope, node, 0, tuple(before))
        for index, ref in enumerate(scope.outputs):
            if scope.tensor(ref) == place.tensor:
                yield from self._output(caller, index)

    def _output(self, reader: _Reader, index: int) -> Iterator[Place]:
        yield from self.outputs(reader, lambda tensor: self.graph.output_index(tensor, reader.node) == index)

    def _called(self, reader: _Reader) -> list[Place] | None:
        """What a value becomes in the functions that a node calls; None for a node that calls none."""
        graph, node = self.graph, reader.node
        if node.op == "IdentityN":
            return list(self._output(reader, reader.position))
        callees = graph.callees(graph.scope(reader.scope), node)
        found: list[Place] = []
        if node.op in WHILE_OPS:
            callees = [(node.attr[attribute].func.name, 0) for attribute in ("cond", "body")]
            found.extend(self._output(reader, reader.position))
        if not callees:
            return None
        for function, offset in callees:
            names = list(graph.scope(function).args)
            call = Call(reader.scope, node.name, offset)
            if 0 <= reader.position - offset < len(names) and call not in reader.calls:
                tensors = self._in(function).get(names[reader.position - offset], ())
                found.extend(Place(tensor, (*reader.calls, call)) for tensor in tensors)
        return found


def _use(graph: Graph, start: list[Place], depth: int = 0) -> _Use:
    """What strings are for; text, if nothing else is seen."""
    onwards = _Onwards(graph)

    def carries_strings(reader: _Reader) -> bool:
        op = reader.node.op
        if op in _PARSING_OPS or op in _DECODING_OPS or op == "DecodeBase64":
            return False
        if op in FIRST_INPUT_OPS or op in ("Merge", "RefMerge") or op.startswith("TensorArray"):
            return True
        return graph.dtype(Tensor(reader.scope, reader.node.name, "", 0)) in (_DT_STRING, _DT_VARIANT)

    for reader in onwards.readers(start, carries_strings):
        op = reader.node.op
        if reader.position != 0 or depth > _DEEPEST:
            continue
        if op in _PARSING_OPS:
            return _Use(_EXAMPLES, tuple(_features(graph, onwards, reader, depth)))
        if op in _DECODING_OPS:
            return _Use(_DECODING_OPS[op])
        if op == "DecodeBase64":
            return replace(_use(graph, list(onwards.outputs(reader)), depth + 1), is_base64=True)
    return _Use(_TEXT)


def _features(graph: Graph, onwards: _Onwards, reader: _Reader, depth: int) -> Iterator[_Feature]:
    """What a node parses from a tf.Example."""
    node, attr = reader.node, reader.node.attr
    if node.op == "ParseSingleExample":
        sparse, dense, ragged = list(attr["sparse_keys"].list.s), list(attr["dense_keys"].list.s), []
    elif node.op == "ParseExampleV2":
        sparse, dense, ragged = (_strings(graph, reader.input(graph, position)) for position in (2, 3, 4))
    else:
        of_sparse, of_dense = attr["Nsparse"].i, attr["Ndense"].i
        places = [reader.input(graph, 2 + position) for position in range(of_sparse + of_dense)]
        keys = [key for place in places for key in _strings(graph, place)[:1]]
        sparse, dense, ragged = keys[:of_sparse], keys[of_sparse:], []
    # Outputs, in this order: indices, values and shapes of the sparse features, then the dense ones.
    groups = (
        (sparse, attr["sparse_types"].list.type, (), "sparse_values", len(sparse)),
        (dense, attr["Tdense"].list.type, attr["dense_shapes"].list.shape, "dense_values", 3 * len(sparse)),
        (ragged, attr["ragged_value_types"].list.type, (), "ragged_values", 3 * len(sparse) + len(dense)),
    )
    for names, dtypes, lengths, arg, offset in groups:
        for index, (name, dtype) in enumerate(zip(names, dtypes, strict=False)):
            sizes = [max(1, dim.size) for dim in lengths[index].dim] if index < len(lengths) else []
            named = {(arg, index), ("", offset + index)}
            outputs = [place for place in onwards.outputs(reader) if (place.tensor.arg, place.tensor.port) in named]
            use = _use(graph, outputs, depth + 1) if dtype == _DT_STRING else _Use(_TEXT)
            yield _Feature(name.decode("utf-8", "replace"), dtype, min(math.prod(sizes), _LARGEST), use)


def _strings(graph: Graph, place: Place | None) -> list[bytes]:
    """The strings of a constant; none, if it is no constant."""
    import tensorflow as tf

    node = graph.node(graph.source(place).tensor) if place is not None else None
    if node is None or node.op != "Const" or node.attr["value"].tensor.dtype != _DT_STRING:
        return []
    return [bytes(value) for value in tf.make_ndarray(node.attr["value"].tensor).ravel()]


def _lengths(graph: Graph, start: Place) -> tuple[int, ...]:
    """How long the vectors in an input must be, judged by what they are multiplied with or reshaped to."""

    def keeps_length(reader: _Reader) -> bool:
        return reader.node.op in IDENTITY_OPS or reader.node.op in _SCALING_OPS

    found: dict[int, None] = {}
    for reader in _Onwards(graph).readers([start], keeps_length):
        if reader.position != 0:
            continue
        other = reader.input(graph, 1)
        if reader.node.op in _PRODUCT_OPS and other is not None:
            weights = shapes.static_shape(graph, other)
            if weights is not None and len(weights) == 2:
                length = weights[1 if reader.node.attr[_PRODUCT_OPS[reader.node.op]].b else 0]
                found.update({length: None} if length else {})
        if reader.node.op == "Reshape" and other is not None:
            node = graph.node(graph.source(other).tensor)
            sizes = shapes.integers(node.attr["value"].tensor) if node is not None and node.op == "Const" else None
            if sizes is not None and len(sizes) > 1:
                found.update({math.prod(size for size in sizes[1:] if size > 0): None})
    return tuple(length for length in found if 0 < length <= _LARGEST // ROWS)
