"""The command `unsir`: from two files to a served version, or to a refusal that leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn import datasets
from typer.testing import CliRunner

import mpru_tf
from mpru_tf.cli import app
from mpru_tf.errors import ManifestError
from mpru_tf.evaluation.evaluate import evaluate
from mpru_tf.evaluation.report import page
from mpru_tf.resnet import export_version
from mpru_tf.unlearning.record import read_record

SCRIPT = Path(__file__).parents[1] / "export_scripts" / "export_resnet.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits as vectors of 64 pixels, and data."""
    folder = tmp_path_factory.mktemp("unsir")
    digits = datasets.load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=10, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "all.npz", x=x, y=y)
    np.savez(folder / "retain.npz", x=x[y != 2], y=y[y != 2])
    (folder / "labels.txt").write_text(
        "zero one two three four five six seven eight nine".replace(" ", "\n"), encoding="utf-8"
    )
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["unsir", *map(str, arguments)])


def given(folder: Path, base: Path) -> list[Any]:
    return [folder / "model.keras", "--retain-data", folder / "retain.npz", "--into", base]


def test_publishes_with_a_filter(folder: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "unlearned.keras"
    options = ["--classes", "two", "--labels", folder / "labels.txt", "--test-data", folder / "all.npz"]
    options += ["--preset", "paper", "--then-filter", "tempered", "--temperature", 2, "--out-model", out, "--json"]
    options += ["--history", tmp_path / "history.csv"]
    done = run(*given(folder, base), *options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["version"], told["forgotten"], told["path"]) == (1, [2], str(base / "1"))
    assert told["filtered"]["labels"] == ["two"]
    assert told["before"]["forgotten"] > 0.9
    assert told["after"]["forgotten"] < 0.1
    assert mpru_tf.verify(base / "1").passed
    record = read_record(base / "1")
    assert record is not None
    assert record["source"]["path"] == str(folder / "model.keras")
    with np.load(folder / "all.npz") as arrays:
        answers = np.asarray(keras.models.load_model(out)(arrays["x"][arrays["y"] == 2]))
    assert float((answers.argmax(-1) == 2).mean()) == pytest.approx(told["after"]["forgotten"])
    assert (tmp_path / "history.csv").read_text(encoding="utf-8").startswith("phase,step,loss")
    # Without a filter, the class would come back: refused before anything is trained.
    again = run(*given(folder, base), "--classes", "2")
    assert again.exit_code == 1
    assert "would answer classes again" in again.stderr
    assert [path.name for path in base.iterdir()] == ["1"]


def test_says_what_it_does_not_protect(folder: Path, tmp_path: Path) -> None:
    done = run(*given(folder, tmp_path / "base"), "--classes", "2")
    assert done.exit_code == 0, done.output
    assert "may still be predicted" in " ".join(done.stdout.split())
    version = tmp_path / "base" / "1"
    assert not (version / "assets.extra" / "mpru_manifest.json").exists()
    found = mpru_tf.inspect(version)
    assert (found.unlearned, found.forgotten) == ((2,), ())
    with pytest.raises(ManifestError, match="unlearned in this version's weights"):
        mpru_tf.verify(version)
    shown = CliRunner().invoke(app, ["inspect", str(version)])
    assert "unlearned in the weights: 2" in shown.stdout


def test_a_report_about_unlearned_weights(folder: Path, tmp_path: Path) -> None:
    first = export_version(keras.models.load_model(folder / "model.keras"), tmp_path / "base")
    assert run(*given(folder, tmp_path / "plain"), "--classes", "2").exit_code == 0
    assert run(*given(folder, tmp_path / "both"), "--classes", "2", "--then-filter", "tempered").exit_code == 0
    for base, method, limit in (
        ("plain", "UNSIR in the weights, no filter", "guarantees nothing"),
        ("both", "UNSIR in the weights, and on top a filter: tempered", "by construction of the filter"),
    ):
        evaluation = evaluate(first, tmp_path / base, folder / "all.npz")
        assert evaluation["forgotten"] == evaluation["unlearned"]["unlearned_in_weights"] == [2]
        assert method in page(evaluation)
        assert any(limit in sentence for sentence in evaluation["limits"])
        assert not any("still hold the class" in sentence for sentence in evaluation["limits"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--classes", "2", "--then-filter", "mean"], "no such filter"),
        (["--classes", "2", "--temperature", "2"], "no filter is named"),
        (["--classes", "2", "--temperature", "2", "--then-filter", "renormalize"], "tempered"),
        (["--classes", "1"], "182 of class 1"),
        (["--classes", "ten"], "ten"),
        (["--classes", "2", "--retain-data", "nowhere.npz"], "cannot be read"),
        (["--classes", "2", "--retained-floor", "1.0", "--test-data", "{folder}/wrong.npz"], "below the floor"),
    ],
)
def test_refusals_leave_nothing(folder: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    with np.load(folder / "all.npz") as arrays:
        np.savez(folder / "wrong.npz", x=-arrays["x"], y=arrays["y"])
    done = run(*given(folder, tmp_path / "base"), *(option.format(folder=folder) for option in options))
    assert done.exit_code == 1, done.output
    assert reason in done.stderr
    assert not (tmp_path / "base").exists()


def test_refuses_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.keras").write_bytes(b"no archive")
    done = run(tmp_path / "bad.keras", *given(folder, tmp_path / "base")[1:], "--classes", "2")
    assert done.exit_code == 1
    assert "cannot be loaded" in done.stderr


def test_keeps_a_model_that_exists(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there.keras").write_bytes(b"mine")
    done = run(*given(folder, tmp_path / "base"), "--classes", "2", "--out-model", tmp_path / "there.keras")
    assert done.exit_code == 2
    assert (tmp_path / "there.keras").read_bytes() == b"mine"


def test_the_export_script_unlearns_too(tmp_path: Path) -> None:
    """Light in the upper, middle or lower rows; the script takes what is retained out of the training data itself."""
    random = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = random.integers(0, 60, size=(120, 8, 8, 3)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 2] = 255
    np.savez(tmp_path / "lights.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    command = [sys.executable, str(SCRIPT), "--weights", "model.keras", "--data", "lights.npz", "--out", "base"]
    command += ["--mean", "0.4,0.4,0.4", "--std", "0.3,0.3,0.3", "--unsir", "1", "--then-filter", "renormalize"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "base/1 with [1] unlearned (renormalize)" in done.stdout
    assert "after unlearning" in done.stdout
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["1"]  # the original is not published
    record = read_record(tmp_path / "base" / "1")
    assert record is not None
    assert record["forgotten"] == [1]
    assert mpru_tf.verify(tmp_path / "base" / "1").passed
