"""The audit finds whatever may answer a forgotten class, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mpru_tf
from mpru_tf.errors import ModelNotFoundError
from mpru_tf.manifest import MANIFEST
from mpru_tf.operations.audit import FINDINGS, Audit, audit
from mpru_tf.operations.client import Server
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.retire import retire
from mpru_tf.operations.rollback import rollback
from mpru_tf.operations.waiting import wait_until_available
from mpru_tf.unlearning.record import write_record
from mpru_tf.versions import STAGING_PREFIX, staged

Start = Callable[..., Server]
Config = Callable[..., Path]
WEIGHTS = "variables/variables.data-00000-of-00001"


def kinds(found: Audit) -> list[tuple[str, int | None, tuple[int, ...]]]:
    assert {finding.kind for finding in found.findings} <= FINDINGS.keys()
    return [(finding.kind, finding.version, finding.classes) for finding in found.findings]


def rewrite(path: Path, data: bytes) -> None:
    """Give a file new content without touching what is linked to it."""
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def alone(filtered: Path) -> Path:
    """A base path in which nothing is wrong: only version 2, which forgets class 2."""
    retire(filtered, delete=True)
    return filtered


class TestBasePath:
    def test_nothing_forgotten(self, base: Path) -> None:
        found = audit(base)
        assert found.is_clean
        assert found.versions[0].answers == ()

    def test_clean(self, alone: Path) -> None:
        found = audit(alone, full=True)
        assert found.is_clean, found.findings
        assert found.forgotten == (2,)

    def test_an_unfiltered_older_version(self, filtered: Path) -> None:
        found = audit(filtered)
        assert kinds(found) == [("older_version_remembers", 1, (2,))]
        assert [(version.version, version.answers) for version in found.versions] == [(1, (2,)), (2, ())]

    def test_an_older_version_that_forgets_less(self, alone: Path) -> None:
        mpru_tf.forget(alone, [0], load_check=False)
        assert kinds(audit(alone)) == [("older_version_remembers", 2, (0,))]

    @pytest.mark.parametrize("name", ["3", "003", "+3"])
    def test_back_with_a_higher_number(self, filtered: Path, name: str) -> None:
        (filtered / "1").rename(filtered / name)
        assert kinds(audit(filtered)) == [("newest_version_remembers", 3, (2,))]

    def test_back_after_a_rollback(self, filtered: Path) -> None:
        rollback(filtered, 1, i_know_it_remembers=True)
        assert ("newest_version_remembers", 3, (2,)) in kinds(audit(filtered))

    def test_back_because_the_filtered_one_is_gone(self, filtered: Path) -> None:
        mpru_tf.forget(filtered, [0], load_check=False)
        shutil.rmtree(filtered / "3")
        assert kinds(audit(filtered)) == [("older_version_remembers", 1, (2,))]

    def test_a_digest(self, alone: Path) -> None:
        model = alone / "2" / "saved_model.pb"
        rewrite(model, model.read_bytes() + b"\x12\x00")
        found = audit(alone)
        assert ("digest_mismatch", 2, ()) in kinds(found)
        assert not found.versions[0].is_sure

    def test_the_filter_taken_out(self, filtered: Path) -> None:
        rewrite(filtered / "2" / "saved_model.pb", (filtered / "1" / "saved_model.pb").read_bytes())
        found = audit(filtered)
        assert {("digest_mismatch", 2, ()), ("leak", 2, (2,))} <= set(kinds(found))
        assert found.versions[1].answers == (2,)

    def test_weights_changed_in_place_through_the_link(self, filtered: Path) -> None:
        """Whoever writes into version 1 writes into version 2; the digests do not cover the weights themselves."""
        data = bytearray((filtered / "2" / WEIGHTS).read_bytes())
        data[0] ^= 1
        (filtered / "2" / WEIGHTS).write_bytes(bytes(data))
        later = time.time() + 60
        os.utime(filtered / "2" / WEIGHTS, (later, later))
        assert ("weights_changed", 2, ()) in kinds(audit(filtered))
        os.utime(filtered / "2" / WEIGHTS, (1, 1))
        assert ("weights_changed", 2, ()) not in kinds(audit(filtered))
        assert ("weights_changed", 2, ()) in kinds(audit(filtered, full=True))

    def test_a_copy_with_new_times_is_no_finding(self, alone: Path) -> None:
        later = time.time() + 3600
        for path in (alone / "2").rglob("*"):
            os.utime(path, (later, later))
        assert audit(alone).is_clean

    def test_a_manifest_that_is_gone(self, filtered: Path) -> None:
        mpru_tf.forget(filtered, [0], load_check=False)
        (filtered / "2" / MANIFEST).unlink()
        assert ("manifest_missing", 2, (0, 2)) in kinds(audit(filtered))

    def test_a_manifest_that_cannot_be_read(self, filtered: Path) -> None:
        mpru_tf.forget(filtered, [0], load_check=False)
        rewrite(filtered / "2" / MANIFEST, b"{")
        assert ("manifest_unreadable", 2, (0, 2)) in kinds(audit(filtered))

    def test_an_incomplete_version(self, alone: Path) -> None:
        (alone / "3").mkdir()
        assert kinds(audit(alone)) == [("damaged_version", 3, ())]

    def test_a_damaged_version(self, alone: Path) -> None:
        rewrite(alone / "2" / "saved_model.pb", b"nonsense")
        found = audit(alone)
        assert [finding.kind for finding in found.findings] == ["damaged_version"]
        assert found.versions[0].answers == (2,)

    def test_unlearned_in_the_weights(self, base: Path) -> None:
        """It guarantees nothing, so it is told, but counts for nothing."""
        write_record(base / "1", {"forgotten": [0, 2], "classes": 4}, None)
        found = audit(base)
        assert found.is_clean
        (one,) = found.versions
        assert (one.forgotten, one.unlearned, one.unguarded, one.answers) == ((), (0, 2), (0, 2), ())
        assert one.to_dict()["unlearned"] == [0, 2]
        mpru_tf.forget(base, [2], load_check=False)
        found = audit(base)
        assert kinds(found) == [("older_version_remembers", 1, (2,))]
        assert found.versions[1].unguarded == (0,)

    def test_a_damaged_record(self, filtered: Path) -> None:
        for number in ("1", "2"):
            write_record(filtered / number, {"forgotten": [9], "classes": 4}, None)
        found = audit(filtered)
        assert [kind for kind in kinds(found) if kind[0] == "damaged_version"] == [
            ("damaged_version", 1, ()),
            ("damaged_version", 2, ()),
        ]
        assert not found.versions[1].is_sure

    def test_stale_staging(self, alone: Path) -> None:
        (alone / f"{STAGING_PREFIX}0123").mkdir()
        with staged(alone.parent / "other"):
            pass
        assert kinds(audit(alone)) == [("stale_staging", None, ())]

    def test_staging_in_use_is_no_finding(self, alone: Path) -> None:
        with staged(alone):
            assert audit(alone).is_clean

    def test_nothing_is_changed(self, filtered: Path) -> None:
        def seen() -> dict[str, int]:
            return {str(path): path.stat().st_mtime_ns for path in filtered.rglob("*")}

        before = seen()
        audit(filtered, full=True)
        assert seen() == before

    def test_no_base_path(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            audit(tmp_path / "nothing")

    def test_json(self, filtered: Path) -> None:
        found = json.loads(json.dumps(audit(filtered).to_dict()))
        assert set(found) == {
            "base",
            "clean",
            "forgotten",
            "class_labels",
            "versions",
            "labels",
            "findings",
            "unseen",
        }
        assert found["findings"][0].keys() == {"kind", "version", "classes", "detail"}
        own = {"version", "path", "forgotten", "unlearned", "answers", "is_sure", "state"}
        assert found["versions"][0].keys() == own


class TestServer:
    def test_it_answers_from_the_filtered_one(self, alone: Path, start: Start) -> None:
        found = audit(alone, server=start(alone))
        assert found.is_clean
        assert found.versions[0].state == "AVAILABLE"

    def test_an_older_version_is_still_loaded(self, filtered: Path, config: Config, start: Start) -> None:
        path = config(filtered)
        server = start(model_config_file=str(path))
        for version in (1, 2):
            wait_until_available(server, version, timeout=30)
        server.reload(Configuration.read(config(filtered, stable=1, canary=2, odd=1)).message)
        found = audit(filtered, server=server)
        assert kinds(found)[1:] == [("server_remembers", 1, (2,)), ("label_remembers", 1, (2,))]
        assert "by number" in found.findings[1].detail or "its number" in found.findings[1].detail
        assert found.labels == {"stable": 1, "canary": 2}
        assert audit(filtered, server=server, config=path).labels == {"stable": 1, "canary": 2, "odd": 1}
        assert audit(filtered, server=server, labels=["odd"]).labels["odd"] == 1
        assert audit(filtered, config=path).labels == {"stable": 1, "canary": 2, "odd": 1}

    def test_the_class_is_back(self, filtered: Path, start: Start) -> None:
        server = start(filtered)
        rolled = rollback(filtered, 1, server=server, i_know_it_remembers=True, timeout=30)
        found = audit(filtered, server=server)
        assert ("server_remembers", rolled.version, (2,)) in kinds(found)
        assert any("to all who name no version" in finding.detail for finding in found.findings)

    def test_a_version_that_is_not_in_the_base_path(self, filtered: Path, start: Start) -> None:
        server = start(filtered, file_system_poll_wait_seconds=0)
        shutil.copytree(filtered / "2", filtered / "5")
        shutil.rmtree(filtered / "2")
        shutil.rmtree(filtered / "1")
        found = audit(filtered, server=server)
        assert kinds(found) == [("server_version_not_in_base", 2, (2,))]

    def test_a_server_that_is_not_there(self, filtered: Path) -> None:
        with Server("127.0.0.1:1", "small") as server:
            found = audit(filtered, server=server)
        assert kinds(found) == [("older_version_remembers", 1, (2,))]
        assert len(found.unseen) == 1
        assert not found.is_clean

    def test_a_model_that_is_not_there(self, alone: Path, start: Start) -> None:
        with Server(start(alone).target, "large") as server:
            found = audit(alone, server=server)
        assert not found.is_clean
        assert "large" in found.unseen[0]
