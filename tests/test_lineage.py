"""The chain of versions: told whole, held against the files, and doubted where a manifest lies."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ModelStore
from rich.console import Console
from saved_models import LABELS

import mpru_tf
from mpru_tf.errors import ForgetListError, ManifestError, ModelNotFoundError
from mpru_tf.lineage import check_nothing_comes_back, history, show
from mpru_tf.manifest import MANIFEST, read_manifest
from mpru_tf.unlearning.record import RECORD, write_record


@pytest.fixture(scope="module")
def published(models: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path in which classes were forgotten three times; nobody may write to it."""
    base = models.base("keras3", tmp_path_factory.mktemp("published"))
    mpru_tf.forget(base, ["cat"], labels=LABELS, method="renormalize", load_check=False, copy=True)
    mpru_tf.forget(base, [7], labels=LABELS, method="tempered", temperature=2.0, load_check=False, copy=True)
    mpru_tf.forget(base, [3, 0], load_check=False, copy=True)
    return base


@pytest.fixture
def base(published: Path, tmp_path: Path) -> Path:
    """A copy of it elsewhere, with the recorded paths pointing there."""
    copied = Path(shutil.copytree(published, tmp_path / "model"))
    for version in (2, 3, 4):
        path = copied / str(version) / MANIFEST
        path.write_text(path.read_text(encoding="utf-8").replace(str(published), str(copied)), encoding="utf-8")
    return copied


def rewrite(version_dir: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = version_dir / MANIFEST
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def statuses(found: mpru_tf.History) -> list[str]:
    return [step.status for step in found.steps]


def test_the_chain_is_told_oldest_first(base: Path) -> None:
    found = history(base)
    assert found.path == base / "4"
    assert found.verified
    assert found.problems == ()
    assert statuses(found) == ["unfiltered", "verified", "verified", "verified"]
    assert [step.version for step in found.steps] == [1, 2, 3, 4]
    assert [step.path for step in found.steps] == [base / "1", base / "2", base / "3", base / "4"]
    assert [step.forgotten for step in found.steps] == [(), (2,), (2, 7), (0, 2, 3, 7)]
    assert [step.newly_forgotten for step in found.steps] == [(), (2,), (7,), (0, 3)]
    assert [step.labels for step in found.steps] == [None, ("cat",), ("cat", "hen"), None]
    assert [step.method for step in found.steps] == [None, "renormalize", "tempered", "tempered"]
    assert [step.temperature for step in found.steps] == [None, None, 2.0, 2.0]
    original, *filtered = found.steps
    assert original.created is None
    for before, step in zip(found.steps, filtered, strict=False):
        manifest = json.loads((base / str(step.version) / MANIFEST).read_text(encoding="utf-8"))
        assert step.created == manifest["created"]
        assert step.saved_model_sha256 == manifest["saved_model_sha256"]
        assert before.saved_model_sha256 == manifest["source"]["saved_model_sha256"]
        assert step.variables_index_sha256 == before.variables_index_sha256 == manifest["variables_index_sha256"]


def test_an_older_version_tells_its_own_part(base: Path) -> None:
    assert history(base / "3").steps == history(base).steps[:3]


def test_a_version_that_was_never_filtered_has_one_step(models: ModelStore) -> None:
    found = history(models.pristine("keras3"))
    (step,) = found.steps
    assert (step.status, step.version, step.forgotten, step.created) == ("unfiltered", 1, (), None)
    assert found.verified


@pytest.mark.parametrize("gone", [["1"], ["2"], ["1", "2", "3"]])
def test_versions_that_are_gone_are_still_told(base: Path, gone: list[str]) -> None:
    whole = history(base).to_dict()["steps"]
    for name in gone:
        shutil.rmtree(base / name)
    found = history(base)
    assert found.verified
    for before, now in zip(whole, found.to_dict()["steps"], strict=True):
        is_gone = str(now["version"]) in gone
        assert now == (before | {"path": None, "status": "missing"} if is_gone else before)


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_base_path_that_moved_is_looked_at_where_it_is(
    base: Path, tmp_path: Path, move: Callable[[Path, Path], Any]
) -> None:
    moved = tmp_path / "elsewhere"
    move(base, moved)
    found = history(moved)
    assert found.verified
    assert [step.path for step in found.steps] == [moved / "1", moved / "2", moved / "3", moved / "4"]
    append(moved / "2" / "saved_model.pb")
    assert statuses(history(moved))[1] == ("verified" if base.exists() else "changed")
    if base.exists():  # the copy that is as recorded is the one that later versions were made from
        assert history(moved).steps[1].path == base / "2"


def test_a_version_made_into_another_base_path_finds_its_source(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    path = mpru_tf.forget(base / "2", [5], into=other, load_check=False).path
    assert path == other / "1"
    found = history(other)
    assert found.verified
    assert [step.path for step in found.steps] == [base / "1", base / "2", path]
    shutil.rmtree(base / "2")  # what lies beside it under another number is not what it was made from
    shutil.copytree(base / "3", other / "2")
    found = history(path)
    assert found.verified
    assert statuses(found) == ["unfiltered", "missing", "verified"]


@pytest.mark.parametrize("version", [1, 2, 4])
@pytest.mark.parametrize("file", ["saved_model.pb", "variables/variables.index"])
def test_a_changed_file_is_named(base: Path, version: int, file: str) -> None:
    append(base / str(version) / file)
    found = history(base)
    assert not found.verified
    assert [step.version for step in found.steps if step.status == "changed"] == [version]
    (problem,) = found.problems
    assert problem.startswith("the original: " if version == 1 else f"version {version}: ")
    assert f"{Path(file).name} does not have the digest" in problem


def test_a_file_that_is_gone_counts_as_changed(base: Path) -> None:
    (base / "3" / "variables" / "variables.index").unlink()
    assert "variables.index does not have" in "".join(history(base).problems)


def test_an_earlier_manifest_must_say_what_later_ones_say_it_said(base: Path) -> None:
    rewrite(base / "2", lambda values: values.update(forgotten=[], labels=[]))
    found = history(base)
    assert found.problems == ("version 2: its manifest says otherwise than that of version 3: forgotten",)
    assert statuses(found) == ["unfiltered", "verified", "verified", "verified"]  # the files are as they were
    (base / "2" / MANIFEST).write_text("{", encoding="utf-8")
    assert "cannot be read as a manifest" in "".join(history(base).problems)
    (base / "2" / MANIFEST).unlink()
    assert history(base).problems == ("version 2: its manifest is gone",)


def test_labels_that_were_redacted_since_are_no_contradiction(base: Path) -> None:
    rewrite(base / "4", lambda values: values["history"][0].update(labels=["forgotten_2"]))
    found = history(base)
    assert found.verified
    assert found.steps[1].labels == ("forgotten_2",)


def test_a_class_that_came_back_is_said(base: Path) -> None:
    rewrite(base / "4", lambda values: values.update(forgotten=[0, 3, 7]))
    found = history(base)
    assert found.problems == ("version 4: it answers classes again that the version before it forgot: 2",)


def test_a_history_left_out_is_noticed(base: Path) -> None:
    rewrite(base / "4", lambda values: values.update(history=[]))
    found = history(base)
    assert [step.version for step in found.steps] == [3, 4]
    (problem,) = found.problems
    assert "although version 4 says that nothing was forgotten before" in problem


def test_a_digest_that_two_manifests_record_differently_is_said(base: Path) -> None:
    rewrite(base / "4", lambda values: values["history"][0].update(saved_model_sha256="ff"))
    shutil.rmtree(base / "2")
    (problem,) = history(base).problems
    assert problem == "version 2: version 3 was made from other files than the history records"


def test_a_manifest_that_names_itself_as_its_source_ends(base: Path) -> None:
    def bite_its_tail(values: dict[str, Any]) -> None:
        own = {name: values[name] for name in ("saved_model_sha256", "variables_index_sha256")}
        values["source"].update(own, version=4, path=str(base / "4"))
        for step in values["history"]:
            step["source"] = values["source"]

    rewrite(base / "4", bite_its_tail)
    found = history(base)
    assert statuses(found) == ["missing", "missing", "missing", "verified"]
    assert not found.verified


def test_manifests_that_tell_less_of_earlier_versions_are_read(base: Path) -> None:
    def shorten(values: dict[str, Any]) -> None:
        kept = ("created", "forgotten", "method", "saved_model_sha256")
        values["history"] = [{name: step[name] for name in kept} for step in values["history"]]
        values["source"].pop("same_base_path", None)

    for version in (2, 3, 4):
        rewrite(base / str(version), shorten)
    found = history(base)
    assert found.verified
    assert [step.path for step in found.steps] == [base / "1", base / "2", base / "3", base / "4"]
    shutil.rmtree(base / "3")  # then nothing says any more where the ones before it came from
    found = history(base)
    assert found.verified
    assert [(step.version, step.status) for step in found.steps] == [(None, "missing"), (3, "missing"), (4, "verified")]
    assert [step.forgotten for step in found.steps] == [(2,), (2, 7), (0, 2, 3, 7)]


@pytest.mark.parametrize("path", ["\0", "relative/1", "/" + "x" * 5000, "/proc/self/mem", "\udcff"])
def test_a_recorded_path_that_is_none_leads_nowhere(base: Path, path: str) -> None:
    shutil.rmtree(base / "3")
    rewrite(base / "4", lambda values: values["source"].update(path=path))
    assert history(base).steps[2].status == "missing"


def test_a_version_whose_manifest_was_taken_away_is_refused(base: Path) -> None:
    (base / "4" / MANIFEST).unlink()
    with pytest.raises(ManifestError, match="its manifest is gone"):
        history(base)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    for path in (tmp_path / "nothing", tmp_path / "model"):
        with pytest.raises(ModelNotFoundError, match=path.name):
            history(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"created": 3},
        {"forgotten": [10]},
        {"forgotten": ["cat"]},
        {"forgotten": 2},
        {"labels": ["cat", "dog"]},
        {"labels": [None]},
        {"temperature": "warm"},
        {"source": None},
        {"source": {"path": "/m/1"}},
        {"source": {"path": 1, "version": 1, "saved_model_sha256": "aa", "variables_index_sha256": None}},
    ],
)
def test_a_history_that_we_did_not_write_is_refused(base: Path, changes: dict[str, Any]) -> None:
    rewrite(base / "4", lambda values: values["history"][0].update(changes))
    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        history(base)


def test_a_base_path_whose_name_is_no_text_can_be_recorded(base: Path) -> None:
    moved = base.rename(base.parent / os.fsdecode(b"caf\xe9"))
    manifest = read_manifest(moved / "4")
    assert manifest is not None
    manifest = dataclasses.replace(manifest, source={**manifest.source, "path": str(moved / "3")})
    manifest.write(moved / "4")
    assert read_manifest(moved / "4") == manifest
    assert history(moved).verified


def test_it_is_shown_as_a_table(base: Path) -> None:
    rewrite(base / "3", lambda values: values.update(labels=["[red]", "hen"]))
    append(base / "2" / "saved_model.pb")
    console = Console(file=io.StringIO(), width=160)
    show(history(base / "3"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing forgotten" in text
    assert "2 ([red]), +7 (hen)" in text
    assert "tempered, T = 2" in text
    assert "saved_model.pb does not have the digest" in text


def test_what_was_unlearned_in_the_weights_is_told(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    write_record(base / "1", {"forgotten": [2, 5], "classes": len(LABELS)}, None)
    (alone,) = history(base).steps
    assert (alone.forgotten, alone.unlearned, alone.status) == ((), (2, 5), "unfiltered")
    mpru_tf.forget(base, [2], load_check=False, copy=True)
    mpru_tf.forget(base, [5], load_check=False, copy=True)
    found = history(base)
    assert found.verified
    assert [(step.forgotten, step.unlearned) for step in found.steps] == [
        ((), (2, 5)),
        ((2,), (2, 5)),
        ((2, 5), (2, 5)),
    ]
    assert [step["unlearned"] for step in found.to_dict()["steps"]] == [[2, 5]] * 3
    console = Console(file=io.StringIO(), width=200)
    show(found, console)
    assert console.file.getvalue().count("unlearned in the weights: 2, 5 (not guaranteed: no filter)") == 2
    assert console.file.getvalue().count("unlearned in the weights: 2, 5") == 3
    assert "nothing forgotten" not in console.file.getvalue()
    (base / "2" / RECORD).write_text("{}", encoding="utf-8")
    damaged = history(base).steps[1]
    assert (damaged.status, damaged.unlearned, len(damaged.problems)) == ("verified", (), 1)
    assert "record of UNSIR" in damaged.problems[0]


def test_what_was_unlearned_in_the_weights_does_not_come_back(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    check_nothing_comes_back(base, (), "say so", unlearned=())
    write_record(base / "1", {"forgotten": [2, 5], "classes": len(LABELS)}, None)
    for forgotten, unlearned in (((), (2, 5)), ((2,), (5, 7)), ((2, 5), ())):
        check_nothing_comes_back(base, forgotten, "say so", unlearned=unlearned)
    for forgotten, unlearned in (((), ()), ((2,), (7,)), ((7,), (2,))):
        with pytest.raises(ForgetListError, match=r"unlearned in the weights of version 1.*with (2, )?5 as well"):
            check_nothing_comes_back(base, forgotten, "say so", unlearned=unlearned)
    other = models.base("keras3", tmp_path / "other")
    with pytest.raises(ForgetListError, match="unlearned in the weights of version 1"):
        mpru_tf.forget(other, [2], into=base, load_check=False)
    mpru_tf.forget(base, [2, 5], load_check=False)
    with pytest.raises(ForgetListError, match="version 2, the newest"):  # what a filter held back takes a filter
        check_nothing_comes_back(base, (2,), "say so", unlearned=(2, 5))


def test_tensorflow_is_not_imported(base: Path) -> None:
    script = (
        f"import sys, mpru_tf; found = mpru_tf.history({str(base)!r}); "
        "print(found.verified, 'tensorflow' in sys.modules, 'google.protobuf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
