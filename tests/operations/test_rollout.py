"""A rollout as operators see it, with real servers: labels, answers, and what is put back when something is wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpru_tf.errors import DataError, ForgetListError, ServingError, VerificationError
from mpru_tf.operations import rollout as rolling
from mpru_tf.operations.client import Answer, Server
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.rollout import _Run, rollout
from mpru_tf.operations.waiting import wait_until_available

Start = Callable[..., Server]
Config = Callable[..., Path]
ROWS = {"x": np.ones((2, 3), np.float32)}


def labels(path: Path) -> dict[str, int]:
    return Configuration.read(path).labels("small")


class TestWithoutLabels:
    def test_publish(self, base: Path, start: Start) -> None:
        server = start(base)
        steps: list[str] = []
        result = rollout(base, server, classes=["1"], timeout=30, progress=steps.append, load_check=False)
        assert (result.version, result.before, result.published, result.forgotten) == (2, 1, True, (1,))
        assert result.labels == {}
        seen = result.comparison
        assert (seen.requests, seen.rows) == (8, 32)
        assert set(seen.outputs) == {"serving_default:logits", "serving_default:probabilities"}
        assert seen.against == "what the filter (tempered) makes of the old version's answers"
        assert seen.largest_difference is not None
        assert seen.largest_difference < 1e-5
        assert seen.old is not None
        assert 0 < seen.old.median <= seen.old.slowest
        assert any("no label was moved" in step for step in steps)
        assert server.predict("", ROWS).version == 2
        json.dumps(result.to_dict())

    def test_the_same_classes_once_more(self, filtered: Path, start: Start) -> None:
        result = rollout(filtered, start(filtered), classes=["2"], timeout=30, load_check=False)
        assert (result.version, result.published, result.before) == (2, False, 2)
        assert result.comparison.largest_difference == 0.0

    def test_more_classes_on_a_filtered_version(self, filtered: Path, start: Start) -> None:
        result = rollout(filtered, start(filtered), classes=["0"], timeout=30, load_check=False)
        assert result.forgotten == (0, 2)
        assert "ranking" in result.comparison.against
        assert result.comparison.largest_difference is None

    def test_an_existing_version(self, filtered: Path, start: Start) -> None:
        result = rollout(filtered, start(filtered), version=2, timeout=30)
        assert (result.before, result.published) == (None, False)
        assert "no old version" in result.comparison.against

    def test_a_version_that_does_not_load(self, base: Path, start: Start) -> None:
        server = start(base)
        shutil.copytree(base / "1", base / "2")
        (base / "2" / "variables" / "variables.index").write_bytes(b"nonsense")
        with pytest.raises(ServingError, match="version 2 END"):
            rollout(base, server, version=2, timeout=30)
        assert server.predict("", ROWS).version == 1

    def test_a_version_that_remembers(self, filtered: Path, start: Start) -> None:
        server = start(filtered)
        shutil.copytree(filtered / "1", filtered / "3")
        with pytest.raises(ForgetListError, match="would answer class 2 again; refused to roll it out"):
            rollout(filtered, server, version=3, timeout=30)
        assert rollout(filtered, server, version=3, timeout=30, i_know_it_remembers=True).version == 3

    def test_the_old_version_goes_while_it_is_asked(
        self, filtered: Path, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = start(filtered)
        choose = _Run.choose_old

        def choose_old(run: _Run, stable_label: str, new: int | None) -> None:
            choose(run, stable_label, new)
            shutil.copytree(filtered / "2", filtered / "3")
            wait_until_available(server, 3, 30)
            while 2 in server.available():
                time.sleep(0.05)

        monkeypatch.setattr(_Run, "choose_old", choose_old)
        result = rollout(filtered, server, version=3, timeout=30)
        assert (result.version, result.before) == (3, 2)
        assert any("unloaded by the server before" in step for step in result.steps)
        assert "no old version" in result.comparison.against
        assert result.comparison.old is None

    @pytest.mark.parametrize("given", [{}, {"classes": ["1"], "version": 2}])
    def test_what_to_roll_out(self, given: dict[str, Any], base: Path, start: Start) -> None:
        with pytest.raises(ServingError, match="--classes or --version"):
            rollout(base, start(base), **given)

    def test_the_server_is_not_there(self, base: Path) -> None:
        with Server("127.0.0.1:1", "small") as server, pytest.raises(ServingError, match="cannot be asked"):
            rollout(base, server, classes=["1"])
        assert [child.name for child in base.iterdir()] == ["1"]


class TestWithLabels:
    @pytest.mark.parametrize("policy", ["all {}", "latest { num_versions: 2 }", "specific { versions: 1 }"])
    def test_labels_move(self, policy: str, base: Path, config: Config, start: Start) -> None:
        path = config(base, policy)
        server = start(model_config_file=str(path))
        server.reload(Configuration.read(config(base, policy, stable=1)).message)
        result = rollout(base, server, classes=["3"], config=path, timeout=30, load_check=False)
        assert (result.version, result.before) == (2, 1)
        assert result.labels == labels(path) == {"canary": 2, "stable": 2}
        for label in ("canary", "stable"):
            answer = server.predict("", ROWS, label=label)
            assert answer.version == 2
            assert not answer.outputs["probabilities"][:, 3].any()
        assert server.available() == (1, 2)
        assert path.read_text().startswith("# Owned by the on-call team.\n")

    def test_a_policy_that_would_unload_the_old_version(self, base: Path, config: Config, start: Start) -> None:
        path = config(base, "latest {}", stable=1)
        server = start(base)
        with pytest.raises(ServingError, match=r"unload version 1.*num_versions: 2"):
            rollout(base, server, classes=["3"], config=path, timeout=30)
        assert [child.name for child in base.iterdir()] == ["1"]

    @pytest.mark.parametrize("policy", ["all {}", "specific { versions: 1 }"])
    def test_wrong_answers_put_the_labels_back(
        self, policy: str, base: Path, stranger: Path, config: Config, start: Start
    ) -> None:
        path = config(base, policy)
        server = start(model_config_file=str(path))
        before = config(base, policy, stable=1).read_bytes()
        server.reload(Configuration.read(path).message)
        shutil.copytree(stranger, base / "staged").rename(base / "2")
        with pytest.raises(VerificationError, match=r"differs by .* The labels are as they were before \(stable: vers"):
            rollout(base, server, version=2, config=path, timeout=30)
        assert path.read_bytes() == before
        assert server.version_of_label("stable") == 1
        assert server.version_of_label("canary") is None
        assert wait_until_available(server, 1, timeout=1).version == 1

    def test_an_interrupt_puts_the_labels_back(
        self, base: Path, config: Config, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = config(base)
        server = start(model_config_file=str(path))
        before = config(base, stable=1).read_bytes()
        server.reload(Configuration.read(path).message)

        def interrupt(*given: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(rolling, "compare", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rollout(base, server, classes=["3"], config=path, timeout=30, load_check=False)
        assert path.read_bytes() == before
        assert server.version_of_label("canary") is None


class TestAnswers:
    def leaking(self, server: Server, monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None]) -> None:
        """Change what the new version answers on its way to us."""
        honest = Server.predict

        def predict(self: Server, *given: Any, **options: Any) -> Answer:
            answer = honest(self, *given, **options)
            if answer.version == 2:
                change(answer.outputs["probabilities"])
            return answer

        monkeypatch.setattr(Server, "predict", predict)

    def test_a_forgotten_class(self, base: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = start(base)

        def change(p: np.ndarray) -> None:
            p[0, 1] = 1e-30

        self.leaking(server, monkeypatch, change)
        with pytest.raises(VerificationError, match=r"probability 1e-30.*Version 2 is published and stays"):
            rollout(base, server, classes=["1"], timeout=30, load_check=False)

    def test_nan(self, base: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = start(base)

        def change(p: np.ndarray) -> None:
            p[0, 0] = np.nan

        self.leaking(server, monkeypatch, change)
        with pytest.raises(VerificationError, match="differs by nan"):
            rollout(base, server, classes=["1"], timeout=30, load_check=False)

    def test_the_ranking(self, filtered: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = start(filtered)
        honest = Server.predict

        def predict(self: Server, *given: Any, **options: Any) -> Answer:
            answer = honest(self, *given, **options)
            if answer.version == 3:
                answer.outputs["probabilities"][:] = answer.outputs["probabilities"][:, ::-1]
                answer.outputs["probabilities"][:, [0, 2]] = 0.0
            return answer

        monkeypatch.setattr(Server, "predict", predict)
        with pytest.raises(VerificationError, match="behind the first one before"):
            rollout(filtered, server, classes=["0"], timeout=30, load_check=False)


class TestSamples:
    @pytest.mark.parametrize(
        ("name", "rows"), [("a.npy", 5), ("a.npz", 5), ("x.npz", 5), ("instances.json", 2), ("inputs.json", 2)]
    )
    def test_forms(self, name: str, rows: int, base: Path, start: Start, tmp_path: Path) -> None:
        x = np.random.default_rng(1).standard_normal((5, 3))
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, x)
        elif name == "x.npz":
            np.savez(path, x=x, y=np.zeros(5))
        elif path.suffix == ".npz":
            np.savez(path, x=x)
        else:
            listed = [[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]
            path.write_text(json.dumps({"instances": listed} if "inst" in name else {"inputs": {"x": listed}}))
        result = rollout(base, start(base), classes=["1"], samples=path, requests=3, timeout=30, load_check=False)
        assert result.comparison.rows == rows
        assert result.comparison.requests == {5: 3, 2: 2}[rows]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.json", b'{"instances": [{"z": 1}]}'),
            ("a.json", b"{"),
            ("a.npy", b"x"),
            ("a.npz", b""),
            ("a.json", b"{}"),
        ],
    )
    def test_what_fits_nothing_is_refused_before_publishing(
        self, name: str, content: bytes, base: Path, start: Start, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            rollout(base, start(base), classes=["1"], samples=tmp_path / name, timeout=30)
        assert [child.name for child in base.iterdir()] == ["1"]
