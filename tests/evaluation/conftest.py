"""A classifier, one that never saw class 2, one of another seed, and examples; an evaluation of forgetting class 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mpru_tf
from mpru_tf.evaluation.evaluate import evaluate
from mpru_tf.labels import write_labels

CLASSES, FEATURES, FORGOTTEN = 5, 3, 2
LABELS = ("ant", "bee", "cat", "dog", "eel")
CENTRES = np.random.default_rng(3).standard_normal((CLASSES, FEATURES)) * 1.5


class Classifier(tf.Module):
    """Softmax regression by the distance to the centres of some classes."""

    def __init__(self, centres: np.ndarray[Any, Any], logits: bool = False) -> None:
        super().__init__()
        self.w = tf.Variable(centres.T, dtype=tf.float32)
        self.b = tf.Variable(-(centres**2).sum(axis=1) / 2, dtype=tf.float32)
        self.logits = logits

    @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32, "x")])
    def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = x @ self.w + self.b
        return {"logits": z} if self.logits else {"probabilities": tf.nn.softmax(z)}

    def save(self, path: Path, labels: tuple[str, ...] | None = None) -> Path:
        tf.saved_model.save(self, str(path), signatures={"serving_default": self.answer})
        if labels is not None:
            write_labels(path, labels)
        return path


def examples(rows: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Examples around the centres: x float32 [rows, FEATURES], y int64 [rows]."""
    random = np.random.default_rng(seed)
    y = np.arange(rows) % CLASSES
    return (CENTRES[y] + random.standard_normal((rows, FEATURES))).astype(np.float32), y


@dataclass(frozen=True)
class World:
    """Where everything lies; nobody may write to it.

    Attributes:
        base: base path with version 1, and version 2, which forgets class 2.
        retrained: a version with four outputs, for the retained classes.
        second: another, with five outputs, of which the third is next to nothing, as logits.
        test, train: examples.
    """

    base: Path
    retrained: Path
    second: Path
    test: Path
    train: Path

    @property
    def original(self) -> Path:
        return self.base / "1"

    @property
    def unlearned(self) -> Path:
        return self.base / "2"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The models and the examples."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(5)
    base = folder / "small"
    Classifier(CENTRES).save(base / "1", LABELS)
    mpru_tf.forget(base, [FORGOTTEN], load_check=False)
    retained = np.delete(CENTRES, FORGOTTEN, axis=0)
    moved = retained + random.standard_normal(retained.shape) * 0.1
    retrained = Classifier(moved).save(folder / "retrained" / "1")
    again = CENTRES + random.standard_normal(CENTRES.shape) * 0.1
    module = Classifier(again, logits=True)
    module.b.assign(np.where(np.arange(CLASSES) == FORGOTTEN, -60.0, module.b.numpy()))
    second = module.save(folder / "second" / "1")
    for name, rows, seed in (("test", 200, 1), ("train", 300, 2)):
        x, y = examples(rows, seed)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return World(base, retrained, second, folder / "test.npz", folder / "train.npz")


@pytest.fixture(scope="session")
def evaluation(world: World) -> dict[str, Any]:
    """An evaluation with everything; nobody may change it."""
    return evaluate(
        world.original,
        world.unlearned,
        world.test,
        retrained=world.retrained,
        second_retrained=world.second,
        train_data=world.train,
    )
