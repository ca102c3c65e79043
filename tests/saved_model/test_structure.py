"""SavedModels whose parts do not fit together, each broken in one way and refused for that."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import fuzzing
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from graph_protos import function, graph, node
from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef, MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from mpru_tf.errors import CorruptModelError
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model import structure
from mpru_tf.saved_model.graph import MAIN

Damage = Callable[[MetaGraphDef], object]


def _default(meta_graph: MetaGraphDef) -> tuple[str, object]:
    signature = meta_graph.signature_def["serving_default"]
    key = sorted(signature.outputs)[0]
    return key, signature.outputs[key]


def _rename_output(name: str) -> Damage:
    def damage(meta_graph: MetaGraphDef) -> None:
        _default(meta_graph)[1].name = name  # type: ignore[attr-defined]

    return damage


def _constant(*shape: int, content: bytes = b"1234") -> Damage:
    def damage(meta_graph: MetaGraphDef) -> None:
        constant = meta_graph.graph_def.node.add(name="lie", op="Const")
        tensor = constant.attr["value"].tensor
        tensor.dtype, tensor.tensor_content = 1, content
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)

    return damage


def _asset(name: str) -> Damage:
    return lambda meta_graph: meta_graph.asset_file_def.add(filename=name)


def _old_asset(name: str) -> Damage:
    packed = AssetFileDef(filename=name)
    return lambda meta_graph: meta_graph.collection_def["saved_model_assets"].any_list.value.add().Pack(packed)


def _bind(number: int) -> Damage:
    def damage(meta_graph: MetaGraphDef) -> None:
        functions = meta_graph.object_graph_def.concrete_functions
        functions[sorted(functions)[0]].bound_inputs.append(number)

    return damage


DAMAGE: dict[str, tuple[Damage, str]] = {
    "an output without a name": (lambda m: _default(m)[1].ClearField("name"), "'serving_default:.*' names no tensor"),  # type: ignore[attr-defined]
    "an output that is nowhere": (_rename_output("nowhere:0"), "'nowhere:0', which nothing produces"),
    "an output with a strange port": (_rename_output("StatefulPartitionedCall:x"), "no tensor's name"),
    "an output with a huge port": (_rename_output(f"StatefulPartitionedCall:{10**20}"), "no tensor's name"),
    "an output that the node does not have": (_rename_output("StatefulPartitionedCall:1"), "has 1 outputs"),
    "an input that is nowhere": (
        lambda m: m.signature_def["serving_default"].inputs["new"].MergeFrom(tf.compat.v1.TensorInfo(name="a:0")),
        "input 'serving_default:new' names 'a:0'",
    ),
    "part of an output without a name": (
        lambda m: m.signature_def["serving_default"].outputs["new"].composite_tensor.components.add(),
        "output 'serving_default:new' names no tensor",
    ),
    "two nodes of one name": (
        lambda m: m.graph_def.node.add().CopyFrom(m.graph_def.node[0]),
        "two nodes of the main graph are called",
    ),
    "two functions of one name": (
        lambda m: m.graph_def.library.function.add().CopyFrom(m.graph_def.library.function[0]),
        "two functions are called",
    ),
    "two arguments of one name": (
        lambda m: m.graph_def.library.function[0].signature.input_arg.extend(
            [m.graph_def.library.function[0].signature.input_arg[0]]
        ),
        "two arguments of function",
    ),
    "a function that does not say what it returns": (
        lambda m: m.graph_def.library.function[0].signature.output_arg.add(name="more"),
        "does not say what it returns as 'more'",
    ),
    "a call of no function": (
        lambda m: m.graph_def.node.add(name="call", op="StatefulPartitionedCall"),
        "node 'call' calls a function, but does not say which",
    ),
    "a constant larger than its bytes": (_constant(2**20), "says that it has 1048576 elements, but holds 4 bytes"),
    "a constant larger than any": (_constant(2**40), "says that it has 1099511627776 elements"),
    "a constant with as many axes as one likes": (_constant(*[1] * 300), "says that it has 1x1x1x1x1x1x1x1"),
    "a constant of a negative length": (_constant(-1), "has an axis of no known length"),
    "a constant without a value": (lambda m: m.graph_def.node.add(name="lie", op="Const"), "'lie' has no value"),
    "an object with a child beyond the last": (
        lambda m: m.object_graph_def.nodes[0].children.add(node_id=10**6, local_name="x"),
        "object 0 has a child that is not among the",
    ),
    "an object with a negative child": (
        lambda m: m.object_graph_def.nodes[0].children.add(node_id=-1, local_name="x"),
        "object 0 has a child that is not among the",
    ),
    "an object that stands for no asset": (
        lambda m: m.object_graph_def.nodes.add().asset.MergeFrom(type(m.object_graph_def.nodes[0].asset)()),
        "stands for asset file number 0 of 0",
    ),
    "a function bound to nothing": (_bind(10**6), "is bound to an object that is not among the"),
    "a function bound to a negative number": (_bind(-1), "is bound to an object that is not among the"),
    "an absolute asset": (_asset("/etc/passwd"), "'/etc/passwd' does not lie in the version directory"),
    "an asset above": (_asset("a/../../../secret"), "does not lie in the version directory"),
    "an asset above, spelled as on Windows": (_asset("..\\secret"), "does not lie in the version directory"),
    "an asset on a drive": (_asset("C:\\secret"), "does not lie in the version directory"),
    "an asset with a NUL": (_asset("a\0b"), "does not lie in the version directory"),
    "an asset without a name": (_asset(""), "is missing"),
    "an asset that is missing": (_asset("vocabulary.txt"), "'assets/vocabulary.txt' is missing"),
    "an absolute asset as TensorFlow 1 lists it": (_old_asset("/etc/passwd"), "does not lie in the version directory"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage_is_named(models: ModelStore, tmp_path: Path, name: str) -> None:
    version = models.base("keras3", tmp_path) / "1"
    damage, message = DAMAGE[name]
    proto = bundles.read(version).proto
    damage(proto.meta_graphs[0])
    (version / "saved_model.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(CorruptModelError, match=message) as caught:
        bundles.read(version)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", saved_models.MAKERS)
def test_honest_models_pass(models: ModelStore, name: str) -> None:
    bundle = bundles.read(models.pristine(name))
    for meta_graph in bundle.graphs():
        for scope in (MAIN, *meta_graph.functions):
            structure.check_body(meta_graph.scope(scope))


def test_other_people_s_models_pass(shared: Path) -> None:
    versions = sorted((shared / "zoo").glob("*/1"))
    assert versions
    for version in versions:
        for meta_graph in bundles.read(version).graphs():
            for scope in (MAIN, *meta_graph.functions):
                structure.check_body(meta_graph.scope(scope))


def test_sizes_that_are_only_repeated_are_no_lie() -> None:
    """A TensorProto writes a repeated value once, and so may be far larger than its bytes."""
    zeros = tf.make_tensor_proto(0.0, shape=[2**20])
    proto = SavedModel()
    constant = proto.meta_graphs.add().graph_def.node.add(name="zeros", op="Const")
    constant.attr["value"].tensor.CopyFrom(zeros)
    structure.check(proto, Path("nowhere"))
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(list(range(1000))))
    structure.check(proto, Path("nowhere"))


def test_only_the_first_problems_are_listed() -> None:
    proto = SavedModel()
    for number in range(10):
        proto.meta_graphs.add().asset_file_def.add(filename=f"/{number}")
    with pytest.raises(CorruptModelError, match="'/0'.*'/1'.*'/2'.*; and more") as caught:
        structure.check(proto, Path("nowhere"))
    assert "'/3'" not in str(caught.value)


def test_names_of_a_stranger_stay_in_their_place() -> None:
    proto = SavedModel()
    proto.meta_graphs.add().asset_file_def.add(filename="/\x1b[2J\n" + "x" * 10_000)
    with pytest.raises(CorruptModelError) as caught:
        structure.check(proto, Path("nowhere"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("ref", ["gone", "gone:0", "^gone"])
def test_a_body_that_reads_what_is_not_there(ref: str) -> None:
    read = graph([node("x", "Placeholder"), node("y", "Identity", "x", ref)], outputs={"y": "y:0"})
    with pytest.raises(CorruptModelError, match="the main graph reads 'gone'"):
        structure.check_body(read.scope(MAIN))
    body = function("f", ["x"], [node("y", "Identity", "x", ref)], y="y:output:0")
    with pytest.raises(CorruptModelError, match="function 'f' reads 'gone'"):
        structure.check_body(graph([], [body]).scope("f"))


def test_a_body_that_returns_what_is_not_there() -> None:
    with pytest.raises(CorruptModelError, match="function 'f' reads 'gone'"):
        structure.check_body(graph([], [function("f", ["x"], [], y="gone:output:0")]).scope("f"))


def test_random_damage_is_refused_or_harmless(models: ModelStore) -> None:
    """What the check alone makes of mutants: an error in words or nothing, never an exception of Python's."""
    data = (models.pristine("keras2") / "saved_model.pb").read_bytes()
    refused = 0
    for seed in range(200):
        rng = random.Random(seed)
        proto = SavedModel.FromString(data)
        for _ in range(3):
            rng.choice(fuzzing.MESSAGE_DAMAGE)(rng, proto.meta_graphs[0])
        try:
            structure.check(proto, models.pristine("keras2"))
        except CorruptModelError:
            refused += 1
    assert 20 < refused < 180
