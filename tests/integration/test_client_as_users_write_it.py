"""A user's client and curl, unchanged, from a model's first version to its last."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import client_as_users_write_it
import grpc
import numpy as np
import pytest

import mpru_tf
from mpru_tf.errors import ForgetListError
from mpru_tf.operations.client import Server
from mpru_tf.operations.labelling import set_label
from mpru_tf.operations.retire import retire
from mpru_tf.operations.rollback import rollback
from mpru_tf.operations.waiting import wait_until_available

MODEL, ROWS = "small", [[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]
Ask = Callable[..., tuple[int, list[list[float]]]]


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(client_as_users_write_it.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert imported == {"argparse", "json", "grpc", "tensorflow_serving.apis"}


def curl(port: int, path: str, body: Any = None) -> Any:
    """What curl prints, as JSON."""
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        f"http://127.0.0.1:{port}/v1/models/{MODEL}{path}",
    ]
    if body is not None:
        command += ["--data", json.dumps(body)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def over_grpc(program: Any) -> Ask:
    def ask(version: int | None = None, label: str | None = None) -> tuple[int, list[list[float]]]:
        answer: tuple[int, list[list[float]]] = program.client.predict(ROWS, version, label)
        return answer

    return ask


def over_curl(program: Any) -> Ask:
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which is not installed")

    def ask(version: int | None = None, label: str | None = None) -> tuple[int, list[list[float]]]:
        which = f"/versions/{version}" if version is not None else f"/labels/{label}" if label else ""
        answer = curl(program.rest_port, f"{which}:predict", {"instances": ROWS})
        if "error" in answer:
            raise RuntimeError(answer["error"])
        spec = curl(program.rest_port, f"{which}/metadata")["model_spec"]
        return int(spec["version"]), answer["predictions"]

    return ask


@pytest.mark.parametrize("client", [over_grpc, over_curl])
def test_a_whole_life(client: Callable[[Any], Ask], start: Callable[..., Any], base: Path, config: Path) -> None:
    """Export, serve, forget, swap, label move, rollback refused, retire: the client stays as it is."""
    program = start(f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models")
    ask = client(program)
    with Server(program.target, MODEL) as server:
        version, before = ask()
        assert version == 1
        assert np.sum(before, axis=1) == pytest.approx(1)
        assert np.min(before) > 0
        assert ask(label="stable") == (1, before)

        assert mpru_tf.forget(base, [2]).version == 2
        wait_until_available(server, 2, 60)
        version, after = ask()
        assert version == 2
        assert np.shape(after) == np.shape(before)
        assert [row[2] for row in after] == [0, 0]
        assert np.sum(after, axis=1) == pytest.approx(1)
        assert ask(label="stable") == (1, before)  # until the label moves

        set_label(server, config, "stable", 2, move=True, timeout=60)
        assert ask(label="stable") == (2, after)
        with pytest.raises(ForgetListError, match="would answer class"):
            rollback(base, 1, server=server, config=config, timeout=60)
        assert ask(label="stable") == ask() == (2, after)

        retired = retire(base, server=server, config=config, timeout=60)
        assert [each.version for each in retired.retired] == [1]
        assert retired.still_loaded == ()
        with pytest.raises((grpc.RpcError, RuntimeError), match=r"(?i)not found"):
            ask(version=1)
        assert ask(label="stable") == ask() == (2, after)


def test_it_is_a_program(start: Callable[..., Any], config: Path) -> None:
    program = start(f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models")
    command = [sys.executable, client_as_users_write_it.__file__, program.target, MODEL, json.dumps(ROWS)]
    ran = subprocess.run([*command, "--label", "stable"], capture_output=True, text=True, check=True)
    answer = json.loads(ran.stdout)
    assert (answer["version"], answer["states"]) == (1, {"1": "AVAILABLE"})
    assert np.shape(answer["scores"]) == (2, 4)
