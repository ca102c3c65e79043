"""Damaged and hostile SavedModels, made from honest ones by seed, and what must hold for each of them.

``mutant(seed, ...)`` is deterministic: whatever fails can be made again from its seed alone. tests/test_fuzz.py tries
some hundreds; ``make fuzz N=20000`` tries as many as one likes, and prints a command for each that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as tests/conftest.py does for the tests
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import mpru_tf
from mpru_tf.errors import MPRUError
from mpru_tf.manifest import MANIFEST
from mpru_tf.versions import STAGING_PREFIX, list_versions

SECONDS = 60
"""How long one mutant may take; the slowest honest ones take a second."""
GROWTH = 1 << 30
"""By how many bytes one mutant may make the process grow; an honest one asks for some megabytes."""

HOSTILE_NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 9, 10, 11, 255, 256, 2**24 + 1, 2**31, 2**40, 2**62, 2**63 - 1)
HOSTILE_TEXTS = (
    *("", "^", ":", "a:", ":0", "x:-1", "x:0:0:0", "^x:1", "x:99999999999999999999", "/", "a/b/", "..", "\0", "\n"),
    *("²:²", "mpru_filter", "mpru_filter/filtered", "\x1b[31m", "x" * 3000),
)
_OPS = (
    *("Softmax", "Sigmoid", "Identity", "IdentityN", "Cast", "Reshape", "Squeeze", "ExpandDims", "ArgMax", "TopKV2"),
    *("ConcatV2", "Pack", "Unpack", "Split", "SplitV", "GatherV2", "StridedSlice", "Slice", "Transpose", "Tile"),
    *("MatMul", "BiasAdd", "AddV2", "RealDiv", "Sum", "Mean", "Select", "Einsum", "Conv2D", "Fill", "Const", "Shape"),
    *("PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case", "While", "StatelessWhile", "OneHot"),
    *("Switch", "Merge", "Enter", "Exit", "NextIteration", "LoopCond", "TensorListStack", "TensorListSetItem"),
    *("TensorArrayReadV3", "TensorArrayWriteV3", "HashTableV2", "LookupTableFindV2", "Placeholder", "VarHandleOp"),
    *("AssignVariableOp", "ReadVariableOp", "SimpleMLInferenceOp", "NoSuchOp", "NoOp", ""),
)


# ------------------------------------------------------------------------------------------------------------- mutants
def mutant(seed: int, originals: Sequence[bytes]) -> bytes:
    """A saved_model.pb made from one of ``originals`` by damage to its bytes, its messages, or both.

    Args:
        seed: decides everything.
        originals: the saved_model.pb files that may be damaged, at least one; spliced from one into another at times.
    """
    rng = random.Random(seed)
    data = rng.choice(originals)
    if rng.random() < 0.8:
        data = _with_damaged_messages(rng, data, originals)
    if rng.random() < 0.3:
        for _ in range(rng.choice((1, 1, 2, 8))):
            data = rng.choice(_BYTE_DAMAGE)(rng, data, originals)
    return data


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[min(end, start + rng.choice((1, 2, 16, len(data)))) :]


def _truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 16, 300))) + data[at:]


def _duplicate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] + data[end:]


def _blow_up(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A length or a number that says far more than there is."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + b"\xff" * rng.choice((1, 4, 9, 10)) + bytes([rng.randrange(128)]) + data[at + 1 :]


def _join(rng: random.Random, data: bytes, originals: Sequence[bytes]) -> bytes:
    other = rng.choice(originals)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


_BYTE_DAMAGE = (_flip, _flip, _cut, _truncate, _insert, _duplicate, _blow_up, _join)


def _with_damaged_messages(rng: random.Random, data: bytes, originals: Sequence[bytes]) -> bytes:
    model = SavedModel.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not model.meta_graphs:
            break
        with_ = rng.choice(MESSAGE_DAMAGE)
        with_(rng, rng.choice(model.meta_graphs))
    if rng.random() < 0.03:
        other = SavedModel.FromString(rng.choice(originals))
        model.meta_graphs.extend(other.meta_graphs)
    return model.SerializeToString(deterministic=True)


def _bodies(meta_graph: MetaGraphDef) -> list[Any]:
    return [meta_graph.graph_def.node, *(function.node_def for function in meta_graph.graph_def.library.function)]


def _body(rng: random.Random, meta_graph: MetaGraphDef) -> Any:
    """The nodes of the main graph or of a function, rather one that is not tiny and does not only save or restore."""
    bodies = [body for body in _bodies(meta_graph) if len(body)]
    if not bodies:
        return meta_graph.graph_def.node
    asked = [
        body for body in bodies if any(node.op in ("Softmax", "MatMul", "PartitionedCall", "While") for node in body)
    ]
    return rng.choice(asked if asked and rng.random() < 0.7 else bodies)


def _node(rng: random.Random, meta_graph: MetaGraphDef) -> NodeDef | None:
    body = _body(rng, meta_graph)
    return rng.choice(body) if len(body) else None


def _function(rng: random.Random, meta_graph: MetaGraphDef) -> FunctionDef | None:
    library = meta_graph.graph_def.library.function
    return rng.choice(library) if library else None


def _reference(rng: random.Random, meta_graph: MetaGraphDef, body: Any) -> str:
    """Something an input may be made to read: what others here read, a node, or nonsense."""
    kind = rng.randrange(6)
    if kind == 0 or not len(body):
        return rng.choice(HOSTILE_TEXTS)
    node = rng.choice(body)
    if kind == 1:
        return f"{node.name}:{rng.choice((0, 1, 7, 2**31))}"
    if kind == 2:
        return f"{node.name}:output:{rng.choice((0, 0, 1, 99))}"
    if kind == 3:
        return str(node.name)
    read = [ref for other in body for ref in other.input]
    return rng.choice(read) if read else str(node.name)


def _drop_node(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    body = _body(rng, meta_graph)
    if len(body):
        del body[rng.randrange(len(body))]


def _double_node(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    body = _body(rng, meta_graph)
    if len(body):
        copy = body.add()
        copy.CopyFrom(rng.choice(body[:-1]))
        if rng.random() < 0.7:
            copy.name += "_again"


def _rename_node(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    body = _body(rng, meta_graph)
    if len(body):
        node = rng.choice(body)
        node.name = rng.choice((*HOSTILE_TEXTS[:5], rng.choice(body).name, "mpru_filter/x"))


def _change_op(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    node, function = _node(rng, meta_graph), _function(rng, meta_graph)
    if node is not None:
        node.op = function.signature.name if function is not None and rng.random() < 0.2 else rng.choice(_OPS)


def _rewire(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    body = _body(rng, meta_graph)
    nodes = [node for node in body if len(node.input)]
    if nodes:
        node = rng.choice(nodes)
        node.input[rng.randrange(len(node.input))] = _reference(rng, meta_graph, body)


def _change_inputs(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    body = _body(rng, meta_graph)
    if not len(body):
        return
    node = rng.choice(body)
    kind = rng.randrange(3)
    if kind == 0:
        del node.input[rng.randrange(len(node.input) + 1) :]
    elif kind == 1:
        node.input.append(_reference(rng, meta_graph, body))
    else:
        inputs = list(node.input)
        rng.shuffle(inputs)
        del node.input[:]
        node.input.extend(inputs)


def _change_attribute(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    nodes = [node for node in _body(rng, meta_graph) if len(node.attr)]
    if not nodes:
        return
    node = rng.choice(nodes)
    key = rng.choice(sorted(node.attr))
    value = node.attr[key]
    kind = value.WhichOneof("value")
    if rng.random() < 0.25:
        del node.attr[key]
    elif kind == "type":
        value.type = rng.choice((0, 1, 2, 3, 7, 9, 10, 14, 19, 20, 21, 101, 103, 9999, -1))
    elif kind == "i":
        value.i = rng.choice(HOSTILE_NUMBERS)
    elif kind == "s":
        value.s = rng.choice((b"", b"\xff\xfe", b"NCHW", b"ab,bc->ac", b"...a,ab->...b", b",,->", rng.randbytes(9)))
    elif kind == "b":
        value.b = not value.b
    elif kind == "func":
        function = _function(rng, meta_graph)
        value.func.name = function.signature.name if function is not None and rng.random() < 0.8 else "nowhere"
    elif kind == "shape":
        _change_shape(rng, value.shape)
    elif kind == "tensor":
        _change_tensor(rng, value.tensor)
    elif kind == "list":
        for field, _ in value.list.ListFields():
            entries = getattr(value.list, field.name)
            if rng.random() < 0.5:
                del entries[rng.randrange(len(entries) + 1) :]
            elif field.name == "shape":
                _change_shape(rng, rng.choice(entries))
            elif field.name == "type":
                entries[rng.randrange(len(entries))] = rng.choice((0, 1, 3, 7, 9, 20, 9999))
            elif field.name == "i":
                entries[rng.randrange(len(entries))] = rng.choice(HOSTILE_NUMBERS)
    else:
        value.list.func.add(name="nowhere")


def _change_shape(rng: random.Random, shape: Any) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        shape.unknown_rank = not shape.unknown_rank
    elif kind == 1:
        del shape.dim[rng.randrange(len(shape.dim) + 1) :]
    elif kind == 2 or not len(shape.dim):
        for _ in range(rng.choice((1, 2, 300))):
            shape.dim.add(size=rng.choice(HOSTILE_NUMBERS))
    else:
        rng.choice(shape.dim).size = rng.choice(HOSTILE_NUMBERS)


def _change_tensor(rng: random.Random, tensor: Any) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        tensor.dtype = rng.choice((0, 1, 3, 7, 9, 20, 9999))
    elif kind == 1:
        tensor.tensor_content = tensor.tensor_content[: rng.randrange(len(tensor.tensor_content) + 1)]
    elif kind == 2:
        tensor.tensor_content = rng.randbytes(rng.choice((0, 1, 4, 8, 16)))
    elif kind == 3:
        del tensor.int_val[:]
        tensor.int_val.extend(rng.choice((-(2**31), -1, 0, 1, 5, 2**31 - 1)) for _ in range(rng.randrange(4)))
    else:
        _change_shape(rng, tensor.tensor_shape)


def _change_constant(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    constants = [node for body in _bodies(meta_graph) for node in body if node.op == "Const" and "value" in node.attr]
    if constants:
        _change_tensor(rng, rng.choice(constants).attr["value"].tensor)


def _change_function(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    library = meta_graph.graph_def.library.function
    function = _function(rng, meta_graph)
    if function is None:
        return
    kind, other = rng.randrange(9), rng.choice(library)
    if kind == 0:
        library.remove(function)
    elif kind == 1:
        library.add().CopyFrom(function)
    elif kind == 2:
        function.signature.name = rng.choice((*HOSTILE_TEXTS, other.signature.name))
    elif kind == 3 and function is not other:
        body = list(function.node_def)
        del function.node_def[:]
        function.node_def.extend(other.node_def)
        del other.node_def[:]
        other.node_def.extend(body)
    elif kind == 4:  # a call of itself, or of a function that calls it
        calls = [node for node in function.node_def if "f" in node.attr]
        target = rng.choice(calls) if calls else rng.choice(function.node_def) if len(function.node_def) else None
        if target is not None:
            target.op = "PartitionedCall" if not calls else target.op
            target.attr["f"].func.name = rng.choice((function.signature.name, other.signature.name))
    elif kind == 5 and len(function.ret):
        key = rng.choice(sorted(function.ret))
        if rng.random() < 0.3:
            del function.ret[key]
        else:
            args = [arg.name for arg in function.signature.input_arg]
            wrong = rng.choice(args) if args and rng.random() < 0.3 else None
            function.ret[key] = wrong or _reference(rng, meta_graph, function.node_def)
    elif kind == 6 and function.signature.input_arg:
        arg = rng.choice(function.signature.input_arg)
        if rng.random() < 0.5:
            function.signature.input_arg.remove(arg)
        else:
            arg.type = rng.choice((0, 1, 20, 9999))
    elif kind == 7 and function.signature.output_arg:
        function.signature.output_arg.remove(rng.choice(function.signature.output_arg))
    elif kind == 8:
        function.signature.input_arg.add(name=rng.choice((*HOSTILE_TEXTS[:8], "more")), type=1)


def _signature(rng: random.Random, meta_graph: MetaGraphDef) -> SignatureDef | None:
    names = sorted(meta_graph.signature_def)
    return meta_graph.signature_def[rng.choice(names)] if names else None


def _change_signature(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    signature = _signature(rng, meta_graph)
    if signature is None:
        return
    tensors = rng.choice((signature.inputs, signature.outputs, signature.outputs))
    kind = rng.randrange(8)
    key = rng.choice(sorted(tensors)) if len(tensors) else "new"
    if kind == 0:
        tensors[key].name = _reference(rng, meta_graph, meta_graph.graph_def.node)
    elif kind == 1:
        tensors[key].dtype = rng.choice((0, 1, 2, 3, 7, 9, 19, 20, 9999, -1))
    elif kind == 2:
        _change_shape(rng, tensors[key].tensor_shape)
    elif kind == 3:
        tensors[rng.choice(HOSTILE_TEXTS)].CopyFrom(tensors[key])
    elif kind == 4 and key in tensors:
        del tensors[key]
    elif kind == 5:
        name = tensors[key].name
        tensors[key].coo_sparse.values_tensor_name = name
        tensors[key].coo_sparse.indices_tensor_name = rng.choice(HOSTILE_TEXTS)
    elif kind == 6:
        part = tensors[key].composite_tensor.components.add()
        for _ in range(rng.choice((0, 1, 50))):
            part = part.composite_tensor.components.add()
        part.name = _reference(rng, meta_graph, meta_graph.graph_def.node)
    else:
        meta_graph.signature_def[rng.choice((*HOSTILE_TEXTS, "__saved_model_init_op"))].CopyFrom(signature)


def _drop_signature(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    names = sorted(meta_graph.signature_def)
    if names:
        del meta_graph.signature_def[rng.choice(names)]


def _change_objects(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    objects = meta_graph.object_graph_def
    if not objects.nodes:
        objects.nodes.add()
    node, kind = rng.choice(objects.nodes), rng.randrange(8)
    number = rng.choice((-1, 0, 1, len(objects.nodes), 2**31 - 1, -(2**31)))
    names = sorted(objects.concrete_functions)
    if kind == 0:
        node.children.add(node_id=number, local_name=rng.choice((*HOSTILE_TEXTS, "keras_api")))
    elif kind == 1 and node.children:
        rng.choice(node.children).node_id = number
    elif kind == 2 and names:
        objects.concrete_functions[rng.choice(names)].bound_inputs.append(number)
    elif kind == 3 and names:
        del objects.concrete_functions[rng.choice(names)]
    elif kind == 4:
        node.function.concrete_functions.append(rng.choice((*names, "nowhere")))
    elif kind == 5:
        node.asset.asset_file_def_index = number
    elif kind == 6:
        node.saveable_objects["x"].save_function = number
    else:
        del objects.nodes[rng.randrange(len(objects.nodes)) :]


def _change_rest(rng: random.Random, meta_graph: MetaGraphDef) -> None:
    kind = rng.randrange(5)
    info = meta_graph.meta_info_def
    if kind == 0:
        meta_graph.asset_file_def.add(filename=rng.choice(("/etc/passwd", "../x", "missing", "", "a\0b", "..\\x")))
    elif kind == 1 and info.stripped_op_list.op:
        del info.stripped_op_list.op[rng.randrange(len(info.stripped_op_list.op)) :]
    elif kind == 2 and info.stripped_op_list.op:
        op = rng.choice(info.stripped_op_list.op)
        del op.output_arg[:]
        op.output_arg.add(name="y", type_attr="nowhere", type_list_attr=rng.choice(("", "T")))
    elif kind == 3:
        library = meta_graph.graph_def.library
        library.gradient.add(function_name="x", gradient_func="nowhere")
        library.registered_gradients.add(registered_op_type="\0", gradient_func=rng.choice(HOSTILE_TEXTS))
    else:
        del info.tags[:]


MESSAGE_DAMAGE: tuple[Callable[[random.Random, MetaGraphDef], None], ...] = (
    *(_drop_node, _double_node, _rename_node, _change_op, _change_op, _change_op, _rewire, _rewire, _rewire),
    *(_change_inputs, _change_attribute, _change_attribute, _change_attribute, _change_constant),
    *(_change_function, _change_function, _change_signature, _change_signature, _drop_signature),
    *(_change_objects, _change_rest),
)


# ------------------------------------------------------------------------------------------------- what must hold
@dataclass(frozen=True)
class Original:
    """An honest version to make mutants from.

    Attributes:
        name: what it is called in reports.
        base: a base path with it as its newest version; left alone.
        data: its saved_model.pb.
    """

    name: str
    base: Path
    data: bytes

    @property
    def version(self) -> Path:
        return self.base / str(list_versions(self.base)[-1])


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant.

    Attributes:
        seed: of the mutant.
        inspected, forgot: 'ok', or the name of the error that it was refused with.
        caught: what the last net had to catch, if it had to: an exception and where it came from.
        wrong: what must not be, in words; None if all is well.
    """

    seed: int
    inspected: str
    forgot: str
    caught: str | None
    wrong: str | None


_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"method": "renormalize"},
    {"multi_label": True},
    {"num_classes": 10},
    {"scores": "logits"},
    {"scores": "probabilities", "num_classes": 10},
    {"drop_outputs": ["serving_default:logits"]},
    {"allow_outputs": ["serving_default:embedding"]},
    {"dry_run": True},
)


def originals(folder: Path, makers: Mapping[str, Callable[[Path], None]]) -> list[Original]:
    """Make the honest versions below ``folder``; the last one carries a filter already."""
    made = []
    for name, maker in makers.items():
        if not (folder / name).exists():
            maker(folder / name / "1")
        made.append(Original(name, folder / name, (folder / name / "1" / "saved_model.pb").read_bytes()))
    if not (folder / "filtered").exists():
        first = next(original for original in made if original.name == "keras3")
        mpru_tf.forget(first.base, [3], into=folder / "filtered", load_check=False)
    path = folder / "filtered" / "1"
    return [*made, Original("filtered", folder / "filtered", (path / "saved_model.pb").read_bytes())]


def try_one(seed: int, made: Sequence[Original], folder: Path) -> Outcome:
    """Make one mutant as version 1 of a base path below ``folder``, inspect it, and forget a class in it."""
    rng = random.Random(-seed - 1)
    original = rng.choice(made)
    donors = [original.data] * 9 + [rng.choice(made).data]
    data = mutant(seed, donors)
    base = folder / "base"
    _lay_out(original, data, base)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inspected = forgot = "not tried"
    caught: list[str] = []
    wrong = None
    try:
        with time_limit(SECONDS):
            inspected = _done(lambda: mpru_tf.inspect(base), caught)
            options = {"classes": rng.choice(([1], [0, 9], [2])), **rng.choice(_OPTIONS), "load_check": False}
            forgot = _done(lambda: mpru_tf.forget(base, **options), caught)
            wrong = _what_is_left_wrong(base, data, forgot == "ok" and "dry_run" not in options)
    except Hang:
        wrong = f"took more than {SECONDS} s: " + " < ".join(_where(sys.exc_info()[2]))
    except Exception as error:  # noqa: BLE001  whatever escapes is what is looked for
        wrong = f"{type(error).__name__}: {error} at " + " < ".join(_where(error.__traceback__))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if wrong is None and growth > GROWTH:
        wrong = f"grew by {growth >> 20} MiB"
    shutil.rmtree(base, ignore_errors=True)
    return Outcome(seed, inspected, forgot, "; ".join(dict.fromkeys(caught)) or None, wrong)


def _lay_out(original: Original, data: bytes, base: Path) -> None:
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(original.version, base / "1", copy_function=os.link)
    path = base / "1" / "saved_model.pb"
    path.unlink()
    path.write_bytes(data)
    manifest = base / "1" / MANIFEST
    if manifest.is_file():  # so that the mutant gets past the comparison of digests
        values = json.loads(manifest.read_text(encoding="utf-8"))
        values["saved_model_sha256"] = sha256(data).hexdigest()
        manifest.unlink()
        manifest.write_text(json.dumps(values), encoding="utf-8")


def _done(act: Callable[[], object], caught: list[str]) -> str:
    try:
        act()
    except MPRUError as error:
        message = str(error)
        assert message.strip(), "an error without words"
        assert "\n" not in message, f"an error of several paragraphs: {message!r}"
        assert "\x1b" not in message, f"an error that speaks to the terminal: {message!r}"
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, (MPRUError, DecodeError, OSError)):
            caught.append(f"{type(cause).__name__} in " + " < ".join(_where(cause.__traceback__)[:2]))
        return type(error).__name__
    return "ok"


def _where(trace: Any) -> list[str]:
    """The innermost lines of ours in a traceback."""
    lines = [frame for frame in traceback.extract_tb(trace) if "mpru_tf" in frame.filename] or traceback.extract_tb(
        trace
    )
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in lines[::-1][:4]]


def _what_is_left_wrong(base: Path, data: bytes, published: bool) -> str | None:
    left = [child.name for child in base.iterdir() if child.name.startswith(STAGING_PREFIX)]
    if left:
        return f"left staging behind: {left}"
    if (base / "1" / "saved_model.pb").read_bytes() != data:
        return "changed the version it was made from"
    versions = list_versions(base)
    if versions != ([1, 2] if published else [1]):
        return None if published and versions == [1] and _forgotten(base) else f"versions {versions}"
    if published:
        verified = mpru_tf.verify(base / "2", load_check=False)
        if not verified.passed:
            return "published what does not verify: " + "; ".join(
                f"{check.name}: {check.detail}" for check in verified.checks if check.passed is False
            )
    return None


def _forgotten(base: Path) -> bool:
    """Whether version 1 forgot everything asked for already, so that nothing had to be published."""
    return bool(mpru_tf.inspect(base).forgotten)


class Hang(BaseException):
    """Not an Exception, so that nothing swallows it."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` in what is done here if it takes longer."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ----------------------------------------------------------------------------------------------------------- make fuzz
def with_control_flow(path: Path) -> None:
    """A While, an If and a call within a call, before and behind the class scores."""
    module = tf.Module()
    module.w = tf.Variable(tf.random.stateless_normal([8, 10], [1, 2]))

    @tf.function
    def scores(x: tf.Tensor) -> tf.Tensor:
        return x @ module.w

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="x")])
    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, v * 0.5), (0, x))[1]
        z = tf.cond(tf.reduce_sum(x) > 0, lambda: scores(x), lambda: scores(-x))
        return {"probabilities": tf.nn.softmax(z), "ids": tf.argmax(z, -1), "count": tf.shape(x)[0]}

    module.answer = answer
    tf.saved_model.save(module, str(path), signatures=answer)


def makers() -> dict[str, Callable[[Path], None]]:
    """The models that mutants are made from."""
    import saved_models

    names = "keras3 keras2 argmax_of_logits two_functions hand_normalised half echo tf1_classify tf1_slim embedding"
    found = {name: saved_models.MAKERS[name] for name in (*names.split(), "multi_label")}
    return {**found, "with_control_flow": with_control_flow}


def again(seed: int) -> str:
    """The command that tries one seed again."""
    return f"make fuzz N=1 START={seed}"


def main() -> int:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parser = argparse.ArgumentParser(description="Try mutants of SavedModels, one per seed.")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed; go on where an earlier run ended")
    parser.add_argument("--keep", type=Path, help="leave the mutants' files in this folder (for a single seed)")
    options = parser.parse_args()
    console = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="mpru-fuzz-"))
    results: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    failures, slowest = 0, (0.0, 0)
    columns = (TextColumn("seed {task.fields[seed]}"), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        made = originals(folder / "originals", makers())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=options.count, seed=options.start)
            for seed in range(options.start, options.start + options.count):
                started = time.monotonic()
                outcome = try_one(seed, made, folder)
                slowest = max(slowest, (time.monotonic() - started, seed))
                results[f"inspect {outcome.inspected}, forget {outcome.forgot}"] += 1
                if outcome.caught:
                    caught[outcome.caught] += 1
                    if caught[outcome.caught] == 1:
                        console.print(
                            f"the net caught, at seed {seed}: {outcome.caught}", markup=False, highlight=False
                        )
                if outcome.wrong is not None:
                    failures += 1
                    said = f"seed {seed}: {outcome.wrong}\n  again: {again(seed)}"
                    console.print(said, markup=False, highlight=False)
                progress.update(task, advance=1, seed=seed)
        if options.keep is not None:
            _keep(options.start, made, options.keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, count in results.most_common():
        console.print(f"{count:8}  {name}", highlight=False)
    for name, count in caught.most_common():
        console.print(f"{count:8}  caught by the net: {name}", markup=False, highlight=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    console.print(
        f"{options.count} mutants, {failures} failures, {sum(caught.values())} caught by the last net; "
        f"slowest {slowest[0]:.1f} s (seed {slowest[1]}), at most {peak} MiB",
        highlight=False,
    )
    return 1 if failures else 0


def _keep(seed: int, made: Sequence[Original], folder: Path) -> None:
    rng = random.Random(-seed - 1)
    original = rng.choice(made)
    donors = [original.data] * 9 + [rng.choice(made).data]
    _lay_out(original, mutant(seed, donors), folder)


if __name__ == "__main__":
    sys.exit(main())
