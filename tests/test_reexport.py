"""The main job on every kind of model: what it answers afterwards, what it leaves alone, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
from conftest import ModelStore

import mpru_tf
from mpru_tf import make_filter
from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import (
    ClassMeansError,
    CorruptModelError,
    ForgetListError,
    LeakError,
    ManifestError,
    ModelNotFoundError,
    MPRUError,
    PublishError,
    UnsupportedModelError,
)
from mpru_tf.manifest import MANIFEST, read_manifest
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.session import LoadedModel

X = saved_models.inputs(rows=4)


def tree(path: Path) -> dict[str, str]:
    """Every file below a path with the digest of its bytes."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def answers(version: Path, signature: str, x: np.ndarray[Any, Any] = X) -> dict[str, np.ndarray[Any, Any]]:
    with LoadedModel(version) as model:
        (key,) = model.signatures[signature].inputs
        return model.run(signature, {key: x})


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(np.asarray(z, np.float64) - np.max(z, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def class_means(seed: int = 0) -> ClassMeans:
    """Class means of a good classifier: most of each class's probability is its own."""
    labels = np.repeat(np.arange(saved_models.CLASSES), 40)
    z = np.random.default_rng(seed).standard_normal((len(labels), saved_models.CLASSES)) * 0.5
    z[np.arange(len(labels)), labels] += 6.0
    return ClassMeans.from_outputs(softmax(z), labels)


@pytest.mark.parametrize("method", ["renormalize", "mean", "gram_schmidt", "tempered"])
@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_answers_are_the_reference_filter_of_the_original_answers(
    models: ModelStore, tmp_path: Path, name: str, method: str
) -> None:
    base = models.base(name, tmp_path)
    means = class_means()
    result = mpru_tf.forget(base, [2, 7], method=method, class_means=means)
    spec = make_filter(saved_models.CLASSES, [2, 7], method, class_means=means)
    site = mpru_tf.inspect(base / "1").score_sites[0]
    tolerance = 1e-5
    compared = 0
    for output, holds in site.output_kinds.items():
        signature, key = output.split(":")
        if holds == "derived":
            continue
        before = answers(base / "1", signature)[key]
        after = answers(result.path, signature)[key]
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
        if holds != "probabilities":
            before, after = softmax(before), softmax(after)
        assert np.all(after[:, [2, 7]] == 0.0)
        assert np.all(after >= 0.0)
        np.testing.assert_allclose(after.sum(axis=-1), 1.0, atol=tolerance)
        np.testing.assert_allclose(after, spec.probabilities(before), atol=tolerance)
        compared += 1
    assert compared


@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_signatures_and_weights_stay_as_they_were(models: ModelStore, tmp_path: Path, name: str) -> None:
    base = models.base(name, tmp_path)
    before = tree(base / "1")
    result = mpru_tf.forget(base, [0])
    assert tree(base / "1") == before
    old, new = bundles.read(base / "1"), bundles.read(result.path)
    for one, other in zip(old.proto.meta_graphs, new.proto.meta_graphs, strict=True):
        assert set(one.signature_def) == set(other.signature_def)
        for key, signature in one.signature_def.items():
            filtered = other.signature_def[key]
            assert filtered.method_name == signature.method_name
            assert dict(filtered.inputs) == dict(signature.inputs)
            assert set(filtered.outputs) == set(signature.outputs)
            for output, info in signature.outputs.items():
                assert filtered.outputs[output].dtype == info.dtype
                assert filtered.outputs[output].tensor_shape == info.tensor_shape
    variables = {name: digest for name, digest in before.items() if name.startswith("variables/")}
    assert variables
    assert {name: digest for name, digest in tree(result.path).items() if name.startswith("variables/")} == variables
    index = "variables/variables.data-00000-of-00001"
    assert os.stat(base / "1" / index).st_ino == os.stat(result.path / index).st_ino or result.files != "hard link"


def test_ids_labels_and_ranked_scores_follow_the_filter(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("argmax_of_logits", tmp_path)
    x = saved_models.inputs(rows=200)
    favourite = int(np.bincount(answers(base / "1", "serving_default", x)["class_ids"]).argmax())
    result = mpru_tf.forget(base, favourite, method="renormalize")
    after = answers(result.path, "serving_default", x)
    assert favourite not in after["class_ids"]
    np.testing.assert_array_equal(after["class_ids"], after["probabilities"].argmax(-1))
    np.testing.assert_allclose(after["top_scores"], -np.sort(-after["probabilities"], axis=-1)[:, :3], atol=1e-6)
    raw = answers(base / "1", "serving_default", x)["logits"]
    retained = [c for c in range(saved_models.CLASSES) if c != favourite]
    np.testing.assert_array_equal(after["logits"][:, retained], raw[:, retained])  # renormalize moves no logit


def test_topk_sorted_classify_signature_names_no_forgotten_class(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("tf1_classify", tmp_path)
    x = saved_models.inputs(rows=100)
    before = answers(base / "1", "serving_default", x)
    assert b"cat" in before["classes"][:, 0]
    result = mpru_tf.forget(base, ["cat"], labels=saved_models.LABELS)
    after = answers(result.path, "serving_default", x)
    assert b"cat" not in after["classes"]
    assert np.all(np.diff(after["scores"], axis=-1) <= 0)
    assert result.labels == ("cat",)


def test_two_heads_are_told_apart_by_naming_an_output(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_heads", tmp_path)
    with pytest.raises(LeakError, match="serving_default:colour"):
        mpru_tf.forget(base, [1], outputs=["serving_default:animal"])
    allow = ["serving_default:colour"]
    result = mpru_tf.forget(base, [1], outputs=["serving_default:animal"], allow_outputs=allow)
    before, after = answers(base / "1", "serving_default"), answers(result.path, "serving_default")
    assert np.all(after["animal"][:, 1] == 0)
    np.testing.assert_array_equal(after["colour"], before["colour"])


@pytest.mark.parametrize("method", ["renormalize", "mean", "gram_schmidt", "tempered"])
def test_float16_scores_may_be_rounded_as_float16(models: ModelStore, tmp_path: Path, method: str) -> None:
    base = models.base("half_shown", tmp_path)
    result = mpru_tf.forget(base, [2, 7], method=method, class_means=class_means())
    assert result.load_check["status"] == "passed"
    after = answers(result.path, "serving_default")
    assert after["logits"].dtype == np.float16
    assert np.all(after["probabilities"][:, [2, 7]] == 0)


def test_two_heads_of_the_same_classes_can_be_named_together(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("twin_heads", tmp_path)
    result = mpru_tf.forget(base, [1], outputs=["serving_default:student", "serving_default:teacher"])
    after = answers(result.path, "serving_default")
    assert np.all(after["student"][:, 1] == 0)
    assert np.all(after["teacher"][:, 1] == 0)


def test_an_embedding_can_be_allowed(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("embedding", tmp_path)
    result = mpru_tf.forget(base, [1], allow_outputs=["serving_default:embedding"])
    after = answers(result.path, "serving_default")
    assert np.all(after["probabilities"][:, 1] == 0)
    np.testing.assert_array_equal(after["embedding"], answers(base / "1", "serving_default")["embedding"])
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert manifest.allowed_outputs == ("serving_default:embedding",)


def test_an_embedding_can_be_dropped(models: ModelStore, tmp_path: Path) -> None:
    import tensorflow as tf

    base = models.base("embedding", tmp_path)
    result = mpru_tf.forget(base, [1], drop_outputs=["serving_default:embedding"])
    assert result.dropped_outputs == ("serving_default:embedding",)
    after = answers(result.path, "serving_default")
    assert set(after) == {"probabilities"}
    assert np.all(after["probabilities"][:, 1] == 0)
    loaded = tf.saved_model.load(str(result.path))
    assert set(loaded.signatures["serving_default"](x=tf.constant(X))) == {"probabilities"}


def test_unfiltered_scores_cannot_be_allowed_but_dropped(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("tempered_softmax", tmp_path)
    with pytest.raises(LeakError, match="cannot be allowed") as caught:
        mpru_tf.forget(base, [1], allow_outputs=["serving_default:logits"])
    assert caught.value.paths
    assert any("x" in step for step in caught.value.paths[0])
    result = mpru_tf.forget(base, [1], drop_outputs=["serving_default:logits"])
    assert set(answers(result.path, "serving_default")) == {"probabilities"}


def test_forgetting_again_recomposes_one_filter_with_the_union(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    mpru_tf.forget(base, [2])
    second = mpru_tf.forget(base, [5])
    assert (second.version, second.forgotten) == (3, (2, 5))
    at_once = mpru_tf.forget(base / "1", [2, 5], into=tmp_path / "other")
    one, other = (
        bundles.read(path).proto.SerializeToString(deterministic=True) for path in (second.path, at_once.path)
    )
    assert one == other  # not a stack of two filters: the very same graph
    manifest = read_manifest(second.path)
    assert manifest is not None
    assert [step["forgotten"] for step in manifest.history] == [[2]]
    assert mpru_tf.inspect(base).forgotten == (2, 5)


def test_forgetting_the_same_class_twice_writes_nothing(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    mpru_tf.forget(base, [2])
    before = tree(base)
    again = mpru_tf.forget(base, [2])
    assert again.already_forgotten
    assert again.version == 2
    assert tree(base) == before


def test_forgetting_again_keeps_what_was_not_said_anew(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    mpru_tf.forget(base, ["cat"], labels=saved_models.LABELS, method="tempered", temperature=2.5)
    again = mpru_tf.forget(base, ["fox"], labels=saved_models.LABELS)
    manifest = read_manifest(again.path)
    assert manifest is not None
    assert (manifest.method, manifest.temperature, manifest.labels) == ("tempered", 2.5, ("cat", "fox"))
    other = mpru_tf.forget(base, [2], temperature=1.25)
    manifest = read_manifest(other.path)
    assert manifest is not None
    assert (other.already_forgotten, manifest.temperature, manifest.labels) == (False, 1.25, ("cat", "fox"))
    elsewhere = mpru_tf.forget(base, [2], into=tmp_path / "elsewhere")
    assert (elsewhere.already_forgotten, elsewhere.version) == (False, 1)
    assert np.all(answers(elsewhere.path, "serving_default")["output_0"][:, [2, 5]] == 0)


def test_a_new_version_brings_nothing_back(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    mpru_tf.forget(base, [2])
    refused(base, ForgetListError, "answer classes again", base / "1", [5])
    assert mpru_tf.forget(base / "1", [2, 5]).forgotten == (2, 5)
    assert mpru_tf.forget(base / "1", [5], into=tmp_path / "elsewhere").forgotten == (5,)


def test_dry_run_decides_everything_and_writes_nothing(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    before = tree(tmp_path)
    result = mpru_tf.forget(base, [2], dry_run=True)
    assert result.dry_run
    assert (result.version, result.path) == (2, base / "2")
    assert tree(tmp_path) == before
    with pytest.raises(LeakError):
        mpru_tf.forget(models.base("embedding", tmp_path), [1], dry_run=True)


def test_into_another_base_path(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    result = mpru_tf.forget(base / "1", [2], into=tmp_path / "new" / "base")
    assert result.path == tmp_path / "new" / "base" / "1"
    assert np.all(answers(result.path, "serving_default")["output_0"][:, 2] == 0)
    unnumbered = tmp_path / "mymodel"
    shutil.copytree(base / "1", unnumbered)
    with pytest.raises(PublishError, match="--into"):
        mpru_tf.forget(unnumbered, [2])
    with pytest.raises(PublishError, match="inside it"):
        mpru_tf.forget(base, [2], into=base / "1")


def test_copy_shares_no_bytes(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    result = mpru_tf.forget(base, [2], copy=True)
    assert result.files == "copy"
    data = "variables/variables.data-00000-of-00001"
    assert os.stat(result.path / data).st_ino != os.stat(base / "1" / data).st_ino
    (base / "1" / data).write_bytes(b"")
    assert np.all(answers(result.path, "serving_default")["output_0"][:, 2] == 0)


def test_extra_assets_come_along_and_keras_metadata_does_not(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras2", tmp_path)
    (base / "1" / "assets.extra").mkdir()
    (base / "1" / "assets.extra" / "notes.txt").write_bytes(b"notes")
    assert (base / "1" / "keras_metadata.pb").is_file()
    result = mpru_tf.forget(base, [2])
    assert (result.path / "assets.extra" / "notes.txt").read_bytes() == b"notes"
    assert not (result.path / "keras_metadata.pb").exists()
    assert not (base / "1" / MANIFEST).exists()


def test_fingerprint_is_recomputed_where_there_was_one(models: ModelStore, tmp_path: Path) -> None:
    import tensorflow as tf

    base = models.base("keras3", tmp_path)
    result = mpru_tf.forget(base, [2])
    old, new = (tf.saved_model.experimental.read_fingerprint(str(path)) for path in (base / "1", result.path))
    assert new.saved_model_checksum != old.saved_model_checksum
    assert new.checkpoint_hash == old.checkpoint_hash
    plain = models.base("tf1_classify", tmp_path)
    (plain / "1" / "fingerprint.pb").unlink(missing_ok=True)
    assert not (mpru_tf.forget(plain, [2]).path / "fingerprint.pb").exists()


def test_added_ops_are_registered_and_plain(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("tf1_classify", tmp_path)
    result = mpru_tf.forget(base, [2])
    (meta_graph,) = bundles.read(result.path).proto.meta_graphs
    added = [node for node in meta_graph.graph_def.node if node.name.startswith("mpru_filter/")]
    assert added
    listed = {op.name for op in meta_graph.meta_info_def.stripped_op_list.op}
    assert {node.op for node in added} <= listed
    assert not [key for node in added for key in node.attr if key.startswith("_")]


def test_result_and_manifest_are_json(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    result = mpru_tf.forget(base, ["bee"], labels=saved_models.LABELS)
    values = json.loads(json.dumps(result.to_dict()))
    assert {"version", "path", "forgotten", "method", "leak_gate", "seconds"} <= set(values)
    assert values["forgotten"] == [1]
    assert values["leak_gate"] == "passed"
    assert values["load_check"]["status"] == "passed"
    manifest = json.loads((result.path / MANIFEST).read_text())
    assert manifest["labels"] == ["bee"]
    assert manifest["source"]["saved_model_sha256"] == tree(base / "1")["saved_model.pb"]
    assert manifest["saved_model_sha256"] == tree(result.path)["saved_model.pb"]


# ---------------------------------------------------------------------------------------------------------- refusals
def refused(base: Path, error: type[MPRUError], match: str, *args: Any, **options: Any) -> None:
    """The call raises one clear paragraph and changes nothing below the base path."""
    before = tree(base) if base.exists() else {}
    with pytest.raises(error, match=match) as caught:
        mpru_tf.forget(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) > 40
    assert (tree(base) if base.exists() else {}) == before
    assert not list(base.glob(".mpru*")) if base.exists() else True


@pytest.mark.parametrize("name", saved_models.REFUSED)
def test_models_without_a_class_vector_are_refused_for_the_right_reason(
    models: ModelStore, tmp_path: Path, name: str
) -> None:
    base = models.base(name, tmp_path)
    _, reason = saved_models.REFUSED[name]
    refused(base, MPRUError, reason, base, [1])


def test_bad_paths_are_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    refused(base, ModelNotFoundError, "nothing at this path", tmp_path / "nowhere", [1])
    (tmp_path / "empty").mkdir()
    refused(base, ModelNotFoundError, "no SavedModel", tmp_path / "empty", [1])
    refused(base, ModelNotFoundError, "is a file", base / "1" / "saved_model.pb", [1])
    refused(base, ModelNotFoundError, "Object stores", "gs://bucket/model", [1])
    assert list((tmp_path / "empty").iterdir()) == []


def test_damaged_models_are_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    pb = base / "1" / "saved_model.pb"
    whole = pb.read_bytes()
    pb.write_bytes(whole[: len(whole) // 2])
    refused(base, CorruptModelError, "only a part", base, [1])
    pb.write_bytes(b"")
    refused(base, CorruptModelError, "no MetaGraph", base, [1])
    pb.write_bytes(whole)
    data = base / "1" / "variables" / "variables.data-00000-of-00001"
    data.rename(tmp_path / "data")
    refused(base, CorruptModelError, "data file", base, [1])
    shutil.rmtree(base / "1" / "variables")
    refused(base, CorruptModelError, "values are missing", base, [1])


def test_bad_forget_lists_are_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    refused(base, ForgetListError, "wolf", base, ["wolf"], labels=saved_models.LABELS)
    refused(base, ForgetListError, "10", base, [10])
    refused(base, ForgetListError, "at least one must be retained", base, list(range(10)))
    refused(base, ForgetListError, "twice", base, [1, 1])
    refused(base, ForgetListError, "No class", base, [])
    mpru_tf.forget(base, [0, 1, 2, 3, 4])
    refused(base, ForgetListError, "at least one must be retained", base, [5, 6, 7, 8, 9])


def test_bad_class_means_are_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    refused(base, ClassMeansError, "needs class means", base, [1], method="mean")
    short = ClassMeans.from_outputs(np.eye(4).repeat(30, axis=0), np.arange(4).repeat(30))
    refused(base, ClassMeansError, "number of classes", base, [1], method="gram_schmidt", class_means=short)
    unsure = ClassMeans.from_outputs(np.full((200, 10), 0.1), np.arange(200) % 10)
    refused(base, ClassMeansError, "0.8", base, [1], method="mean", class_means=unsure)


def test_unknown_outputs_are_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("embedding", tmp_path)
    refused(base, UnsupportedModelError, "serving_default:embedding", base, [1], drop_outputs=["serving_default:emb"])
    refused(base, UnsupportedModelError, "serving_default:embedding", base, [1], allow_outputs=["emb"])


def test_a_filtered_version_without_its_manifest_or_changed_is_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    path = mpru_tf.forget(base, [1]).path
    manifest = path / MANIFEST
    text = manifest.read_text()
    manifest.unlink()
    refused(base, ManifestError, "manifest is gone", base, [2])
    manifest.write_text("{}")
    refused(base, ManifestError, "cannot be read", base, [2])
    manifest.write_text(text.replace('"saved_model_sha256": "', '"saved_model_sha256": "0', 2))
    refused(base, ManifestError, "changed", base, [2])
