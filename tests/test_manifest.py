"""The manifest: written, read back, held against its files, and refused when it is not what we wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import saved_models
from conftest import ModelStore

import mpru_tf
from mpru_tf.errors import ManifestError
from mpru_tf.manifest import FORMAT_VERSION, MANIFEST, Manifest, read_manifest
from mpru_tf.saved_model.score_site import Choice
from mpru_tf.saved_model.splice import Splice

SPLICE = Splice(
    0, "__inference_f_1", "logits/BiasAdd:output:0", "mpru_filter/filtered:output:0", "mpru_filter", "logits", 10
)
EXAMPLE = Manifest(
    tool_version="1.2.3",
    created="2026-01-02T03:04:05+00:00",
    source={"path": "/models/m/1", "version": 1, "saved_model_sha256": "aa", "variables_index_sha256": None},
    saved_model_sha256="bb",
    variables_index_sha256=None,
    classes=10,
    forgotten=(2, 7),
    labels=("Katze", "日本"),
    method="tempered",
    temperature=1.5,
    choice=Choice(outputs=("serving_default:p",), classes=10),
    constants_sha256="cc",
    preconditions=None,
    splices=(SPLICE, dataclasses.replace(SPLICE, meta_graph=1, function="")),
    dropped_outputs=("serving_default:h",),
    allowed_outputs=(),
    dropped_endpoints=("root.raw",),
    leak_gate="passed",
    load_check={"status": "passed", "largest_difference": 1e-8},
    history=({"created": "earlier", "forgotten": [2], "method": "mean", "saved_model_sha256": "dd"},),
)


@pytest.mark.parametrize(
    "manifest",
    [EXAMPLE, dataclasses.replace(EXAMPLE, labels=None, temperature=None, history=(), preconditions={"ok": True})],
)
def test_it_is_read_back_as_it_was_written(tmp_path: Path, manifest: Manifest) -> None:
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8")
    assert text.endswith("}\n")
    values = json.loads(text)
    assert values["format_version"] == FORMAT_VERSION
    assert values["splices"][0] == SPLICE.to_dict()
    if manifest.labels:
        assert "日本" in text  # for people to read


def test_an_unfiltered_version_has_none(models: ModelStore, tmp_path: Path) -> None:
    assert read_manifest(models.pristine("keras3")) is None
    assert read_manifest(tmp_path) is None


def written(path: Path, **changes: Any) -> None:
    values = {**json.loads(EXAMPLE.to_json()), **changes}
    (path / "assets.extra").mkdir(exist_ok=True)
    text = json.dumps({key: value for key, value in values.items() if value != "left out"})
    (path / MANIFEST).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"forgotten": "left out"},
        {"format_version": "left out"},
        {"unheard_of": 1},
        {"splices": [{"meta_graph": 0}]},
        {"splices": None},
        {"splices": [3]},
        {"forgotten": 3},
    ],
)
def test_what_we_did_not_write_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    written(tmp_path, **changes)
    with pytest.raises(ManifestError, match="cannot be read") as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST) in str(caught.value)
    assert "saved_model_sha256" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\ufeff{}", "3"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path)
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    written(tmp_path, format_version=FORMAT_VERSION + 1, something="new")
    with pytest.raises(ManifestError, match="Upgrade mpru_tf"):
        read_manifest(tmp_path)


def test_it_says_what_does_not_match(models: ModelStore, tmp_path: Path) -> None:
    path = mpru_tf.forget(models.base("keras3", tmp_path), [1], copy=True).path
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.mismatches(path) == []
    index = path / "variables" / "variables.index"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1])
    assert manifest.mismatches(path) == ["variables.index was changed after it was published"]
    index.unlink()
    assert manifest.mismatches(path) == ["variables.index was changed after it was published"]
    index.write_bytes(whole)
    with (path / "saved_model.pb").open("ab") as file:
        file.write(b"\0")
    assert manifest.mismatches(path) == ["saved_model.pb was changed after it was published"]


def test_it_tells_the_whole_story(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("argmax_of_logits", tmp_path)
    mpru_tf.forget(base, ["cat"], labels=saved_models.LABELS, method="renormalize")
    mpru_tf.forget(base, ["dog"], labels=saved_models.LABELS, method="tempered")
    path = mpru_tf.forget(base, [7]).path
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.forgotten == (2, 3, 7)
    assert manifest.labels is None  # no labels were given this time
    assert [(step["forgotten"], step["method"]) for step in manifest.history] == [
        ([2], "renormalize"),
        ([2, 3], "tempered"),
    ]
    assert manifest.source["version"] == 3
    assert (manifest.method, manifest.temperature) == ("tempered", 1.5)
    assert manifest.dropped_endpoints == ("root.raw",)
    assert manifest.leak_gate == "passed"
    assert manifest.tool_version == mpru_tf.__version__
    for splice in manifest.splices:
        assert splice.classes == saved_models.CLASSES
