"""export_scripts/export_xgboost.py, run as a person runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mpru_tf
from mpru_tf.labels import find_labels
from mpru_tf.saved_model.session import LoadedModel

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "trees" / "models" / "xgboost_3.1_classes.json"


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, str(ROOT / "export_scripts" / "export_xgboost.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of seven classes and 54 features, as Covertype has them; the class is written in the first two."""
    random = np.random.default_rng(0)
    y = random.integers(0, 7, 4000)
    x = random.integers(0, 50, size=(4000, 54))
    x[:, 0], x[:, 1] = 100 * (y // 3) + x[:, 0], 100 * (y % 3) + x[:, 1]
    path = tmp_path_factory.mktemp("data") / "cover.npz"
    np.savez(path, X=x.astype(np.int16), y=y.astype(np.uint8))
    return path


def test_trains_exports_and_forgets(data: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("xgboost") is None:
        pytest.skip("needs XGBoost to train; it is not installed")
    base = tmp_path / "models" / "cover"
    options = ["--data", data, "--rows", "2000", "--trees", "4", "--depth", "3", "--forget", "Aspen,0"]
    done = script("--out", base, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "28 trees, 7 classes; compared with XGBoost" in done.stdout
    assert "forgotten: ['Spruce/Fir', 'Aspen'] (tempered)" in done.stdout
    found = re.search(r"on 500 rows, retained classes: ([\d.]+) of the model, ([\d.]+) as exported", done.stdout)
    assert found is not None, done.stdout
    assert 0.95 < float(found.group(1)) <= float(found.group(2)) <= 1
    assert sorted(child.name for child in base.iterdir()) == ["1"]
    assert mpru_tf.inspect(base).forgotten == (0, 4)
    labels = find_labels(base / "1")
    assert labels is not None
    assert labels[6] == "Krummholz"


def test_a_model_as_it_is(tmp_path: Path) -> None:
    done = script("--out", tmp_path, "--model", MODEL)
    assert done.returncode == 0, done.stderr
    assert "12 trees, 3 classes" in done.stdout
    assert "accuracy" not in done.stdout
    expected = np.load(MODEL.with_suffix(".npz"))
    with LoadedModel(tmp_path / "1") as model:
        answers = model.run("serving_default", {"features": expected["x"]})["probabilities"]
    powers = np.exp(expected["margins"].astype(np.float64))
    np.testing.assert_allclose(answers, powers / powers.sum(axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_accuracy_of_a_model_on_data(tmp_path: Path) -> None:
    x = np.load(MODEL.with_suffix(".npz"))["x"]
    np.savez(tmp_path / "data.npz", X=x, y=np.ones(len(x), int))
    done = script("--out", tmp_path / "base", "--model", MODEL, "--data", tmp_path / "data.npz", "--forget", "0,2")
    assert done.returncode == 0, done.stderr
    # One class is left, and all rows are of it.
    assert re.search(rf"on {len(x)} rows, retained classes: 0\.\d+ of the model, 1\.0000 as exported", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing.json"], "nothing.json"),
        (["--data", "nothing.npz"], "nothing.npz"),
        (["--data", "{here}"], "cannot be read"),
        (["--model", str(MODEL), "--forget", "7"], "0 to 2"),
        (["--model", str(MODEL), "--labels", "{here}"], "1 labels for 3 classes"),
    ],
)
def test_refusals(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("no archive")
    done = script("--out", tmp_path / "base", *[part.replace("{here}", str(tmp_path / "here")) for part in arguments])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("refused: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "base").exists()


def test_wrong_usage() -> None:
    done = script("--model", MODEL)
    assert done.returncode == 2
    assert "usage:" in done.stderr
