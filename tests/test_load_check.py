"""The load check: broken and hostile models are refused in words, and answers are judged as what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore

import mpru_tf
from mpru_tf import worker
from mpru_tf.errors import CorruptModelError, UnsupportedModelError, VerificationError
from mpru_tf.filters import FilterSpec, make_filter
from mpru_tf.load_check import _difference, _wrong, filters
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.score_site import ScoreSite
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import filter_alone, splice
from mpru_tf.verification import check_before_publishing
from mpru_tf.worker import Limits

RENORMALIZE = make_filter(10, [1], "renormalize")
MASK = FilterSpec(3, (1,), "mask")


def abort() -> tf.Operation:
    return tf.raw_ops.Abort(error_msg="as told", exit_without_error=False)


def loop() -> tf.Tensor:
    return tf.while_loop(lambda i: i < 10, lambda i: [(i + 1) % 7], [0])[0]


def misbehaving(path: Path, node: Callable[[], Any]) -> Path:
    """A classifier that runs one more node at each request."""
    module = saved_models._Module(1)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([node()]):
            return {"p": tf.nn.softmax(module.scores(x))}

    saved_models._save(path, module, {"serving_default": answer})
    return path


def aborting_at_load(path: Path) -> Path:
    """A classifier whose initialiser ends the process."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        p = tf.nn.softmax(tf.matmul(x, np.eye(8, 10, dtype=np.float32)), name="p")
        signature = v1.saved_model.predict_signature_def({"x": x}, {"p": p})
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        signatures = {"serving_default": signature}
        builder.add_meta_graph_and_variables(session, ["serve"], signatures, main_op=abort())
        builder.save()
    return path


@pytest.mark.parametrize("tags", [["serve"], ["serve", "gpu"], ["train"], []], ids=str)
def test_whatever_the_tags_are_the_model_is_loaded_and_asked(tmp_path: Path, tags: list[str]) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        p = tf.nn.softmax(tf.matmul(x, np.eye(8, 10, dtype=np.float32)), name="p")
        signature = v1.saved_model.predict_signature_def({"x": x}, {"p": p})
        builder = v1.saved_model.builder.SavedModelBuilder(str(tmp_path / "1"))
        builder.add_meta_graph_and_variables(session, tags, {"serving_default": signature})
        builder.save()
    assert mpru_tf.forget(tmp_path, [1]).load_check["status"] == "passed"


def test_a_model_that_answers_at_random_is_not_held_against_itself(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        # Without a seed: one that an earlier test has set would make both versions draw the same numbers.
        noise = tf.raw_ops.RandomUniform(shape=tf.shape(x), dtype=tf.float32, seed=0, seed2=0)
        return {"p": tf.nn.softmax(module.scores(x + noise))}

    saved_models._save(tmp_path / "1", module, {"serving_default": answer})
    check = mpru_tf.forget(tmp_path, [1]).load_check
    assert check["status"] == "passed"
    assert "does not answer the same twice at serving_default:p" in check["detail"]


def test_a_batch_in_one_long_row_is_read_as_rows(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"p": tf.reshape(tf.nn.softmax(module.scores(x)), [-1])}

    saved_models._save(tmp_path / "1", module, {"serving_default": answer})
    result = mpru_tf.forget(tmp_path, [1])
    assert result.load_check["status"] == "passed"
    assert mpru_tf.verify(result.path).passed


def test_rows_that_did_not_sum_to_one_are_told(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"p": tf.nn.softmax(module.scores(x))[:, 1:]}  # without the background class

    saved_models._save(tmp_path / "1", module, {"serving_default": answer})
    result = mpru_tf.forget(tmp_path, [1])
    assert result.classes == 9
    assert "rows of serving_default:p summed to other numbers than 1" in result.load_check["detail"]


def well_behaved(path: Path) -> Path:
    return misbehaving(path, lambda: tf.constant(0))


def site_of(path: Path) -> ScoreSite:
    return survey(bundles.read(path).graphs()).the_site()


# --------------------------------------------------------------------------------------- models that crash or hang
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: misbehaving(path, abort), r"asking the new version \(serving_default\) crashed TensorFlow"),
        (lambda path: misbehaving(path, loop), r"asking the new version \(serving_default\) took more than 2 s"),
        (aborting_at_load, r"loading the new version crashed TensorFlow \(signal 6\)"),
    ],
    ids=["crash", "hang", "crash at load"],
)
def test_a_new_version_that_crashes_or_hangs_is_not_published(
    tmp_path: Path, made: Callable[[Path], Path], said: str
) -> None:
    source, staged = well_behaved(tmp_path / "1"), made(tmp_path / "2")
    site, limits = site_of(source), Limits(asking=2.0)
    with pytest.raises(VerificationError, match=f"was not published.*{said}"):
        check_before_publishing(staged, source, site, RENORMALIZE, limits)


def test_a_version_that_crashes_without_a_sound_source_is_not_published(tmp_path: Path) -> None:
    staged = misbehaving(tmp_path / "1", abort)
    site = site_of(staged)
    with pytest.raises(VerificationError, match="asking the new version"):
        check_before_publishing(staged, None, site, RENORMALIZE)
    with pytest.raises(CorruptModelError, match="source version cannot be run"):
        check_before_publishing(staged, staged, site, RENORMALIZE)


@pytest.mark.parametrize("made", [lambda path: misbehaving(path, abort), aborting_at_load])
def test_a_source_that_crashes_is_told_from_what_we_broke(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    source = made(tmp_path / "1")
    with pytest.raises(CorruptModelError, match=r"source version cannot be run.*signal 6"):
        mpru_tf.forget(source, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    good = mpru_tf.forget(well_behaved(tmp_path / "good" / "1"), [1])
    with pytest.raises(CorruptModelError, match=r"(asking|loading) the source version.*crashed"):
        check_before_publishing(good.path, source, site_of(source), make_filter(10, [1]))


def test_verifying_a_version_that_crashes_says_so(tmp_path: Path) -> None:
    misbehaving(tmp_path / "1", abort)
    verification = mpru_tf.verify(mpru_tf.forget(tmp_path, [1], load_check=False).path)
    (load,) = (check for check in verification.checks if check.name == "load")
    assert load.passed is False
    assert load.detail == "asking the version (serving_default) crashed TensorFlow (signal 6)"
    assert not verification.passed


def test_verifying_without_a_worker_leaves_open_what_it_would_have_said(
    models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mpru_tf.forget(models.base("keras3", tmp_path), [1]).path
    monkeypatch.setattr("sys.executable", "/no/such/python")
    monkeypatch.setattr(worker, "_worker", None)
    found = {check.name: check.passed for check in mpru_tf.verify(path).checks}
    assert found == {"digests": True, "leak gate": True, "filter": None, "load": None}
    with pytest.raises(VerificationError, match="could not be started"):
        mpru_tf.forget(path, [2])
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["1", "2"]


# --------------------------------------------------------------------------------------- answers that are not scores
def test_scores_of_another_width_are_named(tmp_path: Path) -> None:
    source = well_behaved(tmp_path / "1")
    narrow = dataclasses.replace(site_of(source), classes=7)
    with pytest.raises(UnsupportedModelError, match="The class scores are 10 wide, not 7"):
        check_before_publishing(source, source, narrow, make_filter(7, [1]))
    # A filter of the wrong width makes the new version fail every request; the source tells why.
    staged = misbehaving(tmp_path / "2", lambda: tf.debugging.assert_equal(7, tf.random.uniform([], 10, 11, tf.int32)))
    with pytest.raises(UnsupportedModelError, match="The class scores are 10 wide, not 7"):
        check_before_publishing(staged, source, narrow, make_filter(7, [1]))
    with pytest.raises(VerificationError, match="fails a request of signature 'serving_default' that the source"):
        check_before_publishing(staged, source, site_of(source), RENORMALIZE)
    assert _wrong(np.zeros((2, 4)), LOGITS, (1,), 3) == "the class scores are 4 wide, not 3"
    assert _wrong(np.zeros(()), LOGITS, (1,), 3) == "the class scores are 1 wide, not 3"
    assert _wrong(np.array([0.5, 0.0, 0.5]), PROBABILITIES, (1,), 3) == ""  # no batch


def test_rows_of_nothing_but_nan_are_asked_again_with_other_numbers(tmp_path: Path) -> None:
    module = saved_models._Module(1)
    answer = {"serving_default": lambda x: {"p": tf.nn.softmax(module.scores(tf.sqrt(x)))}}
    saved_models._save(tmp_path / "1", module, answer)
    result = mpru_tf.forget(tmp_path, [1])
    assert result.load_check["status"] == "passed"
    assert result.load_check["largest_difference"] < 1e-6
    raw, nan = np.array([[0.2, 0.3, 0.5]], np.float32), np.full((1, 3), np.nan, np.float32)
    assert np.isnan(_difference(nan, raw, PROBABILITIES, "s:p", make_filter(3, [1])))  # and NaN does not pass
    assert _difference(nan, nan, PROBABILITIES, "s:p", make_filter(3, [1])) == 0.0


# --------------------------------------------------------------------------------------------------------- multi-label
@pytest.mark.parametrize(
    ("kind", "row", "wrong"),
    [
        (PROBABILITIES, [0.9, 0.0, 0.8], ""),
        (PROBABILITIES, [0.9, 1e-9, 0.8], "forgotten class still gets probability"),
        (PROBABILITIES, [np.nan, 0.0, 0.8], ""),
        (PROBABILITIES, [0.9, 0.0, 1.8], "1.8 is no probability"),
        (LOGITS, [3.0, -1e30, 2.0], ""),
        (LOGITS, [3.0, -30.0, 2.0], "forgotten class still gets probability"),
        (LOGITS, [np.nan, -1e30, 2.0], ""),
        (LOGITS, [np.nan, -30.0, 2.0], "forgotten class still gets probability"),
        ("log_probabilities", [-0.1, -1e30, -0.1], ""),
        ("log_probabilities", [-0.1, -30.0, -0.1], "forgotten class still gets probability"),
    ],
)
def test_multi_label_rows_need_not_sum_to_one(kind: str, row: list[float], wrong: str) -> None:
    said = _wrong(np.array([row], np.float32), kind, (1,), 3, multi_label=True)
    assert wrong in said
    assert bool(said) == bool(wrong)


def test_multi_label_answers_are_compared_after_a_sigmoid() -> None:
    z = np.array([[2.0, 1.0, -3.0], [0.0, 9.0, 0.5]], np.float32)
    p = 1.0 / (1.0 + np.exp(-z))
    masked_z, masked_p = np.array(z), np.array(p)
    masked_z[:, 1], masked_p[:, 1] = -1e30, 0.0
    assert _difference(masked_z, z, LOGITS, "s:z", MASK) < 1e-6
    assert _difference(masked_p, p, PROBABILITIES, "s:p", MASK) < 1e-6
    assert _difference(masked_z + 1.0, z, LOGITS, "s:z", MASK) > 0.1
    assert _difference(p, p, PROBABILITIES, "s:p", MASK) > 0.1
    with pytest.raises(UnsupportedModelError, match="no Sigmoid makes it"):
        _difference(masked_p, p, LOGITS, "s:p", MASK)
    assert _difference(np.zeros((1, 3)), np.zeros((1, 3)), LOGITS, "s:z", MASK) > 0.1  # an untrained layer's logits


@pytest.mark.parametrize("name", ["keras3", "hand_normalised"])
def test_a_mask_run_alone_passes_as_one(models: ModelStore, name: str) -> None:
    graph = bundles.read(models.pristine(name)).graphs()[0]
    (point, *_) = survey([graph]).the_site().points
    done = splice(graph, point, FilterSpec(10, (1, 4), "mask"), "mpru_filter")
    cut_out = [(filter_alone(graph, done).SerializeToString(), done)]

    def report(step: str, about: str) -> None:
        assert (step, about) == (worker.ASKING, "the filter")

    assert filters(report, cut_out, (1, 4), True) == ""
    assert "forgotten class" in filters(report, cut_out, (1, 5), True)


def test_a_multi_label_model_is_asked_and_compared(models: ModelStore, tmp_path: Path) -> None:
    result = mpru_tf.forget(models.base("multi_label", tmp_path), [1, 3], multi_label=True)
    assert result.load_check["status"] == "passed"
    assert result.load_check["largest_difference"] < 1e-6
    found = {check.name: check.passed for check in mpru_tf.verify(result.path).checks}
    assert found["filter"]
    assert found["answers of serving_default:p"]
