"""The life of versions, with real models."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.servable import Servable
from mpru_tf.serving.status import RequestError
from mpru_tf.serving.swap_policy import State

NAME = "scaler"
Saved = Callable[[int], Path]


@pytest.fixture
def manager() -> Iterator[ServableManager]:
    manager = ServableManager(Servable.load, max_num_load_retries=0)
    yield manager
    manager.stop(grace=0)


def wait_for(manager: ServableManager, **wanted: State) -> None:
    deadline = time.monotonic() + 30
    numbers = {int(version.lstrip("v")): state for version, state in wanted.items()}
    while True:
        seen = {version: status.state for version, status in manager.statuses(NAME).items()}
        if numbers.items() <= seen.items():
            return
        assert time.monotonic() < deadline, f"wanted {wanted}, still {seen}"
        time.sleep(0.01)


def test_nothing_is_known_of_an_unknown_model(manager: ServableManager) -> None:
    assert manager.statuses(NAME) == {}
    with pytest.raises(RequestError, match=r"Latest\(scaler\)") as refused, manager.use(NAME):
        pass
    assert refused.value.code is grpc.StatusCode.NOT_FOUND


def test_a_version_in_use_is_not_freed(manager: ServableManager, saved: Saved) -> None:
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE)
    with manager.use(NAME) as old:
        manager.set_aspired_versions(NAME, {2: saved(2)})
        wait_for(manager, v1=State.UNLOADING, v2=State.AVAILABLE)
        with manager.use(NAME) as new:
            assert new.version == 2
        with pytest.raises(RequestError, match=r"Specific\(scaler, 1\)"), manager.use(NAME, 1):
            pass
        assert old.version == 1
        assert old.model.run("total", {"x": _floats(1, 2)})["sum"] == 3
    wait_for(manager, v1=State.END, v2=State.AVAILABLE)
    assert manager.statuses(NAME)[1].error is None


def test_a_version_that_cannot_be_loaded_ends_with_its_reason(manager: ServableManager, saved: Saved) -> None:
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE)
    manager.set_aspired_versions(NAME, {2: saved(1) / "variables"})
    wait_for(manager, v1=State.AVAILABLE, v2=State.END)
    error = manager.statuses(NAME)[2].error
    assert error is not None
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert "saved_model.pb" in error.message


def test_whatever_a_loader_raises_ends_only_that_version() -> None:
    def load(name: str, version: int, path: Path) -> Servable:
        raise ZeroDivisionError("surprise")

    manager = ServableManager(load, max_num_load_retries=0)
    manager.set_aspired_versions(NAME, {1: Path("1")})
    statuses = manager.wait_until_settled(NAME, 30)
    assert statuses[1].state is State.END
    assert str(statuses[1].error) == "UNKNOWN: surprise"
    manager.stop()


def test_a_load_is_retried(saved: Saved, tmp_path: Path) -> None:
    manager = ServableManager(Servable.load, max_num_load_retries=300, load_retry_interval_micros=20_000)
    manager.set_aspired_versions(NAME, {1: tmp_path / "1"})
    wait_for(manager, v1=State.LOADING)
    shutil.copytree(saved(1), tmp_path / "staged")
    (tmp_path / "staged").rename(tmp_path / "1")
    wait_for(manager, v1=State.AVAILABLE)
    manager.stop()
    assert manager.statuses(NAME)[1].state is State.END


def test_retrying_stops_when_the_version_is_not_wanted_any_more(saved: Saved, tmp_path: Path) -> None:
    manager = ServableManager(Servable.load, max_num_load_retries=5, load_retry_interval_micros=3_600_000_000)
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE)
    manager.set_aspired_versions(NAME, {2: tmp_path / "none"})
    wait_for(manager, v2=State.LOADING)
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE, v2=State.END)
    # The same number, repaired, is taken up again.
    manager.set_aspired_versions(NAME, {2: saved(2)})
    wait_for(manager, v1=State.END, v2=State.AVAILABLE)
    manager.stop()


def test_a_version_comes_back(manager: ServableManager, saved: Saved) -> None:
    for version, other in ((1, 2), (2, 1), (1, 2)):
        manager.set_aspired_versions(NAME, {version: saved(version)})
        wait_for(manager, **{f"v{version}": State.AVAILABLE})
        if manager.statuses(NAME).keys() == {1, 2}:
            wait_for(manager, **{f"v{other}": State.END})


def test_a_version_that_is_wanted_again_while_it_is_on_its_way_out(manager: ServableManager, saved: Saved) -> None:
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE)
    with manager.use(NAME):
        manager.set_aspired_versions(NAME, {2: saved(2)})
        wait_for(manager, v1=State.UNLOADING)
        manager.set_aspired_versions(NAME, {1: saved(1)})
        with manager.use(NAME) as meanwhile:
            assert meanwhile.version == 2
    wait_for(manager, v1=State.AVAILABLE, v2=State.END)


def test_models_do_not_mind_each_other(manager: ServableManager, saved: Saved) -> None:
    manager.set_aspired_versions(NAME, {1: saved(1)})
    manager.set_aspired_versions("other", {2: saved(2)})
    wait_for(manager, v1=State.AVAILABLE)
    manager.wait_until_settled("other", 30)
    manager.set_aspired_versions("other", {})
    with manager.use(NAME) as servable:
        assert (servable.name, servable.version) == (NAME, 1)


def test_several_versions_at_once(manager: ServableManager, saved: Saved) -> None:
    manager.set_aspired_versions(NAME, {1: saved(1), 2: saved(2)})
    wait_for(manager, v1=State.AVAILABLE, v2=State.AVAILABLE)
    with manager.use(NAME) as latest, manager.use(NAME, 1) as first:
        assert (latest.version, first.version) == (2, 1)


def test_stopping_waits_for_requests_in_flight(saved: Saved) -> None:
    manager = ServableManager(Servable.load)
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE)
    stopper = threading.Thread(target=manager.stop)
    with manager.use(NAME) as servable:
        stopper.start()
        wait_for(manager, v1=State.UNLOADING)
        assert servable.model.run("total", {"x": _floats(1, 2, 3)})["sum"] == 6
    stopper.join(30)
    assert not stopper.is_alive()
    assert manager.statuses(NAME)[1].state is State.END
    manager.set_aspired_versions(NAME, {2: saved(2)})
    assert 2 not in manager.statuses(NAME)


def test_stopping_gives_up_on_a_request_that_outlasts_the_grace(saved: Saved) -> None:
    manager = ServableManager(Servable.load)
    manager.set_aspired_versions(NAME, {1: saved(1)})
    wait_for(manager, v1=State.AVAILABLE)
    with manager.use(NAME):
        manager.stop(grace=0.1)
        assert manager.statuses(NAME)[1].state is State.END


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)
