"""Versions that remember leave, once one that forgets answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mpru_tf
from mpru_tf.errors import MPRUError, PublishError, ServingError
from mpru_tf.operations.client import Server
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.retire import retire
from mpru_tf.operations.waiting import wait_until_available

Start = Callable[..., Server]
Config = Callable[..., Path]
ROWS = {"x": np.ones((2, 3), np.float32)}


def children(base: Path) -> list[str]:
    return sorted(child.name for child in base.iterdir())


@pytest.fixture
def three(base: Path) -> Path:
    """Version 1 is unfiltered, version 2 forgets class 2, version 3 forgets class 0 as well."""
    for index in (2, 0):
        mpru_tf.forget(base, [index], load_check=False)
    return base


def test_what_remembers_leaves(three: Path, start: Start) -> None:
    server = start(three)
    result = retire(three, server=server)
    assert [(one.version, one.path) for one in result.retired] == [
        (1, three / "retired-1"),
        (2, three / "retired-2"),
    ]
    assert (result.newest, result.forgotten, result.left, result.still_loaded) == (3, (0, 2), (), ())
    assert children(three) == ["3", "retired-1", "retired-2"]
    assert (three / "retired-1" / "saved_model.pb").is_file()
    assert server.predict("", ROWS).version == 3
    assert [step.status for step in mpru_tf.history(three).steps] == ["missing", "missing", "verified"]
    assert retire(three).retired == ()


def test_what_forgets_stays(three: Path) -> None:
    shutil.copytree(three / "3", three / "4")
    assert [one.version for one in retire(three).retired] == [1, 2]
    assert children(three) == ["3", "4", "retired-1", "retired-2"]


def test_a_server_that_does_not_look_is_told_of(filtered: Path, config: Config, start: Start) -> None:
    server = start(model_config_file=str(config(filtered)), file_system_poll_wait_seconds=0)
    for version in (1, 2):
        wait_until_available(server, version, timeout=30)
    assert retire(filtered, server=server, timeout=0.3).still_loaded == (1,)


def test_by_number(three: Path) -> None:
    result = retire(three, older_than=2)
    assert ([one.version for one in result.retired], result.left) == ([1], (2,))
    shutil.copytree(three / "retired-1", three / "1")
    assert [one.path for one in retire(three, older_than=99).retired] == [three / "retired-1.2", three / "retired-2"]
    assert "3" in children(three)


def test_elsewhere_and_deleted(three: Path, tmp_path: Path) -> None:
    result = retire(three, older_than=2, to=tmp_path / "archive" / "small")
    assert result.retired[0].path == tmp_path / "archive" / "small" / "retired-1"
    assert (tmp_path / "archive" / "small" / "retired-1" / "saved_model.pb").is_file()
    assert retire(three, delete=True).to_dict()["retired"] == [{"version": 2, "path": None}]
    assert children(three) == ["3"]
    assert mpru_tf.verify(three, full=True, load_check=False).passed  # the weights were linked, and are still there


def test_a_link_is_unlinked(three: Path, tmp_path: Path) -> None:
    (three / "1").rename(tmp_path / "kept")
    (three / "1").symlink_to(tmp_path / "kept")
    retire(three, delete=True, older_than=2)
    assert children(three) == ["2", "3"]
    assert (tmp_path / "kept" / "saved_model.pb").is_file()


def test_dry_run(three: Path) -> None:
    assert [one.version for one in retire(three, dry_run=True).retired] == [1, 2]
    assert children(three) == ["1", "2", "3"]


@pytest.mark.parametrize("where", ["", "old", "7"])
def test_not_into_the_base_path(three: Path, where: str) -> None:
    with pytest.raises(PublishError):
        retire(three, to=three / where)
    assert children(three) == ["1", "2", "3"]


class TestRefused:
    def refused(self, base: Path, words: str, **options: object) -> None:
        before = children(base)
        with pytest.raises(MPRUError, match=words):
            retire(base, **options)  # type: ignore[arg-type]
        assert children(base) == before

    def test_nothing_forgotten(self, base: Path) -> None:
        shutil.copytree(base / "1", base / "2")
        self.refused(base, "forgets nothing")

    def test_the_newest_remembers(self, three: Path) -> None:
        shutil.copytree(three / "2", three / "4")
        self.refused(three, "itself answers class 0 again")

    def test_the_newest_is_changed(self, three: Path) -> None:
        data = (three / "3" / "saved_model.pb").read_bytes()
        (three / "3" / "saved_model.pb").unlink()
        (three / "3" / "saved_model.pb").write_bytes(data + b"\x12\x00")
        self.refused(three, "not as it was published")

    def test_the_newest_is_not_available(self, three: Path, pristine: Path, start: Start, tmp_path: Path) -> None:
        with pytest.raises(ServingError, match="does not answer yet"):
            retire(three, server=start(pristine))
        assert children(three) == ["1", "2", "3"]

    def test_a_server_that_is_not_there(self, three: Path) -> None:
        with Server("127.0.0.1:1", "small") as server:
            self.refused(three, "cannot be asked", server=server)

    def test_a_label(self, three: Path, config: Config, start: Start) -> None:
        path = config(three)
        server = start(model_config_file=str(path))
        for version in (1, 2, 3):
            wait_until_available(server, version, timeout=30)
        server.reload(Configuration.read(config(three, stable=2)).message)
        self.refused(three, "stable: version 2", server=server)
        server.reload(Configuration.read(config(three, whatever=1)).message)
        self.refused(three, "whatever: version 1", server=server, config=path)


def test_the_policy_is_left_too(three: Path, config: Config, start: Start) -> None:
    path = config(three, "specific { versions: 1 versions: 2 versions: 3 }", stable=3)
    server = start(three)  # it takes over the whole file below
    server.reload(Configuration.read(config(three, "specific { versions: 1 versions: 2 versions: 3 }")).message)
    wait_until_available(server, 3, timeout=30)
    retire(three, server=server, config=path)
    assert Configuration.read(path).specific_versions("small") == (3,)
    assert server.available() == (3,)


def test_a_base_path_without_versions(tmp_path: Path) -> None:
    with pytest.raises(MPRUError, match="no base path"):
        retire(tmp_path)
