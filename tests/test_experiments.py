"""The experiments' arithmetic, on classifiers small enough to train here: digits, with and without a class."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import answers
import experiments
from answers import Run

FORGOTTEN = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of networks that saw all digits, and of others that never saw a 3."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rows = {"train": np.arange(0, 1200), "test": np.arange(1200, len(y))}
    trained: list[Run] = []

    def train(run: Run) -> dict[str, Any]:
        trained.append(run)
        seen = run.seen(10)
        own = rows["train"][np.isin(y[rows["train"]], seen)]
        network = MLPClassifier((32,), max_iter=40, tol=0.0, n_iter_no_change=1000, random_state=run.seed)
        with pytest.warns(match="Maximum iterations"):
            network.fit(x[own], y[own])
        told = {
            name: answers.widened(network.predict_log_proba(x[which]).astype(np.float32), seen, 10)
            for name, which in rows.items()
        }
        return {**told, "seconds": 1.0, "test_accuracy": network.score(x[rows["test"]], y[rows["test"]])}

    path = tmp_path_factory.mktemp("answers")
    wanted = answers.runs([FORGOTTEN], [0], [1, 2])
    labels = {name: y[which] for name, which in rows.items()}
    answers.make(path, wanted[:2], train, labels)  # interrupted
    answers.make(path, wanted, train, labels)
    assert trained == wanted
    return path


def test_names_of_files() -> None:
    for run in answers.runs([0, 12], [0, 3], [4]):
        assert Run.of_file(run.file) == run


def test_a_class_that_was_never_seen(folder: Path) -> None:
    trained = experiments.Trained.load(folder)
    assert trained.classes() == [FORGOTTEN]
    for run in trained.without(FORGOTTEN):
        p = answers.probabilities(trained.test[run])
        assert not p[:, FORGOTTEN].any()
        assert np.allclose(p.sum(-1), 1)


def test_an_experiment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    command = ["experiments.py", "cifar10", "--answers", str(folder), "--no-training", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    experiments.main()
    result = json.loads(out.read_text())
    assert result["classes"] == [str(FORGOTTEN)]
    seen = result["per_class"][str(FORGOTTEN)]
    methods = seen["methods"]
    assert list(methods)[:2] == ["unfiltered", "renormalize"]
    for name, values in methods.items():
        assert (values["accuracy_forgotten"] == 0.0) == (name != "unfiltered")
        assert values["kl_forgotten"] == pytest.approx(values["excess_forgotten"] + seen["floor"]["kl_forgotten"])
    # What is filtered is nearer to a retrained model than what is not, which still answers the class.
    assert methods["renormalize"]["kl_forgotten"] < methods["unfiltered"]["kl_forgotten"]
    assert methods["unfiltered"]["kl_reverse_forgotten"] > 10
    assert 0 < seen["floor"]["kl_retained"] < seen["floor"]["kl_forgotten"]
    assert seen["floor"]["accuracy_forgotten"] == 0.0
    assert result["runtime"]["ratio"] > 0


def test_nothing_to_measure(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["experiments.py", "cifar10", "--answers", str(folder), "--no-training", "--forget", "5"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="no answers"):
        experiments.main()
