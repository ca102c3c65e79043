"""Warm-up requests on a loaded version: made up for what can be asked, refused with a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mpru_tf
from mpru_tf.errors import UnsupportedModelError, VerificationError
from mpru_tf.filters import make_filter
from mpru_tf.load_check import NEW
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.saved_model.sites import survey
from mpru_tf.verification import check_before_publishing
from mpru_tf.warmup import WARMUP_FILE, read_warmup, write_warmup
from mpru_tf.warmup_replay import Replay, warm_up
from mpru_tf.warmup_requests import record
from mpru_tf.worker import Limits


class Several(tf.Module):
    """Signatures with a batch of any length, of three, of four in truth, and one that answers nothing."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def any(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([3, 2], tf.float32), tf.TensorSpec([], tf.int32)])
    def three(self, x: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + tf.cast(k, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def four(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reshape(x, [4, 2])}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def none(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reshape(x, [-1, 7])}


def made(path: Path, *names: str, sizes: tuple[int, ...] = (1, 5)) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """What replaying made-up requests returns and reports, and signature and length of each."""
    module = Several()
    tf.saved_model.save(module, str(path), signatures={name: getattr(module, name) for name in names})
    steps: list[tuple[str, str]] = []
    with LoadedModel(path) as loaded:
        found = warm_up(lambda step, about: steps.append((step, about)), NEW, loaded, path, Replay(True, sizes, ()))
    assert [about for _, about in steps[1:]] == [f"{NEW} (warm-up record {n + 1})" for n in range(found["records"])]
    requests = [log.predict_log.request for log in read_warmup(path / WARMUP_FILE)]
    return found, [(one.model_spec.signature_name, one.inputs["x"].tensor_shape.dim[0].size) for one in requests]


def test_every_signature_gets_requests_as_long_as_it_takes(tmp_path: Path) -> None:
    found, asked = made(tmp_path, "any", "three")
    assert found == {"records": 3, "not_asked": []}
    assert asked == [("any", 1), ("three", 3), ("any", 5)]


def test_signatures_that_answer_nothing_are_named(tmp_path: Path) -> None:
    found, asked = made(tmp_path / "1", "any", "none", sizes=(2,))
    assert found == {"records": 1, "not_asked": ["none"]}
    assert asked == [("any", 2)]
    with pytest.raises(UnsupportedModelError, match="No warm-up request could be made up.*none: .*--warmup FILE"):
        made(tmp_path / "2", "none")


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    assert made(tmp_path / "1", "four", sizes=(4,))[1] == [("four", 4)]
    with pytest.raises(VerificationError, match="a request made up for signature four: INVALID_ARGUMENT: "):
        made(tmp_path / "2", "four", sizes=(4, 5))


class Patient(tf.Module):
    """A classifier that counts as far as it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(np.eye(3), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([], tf.int32)])
    def answer(self, x: tf.Tensor, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        done = tf.while_loop(lambda i: i < steps, lambda i: (i + 1,), (tf.constant(0),))[0]
        return {"p": tf.nn.softmax(x @ self.w + tf.cast(0 * done, tf.float32))}


def test_a_record_that_takes_for_ever_is_named(tmp_path: Path) -> None:
    module = Patient()
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), signatures=module.answer)
    version = mpru_tf.forget(tmp_path / "m", [1]).path
    bundle = bundles.read(tmp_path / "m" / "1")
    inputs = {"x": np.zeros((1, 3), np.float32), "steps": np.array(2**31 - 1, np.int32)}
    signature = bundle.meta_graphs[0].signature_def["serving_default"]
    write_warmup(version / WARMUP_FILE, [record("serving_default", signature, inputs)])
    site, spec = survey(bundle.graphs()).the_site(), make_filter(3, [1])
    with pytest.raises(VerificationError, match=r"\(warm-up record 7\) took more than 3 s.*--warmup none"):
        check_before_publishing(version, None, site, spec, Limits(asking=3.0), Replay(False, (), (7,)))
