"""Inspecting: what a model answers and where its class scores are, without running, and without a trace of a filter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import saved_models
from conftest import ModelStore

import mpru_tf
from mpru_tf.errors import CorruptModelError, ManifestError, ModelNotFoundError
from mpru_tf.manifest import MANIFEST, read_manifest

TESTED = ["keras3", "keras2", "tf1_classify", "argmax_of_logits", "ensemble", "two_functions"]


def test_signatures_are_shown_as_a_client_sees_them(models: ModelStore) -> None:
    shown = mpru_tf.inspect(models.pristine("tf1_classify"))
    assert shown.version == 1
    assert shown.path == models.pristine("tf1_classify")
    x = {"dtype": "float", "shape": [None, saved_models.FEATURES]}
    assert shown.signatures == {
        "predict": {
            "method_name": "tensorflow/serving/predict",
            "inputs": {"x": x},
            "outputs": {name: {"dtype": "float", "shape": [None, 10]} for name in ("logits", "probabilities")},
        },
        "serving_default": {
            "method_name": "tensorflow/serving/classify",
            "inputs": {"inputs": x},
            "outputs": {
                "classes": {"dtype": "string", "shape": [None, 5]},
                "scores": {"dtype": "float", "shape": [None, 5]},
            },
        },
    }
    assert "__saved_model_init_op" not in mpru_tf.inspect(models.pristine("keras3")).signatures


@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_models_that_can_be_filtered_have_one_site_and_no_refusal(models: ModelStore, name: str) -> None:
    shown = mpru_tf.inspect(models.pristine(name))
    assert shown.refusal is None
    (site,) = shown.score_sites
    assert site.classes == saved_models.CLASSES
    assert (shown.forgotten, shown.method) == ((), None)
    values = json.loads(json.dumps(shown.to_dict()))
    assert {"signatures", "score_sites", "forgotten", "refusal"} <= set(values)
    assert {"kind", "classes", "outputs"} <= set(values["score_sites"][0])
    for output in values["score_sites"][0]["outputs"]:
        signature, key = output.split(":")
        assert key in values["signatures"][signature]["outputs"]


@pytest.mark.parametrize("name", ["regression", "binary", "multi_label", "per_pixel", "two_heads"])
def test_models_that_cannot_be_filtered_say_why(models: ModelStore, name: str) -> None:
    shown = mpru_tf.inspect(models.pristine(name))
    _, reason = saved_models.REFUSED[name]
    assert shown.refusal is not None
    assert reason in shown.refusal
    assert len(shown.score_sites) == (2 if name == "two_heads" else 0)
    assert shown.signatures


@pytest.mark.parametrize("name", TESTED)
def test_a_filtered_version_shows_the_same_sites_and_what_it_forgets(
    models: ModelStore, tmp_path: Path, name: str
) -> None:
    base = models.base(name, tmp_path)
    before = mpru_tf.inspect(base)
    mpru_tf.forget(base, [1, 5], method="renormalize")
    after = mpru_tf.inspect(base)
    assert (after.version, after.forgotten, after.method) == (2, (1, 5), "renormalize")
    assert after.score_sites == before.score_sites
    assert after.signatures == before.signatures


def test_a_dropped_output_is_shown_no_more(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("embedding", tmp_path)
    mpru_tf.forget(base, [1], drop_outputs=["serving_default:embedding"])
    assert set(mpru_tf.inspect(base).signatures["serving_default"]["outputs"]) == {"probabilities"}


def test_inspecting_writes_nothing(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    mpru_tf.inspect(base)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_what_cannot_be_inspected(models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        mpru_tf.inspect(tmp_path / "nowhere")
    base = models.base("keras3", tmp_path)
    path = mpru_tf.forget(base, [1]).path
    manifest = read_manifest(path)
    assert manifest is not None
    for change in ({"function": "gone"}, {"meta_graph": 7}):
        elsewhere = dataclasses.replace(manifest.splices[0], **change)  # type: ignore[arg-type]
        dataclasses.replace(manifest, splices=(elsewhere,)).write(path)
        with pytest.raises(ManifestError, match="not where the manifest says"):
            mpru_tf.inspect(path)
        with pytest.raises(ManifestError, match="not where the manifest says"):
            mpru_tf.forget(path, [2])
    (path / MANIFEST).write_text("{}")
    with pytest.raises(ManifestError):
        mpru_tf.inspect(path)
    (base / "1" / "saved_model.pb").write_bytes(b"\x08")
    with pytest.raises(CorruptModelError):
        mpru_tf.inspect(base / "1")
