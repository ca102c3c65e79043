"""Made-up requests: of the declared dtypes and shapes, the same every time, the likeliest first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import graph_protos
import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

import mpru_tf
from mpru_tf.probes import ROWS, requests
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.session import LoadedModel


def signature(**inputs: tuple[tf.DType, list[int | None] | None]) -> SignatureDef:
    result = SignatureDef()
    for key, (dtype, shape) in inputs.items():
        result.inputs[key].dtype = dtype.as_datatype_enum
        result.inputs[key].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return result


def test_shapes_are_those_declared_with_open_axes_tried_out() -> None:
    made = list(requests(signature(x=(tf.float32, [None, 8]), y=(tf.int64, [3]), z=(tf.bool, []))))
    assert {key: value.shape for key, value in made[0].items()} == {"x": (ROWS, 8), "y": (3,), "z": ()}
    assert len(made) == 3  # three ways to draw numbers, one length
    open_axes = list(requests(signature(image=(tf.float32, [None, None, None, 3]))))
    sides = [value["image"].shape for value in open_axes]
    assert len(set(sides)) > 3
    assert all(shape[0] == ROWS and shape[1] == shape[2] and shape[3] == 3 for shape in sides)
    assert {value["x"].shape for value in requests(signature(x=(tf.float32, None)))} >= {(ROWS, 8), (ROWS, 32)}
    assert next(requests(signature(x=(tf.string, None))))["x"].shape == (ROWS,)


@pytest.mark.parametrize(
    "dtype",
    [
        tf.float16,
        tf.bfloat16,
        tf.float32,
        tf.float64,
        tf.int8,
        tf.uint8,
        tf.int32,
        tf.int64,
        tf.uint64,
        tf.bool,
        tf.complex64,
    ],
)
def test_dtypes_are_those_declared(dtype: tf.DType) -> None:
    for made in requests(signature(x=(dtype, [None, 4]))):
        assert made["x"].dtype == dtype.as_numpy_dtype
        assert np.all(np.isfinite(made["x"].astype(np.complex128)))


def test_strings_of_which_nothing_is_known_are_sentences_then_digits_then_empty() -> None:
    first, second, third = requests(signature(s=(tf.string, [None]), x=(tf.float32, [None])))
    assert len(set(first["s"])) == ROWS
    assert all(b" " in sentence for sentence in first["s"])
    assert second["s"].tolist() == [b"0", b"1"] * (ROWS // 2)
    assert third["s"].tolist() == [b""] * ROWS
    assert first["x"].dtype == np.float32


def test_floats_are_normal_at_first_and_then_ids() -> None:
    first, *rest = (made["x"] for made in requests(signature(x=(tf.float32, [None, 1000]))))
    assert abs(first.mean()) < 0.1
    assert 0.9 < first.std() < 1.1
    assert set(np.unique(rest[0])) == {0.0, 1.0}
    assert not rest[-1].any()
    for made in requests(signature(ids=(tf.int32, [None, 1000]))):
        assert set(np.unique(made["ids"])) <= {0, 1}  # in any vocabulary


def test_requests_are_the_same_every_time_and_differ_by_seed() -> None:
    asked = signature(b=(tf.float32, [None, 5]), a=(tf.float32, [None, 5]))
    one, same, other = (next(requests(asked, seed=seed)) for seed in (0, 0, 1))
    for key in ("a", "b"):
        np.testing.assert_array_equal(one[key], same[key])
        assert np.any(one[key] != other[key])
    assert np.any(one["a"] != one["b"])


@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_models_answer_the_first_request(models: ModelStore, name: str) -> None:
    path = models.pristine(name)
    signatures = bundles.read(path).meta_graphs[0].signature_def
    with LoadedModel(path) as model:
        for key in mpru_tf.inspect(path).signatures:
            assert model.run(key, next(requests(signatures[key])))


def test_what_no_machine_could_hold_is_not_made() -> None:
    assert list(requests(signature(x=(tf.float32, [None, 2**40])))) == []
    assert {made["x"].shape[1] for made in requests(signature(x=(tf.float32, [None, None, 2**20])))} == {1, 8}


# ------------------------------------------------------------------------------------- what the graph tells of inputs
def saved(path: Path, function: Callable[..., Any], **inputs: tf.TensorSpec) -> Path:
    """A SavedModel that answers one function of named inputs."""
    module = tf.Module()
    module.answer = tf.function(
        function, input_signature=[tf.TensorSpec(i.shape, i.dtype, k) for k, i in inputs.items()]
    )
    tf.saved_model.save(module, str(path), signatures=module.answer)
    return path


def first_answered(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The first request that a model answers, its answer, and how many were made up for it."""
    graph = bundles.read(path).graphs()[0]
    with LoadedModel(path) as model:
        for number, made in enumerate(requests(model.signatures["serving_default"], graph), 1):
            try:
                return made, model.run("serving_default", made), number
            except tf.errors.OpError:
                pass
    raise AssertionError("no request was answered")


STRINGS = tf.TensorSpec([None], tf.string)
FEATURES = {
    "a": tf.io.FixedLenFeature([3], tf.float32),
    "b": tf.io.FixedLenFeature([], tf.int64),
    "c": tf.io.FixedLenFeature([2], tf.string),
    "d": tf.io.VarLenFeature(tf.int64),
    "e": tf.io.RaggedFeature(tf.float32),
}


def parse_all(s: tf.Tensor) -> dict[str, tf.Tensor]:
    parsed = tf.io.parse_example(s, FEATURES)
    dense, ragged = tf.sparse.to_dense(parsed["d"]), parsed["e"].to_tensor()
    return {"a": parsed["a"], "b": parsed["b"], "c": parsed["c"], "d": dense, "e": ragged}


def parse_each(s: tf.Tensor) -> dict[str, tf.Tensor]:
    """One by one, in a loop."""
    spec = {name: FEATURES[name] for name in "abc"}
    types = {"a": tf.float32, "b": tf.int64, "c": tf.string}
    return tf.map_fn(lambda one: tf.io.parse_single_example(one, spec), s, fn_output_signature=types)


@pytest.mark.parametrize("parse", [parse_all, parse_each])
def test_examples_hold_what_is_parsed_from_them(tmp_path: Path, parse: Callable[..., Any]) -> None:
    _, answer, tried = first_answered(saved(tmp_path / "1", parse, s=STRINGS))
    assert tried == 1
    assert answer["a"].shape == (ROWS, 3)
    assert len(np.unique(answer["a"])) == ROWS * 3
    assert set(answer["b"].tolist()) <= {0, 1}
    assert answer["c"].shape == (ROWS, 2)
    if parse is parse_all:
        assert answer["d"].shape == answer["e"].shape == (ROWS, 1)


def test_examples_of_tensorflow_1(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        s = v1.placeholder(tf.string, [None], name="s")
        node = tf.raw_ops.ParseExample(
            serialized=s,
            names=[],
            sparse_keys=["d"],
            dense_keys=["a", "word"],
            dense_defaults=[tf.constant([], tf.float32), tf.constant([], tf.string)],
            sparse_types=[tf.int64],
            dense_shapes=[[3], []],
        )
        a = tf.identity(node.dense_values[0], name="a")
        number = v1.string_to_number(node.dense_values[1])
        v1.saved_model.simple_save(session, str(tmp_path / "1"), {"s": s}, {"a": a, "number": number})
    _, answer, tried = first_answered(tmp_path / "1")
    assert tried == 1
    assert answer["a"].shape == (ROWS, 3)
    assert set(answer["number"].tolist()) == {0.0, 1.0}


def decode_in_a_loop(s: tf.Tensor) -> tf.Tensor:
    def one(picture: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(tf.io.decode_jpeg(picture, channels=3), [8, 8])

    return tf.map_fn(one, s, fn_output_signature=tf.float32)


def decode_from_examples(s: tf.Tensor) -> tf.Tensor:
    spec = {"image/encoded": tf.io.FixedLenFeature([], tf.string), "text": tf.io.FixedLenFeature([], tf.string)}
    return decode_in_a_loop(tf.io.parse_example(s, spec)["image/encoded"])


def decode_from_base64(s: tf.Tensor) -> tf.Tensor:
    return decode_in_a_loop(tf.io.decode_base64(s))


@pytest.mark.parametrize("decode", [decode_in_a_loop, decode_from_examples, decode_from_base64])
def test_pictures_are_pictures(tmp_path: Path, decode: Callable[..., tf.Tensor]) -> None:
    _, answer, tried = first_answered(saved(tmp_path / "1", lambda s: {"pixels": decode(s)}, s=STRINGS))
    assert tried == 1
    assert answer["pixels"].shape == (ROWS, 8, 8, 3)
    assert answer["pixels"].std() > 10


def test_a_picture_of_the_right_size_is_found(tmp_path: Path) -> None:
    def decode(s: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.map_fn(lambda one: tf.io.decode_image(one, 3), s, fn_output_signature=tf.uint8)
        return {"pixels": tf.ensure_shape(pixels, [None, 224, 224, 3])}

    assert first_answered(saved(tmp_path / "1", decode, s=STRINGS))[1]["pixels"].shape == (ROWS, 224, 224, 3)


def test_pictures_in_a_loop_of_tensorflow_1(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            s = v1.placeholder(tf.string, [None], name="s")
            pixels = tf.identity(decode_in_a_loop(s), name="pixels")
            assert {"TensorArrayReadV3", "Enter"} <= {node.op for node in v1.get_default_graph().as_graph_def().node}
            v1.saved_model.simple_save(session, str(tmp_path / "1"), {"s": s}, {"pixels": pixels})
    finally:
        v1.enable_control_flow_v2()
    _, answer, tried = first_answered(tmp_path / "1")
    assert tried == 1
    assert answer["pixels"].std() > 10


def test_digits_are_digits_also_behind_a_call(tmp_path: Path) -> None:
    inner = tf.function(tf.strings.strip)
    made, _, tried = first_answered(
        saved(tmp_path / "1", lambda s: {"number": tf.strings.to_number(inner(s))}, s=STRINGS)
    )
    assert tried == 1
    assert set(made["s"]) == {b"0", b"1"}


@pytest.mark.parametrize("shape", [[None, None], None])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: {"y": ((x - 1.0) / 2.0) @ tf.ones([37, 5])},
        lambda x: {"y": tf.matmul(x, tf.ones([5, 37]), transpose_b=True)},
        lambda x: {"y": tf.reshape(x, [-1, 37, 1])},
        lambda x: {"y": tf.function(lambda z: tf.nn.relu(z @ tf.ones([37, 5])))(x)},
    ],
    ids=["weights", "transposed weights", "reshape", "in a function"],
)
def test_lengths_are_read_from_the_graph(
    tmp_path: Path, shape: list[int | None] | None, function: Callable[..., Any]
) -> None:
    made, _, tried = first_answered(saved(tmp_path / "1", function, x=tf.TensorSpec(shape, tf.float32)))
    assert tried == 1
    assert made["x"].shape == (ROWS, 37)


def test_a_graph_that_turns_in_circles_is_left_again() -> None:
    built = graph_protos.graph(
        [
            graph_protos.node("s", "Placeholder", dtype=tf.string.as_datatype_enum),
            graph_protos.node("a", "StringLower", "s", "b"),
            graph_protos.node("b", "StringLower", "a", "s"),
        ]
    )
    asked = signature(s=(tf.string, [None]))
    asked.inputs["s"].name = "s:0"
    assert b" " in next(requests(asked, built))["s"][0]
    asked.inputs["s"].name = "gone:0"
    assert b" " in next(requests(asked, built))["s"][0]
