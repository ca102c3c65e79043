"""The command line: what it prints where, its exit statuses, and that a refusal leaves everything as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import saved_models
from typer.testing import CliRunner, Result

import mpru_tf
from mpru_tf import cli
from mpru_tf.filters import MASK, METHODS
from mpru_tf.labels import write_labels

LABELS = ["cat", "dog", "bird", "crane, bird", "fish"]
OPERATIONS = ["wait", "status", "label", "rollout", "rollback", "retire", "audit"]
COMMANDS = ["inspect", "means", "convert", "verify", "history", "forget", "serve", "quickstart", *OPERATIONS]

runner = CliRunner()


def run(*arguments: str | Path) -> Result:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def program(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "mpru_tf.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**inherited, **environment}, timeout=120)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def one_paragraph(stderr: str) -> str:
    """Return the reason of a refusal after checking its form."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("refused: ")
    assert "Traceback" not in stderr
    return lines[0].removeprefix("refused: ")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path whose version 1 is a Keras classifier of five classes, with labels."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(hidden))
    base = tmp_path_factory.mktemp("exported") / "model"
    model.export(str(base / "1"), verbose=False)
    write_labels(base / "1", LABELS)
    return base


@pytest.fixture
def base(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, x=random.normal(size=(200, 4)).astype("float32"), y=random.integers(0, 5, 200))
    return path


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_has_help_with_examples(self, command: str) -> None:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Examples" in result.stdout
        assert f"$ mpru-tf {command}" in result.stdout
        assert "TODO" not in result.stdout

    def test_root(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        assert all(command in result.stdout for command in COMMANDS)
        assert run("--version").stdout == f"mpru-tf {mpru_tf.__version__}\n"

    def test_help_is_quick_to_come(self) -> None:
        script = "import sys; from mpru_tf import cli; sys.argv = ['mpru-tf', 'forget', '--help']\n"
        script += "try: cli.main()\nexcept SystemExit: sys.exit('tensorflow' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0

    def test_the_methods_are_all_offered(self) -> None:
        assert {method.value for method in cli.Method} == {*METHODS, MASK}

    @pytest.mark.parametrize(
        "arguments",
        [
            ["forget"],
            ["forget", "model"],
            ["forget", "model", "--classes", "3", "--method", "magic"],
            ["forget", "model", "--classes", "3", "--temperature", "0.5"],
            ["forget", "model", "--classes", "3", "--class-means", "a.json", "--calibration", "b.npz"],
            ["means", "model", "--data", "b.npz"],
            ["inspect"],
            ["inspect", "model", "--yaml"],
            ["serve"],
            ["serve", "--model_base_path=model", "--port=65536"],
            ["unlearn"],
        ],
    )
    def test_wrong_usage(self, arguments: Sequence[str]) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Usage" in result.stderr


class TestInspect:
    def test_json(self, base: Path) -> None:
        result = run("inspect", base, "--json")
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        assert found["forgotten"] == []
        assert found["version"] == 1
        (site,) = found["score_sites"]
        assert (site["kind"], site["classes"]) == ("logits", 5)
        assert set(site["outputs"]) == {"serve:output_0", "serving_default:output_0"}
        inputs = found["signatures"]["serving_default"]["inputs"]
        assert list(inputs.values()) == [{"dtype": "float", "shape": [None, 4]}]

    def test_tree(self, base: Path) -> None:
        result = run("inspect", base / "1")
        assert result.exit_code == 0
        for words in ("version 1", "serving_default", "float [?, 5]", "logits of 5 classes", "nothing forgotten"):
            assert words in result.stdout

    def test_after_forgetting(self, base: Path) -> None:
        run("forget", base, "--classes", "dog,3", "--skip-load-check")
        found = json.loads(run("inspect", base, "--json").stdout)
        assert (found["version"], found["forgotten"]) == (2, [1, 3])
        assert "1 (dog), 3 (crane, bird)" in run("inspect", base).stdout

    def test_no_class_scores(self, tmp_path: Path) -> None:
        saved_models.regression(tmp_path / "1")
        result = run("inspect", tmp_path, "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert found["score_sites"] == []
        assert "serving_default" in found["signatures"]
        assert one_paragraph(result.stderr) == found["refusal"]


class TestForget:
    def test_json_is_one_object(self, base: Path) -> None:
        result = run("forget", base, "--classes", "2", "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["version"] == 2
        assert Path(found["path"]) == base / "2"
        assert found["forgotten"] == [2]
        assert found["labels"] == ["bird"]
        assert found["method"] == "tempered"
        assert found["leak_gate"] == "passed"
        assert 0 < found["seconds"] < 60
        assert found["unfiltered_versions"] == [1]
        assert (base / "2" / "saved_model.pb").is_file()

    def test_summary(self, base: Path) -> None:
        result = run("forget", base, "--classes", "cat")
        assert result.exit_code == 0, result.stderr
        said = " ".join(result.stdout.split())
        for words in (
            "version 2 written",
            "0 (cat) of 5 classes",
            "leak gate passed",
            "load check passed",
            "The weights in the file still hold the class",
            "Version 1 in",
        ):
            assert words in said

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["1,2"], [1, 2]),
            (["cat", "fish"], [0, 4]),
            (["crane, bird"], [3]),
            (['"crane, bird",cat'], [0, 3]),
            (["index:3,label:dog"], [1, 3]),
        ],
    )
    def test_classes(self, base: Path, values: list[str], expected: list[int]) -> None:
        options = [part for value in values for part in ("--classes", value)]
        result = run("forget", base, *options, "--dry-run", "--json")
        assert json.loads(result.stdout)["forgotten"] == expected

    def test_labels_given_win(self, base: Path, tmp_path: Path) -> None:
        (tmp_path / "labels.json").write_text('["a", "b", "c", "d", "e"]')
        result = run("forget", base, "--classes", "d", "--labels", tmp_path / "labels.json", "--dry-run", "--json")
        assert json.loads(result.stdout)["forgotten"] == [3]
        assert run("forget", base, "--classes", "cat", "--labels", tmp_path / "labels.json").exit_code == 1

    def test_dry_run_writes_nothing(self, base: Path) -> None:
        before = snapshot(base)
        result = run("forget", base, "--classes", "cat", "--dry-run")
        assert result.exit_code == 0
        assert "dry run: version 2 would be written" in result.stdout
        assert snapshot(base) == before

    def test_into_and_copy(self, base: Path, tmp_path: Path) -> None:
        result = run("forget", base, "--classes", "cat", "--into", tmp_path / "other", "--copy", "--json")
        assert Path(json.loads(result.stdout)["path"]) == tmp_path / "other" / "1"
        weights = "variables/variables.data-00000-of-00001"
        assert (tmp_path / "other" / "1" / weights).stat().st_ino != (base / "1" / weights).stat().st_ino
        assert json.loads(result.stdout)["unfiltered_versions"] == []

    def test_again(self, base: Path) -> None:
        run("forget", base, "--classes", "cat", "--skip-load-check")
        result = run("forget", base, "--classes", "dog", "--json", "--skip-load-check")
        found = json.loads(result.stdout)
        assert (found["version"], found["forgotten"]) == (3, [0, 1])
        assert found["unfiltered_versions"] == [1, 2]
        result = run("forget", base, "--classes", "dog")
        assert "nothing was written" in result.stdout
        assert sorted(child.name for child in base.iterdir()) == ["1", "2", "3"]

    def test_class_means(self, base: Path, data: Path, tmp_path: Path) -> None:
        written = tmp_path / "means.json"
        result = run("means", base, "--data", data, "--out", written, "--json")
        assert result.exit_code == 0, result.stderr
        assert {row["class"] for row in json.loads(result.stdout)["rows"]} == set(range(5))
        result = run("forget", base, "--classes", "cat", "--method", "mean", "--class-means", written)
        assert result.exit_code == 1  # an untrained model is sure of nothing
        assert "0.8" in one_paragraph(result.stderr)
        for given in (["--class-means", written], ["--calibration", data]):
            options = ["--classes", "cat", "--method", "mean", "--force", "--dry-run", "--json", *given]
            result = run("forget", base, *options)
            assert result.exit_code == 0, result.stderr
            assert json.loads(result.stdout)["method"] == "mean"

    def test_means_table(self, base: Path, data: Path, tmp_path: Path) -> None:
        result = run("means", base, "--data", data, "--out", tmp_path / "means.json")
        assert "self-probability" in result.stdout
        assert (tmp_path / "means.json").is_file()

    def test_an_embedding_is_dropped_or_allowed(self, models: Any, tmp_path: Path) -> None:
        path = models.base("embedding", tmp_path)
        result = run("forget", path, "--classes", "2")
        assert result.exit_code == 1
        assert "--drop-output serving_default:embedding" in one_paragraph(result.stderr)
        for option, dropped in (("--drop-output", ["serving_default:embedding"]), ("--allow-output", [])):
            result = run("forget", path, "--classes", "2", option, "serving_default:embedding", "--dry-run", "--json")
            assert json.loads(result.stdout)["dropped_outputs"] == dropped

    def test_one_of_two_heads_is_named(self, models: Any, tmp_path: Path) -> None:
        path = models.base("two_heads", tmp_path)
        result = run("forget", path, "--classes", "3", "--output", "serving_default:paint")
        assert result.exit_code == 1
        assert "serving_default:colour" in one_paragraph(result.stderr)
        result = run(
            *("forget", path, "--classes", "3", "--output", "serving_default:colour"),
            *("--drop-output", "serving_default:animal", "--dry-run", "--json"),
        )
        assert json.loads(result.stdout)["classes"] == 4, result.stderr


def regression(base: Path) -> None:
    saved_models.regression(base / "2")


def per_pixel(base: Path) -> None:
    saved_models.per_pixel(base / "2")


def truncated(base: Path) -> None:
    graph = base / "1" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-1000])


def without_variables(base: Path) -> None:
    shutil.rmtree(base / "1" / "variables")


def emptied(base: Path) -> None:
    shutil.rmtree(base)
    base.mkdir()


def removed(base: Path) -> None:
    shutil.rmtree(base)


class TestRefusals:
    """Each leaves one paragraph on stderr, nothing on stdout, and the base path as it was."""

    @pytest.mark.parametrize("damage", [regression, per_pixel, truncated, without_variables, emptied, removed])
    @pytest.mark.parametrize("command", ["forget", "inspect"])
    def test_models(self, base: Path, damage: Any, command: str) -> None:
        damage(base)
        before = snapshot(base)
        options = ["--classes", "3", "--json"] if command == "forget" else []
        result = run(command, base, *options)
        assert result.exit_code == 1
        assert len(one_paragraph(result.stderr)) > 40
        assert command == "inspect" or result.stdout == ""
        assert snapshot(base) == before

    @pytest.mark.parametrize(
        ("classes", "words"),
        [
            ("unicorn", ["unicorn", "cat"]),
            ("brid", ["Closest: 'bird'"]),
            ("5", ["no such class", "0 to 4"]),
            ("0,1,2,3,4", ["5"]),
            ("cat,0", ["named twice"]),
            ("", ["No class to forget is named"]),
            ("cat,,dog", ["empty"]),
        ],
    )
    def test_forget_lists(self, base: Path, classes: str, words: list[str]) -> None:
        before = snapshot(base)
        result = run("forget", base, "--classes", classes)
        assert result.exit_code == 1
        reason = one_paragraph(result.stderr)
        assert all(word in reason for word in words), reason
        assert snapshot(base) == before

    def test_means_of_the_wrong_length(self, base: Path, tmp_path: Path) -> None:
        from mpru_tf.class_means import ClassMeans

        outputs = np.full((80, 4), 0.02) + 0.92 * np.eye(4)[np.arange(80) % 4]
        ClassMeans.from_outputs(outputs, np.arange(80) % 4).save(tmp_path / "means.json")
        before = snapshot(base)
        options = ["--classes", "cat", "--method", "mean", "--class-means", tmp_path / "means.json"]
        result = run("forget", base, *options)
        assert result.exit_code == 1
        reason = one_paragraph(result.stderr)
        assert "4" in reason
        assert "5" in reason
        assert snapshot(base) == before

    @pytest.mark.parametrize("name", ["missing.json", "missing.npz"])
    def test_files_that_are_not_there(self, base: Path, tmp_path: Path, name: str) -> None:
        option = "--class-means" if name.endswith("json") else "--calibration"
        result = run("forget", base, "--classes", "cat", "--method", "mean", option, tmp_path / name)
        assert result.exit_code == 1
        assert name in one_paragraph(result.stderr)

    def test_no_such_signature_output(self, base: Path) -> None:
        result = run("forget", base, "--classes", "cat", "--allow-output", "serving_default:embedding")
        assert result.exit_code == 1
        assert "serving_default:output_0" in one_paragraph(result.stderr)

    def test_serve_without_a_base_path(self, tmp_path: Path) -> None:
        result = run("serve", f"--model_base_path={tmp_path / 'none'}")
        assert result.exit_code == 1
        assert "base path" in one_paragraph(result.stderr)

    def test_unreadable(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the operating system refuses is told like what we refuse."""

        def refuse(*arguments: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", str(base))

        monkeypatch.setitem(vars(mpru_tf), "inspect", refuse)
        result = run("inspect", base)
        assert result.exit_code == 1
        assert one_paragraph(result.stderr) == f"Permission denied: {base}"

    def test_interrupt(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setitem(vars(mpru_tf), "inspect", interrupt)
        result = run("inspect", base)
        assert result.exit_code == 130
        assert result.stderr == "interrupted\n"


class TestVerify:
    def test_passes(self, base: Path) -> None:
        run("forget", base, "--classes", "cat", "--skip-load-check")
        result = run("verify", base / "2", "--full", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["passed"] is True
        assert "passed" in run("verify", base / "2").stdout

    def test_notices_the_unfiltered_graph(self, base: Path) -> None:
        run("forget", base, "--classes", "cat", "--skip-load-check")
        (base / "2" / "saved_model.pb").unlink()
        shutil.copy(base / "1" / "saved_model.pb", base / "2" / "saved_model.pb")
        result = run("verify", base / "2", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["passed"] is False
        assert "does not do what its manifest says" in one_paragraph(result.stderr)

    def test_unfiltered_version(self, base: Path) -> None:
        result = run("verify", base / "1")
        assert result.exit_code == 1
        assert "manifest" in one_paragraph(result.stderr)


class TestProgram:
    """As a process of its own, where TensorFlow writes to the terminal as it likes."""

    def test_nothing_but_json_on_stdout_and_nothing_on_stderr(self, base: Path) -> None:
        done = program("forget", base, "--classes", "cat", "--json")
        assert done.returncode == 0
        assert json.loads(done.stdout)["version"] == 2
        assert done.stderr == ""

    def test_refusal(self, base: Path) -> None:
        done = program("forget", base, "--classes", "unicorn")
        assert done.returncode == 1
        assert done.stdout == ""
        assert "unicorn" in one_paragraph(done.stderr)

    def test_the_log_can_be_had(self, base: Path) -> None:
        done = program("forget", base, "--classes", "cat", "--json", TF_CPP_MIN_LOG_LEVEL="0")
        assert done.returncode == 0
        assert done.stderr != ""

    def test_reader_that_goes_away(self, base: Path) -> None:
        command = f"{sys.executable} -m mpru_tf.cli inspect {base} | true"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_serve(self, base: Path, number: signal.Signals, expected: int) -> None:
        command = [sys.executable, "-m", "mpru_tf.cli", "serve", "--port=0", "--model_name=animals"]
        port = free_port()
        command += [f"--rest_api_port={port}", f"--model_base_path={base}", "--file_system_poll_wait_seconds=0.1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(f"serving animals from {base}  gRPC 127.0.0.1:"), line
            assert ask(port)["predictions"][0][0] > 0
            run("forget", base, "--classes", "cat", "--skip-load-check")
            deadline = time.monotonic() + 60
            while (answer := ask(port))["predictions"][0][0] > 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert answer["predictions"][0][0] == 0.0
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == expected
        assert "Traceback" not in stderr


def ask(port: int) -> dict[str, Any]:
    body = json.dumps({"instances": [[0.1, 0.2, 0.3, 0.4]]}).encode()
    url = f"http://127.0.0.1:{port}/v1/models/animals:predict"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
