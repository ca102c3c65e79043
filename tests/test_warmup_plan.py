"""The warm-up file of a new version: kept, left out or made anew, replayed before it is published and by a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from forests import random_forest
from tensorflow_serving.apis import prediction_log_pb2
from typer.testing import CliRunner

import mpru_tf
from mpru_tf.cli import app
from mpru_tf.errors import CorruptModelError, DataError, MPRUError, ServingError, VerificationError
from mpru_tf.manifest import read_manifest
from mpru_tf.serving.server import ModelServer
from mpru_tf.trees.export import write_saved_model
from mpru_tf.trees.lowering import OpsBackend
from mpru_tf.warmup import WARMUP_FILE, read_warmup, write_warmup
from mpru_tf.warmup_plan import WarmUpWish, describe


def log(signature: str = "serving_default", rows: int = 1, wanted: tuple[str, ...] = (), **inputs: Any) -> Any:
    found = prediction_log_pb2.PredictionLog()
    request = found.predict_log.request
    request.model_spec.signature_name = signature
    request.output_filter.extend(wanted)
    for key, value in (inputs or {"x": saved_models.inputs(rows)}).items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return found


def asked(path: Path) -> list[tuple[str, int]]:
    """Signature and number of examples of each record."""
    found = []
    for entry in read_warmup(path / WARMUP_FILE):
        (tensor,) = entry.predict_log.request.inputs.values()
        found.append((entry.predict_log.request.model_spec.signature_name, tensor.tensor_shape.dim[0].size))
    return found


def serves(base: Path) -> dict[int, str]:
    """The versions in a base path after a server has loaded what it can, warm-up included."""
    with ModelServer(base, model_name="m", port=0, max_num_load_retries=0) as server:
        return {version: status.state.name for version, status in server.statuses().items()}


# ------------------------------------------------------------------------------------------------------------- keeping
def test_a_good_file_is_linked_and_replayed(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("embedding", tmp_path)
    write_warmup(base / "1" / WARMUP_FILE, [log(), log(rows=3)])
    result = mpru_tf.forget(base, [2], drop_outputs=["serving_default:embedding"])
    assert os.path.samefile(result.path / WARMUP_FILE, base / "1" / WARMUP_FILE)
    assert result.warmup is not None
    assert result.warmup == (read_manifest(result.path) or pytest.fail("no manifest")).warmup
    assert {key: result.warmup[key] for key in ("mode", "records", "left_out", "replayed")} == {
        "mode": "keep",
        "records": 2,
        "left_out": 0,
        "replayed": True,
    }
    assert serves(base)[2] == "AVAILABLE"


def test_what_was_dropped_is_not_asked_for_and_old_answers_go(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("embedding", tmp_path)
    answered = log()
    answered.predict_log.response.outputs["probabilities"].CopyFrom(tf.make_tensor_proto([0.5] * 10))
    logs = [log(wanted=("embedding",)), answered, log(rows=4, wanted=("probabilities", "embedding"))]
    write_warmup(base / "1" / WARMUP_FILE, logs)
    result = mpru_tf.forget(base, [2], drop_outputs=["serving_default:embedding"])
    assert result.warmup is not None
    assert (result.warmup["records"], result.warmup["left_out"]) == (2, 1)
    assert list(read_warmup(result.path / WARMUP_FILE)) == [log(), log(rows=4, wanted=("probabilities",))]
    assert len(list(read_warmup(base / "1" / WARMUP_FILE))) == 3
    assert serves(base)[2] == "AVAILABLE"


def test_nothing_is_left_when_only_dropped_outputs_were_asked_for(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("embedding", tmp_path)
    write_warmup(base / "1" / WARMUP_FILE, [log(wanted=("embedding",))])
    result = mpru_tf.forget(base, [2], drop_outputs=["serving_default:embedding"])
    assert not (result.path / WARMUP_FILE).exists()
    assert result.warmup is not None
    assert (result.warmup["records"], result.warmup["left_out"]) == (0, 1)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (log(x=np.zeros((1, 8))), "record 2: INVALID_ARGUMENT: Expects arg"),
        (log(x=np.zeros((1, 5), np.float32)), "record 2: INVALID_ARGUMENT: "),
        (log("gone"), "record 2: FAILED_PRECONDITION: Serving signature key"),
        (log(wanted=("none",)), "record 2: INVALID_ARGUMENT: output tensor alias not found"),
    ],
)
def test_a_record_that_would_block_the_load_is_named(models: ModelStore, tmp_path: Path, bad: Any, words: str) -> None:
    base = models.base("two_functions", tmp_path)
    write_warmup(base / "1" / WARMUP_FILE, [log(), bad, log()])
    with pytest.raises(VerificationError, match=words) as caught:
        mpru_tf.forget(base, [2])
    assert "--warmup none" in str(caught.value)
    assert [child.name for child in base.iterdir()] == ["1"]
    result = mpru_tf.forget(base, [2], warmup="none")
    assert not (result.path / WARMUP_FILE).exists()
    assert serves(base)[2] == "AVAILABLE"


def test_damaged_files_are_refused_before_anything_is_written(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    path = base / "1" / WARMUP_FILE
    write_warmup(path, [log(), log()])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptModelError, match="record 2: .*--warmup none"):
        mpru_tf.forget(base, [2], dry_run=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(1001):
            writer.write(log().SerializeToString())
    with pytest.raises(CorruptModelError, match="at most 1000.*--warmup none"):
        mpru_tf.forget(base, [2], load_check=False)


def test_without_a_load_check_nothing_is_replayed_and_the_manifest_says_so(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    write_warmup(base / "1" / WARMUP_FILE, [log()])
    result = mpru_tf.forget(base, [2], load_check=False)
    assert result.warmup is not None
    assert result.warmup["replayed"] is False
    assert describe(result.warmup) == "1 request kept, not replayed"
    for warmup in ("auto", str(base / "1" / WARMUP_FILE)):
        with pytest.raises(DataError, match="replayed in the load check"):
            mpru_tf.forget(base, [3], warmup=warmup, load_check=False)


def test_a_model_without_a_file_gets_none(models: ModelStore, tmp_path: Path) -> None:
    result = mpru_tf.forget(models.base("two_functions", tmp_path), [2])
    assert not (result.path / WARMUP_FILE).exists()
    assert result.warmup is not None
    assert (result.warmup["records"], result.warmup["replayed"]) == (0, False)


# -------------------------------------------------------------------------------------------------------------- making
def test_requests_are_made_up_for_every_signature_and_size(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    result = mpru_tf.forget(base, [2], warmup="auto", warmup_batch_sizes="1,8")
    names = ["serving_default", "scores"]
    assert asked(result.path) == [(name, size) for size in (1, 8) for name in names]
    assert result.warmup is not None
    assert describe(result.warmup) == "4 requests made up from the signatures, replayed"
    assert serves(base)[2] == "AVAILABLE"
    again = mpru_tf.forget(base, [2], warmup="auto", warmup_batch_sizes=[1, 8])
    assert again.already_forgotten
    other = mpru_tf.forget(base, [2], warmup="auto")  # the classes are forgotten, but this is asked for anew
    assert (other.version, asked(other.path)) == (3, [(name, 1) for name in names])
    assert mpru_tf.forget(base, [2]).already_forgotten
    assert mpru_tf.forget(base, [2], warmup="none").version == 4


def test_classify_is_asked_with_examples(tmp_path: Path) -> None:
    forest = random_forest(6)
    (tmp_path / "base" / "1").mkdir(parents=True)
    write_saved_model(forest, tmp_path / "base" / "1", OpsBackend(forest), classify=True)
    result = mpru_tf.forget(tmp_path / "base", [0], warmup="auto", warmup_batch_sizes=3)
    made = {entry.WhichOneof("log_type"): entry for entry in read_warmup(result.path / WARMUP_FILE)}
    assert made.keys() == {"predict_log", "classify_log"}
    examples = made["classify_log"].classify_log.request.input.example_list.examples
    assert len(examples) == 3
    assert examples[0].features.feature
    assert serves(tmp_path / "base")[2] == "AVAILABLE"


def test_sizes_come_from_the_batching_parameters(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    parameters = tmp_path / "batching.config"
    parameters.write_text("max_batch_size { value: 8 } allowed_batch_sizes: 4 allowed_batch_sizes: 8\n")
    assert WarmUpWish.of("auto", parameters, True).sizes == (1, 4, 8)
    parameters.write_text("max_batch_size { value: 8 }\n")
    assert WarmUpWish.of("auto", str(parameters), True).sizes == (1, 8)
    parameters.write_text("batch_size: 8\n")
    with pytest.raises(ServingError, match="BatchingParameters as text"):
        mpru_tf.forget(base, [2], warmup="auto", warmup_batch_sizes=parameters)


@pytest.mark.parametrize(
    ("warmup", "sizes", "words"),
    [
        ("keep", "1", "Batch sizes are for warm-up requests that are made"),
        ("auto", "0", "at least one example"),
        ("nothing", None, "no such file"),
    ],
)
def test_options_that_make_no_sense(
    models: ModelStore, tmp_path: Path, warmup: str, sizes: str | None, words: str
) -> None:
    with pytest.raises(MPRUError, match=words):
        mpru_tf.forget(models.base("two_functions", tmp_path), [2], warmup=warmup, warmup_batch_sizes=sizes)


def test_examples_from_a_file(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    x = saved_models.inputs(5)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(5))
    result = mpru_tf.forget(base, [2], warmup=tmp_path / "data.npz", warmup_batch_sizes=(1, 4))
    assert sorted(set(asked(result.path))) == [
        ("scores", 1),
        ("scores", 4),
        ("serving_default", 1),
        ("serving_default", 4),
    ]
    first = next(read_warmup(result.path / WARMUP_FILE)).predict_log.request
    np.testing.assert_array_equal(tf.make_ndarray(first.inputs["x"]), x[:1])
    assert result.warmup is not None
    assert (result.warmup["file"], result.warmup["records"]) == ("data.npz", 12)
    assert serves(base)[2] == "AVAILABLE"
    assert mpru_tf.forget(base, [2], warmup=tmp_path / "data.npz", warmup_batch_sizes=(1, 4)).already_forgotten
    (tmp_path / "data.json").write_text(json.dumps({"instances": [[1, 2]]}), encoding="utf-8")
    with pytest.raises(DataError, match="fit no signature"):
        mpru_tf.forget(base, [3], warmup=tmp_path / "data.json", dry_run=True)


def test_requests_from_a_log(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    recorded = tmp_path / "requests.tfrecord"
    with_answer = log(rows=2)
    with_answer.predict_log.response.outputs["probabilities"].CopyFrom(tf.make_tensor_proto([0.5] * 10))
    with tf.io.TFRecordWriter(str(recorded)) as writer:
        for entry in [with_answer, *[log("scores")] * 1200]:  # a log has no end
            writer.write(entry.SerializeToString())
    result = mpru_tf.forget(base, [2], warmup=recorded)
    assert asked(result.path) == [("serving_default", 2), *[("scores", 1)] * 999]
    assert not next(read_warmup(result.path / WARMUP_FILE)).predict_log.HasField("response")
    resized = mpru_tf.forget(base, [3], warmup=recorded, warmup_batch_sizes=[2])
    assert asked(resized.path)[:3] == [("scores", 2), ("serving_default", 2), ("scores", 1)]
    assert len(asked(resized.path)) == 1000
    assert serves(base)[3] == "AVAILABLE"
    write_warmup(recorded, [log(), log("gone")])
    with pytest.raises(VerificationError, match="record 2: FAILED_PRECONDITION"):
        mpru_tf.forget(base, [4], warmup=recorded)
    recorded.write_bytes(b"compressed, perhaps")
    with pytest.raises(DataError, match="record 1: "):
        mpru_tf.forget(base, [4], warmup=recorded)
    write_warmup(recorded, [])
    with pytest.raises(DataError, match="no requests in this file"):
        mpru_tf.forget(base, [4], warmup=recorded)


def test_a_version_that_cannot_be_loaded_here_takes_no_untried_requests(models: ModelStore, tmp_path: Path) -> None:
    """A custom op whose library is absent: the load check is skipped, in words."""
    from tensorflow.core.protobuf import saved_model_pb2

    base = models.base("two_functions", tmp_path)
    path = base / "1" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for node in model.meta_graphs[0].graph_def.node:
        if node.op == "NoOp" and node.name == "NoOp":
            node.op = "NobodyHasThisOp"
    assert b"NobodyHasThisOp" in model.SerializeToString()
    path.write_bytes(model.SerializeToString())
    (base / "1" / "fingerprint.pb").unlink()
    with pytest.raises(VerificationError, match="could not be tried.*--warmup none"):
        mpru_tf.forget(base, [2], warmup="auto")
    write_warmup(base / "1" / WARMUP_FILE, [log()])
    kept = mpru_tf.forget(base, [2])
    assert kept.load_check["status"] == "skipped"
    assert kept.warmup is not None
    assert kept.warmup["replayed"] is False


# -------------------------------------------------------------------------------------------------------- command line
def test_the_command_says_what_became_of_it(models: ModelStore, tmp_path: Path) -> None:
    base = models.base("two_functions", tmp_path)
    command = ["forget", str(base), "--classes", "2", "--warmup", "auto", "--warmup-batch-sizes", "1,2"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "4 requests made up from the signatures, replayed" in " ".join(shown.output.split())
    found = CliRunner().invoke(app, ["forget", str(base), "--classes", "3", "--json"])
    assert json.loads(found.stdout)["warmup"]["records"] == 4
    refused = CliRunner().invoke(app, ["forget", str(base), "--classes", "4", "--warmup", "missing.npz"])
    assert refused.exit_code == 1
