"""The leak gate lets a proper splice pass and notices each way past the filter, also one that we open on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from graph_protos import RESOURCE, function, graph, main, node, op_of, tensor_of, traced

from mpru_tf import make_filter
from mpru_tf.errors import LeakError
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.graph import Graph, Place, Tensor
from mpru_tf.saved_model.leaks import Leak, LeakGate, refuse, score_family
from mpru_tf.saved_model.score_site import SitePoint
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import Splice, splice

CLASSES = 4
RANDOM = np.random.default_rng(0)
W, V = (RANDOM.standard_normal((10, CLASSES)).astype(np.float32) for _ in range(2))
B = RANDOM.standard_normal(CLASSES).astype(np.float32)
FLOAT = tf.float32.as_datatype_enum
SPEC = make_filter(CLASSES, [1])

Answer = Callable[[tf.Tensor], Mapping[str, tf.Tensor]]


def found(leaks: Sequence[Leak]) -> dict[str, bool]:
    """Leaking outputs, and whether unfiltered class scores reach them."""
    return {leak.output: leak.carries_scores for leak in leaks}


def gated(
    read: Graph, points: Sequence[SitePoint] | None = None, allowed: Sequence[str] = ()
) -> tuple[LeakGate, list[Leak]]:
    """Splice at some points (those that the survey finds) and walk."""
    points = survey([read]).the_site().points if points is None else points
    family = score_family(read, points)
    done = [splice(read, point, make_filter(point.classes, [1]), f"f{i}") for i, point in enumerate(points)]
    gate = LeakGate(read, done, family, allowed)
    return gate, gate.signature_leaks()


def leaks_of(f: Answer, allowed: Sequence[str] = (), **others: Answer) -> dict[str, bool]:
    return found(gated(traced(f, **others), allowed=allowed)[1])


def all_of_it(x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = x @ W + B
    p = tf.nn.softmax(z)
    scores, ids = tf.math.top_k(p, 2)
    names = tf.gather(["a", "b", "c", "d"], ids)
    return {"z": z, "p": p, "id": tf.argmax(z, -1), "scores": scores, "names": names, "log": tf.nn.log_softmax(z)}


# ----------------------------------------------------------------------------------------------------- what is clean
def test_a_splice_at_the_site_leaves_no_way_past_it() -> None:
    assert leaks_of(all_of_it) == {}


@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_every_kind_of_export_is_clean(models: ModelStore, name: str) -> None:
    graphs = bundles.read(models.pristine(name)).graphs()
    points = survey(graphs).the_site().points
    for read in graphs:
        family = score_family(read, points)
        spec = make_filter(saved_models.CLASSES, [1])
        done = [splice(read, point, spec, f"f{i}") for i, point in enumerate(points) if point.meta_graph == read.index]
        assert LeakGate(read, done, family).signature_leaks() == []


def test_echoes_of_the_request_and_shapes_are_harmless() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "p": tf.nn.softmax(x @ W),
            "echo": tf.identity(x),
            "cast": tf.cast(x, tf.float64),
            "rows": tf.shape(x @ V)[0],
            "ids": tf.tile(tf.range(CLASSES)[None], [tf.shape(x)[0], 1]),
            "zeros": tf.zeros_like(x @ V),
            "version": tf.constant(3),
        }

    assert leaks_of(f) == {}


def test_a_slice_of_the_request_is_no_echo() -> None:
    assert leaks_of(lambda x: {"p": tf.nn.softmax(x @ W), "part": x[:, 0]}) == {"serving_default:part": False}


# -------------------------------------------------------------------------------------------------- what is no longer
EARLY: dict[str, Answer] = {
    "embedding": lambda x: {"p": tf.nn.softmax(tf.nn.relu(x) @ W), "h": tf.nn.relu(x)},
    "other_head": lambda x: {"p": tf.nn.softmax(x @ W), "h": tf.sigmoid(x @ V)},
    "by_shape_of_a_loop": lambda x: {
        "p": tf.nn.softmax(x @ W),
        "h": tf.while_loop(lambda i, y: tf.reduce_sum(y) > 0, lambda i, y: (i + 1, y - 1), (0, x))[0],
    },
    "by_a_branch": lambda x: {
        "p": tf.nn.softmax(x @ W),
        "h": tf.cond(tf.reduce_sum(x @ V) > 0, lambda: tf.constant(1), lambda: tf.constant(2)),
    },
}


@pytest.mark.parametrize("case", EARLY)
def test_what_is_computed_before_the_scores_is_refused_unless_allowed(case: str) -> None:
    assert leaks_of(EARLY[case]) == {"serving_default:h": False}
    assert leaks_of(EARLY[case], allowed=["serving_default:h"]) == {}
    assert leaks_of(EARLY[case], allowed=["serving_default:p", "other:h"]) == {"serving_default:h": False}


def twice(x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = x @ W + B
    return {"p": tf.nn.softmax(z), "id": tf.argmax(x @ W, -1)}


def before_bias(x: tf.Tensor) -> dict[str, tf.Tensor]:
    h = x @ W
    return {"p": tf.nn.softmax(h + B), "id": tf.argmax(h, -1)}


def before_temperature(x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = x @ W + B
    return {"p": tf.nn.softmax(z / 2.0), "id": tf.argmax(z, -1)}


def before_the_vote(x: tf.Tensor) -> dict[str, tf.Tensor]:
    one, two = tf.nn.softmax(x @ W), tf.nn.softmax(x @ V)
    return {"p": (one + two) / 2.0, "id": tf.argmax(one, -1)}


def before_the_division(x: tf.Tensor) -> dict[str, tf.Tensor]:
    e = tf.nn.softplus(x @ W)
    return {"p": e / tf.reduce_sum(e, -1, keepdims=True), "id": tf.argmax(e, -1)}


def in_half(x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = tf.cast(x, tf.float16) @ W.astype(np.float16)
    return {"p": tf.nn.softmax(tf.cast(z + B.astype(np.float16), tf.float32)), "id": tf.argmax(z, -1)}


@pytest.mark.parametrize(
    ("f", "site"),
    [
        (before_bias, "p"),
        (before_temperature, "p"),
        (before_the_division, "p"),
        (in_half, "p"),
        (before_the_vote, "vote"),
    ],
)
@pytest.mark.parametrize("allowed", [(), ("serving_default:id",)])
def test_earlier_forms_of_the_scores_can_never_be_allowed(f: Answer, site: str, allowed: tuple[str, ...]) -> None:
    read = traced(f)
    points = [SitePoint(0, tensor_of(read, "RealDiv"), PROBABILITIES, CLASSES, FLOAT)] if site == "vote" else None
    assert found(gated(read, points, allowed)[1]) == {"serving_default:id": True}


def test_scores_are_found_on_any_way_not_only_on_the_one_that_is_told() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h, z = tf.nn.relu(x), x @ W
        mixed = {"hz": tf.concat([h, z], -1), "zh": tf.concat([z, h], -1)}
        return {"p": tf.nn.softmax(z + B), **mixed}

    allowed = ("serving_default:hz", "serving_default:zh")
    assert leaks_of(f, allowed) == dict.fromkeys(allowed, True)


def test_scores_that_are_computed_a_second_time_are_filtered_there_too() -> None:
    read = traced(twice)
    assert len(survey([read]).the_site().points) == 2
    assert leaks_of(twice) == {}


def test_scores_that_are_computed_a_second_time_from_other_weights_are_not_the_same_scores() -> None:
    assert leaks_of(lambda x: {"p": tf.nn.softmax(x @ W), "id": tf.argmax(x @ V, -1)}) == {"serving_default:id": False}


def test_a_second_use_of_the_scores_is_found_in_a_loop() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = x @ W
        counted = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y + z), (0, tf.zeros_like(z)))[1]
        return {"p": tf.nn.softmax(z + B), "counted": counted}

    assert leaks_of(f) == {"serving_default:counted": True}


def test_a_variable_written_and_read_in_one_request_is_no_hiding_place() -> None:
    nodes = [
        node("z", "MatMul", "x", "x", T=FLOAT),
        node("biased", "AddV2", "z:product:0", "z:product:0", T=FLOAT),
        node("p", "Softmax", "biased:z:0", T=FLOAT),
        node("keep", "AssignVariableOp", "last", "z:product:0"),
        node("kept", "ReadVariableOp", "last", "^keep"),
    ]
    remembers = function("remembers", {"x": FLOAT, "last": RESOURCE}, nodes, p="p:softmax:0", last_z="kept:value:0")
    called = node("run", "StatefulPartitionedCall", "x", "v", f="remembers")
    read = graph(
        [node("x", "Placeholder", dtype=FLOAT), node("v", "VarHandleOp"), called],
        [remembers],
        outputs={"p": "run:0", "last": "run:1"},
    )
    point = SitePoint(0, Tensor("remembers", "biased", "z", 0), LOGITS, CLASSES, FLOAT)
    assert found(gated(read, [point])[1]) == {"serving_default:last": True}


# -------------------------------------------------------------------------------------------- sabotage of the splice
def test_no_splice_leaks_everything() -> None:
    assert set(found(gated(traced(all_of_it), [])[1])) == {
        f"serving_default:{key}" for key in all_of_it(tf.zeros([1, 10]))
    }


def test_a_splice_at_the_probabilities_leaks_all_that_reads_logits() -> None:
    read = traced(all_of_it)
    softmax = tensor_of(read, "Softmax")
    _, leaks = gated(read, [SitePoint(0, softmax, PROBABILITIES, CLASSES, FLOAT)])
    assert found(leaks) == dict.fromkeys(("serving_default:id", "serving_default:log", "serving_default:z"), True)


def test_a_splice_after_the_function_leaks_its_other_outputs() -> None:
    read = traced(all_of_it)
    _, leaks = gated(read, [SitePoint(0, main("p"), PROBABILITIES, CLASSES, FLOAT)])
    assert set(found(leaks)) == {f"serving_default:{key}" for key in ("id", "log", "names", "scores", "z")}
    assert all(leak.carries_scores for leak in leaks)


def test_a_splice_in_one_of_two_functions_leaks_the_twin(models: ModelStore) -> None:
    for name, twin in (
        ("two_functions", ("scores", "scores")),
        ("two_functions", ("serving_default", "probabilities")),
    ):
        (read,) = bundles.read(models.pristine(name)).graphs()
        points = survey([read]).the_site().points
        assert len(points) == 2
        output = read.meta_graph.signature_def[twin[0]].outputs[twin[1]].name
        left_out = read.inputs_of(read.source(Place(read.signature_tensor(output))))[0]
        kept = [point for point in points if point.tensor != read.source(left_out).tensor]
        assert len(kept) == 1
        assert set(found(gated(read, kept)[1])) == {":".join(twin)}


def test_a_sorted_classify_signature_spliced_after_the_sort_leaks(models: ModelStore) -> None:
    (read,) = bundles.read(models.pristine("tf1_classify")).graphs()
    scores = read.source(
        Place(read.signature_tensor(read.meta_graph.signature_def["serving_default"].outputs["scores"].name))
    )
    assert op_of(read, scores) == "TopKV2"
    _, leaks = gated(read, [SitePoint(0, scores.tensor, PROBABILITIES, 5, FLOAT)])
    assert set(found(leaks)) == {"serving_default:classes", "predict:logits", "predict:probabilities"}


def test_a_reader_put_back_to_the_raw_scores_leaks() -> None:
    """What a splice that forgot one reader would leave behind."""
    read = traced(all_of_it)
    (point,) = survey([read]).the_site().points
    family = score_family(read, [point])
    done = splice(read, point, SPEC, "f")
    (argmax,) = (one for one in read.scope(done.function).node_defs if one.op == "ArgMax")
    argmax.input[0] = done.raw
    again = Graph(read.meta_graph)
    assert found(LeakGate(again, [done], family).signature_leaks()) == {"serving_default:id": True}


def test_what_the_filter_computes_on_its_way_is_not_filtered() -> None:
    read = traced(all_of_it)
    (point,) = survey([read]).the_site().points
    family = score_family(read, [point])
    done = splice(read, point, SPEC, "f")
    body = read.scope(done.function)
    inside = next(one for one in body.node_defs if one.name.startswith("f/") and one.op == "Exp")
    (argmax,) = (one for one in body.node_defs if one.op == "ArgMax")
    argmax.input[0] = f"{inside.name}:y:0"
    again = Graph(read.meta_graph)
    assert found(LeakGate(again, [done], family).signature_leaks()) == {"serving_default:id": True}


def test_a_filter_of_another_meta_graph_filters_nothing_here() -> None:
    read = traced(all_of_it)
    (point,) = survey([read]).the_site().points
    family = score_family(read, [point])
    done = splice(read, point, SPEC, "f")
    elsewhere = Splice(**{**done.to_dict(), "meta_graph": 1})
    assert LeakGate(read, [done], family).signature_leaks() == []
    assert len(LeakGate(read, [elsewhere], family).signature_leaks()) == 6


def test_a_signature_is_not_excused_by_a_name_like_the_loader_s_own() -> None:
    read = traced(lambda x: {"p": tf.nn.softmax(x @ W + B)}, __saved_model_raw=lambda x: {"z": x @ V})
    assert found(gated(read)[1]) == {"__saved_model_raw:z": False}


@pytest.mark.parametrize("name", ["__saved_model_init_op", "__saved_model_train_op"])
def test_the_loader_s_own_signatures_are_passed_over_unless_a_server_would_answer_them(name: str) -> None:
    read = traced(lambda x: {"p": tf.nn.softmax(x @ W + B)}, other=lambda x: {"loss": tf.reduce_sum(x @ W)})
    read.meta_graph.signature_def[name].CopyFrom(read.meta_graph.signature_def["other"])
    del read.meta_graph.signature_def["other"]
    read = Graph(read.meta_graph)
    points = survey([read]).the_site().points
    assert found(gated(read, points)[1]) == {}
    read.meta_graph.signature_def[name].method_name = "tensorflow/serving/predict"
    assert found(LeakGate(read, [], frozenset()).signature_leaks()).keys() == {f"{name}:loss", "serving_default:p"}


def test_what_a_signature_feeds_into_the_middle_is_a_request() -> None:
    """TensorFlow 1 graphs on an input pipeline have no placeholder at all."""
    nodes = [
        node("next", "IteratorGetNext"),
        node("h", "Relu", "next", T=FLOAT),
        node("z", "MatMul", "h", "w", T=FLOAT),
        node("w", "VariableV2"),
        node("p", "Softmax", "z", T=FLOAT),
    ]
    read = graph(nodes, outputs={"p": "p:0", "h": "h:0", "x": "next:0"}, inputs={"x": "next:0"})
    point = SitePoint(0, main("z"), LOGITS, CLASSES, FLOAT)
    assert found(gated(read, [point])[1]) == {"serving_default:h": False}


def test_all_parts_of_sparse_and_composite_outputs_are_walked() -> None:
    nodes = [
        node("x", "Placeholder", dtype=FLOAT),
        node("h", "Relu", "x", T=FLOAT),
        node("z", "MatMul", "h", "w", T=FLOAT),
        node("w", "VariableV2"),
        node("p", "Softmax", "z", T=FLOAT),
        node("c", "Const"),
    ]
    point = SitePoint(0, main("z"), LOGITS, CLASSES, FLOAT)
    for part, clean in (("p:0", True), ("h:0", False)):
        for field in ("values_tensor_name", "indices_tensor_name", "dense_shape_tensor_name"):
            read = graph(nodes, outputs={"p": "p:0"})
            sparse = read.meta_graph.signature_def["serving_default"].outputs["sparse"].coo_sparse
            for each in ("values_tensor_name", "indices_tensor_name", "dense_shape_tensor_name"):
                setattr(sparse, each, part if each == field else "c:0")
            assert found(gated(read, [point])[1]) == ({} if clean else {"serving_default:sparse": False})
        read = graph(nodes, outputs={"p": "p:0"})
        ragged = read.meta_graph.signature_def["serving_default"].outputs["ragged"].composite_tensor
        ragged.components.add(name="c:0")
        ragged.components.add().composite_tensor.components.add(name=part)
        assert found(gated(read, [point])[1]) == ({} if clean else {"serving_default:ragged": False})


def test_raw_scores_in_a_sparse_output_are_not_missed() -> None:
    """The splice rewires outputs that are one tensor; the parts of others are left to the gate."""
    nodes = [node("x", "Placeholder", dtype=FLOAT), node("z", "MatMul", "x", "w", T=FLOAT), node("w", "VariableV2")]
    read = graph([*nodes, node("p", "Softmax", "z", T=FLOAT)], outputs={"p": "p:0"})
    read.meta_graph.signature_def["serving_default"].outputs["sparse"].coo_sparse.values_tensor_name = "z:0"
    assert found(gated(read, [SitePoint(0, main("z"), LOGITS, CLASSES, FLOAT)])[1]) == {"serving_default:sparse": True}


# ------------------------------------------------------------------------------------------------------- functions
def test_endpoints_of_python_loaders_are_judged_like_signatures(models: ModelStore) -> None:
    (read,) = bundles.read(models.pristine("argmax_of_logits")).graphs()
    gate, leaks = gated(read)
    assert leaks == []
    captured = read.meta_graph.object_graph_def.concrete_functions
    judged = {
        name.rstrip("0123456789"): gate.function_is_clean(name, len(captured[name].bound_inputs)) for name in captured
    }
    assert judged == {"__inference_answer_": True, "__inference_raw_": False, "__inference_signature_wrapper_": True}


def test_a_function_of_captured_values_alone_is_clean() -> None:
    weights = function("weights", {"x": FLOAT, "w": FLOAT}, [node("n", "Neg", "w"), node("m", "Neg", "x")], y="n:y:0")
    mixed = function("mixed", {"x": FLOAT, "w": FLOAT}, [node("m", "Mul", "x", "w")], y="m:z:0")
    through = function("through", {"x": FLOAT}, [node("i", "Identity", "x")], y="i:output:0")
    gate = LeakGate(graph([node("x", "Placeholder")], [weights, mixed, through]), [], frozenset())
    assert gate.function_is_clean("weights", 1)
    assert not gate.function_is_clean("weights", 0)
    assert not gate.function_is_clean("mixed", 1)
    assert gate.function_is_clean("through", 0)  # nothing but an echo


# ---------------------------------------------------------------------------------------------------- score family
def test_the_family_goes_back_to_the_last_layer_and_no_further() -> None:
    read = traced(lambda x: {"p": tf.nn.softmax((tf.nn.relu(x @ W) @ np.ones([4, 4], np.float32) + B) / 2.0)})
    family = score_family(read, survey([read]).the_site().points)
    assert sorted(op_of(read, Place(tensor)) for tensor in family) == ["AddV2", "MatMul", "RealDiv"]
    assert score_family(read, []) == frozenset()


# ------------------------------------------------------------------------------------------------------- the refusal
def test_the_refusal_lists_each_way_node_by_node_and_what_to_do() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h = tf.nn.relu(x)
        z = h @ W
        return {"p": tf.nn.softmax(z + B), "h": h, "z": z}

    leaks = gated(traced(f))[1]
    assert found(leaks) == {"serving_default:h": False, "serving_default:z": True}
    error = refuse(leaks)
    assert isinstance(error, LeakError)
    message = str(error)
    assert "\n" not in message
    for option in (
        "--drop-output serving_default:h",
        "--allow-output serving_default:h",
        "--drop-output serving_default:z",
    ):
        assert option in message
    assert "--allow-output serving_default:z" not in message
    assert len(error.paths) == 2
    for leak, path in zip(leaks, error.paths, strict=True):
        assert path[0] == f"{leak.output.removeprefix('serving_default:')}:0"
        assert path[-1] == "x:0"
        assert " <- ".join(path) in message
    assert any("matmul" in step.lower() for step in error.paths[1])


def test_the_file_says_where_it_leaks_for_every_refused_model(models: ModelStore, tmp_path: Path) -> None:
    for name, expected in (
        ("embedding", {"serving_default:embedding": False}),
        ("tempered_softmax", {"serving_default:logits": True}),
    ):
        (read,) = bundles.read(models.pristine(name)).graphs()
        assert found(gated(read)[1]) == expected
