"""LoadedModel: a SavedModel in a C++ Session."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from mpru_tf.errors import CorruptModelError, DataError, ModelNotFoundError, UnsupportedModelError
from mpru_tf.saved_model.session import LoadedModel


class Affine(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def scores(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = x @ self.weights
        return {"scores": y, "best": tf.argmax(y, -1), "doubled": 2.0 * y}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "b"), tf.TensorSpec([None], tf.float32, "a")])
    def minus(self, b: tf.Tensor, a: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"difference": a - b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def upper(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text": tf.strings.upper(text)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("affine") / "1"
    module = Affine()
    signatures = {"serving_default": module.scores, "minus": module.minus, "upper": module.upper}
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="module")
def model(saved: Path) -> LoadedModel:
    return LoadedModel(saved)


X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = X @ np.array([[1, 2], [3, 4], [5, 6]], np.float32)


def test_answers_all_outputs_of_a_signature(model: LoadedModel) -> None:
    answer = model.run("serving_default", {"x": X})
    assert set(answer) == {"scores", "best", "doubled"}
    np.testing.assert_array_equal(answer["scores"], Y)
    np.testing.assert_array_equal(answer["best"], Y.argmax(-1))


def test_answers_only_the_outputs_asked_for_in_that_order(model: LoadedModel) -> None:
    answer = model.run("serving_default", {"x": X}, ["doubled", "scores"])
    assert list(answer) == ["doubled", "scores"]
    np.testing.assert_array_equal(answer["doubled"], 2 * answer["scores"])


def test_inputs_are_told_apart_by_their_keys(model: LoadedModel) -> None:
    a, b = np.float32([5, 6]), np.float32([1, 2])
    np.testing.assert_array_equal(model.run("minus", {"b": b, "a": a})["difference"], [4, 4])
    np.testing.assert_array_equal(model.run("minus", {"a": a, "b": b})["difference"], [4, 4])


def test_strings_go_in_and_out_as_bytes(model: LoadedModel) -> None:
    answer = model.run("upper", {"text": np.array([b"abc", b"\xff"], object)})["text"]
    assert answer.tolist() == [b"ABC", b"\xff"]


def test_empty_batch(model: LoadedModel) -> None:
    assert model.run("serving_default", {"x": X[:0]})["scores"].shape == (0, 2)


def test_steps_are_made_once(model: LoadedModel) -> None:
    assert model.step("serving_default", ("scores",)) is model.step("serving_default", ("scores",))


def test_many_threads_get_their_own_answers(model: LoadedModel) -> None:
    def ask(i: int) -> bool:
        x = np.full([1, 3], i, np.float32)
        return bool((model.run("serving_default", {"x": x})["scores"] == i * np.float32([9, 12])).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def test_what_a_signature_does_not_have_is_refused_by_name(model: LoadedModel) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'nope'.*minus, serving_default, upper"):
        model.run("nope", {})
    with pytest.raises(DataError, match=r"\['z'\].*\['x'\]"):
        model.run("serving_default", {"z": X})
    with pytest.raises(DataError, match=r"\['z'\].*'scores'"):
        model.run("serving_default", {"x": X}, ["scores", "z"])
    with pytest.raises(DataError, match=r"float64.*float32"):
        model.run("serving_default", {"x": X.astype(np.float64)})


def test_a_wrong_shape_is_the_graphs_own_objection(model: LoadedModel) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.run("serving_default", {"x": np.ones([2, 7], np.float32)})


def test_an_input_that_is_also_an_output(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        y = tf.multiply(x, 2.0, name="y")
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "1"))
        info = tf.compat.v1.saved_model.build_tensor_info
        signature = tf.compat.v1.saved_model.build_signature_def(
            {"x": info(x)}, {"same": info(x), "twice": info(y)}, "tensorflow/serving/predict"
        )
        echo = tf.compat.v1.saved_model.build_signature_def({"x": info(x)}, {"same": info(x)})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature, "echo": echo})
        builder.save()
    with LoadedModel(tmp_path / "1") as model:
        answer = model.run("serving_default", {"x": np.float32([1, 2])})
        assert answer["same"].tolist() == [1, 2]
        assert answer["twice"].tolist() == [2, 4]
        assert model.run("echo", {"x": np.float32([3])})["same"].tolist() == [3]


def test_closed_models_answer_no_more(saved: Path) -> None:
    with LoadedModel(saved, threads=1) as model:
        model.run("serving_default", {"x": X})
    model.close()
    with pytest.raises((RuntimeError, tf.errors.OpError)):
        model.run("serving_default", {"x": X})


def test_no_model(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ModelNotFoundError, match=r"saved_model\.pb"):
            LoadedModel(path)


@pytest.fixture
def damaged(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "1"))


def test_truncated_graph(damaged: Path) -> None:
    graph = damaged / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(CorruptModelError, match=r"TensorFlow says: .*pars") as refused:
        LoadedModel(damaged)
    assert "\n" not in str(refused.value)


def test_missing_variables(damaged: Path) -> None:
    shutil.rmtree(damaged / "variables")
    with pytest.raises(CorruptModelError, match="variables"):
        LoadedModel(damaged)


def test_other_tags(saved: Path) -> None:
    with pytest.raises(CorruptModelError, match="nope"):
        LoadedModel(saved, tags=["nope"])


def test_an_op_of_nobody_is_named(damaged: Path) -> None:
    graph = damaged / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    node = model.meta_graphs[0].graph_def.node.add()
    node.name, node.op = "strange", "OpOfNobody"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="OpOfNobody"):
        LoadedModel(damaged)
