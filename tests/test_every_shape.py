"""Every shape of classifier that people serve, forgotten in and asked: exact zeros, and the reference's answers.

Found by reading alone: tests/saved_model/test_sites.py. Here models are exported, re-exported, loaded in a Session and
asked before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mpru_tf
from mpru_tf.errors import UnsupportedModelError, VerificationError
from mpru_tf.filters import FilterSpec, make_filter
from mpru_tf.saved_model.session import LoadedModel

FEATURES, CLASSES, FORGOTTEN = 8, 5, 1
RANDOM = np.random.default_rng(0)
W, V = (RANDOM.standard_normal((FEATURES, CLASSES)).astype(np.float32) for _ in range(2))
B = RANDOM.standard_normal(CLASSES).astype(np.float32)

Answer = Callable[["Weights", tf.Tensor], Mapping[str, tf.Tensor]]
ROWS = tf.TensorSpec([None, FEATURES], tf.float32, name="x")
ONE_ROW = tf.TensorSpec([FEATURES], tf.float32, name="x")
ANYTHING = tf.TensorSpec(None, tf.float32, name="x")


class Weights(tf.Module):
    """What a model of a case computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.b = tf.Variable(W), tf.Variable(V), tf.Variable(B)

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        return x @ self.w + self.b


def save(path: Path, functions: Mapping[str, Answer], spec: tf.TensorSpec = ROWS) -> None:
    module = Weights()

    def traced(answer: Answer) -> Any:
        function = tf.function(lambda x: answer(module, x), input_signature=[spec], autograph=False)
        return function.get_concrete_function()

    module.traced = {name: traced(answer) for name, answer in functions.items()}
    tf.saved_model.save(module, str(path), signatures=module.traced)


def either(x: tf.Tensor, one: Callable[[], Any], other: Callable[[], Any]) -> Any:
    return tf.cond(tf.reduce_sum(x) > 0, one, other)


def branches(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    def answer(w: tf.Variable) -> tuple[tf.Tensor, ...]:
        z = x @ w
        return z, tf.nn.softmax(z), tf.argmax(z, -1)

    return dict(zip(("logits", "p", "ids"), either(x, lambda: answer(m.w), lambda: answer(m.v)), strict=True))


def averaged(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    def turn(i: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, p + tf.nn.softmax(m.logits(x) * tf.cast(i + 1, tf.float32))

    return {"p": tf.while_loop(lambda i, p: i < 4, turn, (0, tf.zeros([tf.shape(x)[0], CLASSES])))[1] / 4.0}


def refined(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    def turn(i: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, tf.nn.softmax(p + m.logits(x))

    return {"p": tf.while_loop(lambda i, p: i < 3, turn, (0, tf.nn.softmax(m.logits(x))))[1]}


def row_by_row(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    def answer(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        z = m.logits(row[None])[0]
        return tf.nn.softmax(z), tf.argmax(m.logits(row[None])[0])

    p, ids = tf.map_fn(answer, x, fn_output_signature=(tf.float32, tf.int64))
    return {"p": p, "ids": ids}


def temperature_outside(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"p": tf.nn.softmax(m.logits(x) / 2.0), "ids": tf.argmax(m.logits(x) / 2.0, -1)}


@tf.nondifferentiable_batch_function(num_batch_threads=1, max_batch_size=10, batch_timeout_micros=100)
def batched(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax(x @ tf.constant(W))


def open_width(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = m.logits(x)
    return {"p": tf.nn.softmax(tf.reshape(z, [tf.shape(x)[0], tf.size(z) // tf.shape(x)[0]]))}


def by_hand(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = m.logits(x)
    e = tf.exp(z - tf.reduce_max(z, -1, keepdims=True))
    return {"p": e / tf.reduce_sum(e, -1, keepdims=True), "logits": z, "ids": tf.argmax(z, -1)}


def tagged(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = m.logits(x)
    return {"p": tf.sigmoid(z), "logits": z, "any": tf.cast(tf.sigmoid(z) > 0.5, tf.int32)}


def hand_made(m: Weights, x: tf.Tensor) -> dict[str, tf.Tensor]:
    q = tf.nn.relu(m.logits(x)) + 1e-3
    return {"p": tf.math.xdivy(q, tf.reduce_sum(q, -1, keepdims=True))}


# The functions behind the signatures, what the request looks like, and what the owner has to say.
CASES: dict[str, tuple[dict[str, Answer], tf.TensorSpec, dict[str, Any]]] = {
    "branches": ({"serving_default": branches}, ROWS, {}),
    "cases": (
        {
            "serving_default": lambda m, x: {
                "p": tf.switch_case(
                    tf.cast(tf.reduce_sum(x) > 0, tf.int32),
                    [lambda: tf.nn.softmax(x @ m.w), lambda: tf.nn.softmax(x @ m.v)],
                )
            }
        },
        *(ROWS, {}),
    ),
    "a_constant_in_one_branch": (
        {
            "serving_default": lambda m, x: {
                "p": either(
                    x, lambda: tf.nn.softmax(m.logits(x)), lambda: tf.fill([tf.shape(x)[0], CLASSES], 1 / CLASSES)
                )
            }
        },
        *(ROWS, {}),
    ),
    "logits_of_branches": (
        {"serving_default": lambda m, x: {"logits": either(x, lambda: x @ m.w, lambda: x @ m.v)}},
        *(ROWS, {}),
    ),
    "averaged": ({"serving_default": averaged}, ROWS, {}),
    "refined": ({"serving_default": refined}, ROWS, {}),
    "row_by_row": ({"serving_default": row_by_row}, ROWS, {}),
    "called_again": ({"serving_default": temperature_outside}, ROWS, {}),
    "batched": ({"serving_default": lambda m, x: {"p": batched(x)}}, ROWS, {}),
    "one_row": (
        {"serving_default": lambda m, x: {"p": tf.nn.softmax(tf.linalg.matvec(m.w, x, transpose_a=True))}},
        *(ONE_ROW, {}),
    ),
    "one_row_squeezed": (
        {"serving_default": lambda m, x: {"p": tf.squeeze(tf.nn.softmax(x[None] @ m.w), 0)}},
        *(ONE_ROW, {}),
    ),
    "one_row_logits": ({"serving_default": lambda m, x: {"logits": tf.squeeze(x[None] @ m.w, 0)}}, ONE_ROW, {}),
    "one_row_means": (
        {"serving_default": lambda m, x: {"p": tf.nn.softmax(tf.linalg.matvec(m.w, x, transpose_a=True))}},
        *(ONE_ROW, {"method": "gram_schmidt"}),
    ),
    "unknown_rank": (
        {"serving_default": lambda m, x: {"p": tf.nn.softmax(tf.tensordot(x, m.w, [[-1], [0]]) + m.b)}},
        *(ANYTHING, {}),
    ),
    "one_position": ({"serving_default": lambda m, x: {"p": tf.nn.softmax((x @ m.w)[:, None, :])}}, ROWS, {}),
    "renumbered": (
        {"serving_default": lambda m, x: {"p": tf.gather(tf.nn.softmax(m.logits(x)), [1, 0, 4, 3, 2], axis=-1)}},
        *(ROWS, {}),
    ),
    "with_a_floor": (
        {"serving_default": lambda m, x: {"p": tf.clip_by_value(tf.nn.softmax(m.logits(x)), 1e-3, 1.0)}},
        *(ROWS, {}),
    ),
    "by_hand": ({"serving_default": by_hand}, ROWS, {}),
    "also_by_sigmoid": (
        {"serving_default": lambda m, x: {"p": tf.nn.softmax(m.logits(x)), "any": tf.sigmoid(m.logits(x))}},
        *(ROWS, {}),
    ),
    "odd_keys": (
        {
            "a:b/c": lambda m, x: {"p:0": tf.nn.softmax(m.logits(x)), "ids/best": tf.argmax(m.logits(x), -1)},
            "a": lambda m, x: {"b/c:p:0": tf.nn.softmax(m.logits(x))},
        },
        *(ROWS, {}),
    ),
    "open_width": ({"serving_default": open_width}, ROWS, {"num_classes": CLASSES}),
    "tagged": ({"serving_default": tagged}, ROWS, {"multi_label": True}),
    "tagged_by_two": (
        {"serving_default": lambda m, x: {"p": (tf.sigmoid(m.logits(x)) + tf.sigmoid(x @ m.v)) / 2.0}},
        *(ROWS, {"multi_label": True}),
    ),
    "hand_made": ({"serving_default": hand_made}, ROWS, {"scores": "probabilities"}),
}


def tf1(path: Path, answer: Callable[[tf.Tensor, tf.Variable], Mapping[str, tf.Tensor]]) -> None:
    """A graph with TensorFlow 1's control flow: Enter, Exit, Switch and Merge in the main graph."""
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, FEATURES], name="x")
            w = v1.get_variable("w", initializer=W, use_resource=False)
            outputs = answer(x, w)
            session.run(v1.global_variables_initializer())
            info = v1.saved_model.utils.build_tensor_info
            signature = v1.saved_model.signature_def_utils.build_signature_def(
                {"x": info(x)},
                {key: info(value) for key, value in outputs.items()},
                "tensorflow/serving/predict",
            )
            builder = v1.saved_model.builder.SavedModelBuilder(str(path))
            builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={"serving_default": signature})
            builder.save()
    finally:
        v1.enable_control_flow_v2()


def tf1_rows(x: tf.Tensor, w: tf.Variable) -> dict[str, tf.Tensor]:
    def answer(row: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z = tf.matmul(row[None], w)[0]
        return tf.nn.softmax(z), tf.argmax(z), z

    dtypes = (tf.float32, tf.int64, tf.float32)
    return dict(zip(("p", "ids", "logits"), tf.map_fn(answer, x, fn_output_signature=dtypes), strict=True))


TF1: dict[str, Callable[[tf.Tensor, tf.Variable], Mapping[str, tf.Tensor]]] = {
    "tf1_rows": tf1_rows,
    "tf1_branches": lambda x, w: {"p": either(x, lambda: tf.nn.softmax(x @ w), lambda: tf.nn.softmax(-x @ w))},
    "tf1_a_constant_in_one_branch": lambda x, w: {
        "p": either(x, lambda: tf.nn.softmax(x @ w), lambda: tf.constant([[0.2] * CLASSES]))
    },
}


def requests(shape: tuple[int, ...]) -> Iterator[np.ndarray[Any, Any]]:
    """Some of whose sums are positive and some negative, so that conditions go both ways."""
    random = np.random.default_rng(3)
    for sign in (1, -1, 1, -1):
        x = random.standard_normal(shape).astype(np.float32)
        yield x * sign * np.sign(x.sum())


def means() -> mpru_tf.ClassMeans:
    own = 0.9 * np.eye(CLASSES) + 0.1 / CLASSES
    counts, variances = np.full(CLASSES, 100), np.full(CLASSES, 0.01)
    return mpru_tf.ClassMeans(CLASSES, tuple(range(CLASSES)), own, counts, variances, True, "test")


def assert_forgotten(source: Path, result: mpru_tf.ForgetResult, spec: FilterSpec, shape: tuple[int, ...]) -> None:
    asked = 0
    with LoadedModel(source) as original, LoadedModel(result.path) as filtered:
        for name in (name for name, signature in original.signatures.items() if signature.outputs):
            if name.startswith("__saved_model"):
                continue
            for x in requests(shape):
                before, after = original.run(name, {"x": x}), filtered.run(name, {"x": x})
                for key, values in before.items():
                    assert (after[key].dtype, after[key].shape) == (values.dtype, values.shape)
                    if key.startswith("ids"):
                        assert not (after[key] == FORGOTTEN).any()
                    elif key == "any":
                        assert not after[key][..., FORGOTTEN].any()
                    elif key == "logits":
                        kept = list(spec.retained)
                        reference = spec.logits(values)[..., kept]
                        np.testing.assert_allclose(after[key][..., kept], reference, atol=1e-5)
                        assert (after[key][..., FORGOTTEN] == np.float32(-1e30)).all()
                    else:
                        np.testing.assert_allclose(after[key], spec.probabilities(values), atol=1e-5)
                        assert (after[key][..., FORGOTTEN] == 0.0).all()
                    asked += 1
    assert asked >= 4


@pytest.mark.parametrize("case", CASES)
def test_a_class_is_forgotten(tmp_path: Path, case: str) -> None:
    functions, spec, options = CASES[case]
    save(tmp_path / "1", functions, spec)
    shape = tuple(3 if length is None else length for length in spec.shape) if spec.shape.rank else (3, FEATURES)
    class_means = means() if options.get("method") == "gram_schmidt" else None
    result = mpru_tf.forget(tmp_path, [FORGOTTEN], class_means=class_means, **options)
    assert result.load_check["status"] == "passed"
    expected = make_filter(CLASSES, [FORGOTTEN], result.method, class_means=class_means)
    assert_forgotten(tmp_path / "1", result, expected, shape)
    assert mpru_tf.verify(result.path).passed
    # What its owner said is remembered.
    again = mpru_tf.forget(tmp_path, [FORGOTTEN, 3], class_means=class_means)
    assert (again.version, again.forgotten, again.method) == (3, (FORGOTTEN, 3), result.method)
    shown = mpru_tf.inspect(again.path)
    assert (shown.refusal, shown.forgotten) == (None, (FORGOTTEN, 3))


@pytest.mark.parametrize("case", TF1)
def test_a_class_is_forgotten_in_control_flow_of_tensorflow_1(tmp_path: Path, case: str) -> None:
    tf1(tmp_path / "1", TF1[case])
    result = mpru_tf.forget(tmp_path, [FORGOTTEN])
    assert result.load_check["status"] == "passed"
    assert_forgotten(tmp_path / "1", result, make_filter(CLASSES, [FORGOTTEN], result.method), (3, FEATURES))
    assert mpru_tf.verify(result.path).passed


def test_a_wrong_number_of_classes_is_noticed_before_anything_is_published(tmp_path: Path) -> None:
    save(tmp_path / "1", {"serving_default": open_width})
    with pytest.raises((VerificationError, UnsupportedModelError), match=f"{CLASSES}.*{CLASSES + 1}|wide"):
        mpru_tf.forget(tmp_path, [FORGOTTEN], num_classes=CLASSES + 1)
    assert [child.name for child in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("method", "multi_label", "reason"),
    [
        ("mask", False, "--multi-label"),
        ("tempered", True, "each class on its own"),
        ("nonsense", False, "no such method"),
    ],
)
def test_a_method_must_fit_the_model(tmp_path: Path, method: str, multi_label: bool, reason: str) -> None:
    answer: Answer = lambda m, x: {"p": (tf.sigmoid if multi_label else tf.nn.softmax)(m.logits(x))}  # noqa: E731
    save(tmp_path / "1", {"serving_default": answer})
    with pytest.raises(mpru_tf.MPRUError, match=reason):
        mpru_tf.forget(tmp_path, [FORGOTTEN], method=method, multi_label=multi_label)
    assert [child.name for child in tmp_path.iterdir()] == ["1"]
