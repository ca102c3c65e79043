"""The commands as operators and scheduled jobs run them: exit statuses, one line per finding, JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mpru_tf import cli
from mpru_tf.operations.client import Server

Start = Callable[..., Server]
Config = Callable[..., Path]

runner = CliRunner()


def run(*arguments: object) -> Result:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def command_of(kind: str) -> list[str]:
    """How to start a server of this kind; skips where there is none."""
    if kind == "mpru-tf serve":
        return [sys.executable, "-m", "mpru_tf.cli", "serve"]
    found = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which(kind)
    if found is None:
        pytest.skip(f"needs {kind} on PATH, or named by TENSORFLOW_MODEL_SERVER")
    return [found]


@pytest.fixture(params=["mpru-tf serve", "tensorflow_model_server"])
def program(request: pytest.FixtureRequest, filtered: Path, config: Config) -> Iterator[tuple[str, Path]]:
    """A server as a process of its own, of a configuration file; its address, and the file."""
    path = config(filtered)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--port={port}", f"--model_config_file={path}", "--file_system_poll_wait_seconds=1"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command_of(request.param), *flags], **silent) as process:
        yield f"127.0.0.1:{port}", path
        process.send_signal(signal.SIGTERM)


def test_a_whole_life(program: tuple[str, Path], filtered: Path) -> None:
    """Label, roll out, audit, retire, roll back, all from the command line, against a server in another process."""
    server, config = program
    at = ("--server", server, "--model", "small")
    assert run("wait", *at, "--version", 2, "--timeout", 60).exit_code == 0
    assert "a new label" in run("label", "set", "stable", 2, *at, "--config", config).stdout
    rolled = run("rollout", filtered, *at, "--classes", "0", "--config", config, "--requests", 2, "--json")
    assert rolled.exit_code == 0, rolled.stderr
    assert json.loads(rolled.stdout)["labels"] == {"canary": 3, "stable": 3}
    states = json.loads(run("status", *at, "--json").stdout)
    assert [one["state"] for one in states["versions"]] == ["AVAILABLE"] * 3
    assert states["labels"] == {"stable": 3, "canary": 3}
    refused = run("label", "move", "canary", 1, *at, "--config", config)
    assert refused.exit_code == 1
    assert "would answer classes 0, 2 again" in refused.stderr
    found = run("audit", filtered, *at, "--config", config, "--quiet")
    assert found.exit_code == 3
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == ["older_version_remembers"] * 2 + [
        "server_remembers"
    ] * 2
    assert run("rollback", filtered, "--to", 2, *at, "--config", config).exit_code == 1
    retired = run("retire", filtered, *at, "--config", config)
    assert retired.exit_code == 0, retired.stderr
    assert "version 1 left" in retired.stdout
    assert run("wait", *at, "--version", 1, "--timeout", 0).exit_code == 1
    clean = run("audit", filtered, *at, "--config", config, "--json")
    assert (clean.exit_code, json.loads(clean.stdout)["clean"]) == (0, True), clean.stdout


class TestAudit:
    def test_table_and_lines(self, filtered: Path) -> None:
        result = run("audit", filtered)
        assert result.exit_code == 3
        assert "though forgotten" in result.stdout
        last = result.stdout.splitlines()[-1]
        assert last.startswith("older_version_remembers: version 1 answers class 2, to clients that ask for its number")

    def test_nothing_found(self, base: Path) -> None:
        result = run("audit", base, "--quiet")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")

    def test_could_not_look(self, base: Path, tmp_path: Path) -> None:
        assert run("audit", tmp_path / "nothing").exit_code == 1
        result = run("audit", base, "--server", "127.0.0.1:1", "--quiet")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "not looked at" in result.stderr

    def test_found_although_the_server_could_not_be_asked(self, filtered: Path) -> None:
        assert run("audit", filtered, "--server", "127.0.0.1:1").exit_code == 3


class TestSummaries:
    def test_wait_and_status(self, base: Path, start: Start) -> None:
        at = ("--server", start(base).target, "--model", "small")
        assert run("wait", *at).stdout.startswith("version 1 of small is AVAILABLE")
        assert "AVAILABLE" in run("status", *at).stdout
        assert run("wait", *at, "--version", 7, "--timeout", 0.2).exit_code == 1

    def test_rollout(self, base: Path, start: Start) -> None:
        result = run("rollout", base, "--server", start(base).target, "--model", "small", "--classes", "1")
        assert result.exit_code == 0, result.stderr
        assert "version 2 is rolled out" in result.stdout
        assert "no label was moved" in result.stderr
        assert "held against what the filter (tempered) makes of" in " ".join(result.stdout.split())

    def test_rollback(self, filtered: Path) -> None:
        assert "--i-know-it-remembers" in run("rollback", filtered, "--to", 1).stderr
        result = run("rollback", filtered, "--to", 1, "--i-know-it-remembers")
        assert "published again as version 3" in result.stdout
        assert "It answers forgotten classes again: 2." in result.stdout

    def test_retire(self, filtered: Path) -> None:
        assert "version 1 would leave" in run("retire", filtered, "--dry-run").stdout
        result = run("retire", filtered, "--delete", "--json")
        assert json.loads(result.stdout)["retired"] == [{"version": 1, "path": None}]
        assert "no version had to leave" in run("retire", filtered).stdout

    @pytest.mark.parametrize(
        "arguments",
        [
            ["wait"],
            ["rollout", "base"],
            ["rollback", "base"],
            ["retire", "base", "--unfiltered", "--older-than", "3"],
            ["retire", "base", "--delete", "--to", "there"],
            ["label", "set", "stable", "2", "--server", "a:1"],
            ["label", "move", "stable", "x", "--server", "a:1", "--config", "c"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        assert run(*arguments).exit_code == 2

    @pytest.mark.parametrize(
        "command", ["wait", "status", "label set", "label move", "rollout", "rollback", "retire", "audit"]
    )
    def test_help(self, command: str) -> None:
        result = run(*command.split(), "--help")
        assert result.exit_code == 0
        assert f"$ mpru-tf {command}" in result.stdout
