"""Going back without bringing a forgotten class back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mpru_tf
from mpru_tf.errors import ForgetListError, ModelNotFoundError, ServingError, VerificationError
from mpru_tf.operations.client import Server
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.rollback import rollback
from mpru_tf.operations.waiting import wait_until_available

Start = Callable[..., Server]
Config = Callable[..., Path]
ROWS = {"x": np.ones((2, 3), np.float32)}


@pytest.fixture
def three(filtered: Path) -> Path:
    """Version 3 forgets classes 2 and 0, version 4 the same with another method."""
    mpru_tf.forget(filtered, [0], load_check=False)
    mpru_tf.forget(filtered, [0], method="renormalize", load_check=False)
    return filtered


def test_the_content_comes_as_a_new_version(three: Path, start: Start) -> None:
    server = start(three)
    result = rollback(three, 3, server=server, timeout=30)
    assert (result.to, result.version, result.before, result.remembers) == (3, 5, 4, ())
    assert result.available
    assert server.predict("", ROWS).version == 5
    assert (three / "5" / "saved_model.pb").read_bytes() == (three / "3" / "saved_model.pb").read_bytes()
    assert mpru_tf.verify(three / "5", load_check=False).passed
    assert mpru_tf.history(three).verified
    assert mpru_tf.forget(three, [1], load_check=False).forgotten == (0, 1, 2)


@pytest.mark.parametrize("to", [1, 2])
def test_a_version_that_remembers_is_refused(three: Path, to: int) -> None:
    with pytest.raises(ForgetListError, match=r"would answer class.* again; .*--i-know-it-remembers") as refused:
        rollback(three, to)
    assert "Valid: versions 3, 4." in str(refused.value)
    assert sorted(child.name for child in three.iterdir()) == ["1", "2", "3", "4"]
    result = rollback(three, to, i_know_it_remembers=True)
    assert result.remembers == {1: (0, 2), 2: (0,)}[to]
    assert result.available is None


def test_a_changed_version_is_refused(three: Path) -> None:
    target = three / "3" / "saved_model.pb"
    data = target.read_bytes()
    target.unlink()
    target.write_bytes(data + b"\x12\x00")
    with pytest.raises(VerificationError, match="not as it was published; nothing was rolled back"):
        rollback(three, 3)
    assert sorted(child.name for child in three.iterdir()) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(("to", "error"), [(9, ModelNotFoundError), (4, ServingError)])
def test_nothing_to_go_back_to(three: Path, to: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        rollback(three, to)


@pytest.mark.parametrize("policy", ["all {}", "specific { versions: 4 }"])
def test_a_label_moves_back(policy: str, three: Path, config: Config, start: Start) -> None:
    path = config(three, policy)
    server = start(model_config_file=str(path))
    wait_until_available(server, 4, timeout=30)
    server.reload(Configuration.read(config(three, policy, stable=4)).message)
    result = rollback(three, 3, server=server, config=path, timeout=30)
    assert (result.version, result.before, result.label) == (3, 4, "stable")
    assert server.predict("", ROWS, label="stable").version == 3
    assert sorted(child.name for child in three.iterdir()) == ["1", "2", "3", "4"]
    with pytest.raises(ForgetListError):
        rollback(three, 2, server=server, config=path)
    assert server.version_of_label("stable") == 3


def test_a_label_of_a_version_that_the_policy_does_not_load(three: Path, config: Config, start: Start) -> None:
    path = config(three, "latest {}")
    server = start(model_config_file=str(path))
    server.reload(Configuration.read(config(three, "latest {}", stable=4)).message)
    with pytest.raises(ServingError, match="the policy does not load it"):
        rollback(three, 3, server=server, config=path)
    with pytest.raises(ServingError, match="must be named"):
        rollback(three, 3, config=path)
