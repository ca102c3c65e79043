"""Class means: from outputs, batches, SavedModels and files; what they must satisfy; what is refused."""

# TensorFlow has no types: whatever is subclassed from it or decorated by it has none either.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import json
import os
import stat
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import (
    ClassMeansError,
    DataError,
    ForgetListError,
    ModelNotFoundError,
    MPRUError,
    PreconditionError,
    UnsupportedModelError,
)

Array = npt.NDArray[np.float64]
OUTPUTS = np.array([[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.2, 0.8, 0.0], [0.3, 0.1, 0.6]])


def example_means(n: int = 4, own: float = 0.9, count: int = 50) -> ClassMeans:
    means = np.full((n, n), (1 - own) / (n - 1))
    np.fill_diagonal(means, own)
    return ClassMeans(n, tuple(range(n)), means, np.full(n, count), np.full(n, 0.02), True, "test", 0.95)


def assert_same(a: ClassMeans, b: ClassMeans) -> None:
    assert (a.classes, a.rows, a.labelled, a.accuracy) == (b.classes, b.rows, b.labelled, b.accuracy)
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_allclose(a.means, b.means, atol=1e-6)
    np.testing.assert_allclose(a.variances, b.variances, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# From outputs


def test_by_hand() -> None:
    means = ClassMeans.from_outputs(OUTPUTS, [0, 0, 1, 1])
    assert (means.classes, means.rows, means.labelled, means.accuracy) == (3, (0, 1), True, 0.75)
    np.testing.assert_allclose(means.means, [[0.8, 0.15, 0.05], [0.25, 0.45, 0.3]])
    assert means.counts.tolist() == [2, 2]
    np.testing.assert_allclose(means.variances, [0.01 + 0.0025 + 0.0025, 0.0025 + 0.1225 + 0.09])
    np.testing.assert_allclose(means.self_probability, [0.8, 0.45])
    np.testing.assert_allclose(means.row(1), [0.25, 0.45, 0.3])
    with pytest.raises(ClassMeansError, match="no mean of class 2"):
        means.row(2)
    with pytest.raises(ClassMeansError, match="no mean of class -1"):
        means.row(-1)


def test_without_labels_the_model_labels() -> None:
    means = ClassMeans.from_outputs(OUTPUTS)
    assert (means.rows, means.labelled, means.accuracy) == ((0, 1, 2), False, None)
    assert means.counts.tolist() == [2, 1, 1]
    np.testing.assert_allclose(means.means, [[0.8, 0.15, 0.05], [0.2, 0.8, 0.0], [0.3, 0.1, 0.6]])
    np.testing.assert_allclose(means.variances, [0.015, 0, 0], atol=1e-15)


def test_logits_become_probabilities() -> None:
    p = np.clip(OUTPUTS, 1e-12, 1)
    assert_same(
        ClassMeans.from_outputs(np.log(p) + 7, [0, 0, 1, 1], logits=True), ClassMeans.from_outputs(p, [0, 0, 1, 1])
    )
    huge = ClassMeans.from_outputs([[1e4, 0.0, -np.inf], [0.0, 1e30, -1e30]], [0, 1], logits=True)
    np.testing.assert_array_equal(huge.means, np.eye(3)[:2])


@given(st.integers(1, 60), st.integers(2, 6), st.booleans(), st.booleans(), st.integers(0, 2**31), st.integers(1, 20))
def test_streaming_equals_in_memory(n: int, classes: int, labelled: bool, logits: bool, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    z = 3 * random.standard_normal((n, classes)).astype(np.float32)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    y = random.integers(0, classes, n) if labelled else None
    outputs = z if logits else p
    batches = [(outputs[i : i + size], None if y is None else y[i : i + size]) for i in range(0, n, size)]
    streamed = ClassMeans.from_batches(iter(batches), classes, logits)
    assert_same(streamed, ClassMeans.from_outputs(outputs, y, logits=logits))
    named = p.argmax(axis=1) if y is None else y
    for i, c in enumerate(streamed.rows):
        rows = p[named == c].astype(np.float64)
        np.testing.assert_allclose(streamed.means[i], rows.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(streamed.variances[i], rows.var(axis=0).sum(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_output_dtypes(dtype: str) -> None:
    outputs = OUTPUTS.astype(tf.as_dtype(dtype).as_numpy_dtype)
    means = ClassMeans.from_outputs(outputs, [[0], [0], [1], [1]])
    np.testing.assert_allclose(means.means, [[0.8, 0.15, 0.05], [0.25, 0.45, 0.3]], atol=5e-3)


@pytest.mark.parametrize(
    ("outputs", "labels", "said"),
    [
        (OUTPUTS * 3, None, "no probabilities.*logits"),
        ([[1.5, -0.5]], None, "no probabilities"),
        ([[np.nan, 1.0]], None, "NaN"),
        ([0.5, 0.5], None, "one row of class scores per example"),
        (np.ones((3, 1)), None, "one row of class scores per example"),
        (np.zeros((0, 3)), None, "no calibration examples"),
        ([["a", "b"]], None, "must be numbers"),
        (OUTPUTS, [0, 0, 1], "one class index per example"),
        (OUTPUTS, np.eye(3)[[0, 0, 1, 1]], "one class index per example.*argmax"),
        (OUTPUTS, [0.0, 0.0, 1.0, 1.0], "one class index per example"),
        (OUTPUTS, [0, 0, 1, 3], "labels from 0 to 3.*0 to 2"),
        (OUTPUTS, [0, 0, 1, -1], "labels from -1 to 1"),
    ],
)
def test_outputs_that_are_refused(outputs: Any, labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ClassMeans.from_outputs(outputs, labels)


def test_batches_that_are_refused() -> None:
    with pytest.raises(DataError, match="no calibration examples"):
        ClassMeans.from_batches([])
    with pytest.raises(DataError, match="Some batches have labels"):
        ClassMeans.from_batches([(OUTPUTS, [0, 0, 1, 1]), (OUTPUTS, None)])
    with pytest.raises(DataError, match=r"\[\.\.\., 5\]"):
        ClassMeans.from_batches([(OUTPUTS, None)], classes=5)
    with pytest.raises(DataError, match=r"\[\.\.\., 3\]"):
        ClassMeans.from_batches([(OUTPUTS, None), ([[0.5, 0.5]], None)])
    for row in ([-np.inf] * 2, [np.inf, 0.0]):
        with pytest.raises(DataError, match="infinity"):
            ClassMeans.from_batches([([row], None)], logits=True)


# ---------------------------------------------------------------------------------------------------------------
# Files


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "means.json"
    random = np.random.default_rng(0)
    means = ClassMeans.from_outputs(random.dirichlet(np.ones(5), 200), random.integers(0, 5, 200), source="a test")
    means.save(path)
    again = ClassMeans.load(path)
    for field in ClassMeans.__dataclass_fields__:
        assert np.array_equal(getattr(again, field), getattr(means, field)), field
    assert [entry.name for entry in tmp_path.iterdir()] == ["means.json"]
    again.save(path)  # over the old one
    assert ClassMeans.load(str(path)).source == "a test"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with pytest.raises(ClassMeansError, match="cannot be written"):
        means.save(tmp_path / "nowhere" / "means.json")


def changed(**changes: Any) -> dict[str, Any]:
    return {**example_means(3).to_dict(), **changes}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ('{"format_version": 1, "classes": 3', "not JSON"),
        ("[1, 2]", "a JSON object"),
        ("{}", "format_version None"),
        (changed(format_version=2), "format_version 2"),
        ({k: v for k, v in changed().items() if k != "means"}, "keys"),
        (changed(extra=1), "keys"),
        (changed(classes=1), "2 classes or more"),
        (changed(classes="3"), "2 classes or more"),
        (changed(classes=True), "2 classes or more"),
        (changed(rows=[0, 1, 3]), "class indices in 0 to 2"),
        (changed(rows="012"), "class indices in 0 to 2"),
        (changed(rows=None), "class indices in 0 to 2"),
        (changed(rows=[0, 2, 1]), "ascending"),
        (changed(rows=[0, 1, 1]), "each class once"),
        (changed(rows=[]), "one row or more"),
        (changed(rows=[0, 1]), r"means of shape \(3, 3\).*\(2, 3\)"),
        (changed(classes=4), r"means of shape \(3, 3\).*\(3, 4\)"),
        (changed(means=[[1, 0, 0], [0, 1], [0, 0, 1]]), "no rectangle of numbers"),
        (changed(means="many"), "no rectangle of numbers"),
        (changed(means=[[float("nan"), 0, 1], [0, 1, 0], [0, 0, 1]]), "NaN or infinity"),
        (changed(means=[[0.5, 0, 0], [0, 1, 0], [0, 0, 1]]), "mean of class 0 that is no distribution"),
        (changed(means=[[1, 0, 0], [0, 1.5, -0.5], [0, 0, 1]]), "no distribution"),
        (changed(counts=[1, 2]), "counts of shape"),
        (changed(counts=[1, 2, 0]), "whole numbers from 1"),
        (changed(counts=[1, 2, 2.5]), "whole numbers from 1"),
        (changed(variances=[0, 0, -1]), "0 to 2"),
        (changed(variances=[0, 0, 3]), "0 to 2"),
        (changed(labelled="yes"), "labelled true or false"),
        (changed(source=None), "source a text"),
        (changed(accuracy=1.5), "accuracy 1.5"),
    ],
)
def test_malformed_files(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "means.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ClassMeansError, match=said) as caught:
        ClassMeans.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "binary.json"):
        with pytest.raises(ClassMeansError, match="cannot be read"):
            ClassMeans.load(path)


def test_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        example_means().means[0, 0] = 1.0


# ---------------------------------------------------------------------------------------------------------------
# Preconditions


@pytest.mark.parametrize("method", ["mean", "gram_schmidt"])
def test_good_means_pass(method: str) -> None:
    found = example_means().check(method, [2])
    assert found.ok
    found.require()
    names = ["self_probability", "examples", "condition_forgotten", "condition_all", "variance", "labelled", "accuracy"]
    assert [item.name for item in found.items] == [n for n in names if method == "gram_schmidt" or n != "condition_all"]
    values = {item.name: (item.value, item.threshold) for item in found.items}
    assert values["self_probability"] == (0.9, 0.8)
    assert values["examples"] == (50, 20)
    assert values["condition_forgotten"][0] == pytest.approx(1.0)
    assert values["variance"] == (0.02, None)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


@pytest.mark.parametrize("method", ["renormalize", "tempered"])
def test_methods_without_projection_assume_nothing(method: str) -> None:
    assert example_means(own=0.3, count=1).check(method, [0]).items == ()


def failing(means: ClassMeans, method: str, forgotten: list[int]) -> list[str]:
    found = means.check(method, forgotten)
    with pytest.raises(PreconditionError) as caught:
        found.require()
    failed = [item for item in found.items if not item.ok]
    assert all(item.detail.rstrip(".") in str(caught.value) for item in failed)
    return [item.name for item in failed]


def test_each_precondition_fails_on_its_own() -> None:
    n = 4
    good = example_means(n)

    def with_(**changes: Any) -> ClassMeans:
        return ClassMeans(**{**{k: getattr(good, k) for k in ClassMeans.__dataclass_fields__}, **changes})

    assert failing(example_means(own=0.79), "mean", [0]) == ["self_probability"]
    assert failing(with_(counts=[19, 50, 50, 50]), "mean", [0]) == ["examples"]
    assert failing(with_(counts=[19, 50, 50, 50]), "gram_schmidt", [1]) == ["examples"]
    assert with_(counts=[19, 50, 50, 50]).check("mean", [1]).ok  # the mean of class 0 is not used
    same = good.means.copy()
    same[1] = same[0]
    assert failing(with_(means=same), "mean", [0, 1]) == ["self_probability", "condition_forgotten"]
    assert "condition_all" in failing(with_(means=same), "gram_schmidt", [2])
    with pytest.raises(PreconditionError, match="Use more calibration examples"):
        with_(means=same).check("mean", [1]).require()


def test_checks_that_are_refused() -> None:
    some = ClassMeans.from_outputs(OUTPUTS, [0, 0, 1, 1])
    with pytest.raises(ClassMeansError, match="no mean of class 2"):
        some.check("mean", [2])
    with pytest.raises(ClassMeansError, match="no mean of class 2"):
        some.check("gram_schmidt", [0])
    with pytest.raises(ForgetListError):
        some.check("mean", [3])
    with pytest.raises(MPRUError, match="no such method"):
        some.check("median", [0])


# ---------------------------------------------------------------------------------------------------------------
# From a SavedModel

FEATURES, CLASSES, EXAMPLES = 4, 5, 100


class Classifier(tf.Module):
    """A linear classifier with every signature that the tests ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(np.random.default_rng(1).standard_normal((FEATURES, CLASSES)), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32, name="x")])
    def both(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = tf.matmul(x, self.w)
        p = tf.nn.softmax(z)
        return {"scores": p, "logits": z, "class": tf.argmax(p, axis=-1)}

    @tf.function(input_signature=[tf.TensorSpec([8, FEATURES], tf.float32, name="x")])
    def of_eight(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        # Scores that depend on the whole batch would differ if it were split or padded otherwise: these do not.
        return {"scores": tf.nn.softmax(tf.matmul(x, self.w))}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, FEATURES - 1], tf.float32, name="left"),
            tf.TensorSpec([None, 1], tf.int32, name="right"),
        ]
    )
    def two_inputs(self, left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.concat([left, tf.cast(right, tf.float32)], axis=1)
        return {"scores": tf.nn.softmax(tf.matmul(x, self.w))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.strings.to_number(tf.strings.split(text, ",").to_tensor(shape=[None, FEATURES]), tf.float32)
        return {"scores": tf.nn.softmax(tf.matmul(x, self.w))}


def exported(path: Path, **signatures: str) -> str:
    model = Classifier()
    tf.saved_model.save(model, str(path), signatures={key: getattr(model, name) for key, name in signatures.items()})
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return exported(tmp_path_factory.mktemp("model") / "1", serving_default="both")


@pytest.fixture(scope="module")
def x() -> Array:
    return np.random.default_rng(2).integers(-3, 4, (EXAMPLES, FEATURES)).astype(np.float64)


@pytest.fixture(scope="module")
def y() -> npt.NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, CLASSES, EXAMPLES)


@pytest.fixture(scope="module")
def wanted(x: Array, y: npt.NDArray[np.int64]) -> ClassMeans:
    z = x @ np.random.default_rng(1).standard_normal((FEATURES, CLASSES))
    return ClassMeans.from_outputs(z, y, logits=True)


def test_from_arrays(model: str, x: Array, y: Any, wanted: ClassMeans) -> None:
    for batch_size in (1, 7, 100, 256):
        means = ClassMeans.from_saved_model(model, (x, y), batch_size=batch_size)
        assert_same(means, wanted)
    assert means.source == "serving_default:scores of 1 on data in memory"
    assert_same(ClassMeans.from_saved_model(Path(model).parent, (x, y)), wanted)  # the base path
    unlabelled = ClassMeans.from_saved_model(model, x)
    assert not unlabelled.labelled
    assert_same(ClassMeans.from_saved_model(model, (x, None)), unlabelled)
    assert_same(ClassMeans.from_saved_model(model, {"x": x}), unlabelled)


def test_from_batches(model: str, x: Array, y: Any, wanted: ClassMeans) -> None:
    batches = [(x[i : i + 30], y[i : i + 30]) for i in range(0, EXAMPLES, 30)]
    assert_same(ClassMeans.from_saved_model(model, batches, batch_size=16), wanted)
    assert_same(ClassMeans.from_saved_model(model, iter(batches)), wanted)
    assert_same(ClassMeans.from_saved_model(model, (b for b in batches)), wanted)
    assert_same(ClassMeans.from_saved_model(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(9)), wanted)
    named = [({"x": a}, b) for a, b in batches]
    assert_same(ClassMeans.from_saved_model(model, named), wanted)
    alone = [a for a, _ in batches]
    assert not ClassMeans.from_saved_model(model, alone).labelled


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_from_npz(model: str, x: Array, y: Any, wanted: ClassMeans, save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    save(path, x=x, y=y, names=np.array(["not", "asked", "for"]))
    for given_path in (path, str(path)):
        means = ClassMeans.from_saved_model(model, given_path, batch_size=33)
        assert_same(means, wanted)
        assert means.source == "serving_default:scores of 1 on data.npz"
    save(path, x=x)
    assert not ClassMeans.from_saved_model(model, path).labelled


def test_npz_is_streamed(model: str, tmp_path: Path) -> None:
    """What the file would take unpacked is never in memory."""
    rows = 300_000
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((rows, FEATURES), np.float64))
    ClassMeans.from_saved_model(model, np.zeros((8, FEATURES)))  # whatever is loaded once
    tracemalloc.start()
    try:
        means = ClassMeans.from_saved_model(model, tmp_path / "data.npz", batch_size=4096)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert means.counts.sum() == rows
    assert peak < rows * FEATURES * 8 / 2


def test_signature_and_output(x: Array, y: Any, wanted: ClassMeans, tmp_path: Path) -> None:
    model = exported(tmp_path / "1", serving_default="both", eight="of_eight")
    for choice, source in (
        ({}, "serving_default:scores"),
        ({"output": "logits"}, "serving_default:logits"),
        ({"output": "serving_default:logits"}, "serving_default:logits"),
        ({"signature": "serving_default", "output": "scores"}, "serving_default:scores"),
        ({"signature": "eight"}, "eight:scores"),
        ({"output": "eight:scores"}, "eight:scores"),
    ):
        means = ClassMeans.from_saved_model(model, (x, y), **choice)  # type: ignore[arg-type]
        assert_same(means, wanted)
        assert means.source.startswith(source)
    for choice in ({"output": "class"}, {"output": "nothing"}, {"signature": "nothing"}):
        with pytest.raises(UnsupportedModelError, match=r"No such output.*serving_default:scores"):
            ClassMeans.from_saved_model(model, (x, y), **choice)  # type: ignore[arg-type]


def test_two_inputs(x: Array, y: Any, wanted: ClassMeans, tmp_path: Path) -> None:
    model = exported(tmp_path / "1", serving_default="two_inputs")
    data = {"left": x[:, :3], "right": x[:, 3:]}
    assert_same(ClassMeans.from_saved_model(model, (data, y)), wanted)
    np.savez(tmp_path / "data.npz", y=y, **data)
    assert_same(ClassMeans.from_saved_model(model, tmp_path / "data.npz", batch_size=9), wanted)
    with pytest.raises(DataError, match=r"several inputs.*left, right"):
        ClassMeans.from_saved_model(model, (x, y))
    with pytest.raises(DataError, match="other inputs than the model"):
        ClassMeans.from_saved_model(model, ({"left": x}, y))
    with pytest.raises(DataError, match="as many rows"):
        ClassMeans.from_saved_model(model, ({"left": x[:, :3], "right": x[:9, 3:]}, y))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"Received: x, y. Valid: left, right and, if labelled, y"):
        ClassMeans.from_saved_model(model, tmp_path / "data.npz")


def test_text_input(x: Array, y: Any, wanted: ClassMeans, tmp_path: Path) -> None:
    model = exported(tmp_path / "1", serving_default="text")
    lines = np.array([",".join(map(str, row)).encode() for row in x])
    assert_same(ClassMeans.from_saved_model(model, (lines, y)), wanted)
    np.savez(tmp_path / "data.npz", x=lines, y=y)
    assert_same(ClassMeans.from_saved_model(model, tmp_path / "data.npz"), wanted)
    with pytest.raises(DataError, match="does not fit input 'text'"):
        ClassMeans.from_saved_model(model, (x[:, 0], y))
    with pytest.raises(DataError, match=r"does not accept the data.*TensorFlow says"):
        ClassMeans.from_saved_model(model, (np.array([b"a,b,c,d"]), None))


def test_progress_goes_to_stderr(model: str, x: Array, y: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ClassMeans.from_saved_model(model, (x, y), progress=True, batch_size=9)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100/100" in captured.err


def test_models_that_are_refused(tmp_path: Path, x: Array) -> None:
    with pytest.raises(ModelNotFoundError):
        ClassMeans.from_saved_model(tmp_path / "nowhere", x)

    class Regression(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32)])
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(x, axis=1)

    tf.saved_model.save(Regression(), str(tmp_path / "1"))
    with pytest.raises(UnsupportedModelError, match="no output that answers class scores"):
        ClassMeans.from_saved_model(tmp_path / "1", x)


def test_data_that_is_refused(model: str, x: Array, y: Any, tmp_path: Path) -> None:
    def refuse(data: Any, said: str, **options: Any) -> None:
        with pytest.raises(DataError, match=said) as caught:
            ClassMeans.from_saved_model(model, data, **options)
        assert "\n" not in str(caught.value)

    refuse((x, y), "batch_size 0", batch_size=0)
    refuse(7, "no calibration data")
    refuse((x[:, :3], y), r"does not fit input 'x'.*\('N', 3\).*\('N', 4\)")
    refuse((x[0], y), "as many rows")
    refuse((x, y[:9]), "as many rows")
    refuse((x, y + CLASSES), "does not exist")
    refuse((x[:0], y[:0]), "no calibration examples")
    refuse(np.array(["a", "b"]), "does not fit input 'x'")

    path = tmp_path / "data.npz"
    refuse(path, "cannot be read.*No such file")
    path.write_text("x,y\n1,2\n", encoding="utf-8")
    refuse(path, "cannot be read")
    np.savez(path, images=x, labels=y)
    refuse(path, "has not the arrays.*images, labels")
    np.savez(path, x=x, y=y[:9])
    refuse(path, "as many rows")
    np.savez(path, x=x, y=np.int64(3))
    refuse(path, "as many rows")
    np.savez(path, x=np.asfortranarray(x), y=y)
    refuse(path, "Fortran order.*ascontiguousarray")
    np.savez(path, x=np.array([None, 1], dtype=object))
    refuse(path, "not plain.*object")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    refuse(path, "damaged")
    np.savez(tmp_path / "whole.npz", x=x)
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", whole.read("x.npy")[:-100])
    refuse(path, "cut off.*96 rows.*100 rows")
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[1000] ^= 0xFF
    path.write_bytes(damaged)
    refuse(path, "damaged")
