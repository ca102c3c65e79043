"""A small classifier, real servers of it on loopback, and what operators do to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mpru_tf
from mpru_tf.operations.client import Server
from mpru_tf.serving.server import ModelServer

CLASSES, FEATURES = 4, 3
MODEL = "small"


class Classifier(tf.Module):
    """Softmax regression with fixed weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.w = tf.Variable(np.random.default_rng(seed).standard_normal((FEATURES, CLASSES)), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32, "x")])
    def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = x @ self.w
        return {"probabilities": tf.nn.softmax(z), "logits": z}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with version 1, unfiltered, and version 2, which forgets class 2; nobody may write to it."""
    base = tmp_path_factory.mktemp("pristine") / MODEL
    module = Classifier()
    tf.saved_model.save(module, str(base / "1"), signatures={"serving_default": module.answer})
    mpru_tf.forget(base, [2], load_check=False)
    return base


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that forgets class 3, as its manifest says, of a model with other weights; nobody may write to it."""
    folder = tmp_path_factory.mktemp("stranger")
    module = Classifier(seed=1)
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": module.answer})
    return mpru_tf.forget(folder / "1", [3], into=folder / "filtered", load_check=False).path


@pytest.fixture
def base(pristine: Path, tmp_path: Path) -> Path:
    """A base path with version 1, unfiltered."""
    shutil.copytree(pristine / "1", tmp_path / MODEL / "1")
    return tmp_path / MODEL


@pytest.fixture
def filtered(pristine: Path, tmp_path: Path) -> Path:
    """A base path with version 1, unfiltered, and version 2, which forgets class 2."""
    return Path(shutil.copytree(pristine, tmp_path / MODEL))


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a server of a base path, or of a configuration file, and returns a client."""
    with ExitStack() as stack:

        def run(base: Path | str = "", **flags: Any) -> Server:
            settings: dict[str, Any] = {
                "model_name": MODEL,
                "port": 0,
                "file_system_poll_wait_seconds": 0.05,
                "max_num_load_retries": 0,
            }
            running = stack.enter_context(ModelServer(base, **(settings | flags)))
            return stack.enter_context(Server(f"127.0.0.1:{running.port}", MODEL))

        yield run


CONFIG = """\
# Owned by the on-call team.
model_config_list {{
  config {{  # the only one
    name: "small"
    base_path: "{base}"
    model_platform: "tensorflow"
    model_version_policy {{ {policy} }}
    # who is asked for what
    {labels}
  }}
}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a configuration file for a base path."""

    def write(base: Path, policy: str = "all {}", **labels: int) -> Path:
        path = tmp_path / "models.config"
        entries = "\n    ".join(f'version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items())
        path.write_text(CONFIG.format(base=base, policy=policy, labels=entries))
        return path

    return write


def replace_softly(path: Path, data: bytes) -> None:
    """Give a file new content without touching what is linked to it."""
    path.unlink()
    path.write_bytes(data)
