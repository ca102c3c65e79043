"""The walk back to what a client sent: barriers, calls, branches, loops; the quick walk against the thorough one."""

from __future__ import annotations

from random import Random

import pytest
import tensorflow as tf
from graph_protos import FLOAT, RESOURCE, at, function, graph, main, node, op_of, traced
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework.node_def_pb2 import NodeDef

from mpru_tf.saved_model.dataflow import Dataflow, of_requests
from mpru_tf.saved_model.graph import MAIN, Graph, Place, Tensor, op_def


def call(name: str, callee: str, *inputs: str, op: str = "PartitionedCall") -> NodeDef:
    return node(name, op, *inputs, f=callee)


def origins(read: Graph, name: str) -> set[str]:
    found = set(Dataflow(read).origins(main(name)))
    assert bool(found) == Dataflow(read).depends_on_request(at(name))  # the two walks agree
    return found


@pytest.mark.parametrize("op", ["Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"])
def test_what_only_tells_a_shape_ends_the_walk(op: str) -> None:
    nodes = [
        node("x", "Placeholder"),
        node("soft", "Softmax", "x"),
        node("told", op, "soft"),
        node("out", "Neg", "told"),
    ]
    read = graph([*nodes, node("through", "Neg", "soft")])
    assert origins(read, "out") == set()
    assert origins(read, "through") == {"x"}


def test_the_way_is_told_node_by_node_through_calls() -> None:
    inner = function("inner", ["a", "unused"], [node("relu", "Relu", "a")], r="relu:activations:0")
    read = graph(
        [node("x", "Placeholder"), node("z", "Neg", "x"), call("run", "inner", "z", "z"), node("out", "Exp", "run")],
        [inner],
    )
    (way,) = Dataflow(read).origins(main("out")).values()
    assert [str(step) for step in way] == ["out:0", "run:0", "inner/relu:0", "inner/a:0", "z:0", "x:0"]


def test_a_barrier_ends_the_walk_in_functions_too() -> None:
    read = traced(lambda x: {"p": tf.nn.softmax(x), "q": tf.nn.softmax(x) + tf.reduce_sum(x)})
    soft = read.source(at("p")).tensor

    def blocked(name: str) -> bool:
        return not Dataflow(read, lambda tensor: tensor == soft).origins(main(name))

    assert blocked("p")
    assert not blocked("q")


def test_loops_carry_only_what_their_variables_carry() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        ones = tf.ones([3])
        step, still, _, swapped, after = tf.while_loop(
            lambda i, a, b, c, d: i < 3,
            lambda i, a, b, c, d: (i + 1, a * 2.0, b + 1.0, b, c),
            (0, ones, x[0], tf.zeros([10]), tf.zeros([10])),
            shape_invariants=(
                tf.TensorShape([]),
                ones.shape,
                tf.TensorShape([10]),
                tf.TensorShape([10]),
                tf.TensorShape([10]),
            ),
        )
        return {"step": step, "still": still, "swapped": swapped, "after": after}

    read = traced(f)
    assert any(body.op in ("While", "StatelessWhile") for name in read.functions for body in read.scope(name).node_defs)
    assert origins(read, "step") == set()
    assert origins(read, "still") == set()
    assert origins(read, "swapped") == {"x"}  # in the second round
    assert origins(read, "after") == {"x"}  # in the third


def test_the_number_of_rounds_of_a_loop_tells_of_what_its_condition_reads() -> None:
    read = traced(
        lambda x: {
            "rounds": tf.while_loop(lambda i, y: tf.reduce_sum(y) > 0.0, lambda i, y: (i + 1, y - 1.0), (0, x))[0]
        }
    )
    assert origins(read, "rounds") == {"x"}


def test_a_branch_tells_of_its_predicate() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        told = tf.cond(x[0, 0] > 0, lambda: tf.constant(1.0), lambda: tf.constant(2.0))
        fixed = tf.cond(tf.shape(x)[0] > 3, lambda: tf.constant(1.0), lambda: tf.constant(2.0))
        picked = tf.cond(tf.shape(x)[0] > 3, lambda: x, lambda: tf.zeros_like(x))
        case = tf.switch_case(tf.shape(x)[0], [lambda: tf.reduce_sum(x), lambda: tf.constant(0.0)])
        return {"told": told, "fixed": fixed, "picked": picked, "case": case}

    read = traced(f)
    ops = {body.op for name in read.functions for body in read.scope(name).node_defs}
    assert ops & {"If", "StatelessIf"}
    assert ops & {"Case", "StatelessCase"}
    assert origins(read, "told") == {"x"}
    assert origins(read, "fixed") == set()
    assert origins(read, "picked") == {"x"}
    assert origins(read, "case") == {"x"}


def test_variable_handles_carry_no_request() -> None:
    body = [node("read", "ReadVariableOp", "handle"), node("twice", "AddV2", "read:value:0", "read:value:0")]
    weights = function(
        "weights", {"x": FLOAT, "handle": RESOURCE}, [*body, node("y", "Relu", "x")], w="twice:z:0", y="y:activations:0"
    )
    read = graph([node("x", "Placeholder"), node("v", "VarHandleOp"), call("run", "weights", "x", "v")], [weights])
    assert origins(read, "run") == set()
    assert set(Dataflow(read).origins(main("run", 1))) == {"x"}


def test_a_variable_that_the_same_body_writes_carries_what_is_written() -> None:
    def body(written: str) -> list[NodeDef]:
        assign = node("assign", "AssignVariableOp", "handle", written)
        return [node("y", "Relu", "x"), node("c", "Const"), assign, node("read", "ReadVariableOp", "handle", "^assign")]

    for written, expected in (("y:activations:0", {"x"}), ("c:output:0", set())):
        remembers = function("remembers", {"x": FLOAT, "handle": RESOURCE}, body(written), r="read:value:0")
        read = graph(
            [node("x", "Placeholder"), node("v", "VarHandleOp"), call("run", "remembers", "x", "v")], [remembers]
        )
        assert set(Dataflow(read).origins(main("run"))) == expected


def test_what_a_signature_feeds_is_a_request_whatever_makes_it() -> None:
    nodes = [node("next", "IteratorGetNext"), node("features", "Relu", "next"), node("soft", "Softmax", "features")]
    assert origins(graph(nodes), "soft") == set()
    assert origins(graph(nodes, inputs={"x": "next:0"}), "soft") == {"next"}
    assert "features" in origins(graph(nodes, inputs={"x": "features:0"}), "soft")


def test_mutual_recursion_ends_and_takes_everything_to_matter() -> None:
    ping = function(
        "ping",
        ["a", "b"],
        [call("to_pong", "pong", "a", "b"), node("sum", "AddV2", "a", "to_pong:output:0")],
        r="sum:z:0",
    )
    pong = function(
        "pong", ["a", "b"], [call("to_ping", "ping", "b", "a"), call("more", "ping", "a", "a")], r="to_ping:output:0"
    )
    read = graph([node("x", "Placeholder"), node("y", "Placeholder"), call("run", "ping", "x", "y")], [ping, pong])
    assert set(Dataflow(read).origins(main("run"))) == {"x", "y"}
    assert Dataflow(read).depends_on_request(at("run"))


def test_a_function_that_calls_itself_twice_takes_no_exponential_time() -> None:
    twice = function(
        "twice",
        ["a"],
        [call("one", "twice", "a"), call("two", "twice", "a"), node("sum", "AddV2", "one:output:0", "two:output:0")],
        r="sum:z:0",
    )
    read = graph([node("c", "Const"), call("run", "twice", "c")], [twice])
    assert not Dataflow(read).depends_on_request(at("run"))
    assert not Dataflow(read).origins(main("run"))


def test_an_unknown_op_passes_everything_on() -> None:
    read = graph(
        [node("x", "Placeholder"), node("t", "SimpleMLInferenceOp99", "x", f="anything"), node("out", "Neg", "t:2")]
    )
    assert op_def("SimpleMLInferenceOp99") is None
    assert origins(read, "out") == {"x"}


def test_loops_of_tensorflow_1_are_walked() -> None:
    tf.compat.v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as built:
            x = tf.compat.v1.placeholder(tf.float32, [None, 3], name="x")
            i, y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2.0), (0, x))
            tf.identity(i, name="i")
            tf.identity(y, name="y")
    finally:
        tf.compat.v1.enable_control_flow_v2()
    read = graph(built.as_graph_def().node)
    assert {"Enter", "NextIteration", "Exit"} <= {body.op for body in read.scope(MAIN).node_defs}
    assert origins(read, "y") == {"x"}
    assert origins(read, "i") == set()


def test_edits_are_seen() -> None:
    read = graph([node("x", "Placeholder"), node("c", "Const"), node("out", "Neg", "x")], outputs={"y": "out:0"})
    assert of_requests(read).depends_on_request(at("out"))
    scope = read.scope(MAIN)
    scope.nodes["out"].input[0] = "c"
    read.edited(scope)
    assert not of_requests(read).depends_on_request(at("out"))
    assert read.is_shown(main("out"))
    assert not read.is_shown(main("x"))


def test_places_are_told_apart_by_their_calls() -> None:
    twice = function("same", ["a"], [node("r", "Relu", "a")], r="r:activations:0")
    read = graph(
        [node("x", "Placeholder"), node("c", "Const"), call("one", "same", "x"), call("two", "same", "c")], [twice]
    )
    one, two = read.source(at("one")), read.source(at("two"))
    assert one.tensor == two.tensor
    assert one != two
    assert (op_of(read, read.source(read.inputs_of(one)[0])), op_of(read, read.source(read.inputs_of(two)[0]))) == (
        "Placeholder",
        "Const",
    )
    assert read.caller_input(Place(Tensor("same", "a", "", 0))) is None


KINDS = ["Placeholder", "Const", "Neg", "AddV2", "Shape", "IdentityN", "VarHandleOp", "first", "second", "neither"]


@st.composite
def random_graphs(draw: st.DrawFn) -> Graph:
    """Chains and branches of plain ops, shapes, tuples and calls, some tensor in their midst perhaps fed by clients."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=14))
    nodes, functions, refs = [], [], []
    for number, kind in enumerate(kinds):
        name = f"n{number}"
        inputs = [draw(st.sampled_from(refs)) for _ in range(2)] if refs else []
        if kind in ("Placeholder", "Const", "VarHandleOp") or not refs:
            nodes.append(node(name, kind if kind in ("Placeholder", "VarHandleOp") else "Const"))
        elif kind in ("first", "second", "neither"):
            body = [node("a", "Neg", "x"), node("b", "Relu", "a:y:0"), node("c", "Const"), node("d", "Exp", "y")]
            ret = {"first": "b:activations:0", "second": "d:y:0", "neither": "c:output:0"}[kind]
            functions.append(function(f"f{number}", ["x", "y"], body, r=ret))
            nodes.append(call(name, f"f{number}", *inputs))
        else:
            nodes.append(node(name, kind, *inputs[: 2 if kind in ("AddV2", "IdentityN") else 1]))
        refs += [name, f"{name}:1"] if nodes[-1].op == "IdentityN" else [name]
    fed = draw(st.sampled_from([None, *refs]))
    return graph(nodes, functions, inputs={} if fed is None else {"x": fed if ":" in fed else f"{fed}:0"})


@given(random_graphs(), st.randoms(use_true_random=False))
def test_the_quick_walk_and_the_thorough_one_agree(read: Graph, random: Random) -> None:
    tensors = [
        main(one.name, port) for one in read.scope(MAIN).node_defs for port in range(1 + (one.op == "IdentityN"))
    ]
    random.shuffle(tensors)
    remembering, origin_of = Dataflow(read), Dataflow(read)
    for tensor in tensors:
        expected = bool(origin_of.origins(tensor))
        assert Dataflow(read).depends_on_request(Place(tensor)) == expected
        assert Dataflow(read, lambda _: False).depends_on_request(Place(tensor)) == expected
        assert remembering.depends_on_request(Place(tensor)) == expected
