"""Verifying: what was published passes; what was changed afterwards, broken or never filtered is noticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

import mpru_tf
from mpru_tf import make_filter
from mpru_tf.errors import (
    CorruptModelError,
    ManifestError,
    ModelNotFoundError,
    UnsupportedModelError,
    VerificationError,
)
from mpru_tf.load_check import _wrong
from mpru_tf.manifest import Manifest, read_manifest
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import unsplice
from mpru_tf.unlearning.record import write_record
from mpru_tf.verification import Verification, check_before_publishing

DATA = "variables/variables.data-00000-of-00001"


def found(result: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in result.checks}


def failed(result: Verification) -> set[str]:
    assert result.passed == all(check.passed is not False for check in result.checks)
    return {check.name for check in result.checks if check.passed is False}


def filtered(models: ModelStore, tmp_path: Path, name: str = "keras3", **options: Any) -> Path:
    return mpru_tf.forget(models.base(name, tmp_path), [1], copy=True, **options).path


def manifest_of(path: Path) -> Manifest:
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest


def tamper(path: Path, edit: Callable[[MetaGraphDef], None], cover_up: bool = True) -> None:
    """Change the graph of a published version and, as a careful forger would, the digest in its manifest."""
    bundle = bundles.read(path)
    edit(bundle.proto.meta_graphs[0])
    data = bundle.proto.SerializeToString()
    (path / "saved_model.pb").write_bytes(data)
    if cover_up:
        changed = dataclasses.replace(manifest_of(path), saved_model_sha256=hashlib.sha256(data).hexdigest())
        changed.write(path)


def filter_body(meta_graph: MetaGraphDef, manifest: Manifest) -> Any:
    """The nodes among which the first filter lies."""
    name = manifest.splices[0].function
    bodies = {function.signature.name: function for function in meta_graph.graph_def.library.function}
    return bodies[name].node_def if name else meta_graph.graph_def.node


# ------------------------------------------------------------------------------------------------------ what passes
@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_what_was_published_passes(models: ModelStore, tmp_path: Path, name: str) -> None:
    path = filtered(models, tmp_path, name)
    result = mpru_tf.verify(path, full=True)
    assert failed(result) == set()
    assert (
        found(result).items()
        >= {"digests": True, "leak gate": True, "filter": True, "variables": True, "load": True}.items()
    )
    assert any(check.passed and check.name.startswith("answers of") for check in result.checks)
    assert result.forgotten == (1,)
    assert mpru_tf.verify(path.parent).path == path
    values = json.loads(json.dumps(result.to_dict()))
    assert values["passed"] is True
    assert values["forgotten"] == [1]
    assert [check["name"] for check in values["checks"]] == [check.name for check in result.checks]


def test_allowed_and_dropped_outputs_pass(models: ModelStore, tmp_path: Path) -> None:
    allowed = filtered(models, tmp_path / "a", "embedding", allow_outputs=["serving_default:embedding"])
    dropped = filtered(models, tmp_path / "d", "embedding", drop_outputs=["serving_default:embedding"])
    assert mpru_tf.verify(allowed).passed
    assert mpru_tf.verify(dropped).passed
    forbidden = dataclasses.replace(manifest_of(allowed), allowed_outputs=())
    forbidden.write(allowed)
    assert failed(mpru_tf.verify(allowed)) == {"leak gate"}


def test_of_two_heads_the_filtered_one_is_judged(tmp_path: Path) -> None:
    one, two = saved_models._Module(1), saved_models._Module(2)
    one.other = two

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"animal": tf.nn.softmax(one.scores(x)), "colour": tf.nn.softmax(two.scores(x))}

    saved_models._save(tmp_path / "1", one, {"serving_default": answer})
    for head, other in (("animal", "colour"), ("colour", "animal")):
        result = mpru_tf.forget(
            tmp_path / "1", [1], outputs=[f"serving_default:{head}"], allow_outputs=[f"serving_default:{other}"]
        )
        verification = mpru_tf.verify(result.path)
        assert verification.passed
        assert found(verification)[f"answers of serving_default:{head}"]
        assert f"answers of serving_default:{other}" not in found(verification)


def test_forgetting_in_another_head_would_bring_classes_back_and_is_refused(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_heads", tmp_path)
    names = ["serving_default:animal", "serving_default:colour"]
    mpru_tf.forget(base, [1], outputs=names[:1], allow_outputs=names[1:])
    with pytest.raises(mpru_tf.errors.AmbiguousSiteError, match="other class scores"):
        mpru_tf.forget(base, [2], outputs=names[1:], allow_outputs=names[:1])
    again = mpru_tf.forget(base, [2], outputs=names[:1])
    assert again.forgotten == (1, 2)


# ----------------------------------------------------------------------------------------------- what was changed
def test_a_changed_graph_is_noticed(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    tamper(path, lambda meta_graph: meta_graph.graph_def.node.add(name="harmless", op="NoOp") and None, cover_up=False)
    result = mpru_tf.verify(path)
    assert failed(result) == {"digests"}
    assert "saved_model.pb was changed" in result.checks[0].detail


def test_changed_variables_are_noticed(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    data = bytearray((path / DATA).read_bytes())
    data[5] ^= 1
    (path / DATA).write_bytes(data)
    assert mpru_tf.verify(path, load_check=False).passed  # hashing all weights is what `full` is for
    result = mpru_tf.verify(path, full=True, load_check=False)
    assert failed(result) == {"variables"}
    index = path / "variables" / "variables.index"
    index.write_bytes(index.read_bytes()[:-1] + b"\0")
    assert "digests" in failed(mpru_tf.verify(path, load_check=False))


def test_truncated_variables_are_noticed(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    (path / DATA).write_bytes((path / DATA).read_bytes()[:100])
    assert {"variables", "load"} <= failed(mpru_tf.verify(path, full=True))


@pytest.mark.parametrize("name", ["keras3", "tf1_classify", "hand_normalised"])
def test_a_filter_taken_out_by_hand_is_noticed(models: ModelStore, tmp_path: Path, name: str) -> None:
    path = filtered(models, tmp_path, name)
    manifest = manifest_of(path)

    def take_out(meta_graph: MetaGraphDef) -> None:
        from mpru_tf.saved_model.graph import Graph

        for done in manifest.splices:
            unsplice(Graph(meta_graph), done)

    tamper(path, take_out)
    assert failed(mpru_tf.verify(path, load_check=False)) == {"leak gate", "filter"}
    result = mpru_tf.verify(path)
    assert any(name.startswith("answers of") for name in failed(result))
    assert "digests" not in failed(result)


def test_a_filter_short_circuited_inside_is_noticed_without_a_single_request(
    models: ModelStore, tmp_path: Path
) -> None:
    path = filtered(models, tmp_path)
    manifest = manifest_of(path)

    def short_circuit(meta_graph: MetaGraphDef) -> None:
        (last,) = (node for node in filter_body(meta_graph, manifest) if node.name == "mpru_filter/filtered")
        last.input[0] = manifest.splices[0].raw

    tamper(path, short_circuit)
    assert failed(mpru_tf.verify(path, load_check=False)) == {"filter"}


def test_an_output_that_shows_the_inside_of_the_filter_is_noticed(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path, "argmax_of_logits")
    manifest = manifest_of(path)

    def tap(meta_graph: MetaGraphDef) -> None:
        body = filter_body(meta_graph, manifest)
        inside = next(node.name for node in body if node.name.startswith("mpru_filter/") and node.op == "Exp")
        (reader,) = (node for node in body if node.op == "ArgMax")
        reader.input[0] = f"{inside}:y:0"

    tamper(path, tap)
    assert failed(mpru_tf.verify(path, load_check=False)) == {"leak gate"}


def test_a_filter_for_other_classes_is_noticed(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    dataclasses.replace(manifest_of(path), forgotten=(3,)).write(path)
    assert failed(mpru_tf.verify(path, load_check=False)) == {"filter"}
    assert {"filter", "answers of serve:output_0", "answers of serving_default:output_0"} == failed(
        mpru_tf.verify(path)
    )


def test_a_door_added_by_hand_is_noticed(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path, "tf1_classify")
    raw = manifest_of(path).splices[0].raw

    def add_door(meta_graph: MetaGraphDef) -> None:
        signature = meta_graph.signature_def["debug"]
        signature.CopyFrom(meta_graph.signature_def["predict"])
        signature.outputs["logits"].name = raw if ":" in raw else f"{raw}:0"

    tamper(path, add_door)
    result = mpru_tf.verify(path, load_check=False)
    assert failed(result) == {"leak gate"}
    assert "debug:logits" in next(check.detail for check in result.checks if check.name == "leak gate")


def test_a_manifest_that_names_no_filter_does_not_pass(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    everything = ("serving_default:output_0", "serve:output_0")
    dataclasses.replace(manifest_of(path), splices=(), allowed_outputs=everything).write(path)
    assert "leak gate" in failed(mpru_tf.verify(path, load_check=False))


def test_a_manifest_that_names_another_place_does_not_pass(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    manifest = manifest_of(path)
    for change in ({"function": "gone"}, {"filtered": "gone:output:0"}, {"meta_graph": 7}, {"prefix": "gone"}):
        elsewhere = dataclasses.replace(manifest.splices[0], **change)  # type: ignore[arg-type]
        dataclasses.replace(manifest, splices=(elsewhere,)).write(path)
        assert failed(mpru_tf.verify(path)), change


def test_what_is_not_ours_or_not_there_is_refused(models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        mpru_tf.verify(models.pristine("keras3"))
    with pytest.raises(ModelNotFoundError):
        mpru_tf.verify(tmp_path / "nowhere")
    path = filtered(models, tmp_path)
    (path / DATA).unlink()
    with pytest.raises(CorruptModelError):
        mpru_tf.verify(path)


def test_a_record_of_other_weights_does_not_keep_a_filtered_version_from_being_checked(
    models: ModelStore, tmp_path: Path
) -> None:
    path = filtered(models, tmp_path)
    write_record(path, {"forgotten": [2], "classes": 10}, None)
    index = path / "variables" / "variables.index"
    data = index.read_bytes()
    index.unlink()  # it may be one with the source's
    index.write_bytes(data + b"x")
    assert "digests" in failed(mpru_tf.verify(path, load_check=False))


def test_a_version_that_only_unlearned_in_its_weights_is_called_so(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras3", tmp_path)
    write_record(base / "1", {"forgotten": [2, 5], "classes": 10}, None)
    with pytest.raises(ManifestError, match=r"nothing guarantees.*classes 2, 5"):
        mpru_tf.verify(base)


# ----------------------------------------------------------------------------------------- what cannot be looked at
def rename_op(path: Path, old: str, new: str) -> None:
    """Make a model need an op whose library is not here, as TF-DF or TF-Text models do."""
    bundle = bundles.read(path)
    for meta_graph in bundle.proto.meta_graphs:
        bodies = (meta_graph.graph_def.node, *(one.node_def for one in meta_graph.graph_def.library.function))
        changed = [node for body in bodies for node in body if node.op == old]
        assert changed
        for node in changed:
            node.op = new
        for definition in meta_graph.meta_info_def.stripped_op_list.op:
            if definition.name == old:
                definition.name = new
    (path / "saved_model.pb").write_bytes(bundle.proto.SerializeToString())


def test_a_model_with_unknown_ops_is_filtered_but_not_loaded(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("keras2", tmp_path)
    rename_op(base / "1", "Relu", "VendorRelu")
    result = mpru_tf.forget(base, [1])
    assert result.load_check["status"] == "skipped"
    assert "VendorRelu" in result.load_check["detail"]
    verification = mpru_tf.verify(result.path)
    assert verification.passed
    assert found(verification) == {"digests": True, "leak gate": True, "filter": True, "load": None}
    assert "VendorRelu" in verification.checks[-1].detail


def test_a_model_that_takes_serialized_examples_is_asked_with_examples(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def answer(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {"x": tf.io.FixedLenFeature([saved_models.FEATURES], tf.float32)}
        return {"p": tf.nn.softmax(module.scores(tf.io.parse_example(examples, spec)["x"]))}

    module.answer = answer
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=answer)
    result = mpru_tf.forget(tmp_path, [1])
    assert result.load_check["status"] == "passed"
    verification = mpru_tf.verify(result.path)
    assert verification.passed
    assert found(verification)["answers of serving_default:p"]


def test_a_model_for_which_no_request_can_be_made_up_is_loaded_but_not_asked(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tensors")])
    def answer(tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.map_fn(lambda one: tf.io.parse_tensor(one, tf.float32), tensors, fn_output_signature=tf.float32)
        return {"p": tf.nn.softmax(module.scores(tf.ensure_shape(x, [None, saved_models.FEATURES])))}

    module.answer = answer
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=answer)
    result = mpru_tf.forget(tmp_path, [1])
    assert result.load_check["status"] == "skipped"
    assert "no valid request could be made up" in result.load_check["detail"]
    verification = mpru_tf.verify(result.path)
    assert verification.passed
    assert found(verification) == {
        "digests": True,
        "leak gate": True,
        "filter": True,
        "load": True,
        "answers of serving_default": None,
    }


def test_a_frozen_model_has_no_variables_to_read(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    w = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        p = tf.nn.softmax(tf.matmul(x, w), name="p")
        info, build = v1.saved_model.utils.build_tensor_info, v1.saved_model.signature_def_utils.build_signature_def
        builder = v1.saved_model.builder.SavedModelBuilder(str(tmp_path / "1"))
        signature = build({"x": info(x)}, {"p": info(p)}, "tensorflow/serving/predict")
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    assert not list((tmp_path / "1" / "variables").glob("*"))
    result = mpru_tf.forget(tmp_path, [1])
    assert result.load_check["status"] == "passed"
    verification = mpru_tf.verify(result.path, full=True)
    assert verification.passed
    assert found(verification)["variables"] is None


# ------------------------------------------------------------------------------------------------ before publishing
def test_the_check_before_publishing_compares_with_the_reference(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path, method="renormalize")
    source = path.parent / "1"
    site = survey(bundles.read(source).graphs()).the_site()
    right = check_before_publishing(path, source, site, make_filter(10, [1], "renormalize"))
    assert right["status"] == "passed"
    assert right["requests"] == 2
    assert right["largest_difference"] < 1e-5
    assert check_before_publishing(path, None, site, make_filter(10, [1], "renormalize"))["status"] == "passed"
    with pytest.raises(VerificationError, match="differ from the reference"):
        check_before_publishing(path, source, site, make_filter(10, [1], "tempered", temperature=5.0))
    with pytest.raises(VerificationError, match="a forgotten class still gets probability"):
        check_before_publishing(path, source, site, make_filter(10, [2], "renormalize"))
    with pytest.raises(VerificationError, match="a forgotten class still gets probability"):
        check_before_publishing(source, source, site, make_filter(10, [1], "renormalize"))


def test_a_model_that_never_loaded_is_told_from_one_that_we_broke(models: ModelStore, tmp_path: Path) -> None:
    path = filtered(models, tmp_path)
    source = path.parent / "1"
    site, spec = survey(bundles.read(source).graphs()).the_site(), make_filter(10, [1])
    (path / DATA).write_bytes(b"")
    with pytest.raises(VerificationError, match="does not load"):
        check_before_publishing(path, source, site, spec)
    (source / DATA).write_bytes(b"")
    with pytest.raises(CorruptModelError, match="source version does not load"):
        check_before_publishing(path, source, site, spec)
    with pytest.raises(CorruptModelError, match="source version does not load"):
        mpru_tf.forget(source, [2], into=tmp_path / "new" / "base")
    assert not (tmp_path / "new").exists()


def test_probabilities_that_a_matrix_makes_are_not_taken_for_logits(tmp_path: Path) -> None:
    """Coarse classes added up from fine ones: nothing in the graph says that these rows sum to one."""
    module = saved_models._Module(1)
    parents = np.eye(5, dtype=np.float32)[np.arange(10) // 2]
    saved_models._save(
        tmp_path / "1", module, {"serving_default": lambda x: {"p": tf.nn.softmax(module.scores(x)) @ parents}}
    )
    with pytest.raises(UnsupportedModelError, match="taken for logits"):
        mpru_tf.forget(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("kind", "row", "wrong"),
    [
        (PROBABILITIES, [0.5, 0.0, 0.5], ""),
        (PROBABILITIES, [0.5, 1e-30, 0.5], "forgotten class still gets probability"),
        (PROBABILITIES, [0.5, 0.0, 0.4], "sums to one only within"),
        (PROBABILITIES, [np.nan, 0.0, np.nan], ""),
        (PROBABILITIES, [np.nan, 0.5, np.nan], "forgotten class still gets probability"),
        (LOGITS, [3.0, -1e30, 2.0], ""),
        (LOGITS, [3.0, 0.0, 2.0], "forgotten class still gets probability"),
        (LOGITS, [np.nan, -1e30, np.nan], ""),
        ("log_probabilities", [np.log(0.5), -1e30, np.log(0.5)], ""),
        ("log_probabilities", [np.log(0.5), -50.0, np.log(0.5)], "forgotten class still gets probability"),
    ],
)
def test_what_is_wrong_with_an_answer(kind: str, row: list[float], wrong: str) -> None:
    good = {PROBABILITIES: [1.0, 0.0, 0.0], LOGITS: [0.0, -1e30, 0.0]}.get(kind, [np.log(0.5), -1e30, np.log(0.5)])
    said = _wrong(np.array([good, row, good], np.float32), kind, (1,), 3)
    assert wrong in said
    assert bool(said) == bool(wrong)
    assert _wrong(np.zeros((0, 3)), kind, (1,), 3) == ""
