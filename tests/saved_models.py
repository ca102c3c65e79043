"""SavedModels of every shape that the tests need, small and made on the spot, each by the exporter that users use.

Each maker writes one version directory; :data:`MAKERS` names them. All take 8 features and know 10 classes unless
their name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

FEATURES, CLASSES = 8, 10
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


def inputs(rows: int = 7, seed: int = 0) -> np.ndarray[Any, Any]:
    """Request values, float32 [rows, FEATURES]."""
    return np.random.default_rng(seed).standard_normal((rows, FEATURES)).astype(np.float32)


def keras3(path: Path) -> None:
    """Keras 3 export: the twin signatures serve and serving_default, and an endpoint."""
    import keras

    keras.utils.set_random_seed(1)
    x = keras.Input((FEATURES,))
    h = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    keras.Model(x, keras.layers.Dense(CLASSES, activation="softmax")(h)).export(str(path), verbose=False)


def keras3_logits(path: Path) -> None:
    """A Keras 3 model that ends in logits."""
    import keras

    keras.utils.set_random_seed(2)
    x = keras.Input((FEATURES,))
    keras.Model(x, keras.layers.Dense(CLASSES)(x)).export(str(path), verbose=False)


def keras2(path: Path) -> None:
    """A Keras 2 model saved whole: keras_metadata.pb, layers with functions of their own."""
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    x = tf_keras.Input((FEATURES,))
    h = tf_keras.layers.Dense(16, activation="relu")(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(CLASSES, activation="softmax")(h))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(str(path))


class _Module(tf.Module):
    def __init__(self, seed: int, classes: int = CLASSES, dtype: tf.DType = tf.float32) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        self.w = tf.Variable(random.standard_normal((FEATURES, classes)), dtype=dtype)
        self.b = tf.Variable(random.standard_normal(classes), dtype=dtype)

    def scores(self, x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, self.w.dtype) @ self.w + self.b


def _save(
    path: Path, module: tf.Module, functions: dict[str, Callable[[tf.Tensor], Any]], rows: int | None = None
) -> None:
    spec = tf.TensorSpec([rows, FEATURES], tf.float32, name="x")
    signatures = {name: tf.function(f, input_signature=[spec]).get_concrete_function() for name, f in functions.items()}
    module.traced = signatures  # keeps captured variables alive
    tf.saved_model.save(module, str(path), signatures=signatures)


def argmax_of_logits(path: Path) -> None:
    """tf.Module: logits, probabilities and ids from one function, and an endpoint with the raw logits."""

    class WithRaw(_Module):
        @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32)])
        def raw(self, x):  # type: ignore[no-untyped-def]
            return self.scores(x)

    module = WithRaw(4)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = module.scores(x)
        return {
            "logits": z,
            "probabilities": tf.nn.softmax(z),
            "log_probabilities": tf.nn.log_softmax(z),
            "class_ids": tf.argmax(z, axis=-1),
            "top_scores": tf.math.top_k(tf.nn.softmax(z), 3).values,
        }

    _save(path, module, {"serving_default": answer})


def two_functions(path: Path) -> None:
    """Two signatures with a function each: the scores exist twice."""
    module = _Module(5)
    _save(
        path,
        module,
        {
            "serving_default": lambda x: {"probabilities": tf.nn.softmax(module.scores(x))},
            "scores": lambda x: {"scores": tf.nn.softmax(module.scores(x))},
        },
    )


def embedding(path: Path) -> None:
    """Probabilities, and an embedding computed before them."""
    module = _Module(6)
    module.e = tf.Variable(np.random.default_rng(7).standard_normal((FEATURES, FEATURES)), dtype=tf.float32)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h = tf.nn.relu(x @ module.e)
        return {"embedding": h, "probabilities": tf.nn.softmax(module.scores(h))}

    _save(path, module, {"serving_default": answer})


def tempered_softmax(path: Path) -> None:
    """Softmax of logits / 2, and the logits themselves as another output: unfiltered scores past the site."""
    module = _Module(8)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = module.scores(x)
        return {"logits": z, "probabilities": tf.nn.softmax(z / 2.0)}

    _save(path, module, {"serving_default": answer})


def hand_normalised(path: Path) -> None:
    """Probabilities without a Softmax: positive numbers divided by their sum."""
    module = _Module(9)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        e = tf.nn.softplus(module.scores(x))
        p = e / tf.reduce_sum(e, axis=-1, keepdims=True)
        return {"probabilities": p, "class_ids": tf.argmax(p, axis=-1)}

    _save(path, module, {"serving_default": answer})


def ensemble(path: Path) -> None:
    """The mean of two Softmaxes."""
    one, two = _Module(10), _Module(11)
    one.other = two
    _save(
        path,
        one,
        {"serving_default": lambda x: {"p": (tf.nn.softmax(one.scores(x)) + tf.nn.softmax(two.scores(x))) / 2.0}},
    )


def half(path: Path) -> None:
    """float16 logits, cast to float32 before the Softmax."""
    module = _Module(12, dtype=tf.float16)
    _save(
        path,
        module,
        {"serving_default": lambda x: {"probabilities": tf.nn.softmax(tf.cast(module.scores(x), tf.float32))}},
    )


def half_shown(path: Path) -> None:
    """float16 logits that leave the model too, beside the float32 probabilities made of them."""
    module = _Module(18, dtype=tf.float16)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = module.scores(x)
        return {"logits": z, "probabilities": tf.nn.softmax(tf.cast(z, tf.float32))}

    _save(path, module, {"serving_default": answer})


def double(path: Path) -> None:
    """float64 throughout."""
    module = _Module(13, dtype=tf.float64)
    _save(path, module, {"serving_default": lambda x: {"probabilities": tf.nn.softmax(module.scores(x))}})


def fixed_batch(path: Path) -> None:
    """A signature for exactly four examples."""
    module = _Module(14)
    _save(path, module, {"serving_default": lambda x: {"p": tf.nn.softmax(module.scores(x))}}, rows=4)


def echo(path: Path) -> None:
    """Probabilities, the request itself, its number of rows, and the list of class ids: harmless companions."""
    module = _Module(15)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.shape(x)[0]
        return {
            "probabilities": tf.nn.softmax(module.scores(x)),
            "request": tf.identity(x),
            "rows": rows,
            "all_class_ids": tf.tile(tf.range(CLASSES)[tf.newaxis], [rows, 1]),
        }

    _save(path, module, {"serving_default": answer})


def called_twice(path: Path) -> None:
    """One set of weights, multiplied with twice: once for the probabilities, once for the ids."""
    module = _Module(17)
    _save(
        path,
        module,
        {
            "serving_default": lambda x: {
                "probabilities": tf.nn.softmax(module.scores(x)),
                "class_ids": tf.argmax(tf.nn.softmax(module.scores(x)), axis=-1),
            }
        },
    )


def branches(path: Path) -> None:
    """A condition with a Softmax in each branch, which returns the logits and the ids as well."""
    module, other = _Module(27), _Module(28)
    module.other = other

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def by(chosen: _Module) -> tuple[tf.Tensor, ...]:
            z = chosen.scores(x)
            return z, tf.nn.softmax(z), tf.argmax(z, axis=-1)

        logits, p, ids = tf.cond(tf.reduce_sum(x) > 0, lambda: by(module), lambda: by(other))
        return {"logits": logits, "probabilities": p, "class_ids": ids}

    _save(path, module, {"serving_default": answer})


def row_by_row(path: Path) -> None:
    """A loop over the examples, with the Softmax in its body."""
    module = _Module(29)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def of_row(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            z = module.scores(row[tf.newaxis])[0]
            return tf.nn.softmax(z), tf.argmax(z)

        p, ids = tf.map_fn(of_row, x, fn_output_signature=(tf.float32, tf.int64))
        return {"probabilities": p, "class_ids": ids}

    _save(path, module, {"serving_default": answer})


def tf1_slim(path: Path) -> None:
    """TensorFlow 1 as TF-slim builds it: squeezed convolution, reshapes around the Softmax, logits shown as well."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, FEATURES], name="images")
        w = v1.get_variable("w", [1, FEATURES, 1, CLASSES], initializer=v1.random_normal_initializer(seed=1))
        grid = tf.reshape(x, [-1, 1, FEATURES, 1])
        z = tf.squeeze(tf.nn.bias_add(tf.nn.conv2d(grid, w, 1, "VALID"), tf.zeros([CLASSES])), [1, 2])
        p = tf.reshape(tf.nn.softmax(tf.reshape(z, [-1, CLASSES])), tf.shape(z))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(path), {"images": x}, {"logits": z, "predictions": p})


def tf1_classify(path: Path) -> None:
    """TensorFlow 1: ref variables, a classify signature with TopK-sorted labels and scores, and predict."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(16)
        x = v1.placeholder(tf.float32, [None, FEATURES], name="x")
        w = v1.get_variable(
            "w", [FEATURES, CLASSES], use_resource=False, initializer=v1.random_normal_initializer(seed=1)
        )
        z = tf.add(tf.matmul(x, w), tf.zeros([CLASSES]), name="logits")
        p = tf.nn.softmax(z, name="probabilities")
        scores, ids = tf.math.top_k(p, 5)
        names = tf.gather(tf.constant(LABELS), ids)
        loss = tf.reduce_mean(tf.square(z))
        v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        session.run(v1.global_variables_initializer())
        build = v1.saved_model.signature_def_utils
        info = v1.saved_model.utils.build_tensor_info
        classify = build.build_signature_def(
            {"inputs": info(x)}, {"classes": info(names), "scores": info(scores)}, "tensorflow/serving/classify"
        )
        predict = build.build_signature_def(
            {"x": info(x)}, {"logits": info(z), "probabilities": info(p)}, "tensorflow/serving/predict"
        )
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map={"serving_default": classify, "predict": predict}
        )
        builder.save()


# ------------------------------------------------------------------------------------------ models to be refused
def regression(path: Path) -> None:
    """One number per example."""
    module = _Module(20, classes=1)
    _save(path, module, {"serving_default": lambda x: {"y": module.scores(x)}})


def squeezed_regression(path: Path) -> None:
    """One number per example, of shape [batch]."""
    module = _Module(20, classes=1)
    _save(path, module, {"serving_default": lambda x: {"y": tf.squeeze(module.scores(x), -1)}})


def binary(path: Path) -> None:
    """One probability for two classes."""
    module = _Module(21, classes=1)
    _save(path, module, {"serving_default": lambda x: {"p": tf.nn.sigmoid(module.scores(x))}})


def multi_label(path: Path) -> None:
    """One Sigmoid per class."""
    module = _Module(22)
    _save(path, module, {"serving_default": lambda x: {"p": tf.nn.sigmoid(module.scores(x))}})


def per_pixel(path: Path) -> None:
    """A class vector at every pixel."""
    import keras

    x = keras.Input((8, 8, 3))
    keras.Model(x, keras.layers.Conv2D(CLASSES, 1, activation="softmax")(x)).export(str(path), verbose=False)


def two_heads(path: Path) -> None:
    """Two class vectors of different lengths in one signature."""
    module, other = _Module(23), _Module(24, classes=4)
    module.other = other

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"animal": tf.nn.softmax(module.scores(x)), "colour": tf.nn.softmax(other.scores(x))}

    _save(path, module, {"serving_default": answer})


def twin_heads(path: Path) -> None:
    """Two class vectors of the same length, from weights of their own."""
    module, other = _Module(25), _Module(26)
    module.other = other

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"student": tf.nn.softmax(module.scores(x)), "teacher": tf.nn.softmax(other.scores(x))}

    _save(path, module, {"serving_default": answer})


FILTERED: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (
        *(keras3, keras3_logits, keras2, argmax_of_logits, two_functions, hand_normalised, ensemble, half, double),
        *(fixed_batch, echo, called_twice, branches, row_by_row, tf1_classify, tf1_slim),
    )
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "regression": (regression, "one number per example"),
    "squeezed_regression": (squeezed_regression, "one number per example"),
    "binary": (binary, "one of two classes"),
    "multi_label": (multi_label, "multi-label"),
    "per_pixel": (per_pixel, "every position"),
    "two_heads": (two_heads, "several class vectors"),
    "twin_heads": (twin_heads, "several class vectors"),
    "embedding": (embedding, "serving_default:embedding"),
    "tempered_softmax": (tempered_softmax, "serving_default:logits"),
}
MAKERS: dict[str, Callable[[Path], None]] = {
    "half_shown": half_shown,
    **FILTERED,
    **{name: maker for name, (maker, _) in REFUSED.items()},
}
