"""Every door of a new version is filtered, or does not open: no loader gets a forgotten class out of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore

import mpru_tf

X = saved_models.inputs(rows=4)
FORGOTTEN = [3, 6]


@pytest.fixture(scope="module", params=[*saved_models.FILTERED, "embedding", "two_heads"])
def version(request: pytest.FixtureRequest, models: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new version of each kind of model, classes 3 and 6 forgotten."""
    name = request.param
    base = models.base(name, tmp_path_factory.mktemp("doors"))
    options: dict[str, Any] = {
        "embedding": {"allow_outputs": ["serving_default:embedding"]},
        "two_heads": {"outputs": ["serving_default:animal"], "allow_outputs": ["serving_default:colour"]},
    }.get(name, {})
    return mpru_tf.forget(base, FORGOTTEN, **options).path


def class_vectors(value: Any) -> list[np.ndarray[Any, Any]]:
    """Every class vector in what a door answers, as probabilities (logits are told by their sum)."""
    tensors = [np.asarray(leaf) for leaf in tf.nest.flatten(value)]
    vectors = []
    for tensor in tensors:
        if tensor.ndim != 2 or tensor.shape[-1] != saved_models.CLASSES or tensor.dtype.kind != "f":
            continue
        x = tensor.astype(np.float64)
        if np.any(x < 0) or not np.allclose(x.sum(-1), 1, atol=1e-2):
            x = np.exp(x - x.max(-1, keepdims=True))
            x /= x.sum(-1, keepdims=True)
        vectors.append(x)
    return vectors


def assert_forgets(value: Any) -> int:
    vectors = class_vectors(value)
    for vector in vectors:
        assert np.all(vector[:, FORGOTTEN] == 0.0)
    return len(vectors)


def test_python_loader_signatures(version: Path) -> None:
    loaded = tf.saved_model.load(str(version))
    assert loaded.signatures
    seen = 0
    for signature in loaded.signatures.values():
        (key,) = signature.structured_input_signature[1]
        seen += assert_forgets(signature(**{key: tf.constant(X)}))
    assert seen or "classify" in str(version)


def test_python_loader_endpoints(version: Path) -> None:
    """Whatever can be called anywhere in the loaded object answers no forgotten class."""
    loaded = tf.saved_model.load(str(version))
    queue, seen, opened = [loaded], set(), 0
    while queue:
        thing = queue.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if callable(thing) and not isinstance(thing, type):
            for argument in (tf.constant(X), tf.random.stateless_normal([4, 16], [1, 2])):
                try:
                    answer = thing(argument)
                except (TypeError, ValueError, tf.errors.OpError):
                    continue
                opened += assert_forgets(answer)
        if isinstance(thing, tf.Module | tf.__internal__.tracking.AutoTrackable):
            queue.extend(value for name, value in vars(thing).items() if not name.startswith("_self_"))
        elif isinstance(thing, list | tuple):
            queue.extend(thing)
    if version.parent.name == "keras3":
        assert opened  # the endpoint `serve` answers, filtered


def test_tfsm_layer(version: Path) -> None:
    import keras

    layer = keras.layers.TFSMLayer(str(version), call_endpoint="serving_default")
    assert assert_forgets(layer(tf.constant(X))) or version.parent.name == "tf1_classify"


def test_keras_2_load_model(version: Path) -> None:
    import tf_keras

    try:
        model = tf_keras.models.load_model(str(version))
    except (OSError, ValueError, IndexError, KeyError, AttributeError):
        return
    assert not hasattr(model, "predict")
    if callable(model):
        try:
            answer = model(tf.constant(X))
        except (TypeError, ValueError):
            return
        assert_forgets(answer)


def test_saved_model_cli(version: Path, tmp_path: Path) -> None:
    if version.parent.name not in ("keras3", "tf1_classify"):
        pytest.skip("one model of each TensorFlow generation is enough for a door that starts a process of its own")
    signature = "predict" if version.parent.name == "tf1_classify" else "serving_default"
    key = next(iter(tf.saved_model.load(str(version)).signatures[signature].structured_input_signature[1]))
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--dir", str(version)]
    command += ["--tag_set", "serve", "--signature_def", signature, "--inputs", f"{key}={tmp_path / 'x.npy'}"]
    command += ["--outdir", str(tmp_path), "--overwrite"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.glob("*.npy") if path.name != "x.npy"]
    assert sum(assert_forgets(np.load(path)) for path in written)


def test_the_gate_is_what_keeps_the_raw_endpoint_shut(models: ModelStore, tmp_path: Path) -> None:
    """The original offers `raw`, a function with its own logits; the new version does not."""
    base = models.base("argmax_of_logits", tmp_path)
    original = tf.saved_model.load(str(base / "1"))
    assert np.any(class_vectors(original.raw(tf.constant(X)))[0][:, FORGOTTEN] > 0)
    result = mpru_tf.forget(base, FORGOTTEN)
    assert "root.raw" in result.dropped_endpoints
    assert not hasattr(tf.saved_model.load(str(result.path)), "raw")


def test_without_pruning_keras_2_would_rebuild_the_unfiltered_model(models: ModelStore, tmp_path: Path) -> None:
    """What the pruning is for: the Keras metadata of the original brings the forgotten classes back."""
    import tf_keras

    base = models.base("keras2", tmp_path)
    original = tf_keras.models.load_model(str(base / "1"))
    assert np.any(class_vectors(original(X))[0][:, FORGOTTEN] > 0)
    result = mpru_tf.forget(base, FORGOTTEN)
    kept = (base / "1" / "keras_metadata.pb").read_bytes()
    (result.path / "keras_metadata.pb").write_bytes(kept)  # even if somebody puts it back
    try:
        model = tf_keras.models.load_model(str(result.path))
        answer = model(X)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return
    assert_forgets(answer)


def test_no_unfiltered_function_stays_in_the_file(models: ModelStore, tmp_path: Path) -> None:
    from mpru_tf.saved_model import bundle as bundles

    base = models.base("argmax_of_logits", tmp_path)
    result = mpru_tf.forget(base, FORGOTTEN)

    def names(path: Path) -> set[str]:
        (meta_graph,) = bundles.read(path).proto.meta_graphs
        return {re.sub(r"\d+$", "", function.signature.name) for function in meta_graph.graph_def.library.function}

    assert "__inference_raw_" in names(base / "1")
    assert "__inference_raw_" not in names(result.path)
