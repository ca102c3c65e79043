"""`make zoo`: a row for each model of a directory, and a judge that sees what is wrong with an answer."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ModelStore
from saved_models import CLASSES, LABELS

from mpru_tf import make_filter

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "zoo.py"
P = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 6).astype(np.float32)
P[0] = np.eye(CLASSES, dtype=np.float32)[2] * 0.9 + 0.01  # sure of the class to forget
SPEC = make_filter(CLASSES, [2], "renormalize")
KINDS = {"p": "probabilities", "id": "derived", "name": "derived", "top": "derived"}
NAMES = [label.encode() for label in LABELS]


def made_of(p: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What a model answers that computes everything from its class scores."""
    best = p.argmax(-1)
    return {
        "p": p,
        "id": best[:, None],
        "name": np.array(NAMES, object)[best],
        "top": -np.sort(-p, axis=-1)[:, :3],
    }


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    """The script as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("zoo", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["zoo"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def judged(zoo: ModuleType, after: dict[str, np.ndarray[Any, Any]]) -> Any:
    findings = zoo.Findings()
    zoo.judge(findings, zoo.Answer("s", KINDS, made_of(P), after, NAMES), SPEC)
    return findings


def test_the_right_answer_is_right(zoo: ModuleType) -> None:
    findings = judged(zoo, made_of(SPEC.probabilities(P).astype(np.float32)))
    assert findings.wrong == []
    assert findings.deviation < 1e-6
    assert findings.derived == {"s:id", "s:name", "s:top"}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"p": P}, "s:p with class 2 forgotten still gives it a probability"),
        ({"p": np.roll(made_of(SPEC.probabilities(P).astype(np.float32))["p"], 1, 0)}, "s:p .* deviates"),
        ({"p": np.full_like(P, np.nan)}, "s:p .* still gives it a probability of nan"),
        ({"p": P.astype(np.float64)}, r"s:p .* is float64 \(6, 10\), not float32"),
        ({"id": made_of(P)["id"]}, "s:id .* still names it"),
        ({"id": np.full((6, 1), 5)}, "s:id .* does not follow"),
        ({"name": made_of(P)["name"]}, "s:name .* still names it"),
        ({"name": np.full(6, b"?", object)}, "s:name .* does not follow"),
        ({"top": made_of(P)["top"]}, "s:top .* does not show"),
    ],
)
def test_a_wrong_answer_is_seen(zoo: ModuleType, wrong: dict[str, np.ndarray[Any, Any]], complaint: str) -> None:
    findings = judged(zoo, {**made_of(SPEC.probabilities(P).astype(np.float32)), **wrong})
    assert findings.wrong
    assert re.match(complaint, findings.wrong[0])


@pytest.mark.parametrize(("top", "is_wrong"), [([3, 5], False), ([2, 3], True), ([3, 2], True)])
def test_labels_alone_are_held_against_the_forgotten_one(zoo: ModuleType, top: list[int], is_wrong: bool) -> None:
    labels = np.array([[NAMES[2], NAMES[3]]], object)
    after = np.array([[NAMES[index] for index in top]], object)
    findings = zoo.Findings()
    zoo.judge(findings, zoo.Answer("s", {"classes": "derived"}, {"classes": labels}, {"classes": after}, NAMES), SPEC)
    assert findings.derived == {"s:classes"}
    assert bool(findings.wrong) == is_wrong


@pytest.mark.parametrize(("moved", "is_wrong"), [(0.0, False), (0.1, True)])
def test_logits_are_compared_as_logits_too(zoo: ModuleType, moved: float, is_wrong: bool) -> None:
    """Logits that are all moved by the same amount are the same probabilities, but other logits."""
    z = np.log(P)
    findings = zoo.Findings()
    answer = zoo.Answer("s", {"z": "logits"}, {"z": z}, {"z": (SPEC.logits(z) + moved).astype(np.float32)})
    zoo.judge(findings, answer, SPEC)
    assert bool(findings.wrong) == is_wrong


def tried(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), *arguments]
    environment = {"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": "/usr/bin:/bin", "COLUMNS": "240"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_models_are_tried_and_nothing_is_written_beside_them(models: ModelStore, tmp_path: Path) -> None:
    folder, out = tmp_path / "models", tmp_path / "results" / "zoo.json"
    folder.mkdir()
    for name in ("argmax_of_logits", "binary"):
        models.base(name, folder)
    (folder / "argmax_of_logits" / "10").mkdir()  # incomplete
    (folder / "no version").mkdir()
    (folder / "README.md").write_text("not a model")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = tried(folder, "--repeat", "2", "--out", str(out))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    result = json.loads(out.read_text(encoding="utf-8"))
    filtered, incomplete, refused = result["models"]
    assert [row["name"] for row in result["models"]] == ["argmax_of_logits/1", "argmax_of_logits/10", "binary/1"]
    too_slow = [complaint for complaint in filtered["wrong"] if complaint.startswith("a re-export took")]
    assert filtered["wrong"] == too_slow  # of a machine that does other things meanwhile
    assert done.returncode == bool(too_slow), done.stderr
    assert result["passed"] != bool(too_slow)
    assert (filtered["kind"], filtered["classes"], filtered["classes_tried"]) == ("logits", CLASSES, CLASSES)
    assert (filtered["leak_gate"], filtered["loads"]) == ("passed", "yes")
    assert filtered["worst_deviation"] < 1e-5
    assert filtered["derived_checked"] == ["serving_default:class_ids", "serving_default:top_scores"]
    assert filtered["derived_not_checked"] == []
    assert len(filtered["seconds"]) == 2
    assert min(filtered["seconds"]) <= filtered["median_seconds"] <= filtered["slowest_seconds"]
    assert incomplete["refused"].startswith("This directory holds no SavedModel")
    assert "one of two classes" in refused["refused"]
    assert str(folder) not in out.read_text(encoding="utf-8")
    for shown in ("argmax_of_logits/1", "binary/1", "refused: The model answers one probability", "2 refused"):
        assert shown in done.stdout


@pytest.mark.parametrize(
    ("row", "verdict", "counted"),
    [
        ({"worst_deviation": 1e-7}, "right", "1 filtered rightly, 0 wrongly, 0 refused."),
        ({"worst_deviation": 1e-7, "wrong": ["it differs"]}, "it differs", "0 filtered rightly, 1 wrongly"),
        ({"signatures_asked": []}, "filtered, not asked", "0 refused. 1 filtered, but not asked."),
        ({"refused": "It is binary. Received: p."}, "refused", "0 wrongly, 1 refused."),
    ],
)
def test_what_was_not_asked_is_not_called_right(
    zoo: ModuleType, row: dict[str, Any], verdict: str, counted: str
) -> None:
    whole = {
        "name": "m/1",
        "site": ["z:0"],
        "kind": "logits",
        "classes": 3,
        "filtered_outputs": {"s:p": "probabilities"},
        "signatures_asked": ["s"],
        "leak_gate": "passed",
        "loads": "yes",
        "worst_deviation": None,
        "wrong": [],
        "median_seconds": 0.1,
        "slowest_seconds": 0.2,
        **row,
    }
    assert zoo.cells(whole)[-1] == verdict
    assert len(zoo.cells(whole)) == len(zoo.HEADINGS)
    assert counted in zoo.summary({"models": [whole]})


def test_json_alone_is_printed_when_asked_for(models: ModelStore, tmp_path: Path) -> None:
    shutil.copytree(models.pristine("regression"), tmp_path / "models" / "regression" / "1")
    done = tried(tmp_path / "models", "--json", "--out", str(tmp_path / "zoo.json"))
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))


def test_a_directory_without_models_is_said(tmp_path: Path) -> None:
    done = tried(tmp_path, "--out", str(tmp_path / "zoo.json"))
    assert done.returncode == 2
    assert "NAME/VERSION" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = tried(tmp_path / "nothing")
    assert done.returncode == 2
    assert "is no directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_says_what_it_wants() -> None:
    done = subprocess.run(
        ["make", "zoo"],
        cwd=SCRIPT.parents[1],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "ZOO=path/to/models" in done.stderr
