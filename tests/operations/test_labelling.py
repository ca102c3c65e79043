"""Labels in a server and in its file: both change, or neither."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpru_tf.errors import ForgetListError, ServingError
from mpru_tf.operations import configuration
from mpru_tf.operations.client import Server
from mpru_tf.operations.labelling import set_label

Start = Callable[..., Server]
Config = Callable[..., Path]
ROWS = {"x": np.ones((2, 3), np.float32)}


def test_set_and_move(filtered: Path, config: Config, start: Start) -> None:
    path = config(filtered)
    server = start(model_config_file=str(path))
    assert set_label(server, path, "canary", 2, timeout=30).before is None
    assert server.predict("", ROWS, label="canary").version == 2
    shutil.copytree(filtered / "2", filtered / "staged")
    threading.Timer(0.5, (filtered / "staged").rename, (filtered / "3",)).start()
    change = set_label(server, path, "canary", 3, move=True, timeout=30)  # waits until it is loaded
    assert (change.before, change.version) == (2, 3)
    assert server.predict("", ROWS, label="canary").version == 3
    assert server.version_of_label("canary") == 3
    assert server.version_of_label("stable") is None
    assert 'version_labels { key: "canary" value: 3 }' in path.read_text()
    assert "# who is asked for what" in path.read_text()


@pytest.mark.parametrize(
    ("label", "version", "move", "said"),
    [("stable", 1, False, "stands for version 2"), ("canary", 2, True, "no such label"), ("canary", 9, False, "9")],
)
def test_refused(label: str, version: int, move: bool, said: str, filtered: Path, config: Config, start: Start) -> None:
    path = config(filtered)
    server = start(model_config_file=str(path))
    set_label(server, path, "stable", 2, timeout=30)
    before = path.read_bytes()
    with pytest.raises(Exception, match=said):
        set_label(server, path, label, version, move=move, timeout=0.5, i_know_it_remembers=True)
    assert path.read_bytes() == before
    assert server.version_of_label("stable") == 2


def test_a_version_that_remembers(filtered: Path, config: Config, start: Start) -> None:
    path = config(filtered)
    server = start(model_config_file=str(path))
    set_label(server, path, "stable", 2, timeout=30)
    with pytest.raises(ForgetListError, match=r"would answer class 2 again; refused to give it the label 'stable'"):
        set_label(server, path, "stable", 1, move=True)
    assert server.version_of_label("stable") == 2
    set_label(server, path, "stable", 1, move=True, i_know_it_remembers=True)
    assert server.version_of_label("stable") == 1


def test_a_file_that_cannot_be_written(filtered: Path, config: Config, start: Start, tmp_path: Path) -> None:
    path = config(filtered).rename(tmp_path / ("m" * 250))  # no room for the name of a temporary file beside it
    server = start(model_config_file=str(path))
    before = path.read_bytes()
    with pytest.raises(ServingError, match="cannot be written, so the server has the old configuration again"):
        set_label(server, path, "stable", 2, timeout=30)
    assert server.version_of_label("stable") is None
    assert path.read_bytes() == before


def test_a_server_with_another_configuration(filtered: Path, config: Config, start: Start, tmp_path: Path) -> None:
    """The file of another server names other base paths; what the server refuses changes nothing."""
    server = start(filtered)
    path = config(tmp_path / "elsewhere")
    before = path.read_bytes()
    with pytest.raises(ServingError, match="refuses the configuration"):
        set_label(server, path, "stable", 2, timeout=30)
    assert path.read_bytes() == before


def test_an_interrupt_leaves_nothing_half_done(
    filtered: Path, config: Config, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(filtered)
    server = start(model_config_file=str(path))
    before = path.read_bytes()
    honest = configuration._write

    def interrupt(path: Path, text: str) -> None:
        honest(path, text)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(configuration, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        set_label(server, path, "stable", 2, timeout=30)
    assert server.version_of_label("stable") is None
    assert path.read_bytes() == before
