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
import redistribution
from answers import Run

from mpru_tf.filters import make_filter

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


def test_rules_are_fitted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rules.json"
    monkeypatch.setattr(sys, "argv", ["redistribution.py", str(folder), "--out", str(out)])
    redistribution.main()
    rules = json.loads(out.read_text())[folder.name]["rules"]
    assert list(rules) == list(redistribution.RULES)
    assert rules["renormalize"]["all data sets"]["numbers"] == []
    assert all("other classes" not in ways for ways in rules.values())  # there is one class only
    losses = {
        (rule, way): values["kl_retained"] + values["kl_forgotten"]
        for rule, ways in rules.items()
        for way, values in ways.items()
    }
    fitted = losses["tempered", "all data sets"]
    assert fitted <= min(losses["tempered", "as shipped"], losses["renormalize", "all data sets"]) + 1e-3
    # What has a number more fits at least as well.
    for rule in ("bent", "calibrated", "tempered and uniform", "tempered and destinations", "tilted"):
        assert losses[rule, "all data sets"] <= fitted + 5e-3


@pytest.mark.parametrize("rule", redistribution.RULES)
def test_rules_answer_distributions(rule: str) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), 50)
    p[0] = [0, 0, 1, 0, 0]
    keep = np.arange(5) != 2
    function, numbers, _ = redistribution.RULES[rule]
    q = function(p, keep, np.array([0.25, 0.25, 0, 0.25, 0.25]), *numbers)
    assert np.allclose(q.sum(-1), 1)
    assert (q >= 0).all()
    assert not q[:, 2].any()


@pytest.mark.parametrize("rule", ["renormalize", "tempered"])
def test_rules_are_those_of_the_filters(rule: str) -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(5), 50)
    function, _, _ = redistribution.RULES[rule]
    numbers = redistribution.SHIPPED.get(rule, [])
    expected = make_filter(5, [2], rule).probabilities(p)
    assert np.allclose(function(p, np.arange(5) != 2, np.full(5, 0.2), *numbers), expected, atol=1e-9)
