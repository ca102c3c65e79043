"""The Keras layer and the TensorFlow operations behind it: the same numbers as the NumPy reference, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import DataError, ForgetListError
from mpru_tf.filters import FORGOTTEN_LOGIT, MASK, METHODS, UNDERFLOW, FilterSpec, make_filter
from mpru_tf.layer import MPRULayer, filter_tensor

Array = npt.NDArray[np.float64]
N = 6
FORGOTTEN = ([2], [1, 4], [0, 1, 2, 4, 5])
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Of probabilities, and of the softmax of filtered logits: those are rounded while they are as large as 20.
TOLERANCE = {
    "float16": (1e-3, 2e-2),
    "bfloat16": (8e-3, 2e-1),
    "float32": (2e-6, 2e-5),
    "float64": (1e-12, 1e-12),
}

# Keras 3.15 reads variables with an __array__ that NumPy 2 calls outdated (keras-team/keras#21288, open).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def means(n: int = N) -> ClassMeans:
    random = np.random.default_rng(3)
    matrix = 0.15 * random.dirichlet(np.ones(n), n) + 0.85 * np.eye(n)
    return ClassMeans(n, tuple(range(n)), matrix, np.full(n, 100), np.full(n, 0.01), True, "test")


def specs(n: int = N) -> Iterator[FilterSpec]:
    for forgotten in FORGOTTEN:
        for method in METHODS:
            yield make_filter(n, forgotten, method, class_means=means(n))
        yield make_filter(n, forgotten, "renormalize")
        yield make_filter(n, forgotten, "tempered")
        yield make_filter(n, forgotten, "tempered", temperature=1.0)


def name(spec: FilterSpec) -> str:
    return f"{spec.method}{spec.temperature or ''}-{len(spec.forgotten)}-{'means' if spec.fallback is not None else ''}"


ALL = pytest.mark.parametrize("spec", list(specs()), ids=name)
# One of each structure of nodes, for what takes long.
EACH = pytest.mark.parametrize(
    "spec",
    [s for s in specs() if len(s.forgotten) == 2 or (len(s.forgotten) == 1 and s.coefficients is not None)],
    ids=name,
)
BOTH = pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])


def scores(rows: int, logits: bool, n: int = N, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    if logits:
        return np.asarray(4 * random.standard_normal((rows, n)))
    return np.asarray(random.dirichlet(np.full(n, 0.4), rows))


def odd_scores(logits: bool) -> Array:
    """Return rows of every kind that DESIGN and the reference name; without meaning are the last four."""
    inf, nan = np.inf, np.nan
    if logits:
        return np.array(
            [
                [-inf] * 6,
                [-inf, -inf, 0, -inf, 1, -inf],
                [-inf, 3, 0, 1, -inf, 2],
                [50, 0, 0, 90, 0, 0],
                [1e4, 0, 0, -1e4, 2e4, 1e4],
                [-1e4, -1e4, 1e4, -1e4, 1e4, -1e4],
                [-3e4, -3e4, 5, -3e4, 4, -3e4],
                [0, -80, -100, 0, -120, -1e3],
                [nan, 0, 0, 0, 0, 0],
                [0, 0, nan, 0, nan, 0],
                [inf, 0, 0, 0, 0, 0],
                [0, 0, inf, -inf, inf, 0],
            ]
        )
    return np.array(
        [
            [0, 0, 1, 0, 0, 0],
            [0, 0.25, 0.5, 0, 0.25, 0],
            [1, 0, 0, 0, 0, 0],
            [0.3, 0.7, 0, 0, 0, 0],
            [0] * 6,
            [UNDERFLOW / 3] * 6,
            [UNDERFLOW * 4, 0, 1, 0, 0, 0],
            [-1e-3, 0.5, 0.5, -1e-3, 0, 2e-3],
            [nan, 0.2, 0.2, 0.2, 0.2, 0.2],
            [0.2, 0.2, nan, 0.2, nan, 0.2],
            [inf, 0, 0, 0, 0, 0],
            [0, 0, inf, 0.5, inf, 0],
        ]
    )


def softmax(z: Array) -> Array:
    with np.errstate(invalid="ignore"):
        e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def in_dtype(x: Array, dtype: str) -> Any:
    with np.errstate(over="ignore"):
        return x.astype(tf.as_dtype(dtype).as_numpy_dtype)


def reference(spec: FilterSpec, x: Any, logits: bool) -> Array:
    return spec.logits(x) if logits else spec.probabilities(x)


def assert_same(spec: FilterSpec, got: Any, x: Any, logits: bool, dtype: str) -> None:
    """The forgotten entries exactly, the others as closely as the dtype can tell."""
    assert got.dtype == tf.as_dtype(dtype).as_numpy_dtype
    assert got.shape == x.shape
    wanted = reference(spec, x, logits)
    values = got.astype(np.float64)
    gone = float(np.asarray(FORGOTTEN_LOGIT[dtype]).astype(got.dtype)) if logits else 0.0
    assert (values[..., spec.forgotten] == gone).all()
    if logits:
        values, wanted = softmax(values), softmax(wanted)
    np.testing.assert_allclose(values, wanted, rtol=0, atol=TOLERANCE[dtype][logits])


# ---------------------------------------------------------------------------------------------------------------
# The same as the reference


@ALL
@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_as_numpy(spec: FilterSpec, logits: bool, dtype: str) -> None:
    for rows in (0, 1, 7):
        x = in_dtype(scores(rows, logits, seed=rows), dtype)
        assert_same(spec, filter_tensor(tf.constant(x), spec, logits).numpy(), x, logits, dtype)


@ALL
@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_rows_same_as_numpy(spec: FilterSpec, logits: bool, dtype: str) -> None:
    x = in_dtype(odd_scores(logits), dtype)
    got = filter_tensor(tf.constant(x), spec, logits).numpy()
    assert np.isnan(got[-4:][:, spec.retained].astype(np.float64)).all()
    if not logits:
        assert_same(spec, got, x, logits, dtype)
        return
    # At 1e4 neighbouring float32 are 1e-3 apart and neighbouring bfloat16 64: look at the numbers, not their softmax.
    wanted = reference(spec, x, logits)[:, spec.retained]
    values = got.astype(np.float64)
    step = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-22, "float64": 2**-50}[dtype]
    np.testing.assert_allclose(values[:, spec.retained], wanted, rtol=step, atol=20 * step)
    assert (got[:, spec.forgotten] == np.asarray(FORGOTTEN_LOGIT[dtype]).astype(got.dtype)).all()


@pytest.mark.parametrize("temperature", [1.5, 20.0, 1000.0])
def test_tempered_is_exact_where_next_to_nothing_is_retained(temperature: float) -> None:
    spec = make_filter(N, [2], temperature=temperature)
    for left in (1e-8, 1e-15, 1e-30):
        x = (left * scores(200, False)).astype(np.float32)
        x[:, 2] = 1.0
        np.testing.assert_allclose(filter_tensor(tf.constant(x), spec, False), spec.probabilities(x), rtol=0, atol=5e-7)


@EACH
@BOTH
@pytest.mark.parametrize("jit_compile", [False, True], ids=["kernels", "xla"])
def test_one_number_without_meaning_anywhere(spec: FilterSpec, logits: bool, jit_compile: bool) -> None:
    """A NaN or an infinity at any one class, also in a row without retained probability; elsewhere nothing of it."""
    ordinary = scores(1, logits)[0]
    nothing = np.where(np.isin(np.arange(N), spec.forgotten), 0.5, -np.inf if logits else 0.0)
    rows = np.stack([ordinary, nothing] * (2 * N + 1))
    for i in range(2 * N):
        rows[2 * i : 2 * i + 2, i // 2] = (np.nan, np.inf)[i % 2]
    x = rows.astype(np.float32)
    got = tf.function(lambda x: filter_tensor(x, spec, logits), jit_compile=jit_compile)(tf.constant(x)).numpy()
    assert np.isnan(got[:-2, spec.retained]).all()
    assert (got[:, spec.forgotten] == (FORGOTTEN_LOGIT["float32"] if logits else 0.0)).all()
    np.testing.assert_allclose(got[-2:], reference(spec, x[-2:], logits), rtol=1e-5, atol=1e-5)


@ALL
@BOTH
def test_numbers_that_are_nothing(spec: FilterSpec, logits: bool) -> None:
    """Minus infinity, negative numbers, and logits as low as a filter's own: like no probability at all."""
    low = [-np.inf, -1e30, -3e30] if logits else [-np.inf, -1.0, UNDERFLOW / 2]
    rows = np.tile(scores(1, logits)[0], (3 * N, 1))
    for i in range(3 * N):
        rows[i, i // 3] = low[i % 3]
    x = rows.astype(np.float32)
    got = filter_tensor(tf.constant(x), spec, logits).numpy()
    wanted = reference(spec, x, logits)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5)
    hidden = np.float32(FORGOTTEN_LOGIT["float32"]) if logits else 0.0
    assert ((got == hidden) == (wanted.astype(np.float32) == hidden)).all()


@EACH
@BOTH
def test_same_in_a_graph_and_under_xla(spec: FilterSpec, logits: bool) -> None:
    dtype = "float32"
    x = in_dtype(np.concatenate([scores(7, logits), odd_scores(logits)[:3], odd_scores(logits)[-4:]]), dtype)
    eager = filter_tensor(tf.constant(x), spec, logits).numpy()

    def traced(x: tf.Tensor) -> tf.Tensor:
        return filter_tensor(x, spec, logits)

    signature = [tf.TensorSpec([None, N], dtype)]
    for jit_compile in (False, True):
        graph = tf.function(traced, input_signature=signature, jit_compile=jit_compile)
        got = graph(tf.constant(x)).numpy()
        np.testing.assert_allclose(got, eager, rtol=1e-5, atol=1e-6)
        assert (got[:, spec.forgotten] == eager[:, spec.forgotten]).all()
        assert graph(tf.zeros([0, N], dtype)).shape == (0, N)
        probabilities = tf.nn.softmax(graph(tf.constant(scores(7, True), dtype)))
        if logits:  # what a Softmax downstream makes of it, in the graph's own arithmetic
            assert (probabilities.numpy()[:, spec.forgotten] == 0).all()


@settings(max_examples=40)
@given(
    st.integers(2, 12),
    st.data(),
    st.sampled_from(METHODS),
    st.booleans(),
    st.sampled_from([1.0, 1.5, 20.0, 1000.0]),
    st.integers(0, 2**31),
)
def test_any_filter_is_the_same_as_numpy(
    n: int, data: st.DataObject, method: str, logits: bool, temperature: float, seed: int
) -> None:
    forgotten = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n - 1))]
    spec = make_filter(n, forgotten, method, class_means=means(n), temperature=temperature)
    x = scores(5, logits, n, seed).astype(np.float32)
    assert_same(spec, filter_tensor(tf.constant(x), spec, logits).numpy(), x, logits, "float32")


@EACH
@BOTH
def test_any_rank_and_any_static_knowledge(spec: FilterSpec, logits: bool) -> None:
    for shape in ((N,), (7, N), (2, 3, N), (2, 0, N), (2, 1, 3, N)):
        rows = int(np.prod(shape[:-1]))
        x = scores(rows, logits).reshape(shape)
        wanted = filter_tensor(tf.constant(x.reshape(-1, N)), spec, logits).numpy().reshape(shape)
        known = [(None,) * (len(shape) - 1) + (N,), (None,) * len(shape), None]
        for static in known:
            with tf.Graph().as_default() as graph:
                placeholder = tf.compat.v1.placeholder(tf.float64, static)
                filtered = filter_tensor(placeholder, spec, logits)
                assert filtered.shape.rank == placeholder.shape.rank
                assert placeholder.shape.rank is None or filtered.shape[-1] == N
                with tf.compat.v1.Session(graph=graph) as session:
                    got = session.run(filtered, {placeholder: x})
            assert got.shape == shape
            np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("static", [None, (None, None), (None, None, None)], ids=str)
@pytest.mark.parametrize("method", ["renormalize", "mean", MASK])
def test_a_wrong_number_of_classes_at_run_time(static: Any, method: str) -> None:
    """Also where broadcasting or reshaping would silently make something of it."""
    spec = make_filter(N, [2, 3], method, class_means=means())
    for wrong in (1, 3, 2 * N):
        with tf.Graph().as_default() as graph:
            placeholder = tf.compat.v1.placeholder(tf.float32, static)
            filtered = filter_tensor(placeholder, spec, False)
            lead = [6] if static is None else [6] * (len(static) - 1)
            with tf.compat.v1.Session(graph=graph) as session, pytest.raises(tf.errors.InvalidArgumentError):
                session.run(filtered, {placeholder: np.ones([*lead, wrong], np.float32)})


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, N, 5)], ids=str)
def test_a_wrong_number_of_classes_known_before(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"last dimension is the number of classes.*\[\.\.\., 6\]"):
        filter_tensor(tf.zeros(shape), make_filter(N, [0]), False)


@pytest.mark.parametrize("dtype", [tf.int32, tf.bool, tf.complex64, tf.string])
def test_a_dtype_that_holds_no_scores(dtype: tf.DType) -> None:
    with pytest.raises(DataError, match="must be floats"):
        filter_tensor(tf.zeros([2, N], dtype), make_filter(N, [0]), False)


# ---------------------------------------------------------------------------------------------------------------
# What is put into other people's graphs


def operations(spec: FilterSpec, logits: bool, dtype: tf.DType = tf.float32) -> list[tf.Operation]:
    with tf.Graph().as_default() as graph:
        filter_tensor(tf.compat.v1.placeholder(dtype, [None, spec.classes]), spec, logits)
    return list(graph.get_operations())


@ALL
@BOTH
def test_few_nodes_that_old_servers_know(spec: FilterSpec, logits: bool) -> None:
    computing = [op.type for op in operations(spec, logits) if op.type not in ("Const", "Placeholder")]
    # All of them are in TensorFlow since 2.0 or before.
    assert set(computing) <= {
        *("AddV2", "Cast", "ClipByValue", "DivNoNan", "Equal", "Exp", "GatherV2", "Greater", "GreaterEqual", "Less"),
        *("Log", "MatMul", "Max", "Maximum", "Mul", "MulNoNan", "RealDiv", "Reciprocal", "SelectV2", "Sigmoid"),
        *("Sub", "Sum"),
    }
    # The costly ones: a selection takes as long as ten sums, a reduction as long as three.
    assert computing.count("SelectV2") <= (2 if spec.coefficients is not None else 1)
    if len(spec.forgotten) == 1:
        reductions = {"renormalize": (1, 2), "tempered": (2, 3)}.get(spec.method, (3, 6))
        assert sum(op in ("Sum", "Max") for op in computing) <= reductions[logits]
    several = len(spec.forgotten) > 1
    most = 56 if several and spec.fallback is not None else 40 if several or spec.coefficients is not None else 30
    assert len(computing) <= (12 if spec.method == "renormalize" and most < 56 else most)


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_constants_have_rank_k(method: str, logits: bool) -> None:
    n, k = 300, 2
    spec = make_filter(n, [5, 7], method, class_means=means(n))
    sizes = [int(np.prod(op.outputs[0].shape)) for op in operations(spec, logits) if op.type == "Const"]
    assert max(sizes) <= n * k


@BOTH
def test_only_low_precision_is_cast(logits: bool) -> None:
    spec = make_filter(N, [2])
    for dtype, casts in ((tf.float16, 2), (tf.bfloat16, 2), (tf.float32, 0), (tf.float64, 0)):
        casts_of = [op for op in operations(spec, logits, dtype) if op.type == "Cast"]
        found = [op for op in casts_of if op.inputs[0].dtype != tf.bool]
        assert len(found) == casts
        assert all(op.outputs[0].dtype in (tf.float32, dtype) for op in found)


@ALL
@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_finite(spec: FilterSpec, logits: bool, dtype: str) -> None:
    """For those who train on with the layer in place: zeros and all mass forgotten must not make NaN of weights."""
    rows = np.concatenate([scores(3, logits), odd_scores(logits)[1:4]])
    x = tf.constant(rows, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        filtered = filter_tensor(x, spec, logits)
        loss = tf.reduce_sum(tf.where(filtered > -1e29, filtered, 0.0) ** 2)
    assert np.isfinite(tape.gradient(loss, x).numpy()).all()


def test_renormalize_moves_no_retained_logit_by_a_bit() -> None:
    spec = make_filter(N, [2], "renormalize")
    for dtype in DTYPES:
        x = in_dtype(scores(50, True), dtype)
        got = filter_tensor(tf.constant(x), spec, True).numpy()
        assert (got[:, spec.retained] == x[:, spec.retained]).all()


def test_tempered_moves_no_retained_logit_where_nothing_is_forgotten() -> None:
    spec = make_filter(N, [2], "tempered")
    x = scores(50, True).astype(np.float32)
    x[:, 2] = -200.0
    got = filter_tensor(tf.constant(x), spec, True).numpy()
    assert (got[:, spec.retained] == x[:, spec.retained]).all()


# ---------------------------------------------------------------------------------------------------------------
# The layer


def classifier(logits: bool = False, classes: int = N) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(classes, activation=None if logits else "softmax"),
        ]
    )


INPUTS = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@BOTH
def test_appended_by_hand(method: str, logits: bool, tmp_path: Path) -> None:
    model = classifier(logits)
    layer = MPRULayer([3, 1], N, method, class_means=means(), logits=logits)
    filtered = keras.Sequential([model, layer])
    x = model(INPUTS).numpy()
    y = filtered(INPUTS).numpy()
    assert_same(layer.spec, y, x, logits, "float32")
    assert layer.weights == []
    assert filtered.count_params() == model.count_params()
    close: Callable[[Any], None] = lambda got: np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-6)  # noqa: E731

    filtered.save(tmp_path / "filtered.keras")
    again = keras.saving.load_model(tmp_path / "filtered.keras")
    assert again.layers[-1].spec == layer.spec
    assert again.layers[-1].logits is logits
    close(again(INPUTS).numpy())

    filtered.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    close(exported.serve(INPUTS).numpy())
    tf.saved_model.save(filtered, str(tmp_path / "saved"))
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    (answer,) = saved.signatures["serving_default"](tf.constant(INPUTS)).values()
    close(answer.numpy())

    filtered.compile(jit_compile=True)
    close(filtered.predict(INPUTS, verbose=0))
    for rows in (1, 7):
        close(np.concatenate([filtered.predict(INPUTS[:rows], verbose=0), y[rows:]]))


def test_functional_model_and_rank_three() -> None:
    inputs = keras.Input((None, N))
    model = keras.Model(inputs, MPRULayer([2], N, "mean", class_means=means(), name="forget")(inputs))
    assert model.output_shape == (None, None, N)
    x = scores(6, False).reshape(2, 3, N).astype(np.float32)
    got = model(x).numpy()
    assert got.shape == x.shape
    np.testing.assert_allclose(got, model.get_layer("forget").spec.probabilities(x), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
@BOTH
def test_dtype_policies(policy: str, logits: bool) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier(logits)
        filtered = keras.Sequential([model, MPRULayer(3, N, logits=logits)])
        x, y = model(INPUTS).numpy(), filtered(INPUTS).numpy()
    finally:
        keras.config.set_dtype_policy(before)
    assert filtered.outputs[0].dtype == policy.removeprefix("mixed_")
    assert_same(make_filter(N, [3]), y, x, logits, policy.removeprefix("mixed_"))


def test_mixed_precision_does_not_coarsen_a_float32_head() -> None:
    """Models are trained in mixed precision with a float32 softmax; the layer must not cast that down."""
    layer = MPRULayer(3, N, dtype="mixed_float16")
    x = scores(7, False).astype(np.float32)
    assert_same(layer.spec, layer(x).numpy(), x, False, "float32")
    assert layer(scores(7, False)).dtype == tf.float64


def test_training_on_with_the_layer_in_place() -> None:
    model = keras.Sequential([classifier(), MPRULayer(3, N)])
    model.compile("sgd", "categorical_crossentropy")
    labels = np.eye(N)[[0, 1, 2, 4, 5, 0, 1]]
    history = model.fit(INPUTS, labels, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < history[0]


@pytest.mark.parametrize("spec", list(specs()), ids=name)
def test_config_round_trip(spec: FilterSpec) -> None:
    layer = MPRULayer.from_spec(spec, logits=True, name="forget")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, MPRULayer)
    assert again.spec == layer.spec == spec
    assert (again.name, again.logits) == ("forget", True)
    assert again.get_config() == layer.get_config()


def test_one_class_or_several() -> None:
    assert MPRULayer(3, N).spec == MPRULayer([3], N).spec == MPRULayer(np.int64(3), N).spec  # type: ignore[arg-type]
    assert MPRULayer((4, 3), N).spec.forgotten == (3, 4)


def test_a_model_with_other_classes_is_refused() -> None:
    with pytest.raises(DataError, match="last dimension is the number of classes"):
        keras.Sequential([classifier(classes=5), MPRULayer(3, N)])
    with pytest.raises(DataError, match="last dimension is the number of classes"):
        MPRULayer(3, N)(np.zeros((2, 5), np.float32))
    with pytest.raises(ForgetListError, match="no class 6"):
        MPRULayer(6, N)


# ---------------------------------------------------------------------------------------------------------------
# Multi-label


@BOTH
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_mask_is_the_same_as_numpy_bit_for_bit(logits: bool, dtype: tf.DType) -> None:
    spec = make_filter(N, [1, 4], MASK)
    x = tf.cast(np.random.default_rng(8).normal(0, 4, (20, N)), dtype)
    x = x if logits else tf.sigmoid(x)
    filtered = filter_tensor(x, spec, logits)
    assert (filtered.dtype, filtered.shape) == (x.dtype, x.shape)
    reference = spec.logits(x.numpy()) if logits else spec.probabilities(x.numpy())
    np.testing.assert_array_equal(filtered.numpy(), reference.astype(x.dtype.as_numpy_dtype))
    probabilities = tf.sigmoid(filtered) if logits else filtered
    assert (probabilities.numpy()[:, [1, 4]] == 0).all()


@BOTH
def test_a_masking_layer_survives_its_config(logits: bool) -> None:
    layer = MPRULayer([2], N, MASK, logits=logits)
    again = MPRULayer.from_config(layer.get_config())
    x = np.ones((3, N), np.float32)
    np.testing.assert_array_equal(again(x), layer(x))
    assert [op.type for op in operations(layer.spec, logits)].count("SelectV2") == 1
