"""Splicing: everything that read the raw scores reads the filter, the rest stays, and it can be taken out again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from graph_protos import at, function, graph, main, node, traced

from mpru_tf import make_filter
from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import CorruptModelError
from mpru_tf.filters import METHODS, FilterSpec
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.bundle import Bundle
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.graph import MAIN, Graph, Tensor, op_def
from mpru_tf.saved_model.score_site import SitePoint
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import filter_alone, splice, unsplice, unused_prefixes

CLASSES = 4
W = np.random.default_rng(0).standard_normal((10, CLASSES)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((6, 10)).astype(np.float32)
FLOAT = tf.float32.as_datatype_enum


def spec_of(classes: int, forgotten: list[int], method: str = "tempered") -> FilterSpec:
    labels = np.repeat(np.arange(classes) if classes < 100 else forgotten, 5)
    outputs = np.full((len(labels), classes), 0.1 / classes)
    outputs[np.arange(len(labels)), labels] += 0.9
    means = ClassMeans.from_outputs(outputs, labels)
    return make_filter(classes, forgotten, method, class_means=means)


def bundle_of(read: Graph) -> Bundle:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel()
    proto.meta_graphs.add().CopyFrom(read.meta_graph)
    return Bundle(Path(), proto, "", True)


def run(read: Graph) -> dict[str, np.ndarray[Any, Any]]:
    """The answers of the graph's signatures to X."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(read.meta_graph.graph_def, name="")
        answers = {}
        for signature in read.meta_graph.signature_def.values():
            names = {key: info.name for key, info in signature.outputs.items()}
            answers.update(session.run(names, {signature.inputs["x"].name: X}))
        return answers


def without_op_list(bundle: Bundle) -> bytes:
    """What is written to disk, but for the list of ops that a consumer must know (it keeps the filter's)."""
    for meta_graph in bundle.proto.meta_graphs:
        meta_graph.meta_info_def.ClearField("stripped_op_list")
    return bundle.proto.SerializeToString(deterministic=True)


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(np.asarray(z, np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --------------------------------------------------------------------------------------------------- there and back
@pytest.mark.parametrize("name", [*saved_models.FILTERED, "embedding"])
def test_taking_the_filter_out_gives_the_graph_back(models: ModelStore, name: str) -> None:
    bundle = bundles.read(models.pristine(name))
    untouched = without_op_list(bundles.read(models.pristine(name)))
    graphs = bundle.graphs()
    site = survey(graphs).the_site()
    spec = spec_of(saved_models.CLASSES, [1, 3], "gram_schmidt")
    prefixes = unused_prefixes(bundle)
    done = [splice(graphs[point.meta_graph], point, spec, next(prefixes)) for point in site.points]
    assert without_op_list(bundle) != untouched
    for one in reversed(done):
        unsplice(bundle.graphs()[one.meta_graph], one)
    assert without_op_list(bundle) == untouched


# ------------------------------------------------------------------------------------------------------------ answers
def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = x @ W
    return {
        "z": z,
        "p": tf.nn.softmax(z),
        "ids": tf.argmax(z, -1),
        "log": tf.nn.log_softmax(z),
        "again": tf.identity(z),
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_reader_in_a_function_reads_the_filter(method: str) -> None:
    read = traced(answer)
    raw = run(read)
    spec = spec_of(CLASSES, [2], method)
    splice(read, survey([read]).the_site().points[0], spec, "f")
    after = run(read)
    expected = spec.probabilities(softmax(raw["z"]))
    np.testing.assert_allclose(after["p"], expected, atol=1e-6)
    np.testing.assert_allclose(softmax(after["z"]), expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(after["log"]), expected, atol=1e-6)
    np.testing.assert_array_equal(after["again"], after["z"])
    np.testing.assert_array_equal(after["ids"], expected.argmax(-1))
    assert np.all(np.isfinite(after["z"]))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
@pytest.mark.parametrize("kind", [LOGITS, PROBABILITIES])
def test_every_dtype_is_kept(dtype: tf.DType, kind: str) -> None:
    with tf.Graph().as_default() as built:
        x = tf.compat.v1.placeholder(dtype, [None, CLASSES], name="x")
        tf.identity(tf.nn.relu(x, name="scores"), name="out")
    nodes = list(built.as_graph_def().node)
    read = graph(nodes, outputs={"out": "out:0"}, inputs={"x": "x:0"})
    spec = spec_of(CLASSES, [0], "mean")
    done = splice(read, SitePoint(0, main("scores"), kind, CLASSES, dtype.as_datatype_enum), spec, "f")
    with tf.Graph().as_default() as again, tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(read.meta_graph.graph_def, name="")
        assert again.get_tensor_by_name("out:0").dtype == dtype
        p = softmax(X[:, :CLASSES]).astype(dtype.as_numpy_dtype)
        got = np.asarray(session.run("out:0", {"x:0": p}), np.float64)
    expected = spec.probabilities(p) if kind == PROBABILITIES else softmax(spec.logits(p))
    if kind == LOGITS:
        got = softmax(got)
    tolerance = {tf.float16: 2e-3, tf.bfloat16: 2e-2}.get(dtype, 1e-6)
    np.testing.assert_allclose(got, expected, atol=tolerance)
    assert np.all(got[:, 0] == 0)
    assert done.filtered == "f/filtered"


def test_the_constants_are_of_rank_k_and_never_square() -> None:
    classes = 3000
    read = graph(
        [node("x", "Placeholder", dtype=FLOAT), node("scores", "Relu", "x", T=FLOAT)], outputs={"s": "scores:0"}
    )
    splice(read, SitePoint(0, main("scores"), LOGITS, classes, FLOAT), spec_of(classes, [5, 9], "mean"), "f")
    assert read.meta_graph.ByteSize() < 50 * classes


# ---------------------------------------------------------------------------------------------- rewiring, node by node
def point(tensor: Tensor) -> SitePoint:
    return SitePoint(0, tensor, LOGITS, CLASSES, FLOAT)


def test_rewiring_in_a_main_graph_reaches_nodes_and_signatures_and_leaves_control_inputs() -> None:
    nodes = [
        node("x", "Placeholder", dtype=FLOAT),
        node("z", "Split", "x", "x"),
        node("z_1", "Neg", "z:1"),
        node("one", "Neg", "z:1"),
        node("both", "AddV2", "z:1", "z:1"),
        node("other", "Neg", "z:0"),
        node("default", "Neg", "z"),
        node("after", "NoOp", "^z"),
        node("late", "Exp", "x", "^z", "^one"),
    ]
    outputs = {"raw": "z:1", "other": "z:0", "short": "z", "one": "one:0"}
    read = graph(nodes, outputs=outputs)
    done = splice(read, point(main("z", 1)), spec_of(CLASSES, [0]), "f")
    inputs = {one.name: list(one.input) for one in read.scope(MAIN).node_defs}
    assert inputs["one"] == inputs["z_1"] == ["f/filtered"]
    assert inputs["both"] == ["f/filtered", "f/filtered"]
    assert (inputs["other"], inputs["default"]) == (["z:0"], ["z"])
    assert inputs["after"] == ["^z"]
    assert inputs["late"] == ["x", "^z", "^one"]
    names = {key: info.name for key, info in read.meta_graph.signature_def["serving_default"].outputs.items()}
    assert names == {**outputs, "raw": "f/filtered:0"}
    assert (done.raw, done.filtered) == ("z:1", "f/filtered")
    assert read.readers(main("z", 1)) == [n for n in read.scope(MAIN).node_defs if "z:1" in n.input]
    assert all(reader.name.startswith("f/") for reader in read.readers(main("z", 1)))
    unsplice(read, done)
    assert {one.name: list(one.input) for one in read.scope(MAIN).node_defs} == {n.name: list(n.input) for n in nodes}


def test_rewiring_in_a_function_reaches_all_it_returns() -> None:
    body = [
        node("top", "TopKV2", "a", "a"),
        node("ids", "Neg", "top:indices:0"),
        node("p", "Softmax", "top:values:0", "^top"),
    ]
    returns = {"z": "top:values:0", "again": "top:values:0", "i": "top:indices:0", "p": "p:softmax:0"}
    read = graph(
        [node("x", "Placeholder"), node("run", "PartitionedCall", "x", f="inner")],
        [function("inner", ["a"], body, **returns)],
    )
    done = splice(read, point(Tensor("inner", "top", "values", 0)), spec_of(CLASSES, [0]), "f")
    inner = read.functions["inner"]
    assert dict(inner.ret) == {**returns, "z": "f/filtered:output:0", "again": "f/filtered:output:0"}
    inputs = {one.name: list(one.input) for one in inner.node_def}
    assert inputs["p"] == ["f/filtered:output:0", "^top"]
    assert inputs["ids"] == ["top:indices:0"]
    assert [list(one.input) for one in read.scope(MAIN).node_defs] == [[], ["x"]]  # callers are left alone
    for name, refs in inputs.items():
        if name.startswith("f/"):
            assert all(ref.startswith("f/") or ref == "top:values:0" for ref in refs)
            assert all(ref.count(":") == 2 for ref in refs)
    assert read.source(at("run", 0)).tensor.node.startswith("f/")
    assert read.source(at("run", 2)).tensor == Tensor("inner", "top", "indices", 0)
    assert done.to_dict()["function"] == "inner"


def test_a_function_that_returns_its_argument_through_the_filter() -> None:
    read = graph(
        [node("x", "Placeholder"), node("run", "PartitionedCall", "x", f="inner")],
        [function("inner", ["a"], [node("n", "Neg", "a")], same="a", n="n:y:0")],
    )
    done = splice(read, point(Tensor("inner", "a", "", 0)), spec_of(CLASSES, [0]), "f")
    inner = read.functions["inner"]
    assert inner.ret["same"] == "f/filtered:output:0"
    assert list(inner.node_def[0].input) == ["f/filtered:output:0"]
    unsplice(Graph(read.meta_graph), done)
    assert (inner.ret["same"], list(inner.node_def[0].input), len(inner.node_def)) == ("a", ["a"], 1)


# ------------------------------------------------------------------------------------------------- names, attributes
def test_prefixes_are_unused_in_main_graphs_and_functions() -> None:
    taken = function("body", ["a"], [node("mpru_filter_1/x", "Neg", "a"), node("mpru_filter_3", "Neg", "a")], r="a")
    bundle = bundle_of(graph([node("mpru_filter/deep/x", "NoOp"), node("mpru_filterless", "NoOp")], [taken]))
    assert list(itertools.islice(unused_prefixes(bundle), 3)) == ["mpru_filter_2", "mpru_filter_4", "mpru_filter_5"]
    bundle = bundle_of(graph([node("x", "NoOp")]))
    assert list(itertools.islice(unused_prefixes(bundle), 2)) == ["mpru_filter", "mpru_filter_1"]


def test_a_model_with_nodes_of_the_filter_s_name_is_spliced_and_unspliced() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.name_scope("mpru_filter"):
            z = tf.identity(x @ W, name="filtered")
            return {"p": tf.nn.softmax(z), "z": z}

    read = traced(f)
    bundle = bundle_of(read)
    untouched = without_op_list(bundle_of(read))
    (copy,) = bundle.graphs()
    raw = run(copy)
    prefix = next(unused_prefixes(bundle))
    spec = spec_of(CLASSES, [1])
    done = splice(copy, survey([copy]).the_site().points[0], spec, prefix)
    assert prefix == "mpru_filter_1"
    np.testing.assert_allclose(run(copy)["p"], spec.probabilities(softmax(raw["z"])), atol=1e-6)
    unsplice(bundle.graphs()[0], done)
    assert without_op_list(bundle) == untouched


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [LOGITS, PROBABILITIES])
def test_nodes_carry_no_attribute_that_an_older_server_might_not_know(method: str, kind: str) -> None:
    read = graph(
        [node("x", "Placeholder", dtype=FLOAT), node("z", "Relu", "x", T=FLOAT), node("y", "Neg", "z", T=FLOAT)]
    )
    splice(read, SitePoint(0, main("z"), kind, CLASSES, FLOAT), spec_of(CLASSES, [0, 2], method), "f")
    added = [one for one in read.scope(MAIN).node_defs if one.name.startswith("f/")]
    assert added
    for one in added:
        definition = op_def(one.op)
        assert definition is not None
        known = {attr.name: attr for attr in definition.attr}
        assert set(one.attr) <= set(known)
        assert not [
            key
            for key in one.attr
            if known[key].HasField("default_value") and one.attr[key] == known[key].default_value
        ]
        assert not one.device
    listed = [op.name for op in read.meta_graph.meta_info_def.stripped_op_list.op]
    assert sorted(listed) == sorted({one.op for one in added})


def test_ops_that_are_listed_already_are_not_listed_twice() -> None:
    read = traced(answer)
    definition = op_def("Const")
    assert definition is not None
    read.meta_graph.meta_info_def.stripped_op_list.op.add().CopyFrom(definition)
    splice(read, survey([read]).the_site().points[0], spec_of(CLASSES, [0]), "f")
    listed = [op.name for op in read.meta_graph.meta_info_def.stripped_op_list.op]
    assert len(listed) == len(set(listed))


# --------------------------------------------------------------------------------------------------- the filter alone
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["function", "main"])
def test_the_filter_can_be_cut_out_and_run(method: str, where: str) -> None:
    read = traced(answer)
    spec = spec_of(CLASSES, [1, 3], method)
    site = survey([read]).the_site().points[0]
    if where == "main":
        site = SitePoint(0, main("z"), LOGITS, CLASSES, FLOAT)
    done = splice(read, site, spec, "f")
    alone = filter_alone(read, done)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(alone, name="")
        got = session.run("f/filtered:0", {"raw:0": X[:, :CLASSES]})
    np.testing.assert_allclose(softmax(got), spec.probabilities(softmax(X[:, :CLASSES])), atol=1e-6)


def test_a_filter_that_is_gone_or_reads_something_else_is_told() -> None:
    read = traced(answer)
    done = splice(read, survey([read]).the_site().points[0], spec_of(CLASSES, [1]), "f")
    body = read.functions[done.function].node_def
    (last,) = (one for one in body if one.name == "f/filtered")
    last.input[0] = next(arg.name for arg in read.functions[done.function].signature.input_arg)
    with pytest.raises(CorruptModelError, match="more than the class scores"):
        filter_alone(Graph(read.meta_graph), done)
    unsplice(Graph(read.meta_graph), done)
    with pytest.raises(CorruptModelError, match="no filter"):
        filter_alone(Graph(read.meta_graph), done)
