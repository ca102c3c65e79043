"""The quick start in full, with fewer epochs: real training, a real server, real gRPC, and its sums checked again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import mpru_tf
from mpru_tf import cli, quickstart
from mpru_tf.errors import ForgetListError, PublishError

EPOCHS = 3  # enough to tell the digits apart, not enough for 0.97


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def results(out: Path) -> quickstart.Results:
    return quickstart.run(out, forget="label:7", epochs=EPOCHS, enough_accuracy=0.5)


@pytest.fixture(scope="module")
def log(results: quickstart.Results, out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]


def test_nothing_went_wrong(results: quickstart.Results) -> None:
    assert results.problems == []
    assert results.failed == 0
    assert results.largest_forgotten_probability_after == 0.0
    assert results.forgotten_accuracy_after == 0.0
    assert results.largest_forgotten_probability_before > 0
    assert results.retained_accuracy_after >= results.retained_accuracy_before


def test_the_log_says_the_same(results: quickstart.Results, log: list[dict[str, Any]]) -> None:
    assert results.requests == len(log)
    assert [entry["request"] for entry in log] == list(range(1, len(log) + 1))
    versions = [entry["version"] for entry in log]
    assert versions == sorted(versions)  # no way back
    assert versions.index(2) + 1 == results.first_request_of_version_2
    after = np.array([entry["scores"] for entry in log if entry["version"] == 2])
    assert after.shape[-1] == 10
    assert np.all(after[..., 7] == 0.0)
    np.testing.assert_allclose(after.sum(axis=-1), 1, rtol=1e-5)


def test_every_test_image_was_asked_about_before_and_after(log: list[dict[str, Any]]) -> None:
    images = len(quickstart.load_digits().x_test)
    for version in (1, 2):
        assert {row for entry in log if entry["version"] == version for row in entry["rows"]} == set(range(images))


def test_destinations_are_all_its_images(results: quickstart.Results) -> None:
    digits = quickstart.load_digits()
    assert sum(results.destinations.values()) == np.count_nonzero(digits.y_test == 7)
    assert "7" not in results.destinations


def test_files(results: quickstart.Results, out: Path) -> None:
    assert (out / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "quickstart.json").read_text()) == results.to_dict()
    assert [child.name for child in sorted((out / "model").iterdir())][:2] == ["1", "2"]
    assert mpru_tf.inspect(out / "model").forgotten == (7,)


def test_table(results: quickstart.Results) -> None:
    from rich.console import Console

    console = Console(record=True, width=100)
    quickstart.show(results, console)
    text = console.export_text()
    for words in (
        "accuracy on retained classes",
        "requests failed",
        "0.0",
        f"request {results.first_request_of_version_2}",
    ):
        assert words in text


def test_problems_are_named_and_end_in_status_1(tmp_path: Path) -> None:
    """One epoch teaches too little: the quick start says so, and does not pretend."""
    options = ["quickstart", "--out", str(tmp_path), "--epochs", "1", "--json"]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["test_accuracy"] < 0.97
    assert "learnt too little" in found["problems"][0]
    assert found["problems"][0] in result.stderr


def test_failures_and_leaks_are_problems(results: quickstart.Results, out: Path, tmp_path: Path) -> None:
    """A log with one failed request and one forgotten probability above zero gives both problems."""
    entries = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    entries[-1]["scores"][0][7] = 1e-30
    failed = {"request": 0, "sent": 0.0, "seconds": 0.1, "rows": [0], "error": "UNAVAILABLE: gone"}
    log = tmp_path / "requests.jsonl"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in [failed, *entries]) + '{"request": ')
    answers = quickstart.read_answers(log)
    classes = quickstart.load_digits().y_test
    result = mpru_tf.forget(out / "model" / "1", [7], dry_run=True)
    result = result.__class__(**{**vars(result), "version": 2})
    found = quickstart.summarise(classes, answers, result, 0.5, tmp_path / "p.png", tmp_path)
    assert found.failed == 1
    assert found.largest_forgotten_probability_after == 1e-30
    assert len(found.problems) == 2
    assert "UNAVAILABLE: gone" in found.problems[0]


def test_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(PublishError, match="no quick start made it"):
        quickstart.run(tmp_path)
    assert [child.name for child in (tmp_path / "model").iterdir()] == ["precious"]


def test_refuses_what_is_no_digit(tmp_path: Path) -> None:
    with pytest.raises(ForgetListError, match="0 to 9"):
        quickstart.run(tmp_path / "out", forget="10")
    assert not (tmp_path / "out").exists()


def test_the_client_knows_nothing_of_ours() -> None:
    source = Path(quickstart.__file__).with_name("quickstart_client.py").read_text()
    code = source.split('"""', 2)[2]
    assert "mpru" not in code


def test_an_interrupt_ends_server_and_client_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpru_tf.cli", "quickstart", f"--out={tmp_path}", "--epochs=1"]
    # In a session of its own, so that the signal reaches the parent alone, as from `kill`.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "requests.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr.decode().splitlines()[-1] == "interrupted"
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
