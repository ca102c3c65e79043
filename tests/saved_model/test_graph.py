"""Reading graphs: references in both scopes, values followed to their producer, and what depends on a request."""

from __future__ import annotations

import pytest
import tensorflow as tf
from conftest import ModelStore
from graph_protos import FLOAT, at, function, graph, main, node, traced
from tensorflow.core.framework.node_def_pb2 import NodeDef

from mpru_tf.errors import CorruptModelError
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.dataflow import Dataflow
from mpru_tf.saved_model.graph import MAIN, Tensor


def call(name: str, callee: str, *inputs: str, op: str = "PartitionedCall") -> NodeDef:
    return node(name, op, *inputs, f=callee)


# ------------------------------------------------------------------------------------------------------ references
@pytest.mark.parametrize(
    ("ref", "tensor", "canonical"),
    [
        ("logits", Tensor(MAIN, "logits", "", 0), "logits"),
        ("logits:0", Tensor(MAIN, "logits", "", 0), "logits"),
        ("a/b/split:3", Tensor(MAIN, "a/b/split", "", 3), "a/b/split:3"),
        ("^group_deps", None, None),
    ],
)
def test_references_of_the_main_graph(ref: str, tensor: Tensor | None, canonical: str | None) -> None:
    scope = graph([node("logits", "NoOp")]).scope(MAIN)
    assert scope.tensor(ref) == tensor
    if tensor is not None:
        assert scope.ref(tensor) == canonical
        assert scope.tensor(scope.ref(tensor)) == tensor


@pytest.mark.parametrize(
    ("ref", "tensor", "canonical"),
    [
        ("x", Tensor("f", "x", "", 0), "x"),
        ("top:values:0", Tensor("f", "top", "values", 0), "top:values:0"),
        ("top:indices", Tensor("f", "top", "indices", 0), "top:indices:0"),
        ("split:output:2", Tensor("f", "split", "output", 2), "split:output:2"),
        ("^top", None, None),
    ],
)
def test_references_of_a_function(ref: str, tensor: Tensor | None, canonical: str | None) -> None:
    scope = graph([], [function("f", ["x"], [node("top", "TopKV2", "x", "x")], y="top:values:0")]).scope("f")
    assert scope.tensor(ref) == tensor
    if tensor is not None:
        assert scope.ref(tensor) == canonical
        assert scope.tensor(scope.ref(tensor)) == tensor


def test_every_reference_of_real_models_survives_parsing_and_writing(models: ModelStore) -> None:
    for name in ("keras3", "keras2", "tf1_classify"):
        (read,) = bundles.read(models.pristine(name)).graphs()
        for scope in (read.scope(MAIN), *(read.scope(function_name) for function_name in read.functions)):
            refs = [ref for body_node in scope.node_defs for ref in body_node.input if not ref.startswith("^")]
            assert refs or not len(scope.node_defs)
            for ref in (*refs, *scope.outputs):
                tensor = scope.tensor(ref)
                assert tensor is not None
                assert scope.ref(tensor) == (ref if scope.name != MAIN else ref.removesuffix(":0"))


def test_control_inputs_are_no_data_inputs() -> None:
    read = graph([node("a", "Const"), node("b", "Const"), node("c", "AddV2", "a", "b:0", "^a")])
    scope = read.scope(MAIN)
    assert scope.inputs(scope.nodes["c"]) == [main("a"), main("b")]
    assert read.readers(main("a")) == [scope.nodes["c"]]


# ----------------------------------------------------------------------------------------------------- producers
@pytest.mark.parametrize("op", ["Identity", "StopGradient", "Snapshot", "CheckNumerics", "EnsureShape", "Cast"])
def test_source_looks_through_what_changes_no_number(op: str) -> None:
    read = graph([node("x", "Placeholder"), node("softmax", "Softmax", "x"), node("out", op, "softmax")])
    assert read.source(at("out")) == at("softmax")


def test_source_takes_the_right_input_of_identity_n() -> None:
    nodes = [node("a", "Softmax", "x"), node("b", "Relu", "x"), node("both", "IdentityN", "a", "b")]
    read = graph([node("x", "Placeholder"), *nodes, node("second", "Identity", "both:1")])
    assert read.source(at("both")) == at("a")
    assert read.source(at("second")) == at("b")


def test_source_descends_through_nested_calls_and_remembers_the_way() -> None:
    inner = function(
        "inner",
        ["a"],
        [node("relu", "Relu", "a"), node("soft", "Softmax", "a")],
        r="relu:activations:0",
        s="soft:softmax:0",
    )
    outer = function(
        "outer",
        ["x"],
        [call("called", "inner", "x"), node("copy", "Identity", "called:output:1")],
        first="called:output:0",
        second="copy:output:0",
    )
    read = graph([node("x", "Placeholder"), call("run", "outer", "x", op="StatefulPartitionedCall")], [inner, outer])
    place = read.source(at("run", 1))
    assert place.tensor == Tensor("inner", "soft", "softmax", 0)
    assert [(step.scope, step.node) for step in place.calls] == [("", "run"), ("outer", "called")]
    assert read.source(at("run", 0)).tensor == Tensor("inner", "relu", "activations", 0)
    # From there back up: the argument of the inner function is what the main graph's placeholder holds.
    assert read.source(read.inputs_of(place)[0]) == at("x")


def test_source_leaves_a_callee_that_only_passes_an_argument_through() -> None:
    through = function("through", ["a", "b"], [node("copy", "Identity", "b")], first="a", second="copy:output:0")
    nodes = [
        node("x", "Placeholder"),
        node("p", "Softmax", "x"),
        node("q", "Relu", "x"),
        call("run", "through", "p", "q"),
    ]
    read = graph(nodes, [through])
    assert read.source(at("run", 0)) == at("p")
    assert read.source(at("run", 1)) == at("q")


def test_source_enters_a_function_that_is_called_by_its_name() -> None:
    read = graph(
        [node("x", "Placeholder"), node("run", "named", "x")],
        [function("named", ["a"], [node("n", "Neg", "a"), node("r", "Relu", "a")], one="r:activations:0", two="n:y:0")],
    )
    assert read.source(at("run", 1)).tensor == Tensor("named", "n", "y", 0)
    # Within a body such a call's outputs are named by the callee's output arguments.
    outer = function("outer", ["x"], [node("run", "named", "x")], r="run:two:0")
    read = graph([node("x", "Placeholder"), call("out", "outer", "x")], [outer, read.functions["named"]])
    assert read.source(at("out")).tensor == Tensor("named", "n", "y", 0)


def test_source_stops_where_branches_differ_and_at_what_clients_send() -> None:
    branch = function("branch", ["a"], [node("soft", "Softmax", "a")], s="soft:softmax:0")
    nodes = [
        node("x", "Placeholder"),
        node("c", "Const"),
        node("either", "If", "c", "x", then_branch="branch", else_branch="branch"),
    ]
    assert graph(nodes, [branch]).source(at("either")) == at("either")
    fed = graph([node("x", "IteratorGetNext"), node("y", "Identity", "x")], inputs={"x": "y:0"}, outputs={"y": "y:0"})
    assert fed.source(at("y")) == at("y")
    assert fed.is_request(main("y"))
    assert not fed.is_request(main("x"))


def test_source_of_a_recursive_function_ends() -> None:
    read = graph(
        [node("x", "Placeholder"), call("run", "again", "x")],
        [function("again", ["a"], [call("self", "again", "a")], r="self:output:0")],
    )
    assert read.source(at("run")).tensor == Tensor("again", "self", "output", 0)
    assert Dataflow(read).origins(main("run"))
    assert Dataflow(read).depends_on_request(at("run"))


def test_broken_graphs_are_reported_as_corrupt() -> None:
    with pytest.raises(CorruptModelError, match="library does not hold"):
        graph([call("run", "gone")]).source(at("run"))
    with pytest.raises(CorruptModelError, match="nothing in the main graph produces"):
        graph([node("a", "Identity", "gone")]).source(at("a"))
    with pytest.raises(CorruptModelError, match="from itself"):
        graph([node("a", "Identity", "b"), node("b", "Identity", "a")]).source(at("a"))
    few = function("few", ["a", "b"], [node("r", "Relu", "b")], r="b")
    with pytest.raises(CorruptModelError, match="output 3 of function few"):
        graph([node("x", "Placeholder"), call("run", "few", "x", "x")], [few]).source(at("run", 3))
    with pytest.raises(CorruptModelError, match="wants more"):
        graph([node("x", "Placeholder"), call("run", "few", "x")], [few]).source(at("run"))
    unsaid = function("unsaid", ["a"], [], r="a")
    del unsaid.ret["r"]
    with pytest.raises(CorruptModelError, match="does not say what it returns"):
        graph([call("run", "unsaid")], [unsaid]).source(at("run"))


def test_dtype_comes_from_the_op_its_attributes_or_its_defaults() -> None:
    read = traced(
        lambda x: {
            "p": tf.cast(tf.nn.softmax(x), tf.float64),
            "ids": tf.argmax(x, -1),
            "either": tf.cond(tf.reduce_sum(x) > 0, lambda: tf.cast(x, tf.float64), lambda: tf.cast(-x, tf.float64)),
            "values": tf.math.top_k(x, 2).values,
        }
    )
    kinds = {key: read.dtype(read.source(at(key)).tensor) for key in ("p", "ids", "either", "values")}
    assert kinds["p"] == FLOAT  # of the Softmax: source looks through the Cast
    assert kinds["ids"] == tf.int64.as_datatype_enum
    assert kinds["values"] == FLOAT
    assert kinds["either"] == tf.float64.as_datatype_enum
    (argument,) = read.scope(next(iter(read.functions))).args
    assert read.dtype(Tensor(next(iter(read.functions)), argument, "", 0)) == FLOAT
    assert graph([node("a", "NobodyKnows")]).dtype(main("a")) is None
