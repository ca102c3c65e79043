"""SavedModels made by others, TensorFlow 1.3 to 2.18: class after class is forgotten, or the model refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mpru_tf
from mpru_tf import make_filter
from mpru_tf.errors import UnsupportedModelError
from mpru_tf.saved_model.session import LoadedModel

Inputs = dict[str, np.ndarray[Any, Any]]
RANDOM = np.random.default_rng(0)

SOURCES = [
    b"def main():\n    import sys\n    print(sys.argv)\n",
    b'#include <stdio.h>\nint main(void) { printf("hello\\n"); return 0; }\n',
    b'fn main() { let x: u32 = 5; println!("{}", x); }\n',
    b"SELECT name, count(*) FROM users GROUP BY name HAVING count(*) > 1;\n",
    b"<html><head><title>x</title></head><body><p>hi</p></body></html>\n",
    b'package main\nimport "fmt"\nfunc main() { fmt.Println(1) }\n',
    b"",
]


def penguins() -> np.ndarray[Any, Any]:
    """Serialized tf.Examples with the four measurements, scaled as the model was trained on them."""
    names = ("culmen_length_mm", "culmen_depth_mm", "flipper_length_mm", "body_mass_g")
    examples = []
    for row in RANDOM.uniform(0, 1, (8, len(names))):
        example = tf.train.Example()
        for name, value in zip(names, row, strict=True):
            example.features.feature[name].float_list.value.append(value)
        examples.append(example.SerializeToString())
    return np.array(examples, object)


# name: number of classes, what the site holds, requests by signature
FILTERED: dict[str, tuple[int, str, Callable[[], dict[str, Inputs]]]] = {
    "chopstick3_tf13": (
        *(3, "logits"),
        lambda: {"serving_default": {"chopstick_length": np.linspace(5, 400, 20, dtype=np.float32)[:, None]}},
    ),
    "mnist_conv_tf1_dotnet": (
        *(10, "logits"),
        lambda: {"serving_default": {"Features": RANDOM.uniform(0, 1, (8, 28, 28, 1)).astype(np.float32)}},
    ),
    "cifar10_tf1_logits_dotnet": (
        *(10, "logits"),
        lambda: {"serving_default": {"Input": RANDOM.uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)}},
    ),
    "guesslang_estimator": (
        *(30, "logits"),
        lambda: {
            "predict": {"content": np.array(SOURCES, object)},
            "classification": {"inputs": np.array(SOURCES, object)},
            "serving_default": {"inputs": np.array(SOURCES, object)},
        },
    ),
    "tfx_penguin_keras_examples": (*(3, "logits"), lambda: {"serving_default": {"examples": penguins()}}),
    "iris_emotion_text": (
        *(6, "logits"),
        lambda: {"serving_default": {"embedding_input": RANDOM.integers(0, 10_000, (8, 50)).astype(np.float32)}},
    ),
}
REFUSED = {
    "tfx_taxi_estimator": "one of two classes",
    "tfdf_adult_rf": "one of two classes",
    "basic_pitch_multi_output": "not one class vector per example",
    "chimp_drumming": "not one class vector per example",
}


def model_of(shared: Path, name: str) -> Path:
    path = shared / "zoo" / name / "1"
    if not path.is_dir():
        pytest.skip(f"zoo/{name} is not in the folder that MPRU_SHARED names")
    return path


def answers(version: Path, asked: dict[str, Inputs]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    with LoadedModel(version) as model:
        return {signature: model.run(signature, inputs) for signature, inputs in asked.items()}


def as_probabilities(values: np.ndarray[Any, Any], holds: str) -> np.ndarray[Any, Any]:
    x = np.asarray(values, np.float64)
    if holds == "probabilities":
        return x
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", FILTERED)
def test_classes_are_forgotten_in_turn(shared: Path, tmp_path: Path, name: str) -> None:
    source = model_of(shared, name)
    classes, kind, made = FILTERED[name]
    asked = made()
    (site,) = mpru_tf.inspect(source).score_sites
    assert (site.classes, site.kind) == (classes, kind)
    before = answers(source, asked)
    assert set(before) == {output.split(":")[0] for output in site.outputs}
    for forgotten in range(0, classes, -(-classes // 10)):  # each class, or ten of them
        method = ("renormalize", "tempered")[forgotten % 2]
        result = mpru_tf.forget(source, [forgotten], method=method, into=tmp_path / str(forgotten), load_check=False)
        spec = make_filter(classes, [forgotten], method)
        after = answers(result.path, asked)
        for output, holds in site.output_kinds.items():
            signature, key = output.split(":")
            raw, filtered = before[signature][key], after[signature][key]
            assert (filtered.dtype, filtered.shape) == (raw.dtype, raw.shape)
            if holds == "derived":
                continue
            assert np.all(np.isfinite(filtered))
            p, q = as_probabilities(raw, holds), as_probabilities(filtered, holds)
            assert np.all(q[:, forgotten] == 0.0)
            np.testing.assert_allclose(q.sum(-1), 1.0, atol=1e-5)
            # Where almost nothing was retained, float32 probabilities do not tell what the logits did.
            settled = 1.0 - p[:, forgotten] > 1e-3
            np.testing.assert_allclose(q[settled], spec.probabilities(p[settled]), atol=1e-5)
        if name == "guesslang_estimator":
            check_estimator(after, forgotten)


def check_estimator(after: dict[str, dict[str, np.ndarray[Any, Any]]], forgotten: int) -> None:
    """Ids and names follow the filtered probabilities; the lists of all ids and names stay whole."""
    predicted = after["predict"]
    top = predicted["probabilities"].argmax(-1)
    assert forgotten not in predicted["class_ids"]
    np.testing.assert_array_equal(predicted["class_ids"][:, 0], top)
    np.testing.assert_array_equal(predicted["classes"][:, 0], predicted["all_classes"][0][top])
    np.testing.assert_array_equal(predicted["all_class_ids"][0], np.arange(30))
    for signature in ("classification", "serving_default"):
        np.testing.assert_allclose(after[signature]["scores"], predicted["probabilities"], atol=1e-6)
        np.testing.assert_array_equal(after[signature]["classes"], predicted["all_classes"])


@pytest.mark.parametrize("name", FILTERED)
def test_what_was_published_verifies(shared: Path, tmp_path: Path, name: str) -> None:
    source = model_of(shared, name)
    result = mpru_tf.forget(source, [0, 1], into=tmp_path)
    assert result.load_check["status"] == "passed"
    verification = mpru_tf.verify(result.path, full=True)
    assert verification.passed
    seen = {check.name: check.passed for check in verification.checks}
    assert seen.items() >= {"digests": True, "leak gate": True, "filter": True, "variables": True, "load": True}.items()
    again = mpru_tf.inspect(result.path)
    assert again.forgotten == (0, 1)
    assert again.score_sites == mpru_tf.inspect(source).score_sites
    loaded = tf.saved_model.load(str(result.path))
    assert set(loaded.signatures) == set(mpru_tf.inspect(source).signatures)


@pytest.mark.parametrize("name", REFUSED)
def test_the_others_are_refused_with_the_reason(shared: Path, tmp_path: Path, name: str) -> None:
    source = model_of(shared, name)
    shown = mpru_tf.inspect(source)
    assert shown.refusal is not None
    assert REFUSED[name] in shown.refusal
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        mpru_tf.forget(source, [0], into=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    assert "tensorflow_decision_forests" not in sys.modules  # read without the ops of the forest
