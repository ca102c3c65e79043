"""Further settings of the sessions, from a ConfigProto as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from mpru_tf.errors import ServingError
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.serving.server import ModelServer


def test_a_limit_on_the_time_of_a_step(
    running: Callable[..., Any], publish: Callable[..., Path], tmp_path: Path
) -> None:
    publish(1)
    file = tmp_path / "session.config"
    file.write_text("operation_timeout_in_ms: 100")
    with running(tensorflow_session_config_file=str(file)) as (_, client):
        code, _ = client.refusal(client.request("slow", steps=np.int32(100_000_000)))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_threads_of_a_flag_win(saved: Callable[[int], Path]) -> None:
    given = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
    given.gpu_options.allow_growth = False
    with LoadedModel(saved(1), threads=(3, 0), config=given) as model:
        config = model._session._config
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (3, 2)
    assert config.allow_soft_placement


def test_no_such_settings(tmp_path: Path) -> None:
    file = tmp_path / "session.config"
    file.write_text("threads: 3")
    with pytest.raises(ServingError, match="a tensorflow.ConfigProto as text"):
        ModelServer(tmp_path, tensorflow_session_config_file=str(file))
