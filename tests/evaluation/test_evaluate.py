"""Evaluations of real versions: figures held against NumPy, what is refused, and what is written."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner, Result

import mpru_tf
from mpru_tf import cli
from mpru_tf.errors import (
    DataError,
    ForgetListError,
    LabelsError,
    ManifestError,
    ModelNotFoundError,
    MPRUError,
    PublishError,
    UnsupportedModelError,
)
from mpru_tf.evaluation import metrics
from mpru_tf.evaluation.attacks import auc_error, nearest_class
from mpru_tf.evaluation.evaluate import evaluate, to_json, write
from mpru_tf.evaluation.limits import limits
from mpru_tf.evaluation.report import page, verdict, without_twin
from mpru_tf.filters import make_filter

World = Any
FORGOTTEN, CLASSES = 2, 5


def arrays(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with np.load(path) as file:
        return file["x"], file["y"]


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def answers_of(version: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a version answers, by another way than the one under test: the Python loader."""
    (scores,) = tf.saved_model.load(str(version)).signatures["serving_default"](tf.constant(x)).values()
    return np.asarray(scores, dtype=np.float64)


def test_figures_are_those_of_the_answers(world: World, evaluation: dict[str, Any]) -> None:
    x, y = arrays(world.test)
    p, ours = answers_of(world.original, x), answers_of(world.unlearned, x)
    reference = np.insert(answers_of(world.retrained, x), FORGOTTEN, 0.0, axis=1)
    gone = y == FORGOTTEN
    found = evaluation["answers"]["unlearned"]
    for part, rows in (("forgotten", gone), ("retained", ~gone)):
        assert found[part]["rows"] == rows.sum()
        assert found[part]["kl"] == pytest.approx(metrics.kl(reference[rows], ours[rows]).mean(), rel=1e-4)
    assert found["accuracy_forgotten"] == 0
    assert found["accuracy_retained"] == pytest.approx((ours.argmax(1) == y)[~gone].mean())
    by_hand = [((ours.argmax(1) == c) & gone).sum() / gone.sum() for c in range(CLASSES)]
    assert found["destinations"] == [pytest.approx(by_hand)]
    assert found["zrf"] == pytest.approx(metrics.zrf(ours[gone], np.full_like(ours[gone], 1 / CLASSES)))
    assert found["zrf"] > evaluation["answers"]["unfiltered"]["zrf"]
    assert found["class_kl"][FORGOTTEN] == pytest.approx(found["forgotten"]["kl"])
    assert evaluation["answers"]["unfiltered"]["accuracy_forgotten"] == pytest.approx((p.argmax(1) == y)[gone].mean())
    second = softmax(answers_of(world.second, x))
    floor = metrics.kl(reference[gone], second[gone]).mean()
    assert evaluation["floor"]["forgotten"]["kl"] == pytest.approx(floor, rel=1e-4)


def test_baselines_are_the_filters(world: World, evaluation: dict[str, Any]) -> None:
    x, y = arrays(world.test)
    p = answers_of(world.original, x)
    q = make_filter(CLASSES, [FORGOTTEN], "renormalize").probabilities(p)
    reference = np.insert(answers_of(world.retrained, x), FORGOTTEN, 0.0, axis=1)
    gone = y == FORGOTTEN
    found = evaluation["answers"]
    by_hand = metrics.kl(reference[gone], q[gone]).mean()
    assert found["renormalize"]["forgotten"]["kl"] == pytest.approx(by_hand, rel=1e-4)
    assert found["tempered"]["forgotten"]["kl"] == pytest.approx(found["unlearned"]["forgotten"]["kl"], rel=1e-4)
    assert found["retrained"]["forgotten"]["kl"] == 0
    assert found["retrained"]["accuracy_forgotten"] == 0


def test_membership_is_between_train_and_test(evaluation: dict[str, Any]) -> None:
    for one in evaluation["answers"].values():
        for found in one["membership"].values():
            assert (found["members"], found["nonmembers"]) == (60, 40)
            assert 0 <= found["auc"] <= 1
        assert one["membership_retained"]["entropy"]["members"] == 240
    curve = evaluation["answers"]["unlearned"]["membership"]["confidence"]
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(curve["auc"], abs=0.01)
    assert evaluation["answers"]["unlearned"]["nearest_class"][str(FORGOTTEN)]["examples"] == 40
    assert curve["error"] == pytest.approx(auc_error(curve["auc"], 60, 40))


def test_all_answers_are_attacked_on_the_pair_of_the_retrained_model(world: World, evaluation: dict[str, Any]) -> None:
    x, y = arrays(world.test)
    reference = np.insert(answers_of(world.retrained, x), FORGOTTEN, 0.0, axis=1)
    nearest = nearest_class(reference, y, FORGOTTEN, [c for c in range(CLASSES) if c != FORGOTTEN])
    found = {one["nearest_class"][str(FORGOTTEN)]["nearest"] for one in evaluation["answers"].values()}
    assert found == {nearest}


def test_it_is_json(evaluation: dict[str, Any]) -> None:
    assert json.loads(to_json(evaluation)) == evaluation
    assert evaluation["labels"] == ["ant", "bee", "cat", "dog", "eel"]
    assert (evaluation["forgotten"], evaluation["method"]) == ([FORGOTTEN], "tempered")


class TestAnswersInAFile:
    def stored(self, world: World, folder: Path, **change: Any) -> Path:
        x, _ = arrays(world.test)
        x_train, _ = arrays(world.train)
        values = {"answers": answers_of(world.retrained, x), "answers_train": answers_of(world.retrained, x_train)}
        path = folder / "answers.npz"
        np.savez(path, **{name: value for name, value in (values | change).items() if value is not None})
        return path

    def test_they_do_as_the_model_does(self, world: World, tmp_path: Path, evaluation: dict[str, Any]) -> None:
        path = self.stored(world, tmp_path)
        found = evaluate(world.original, world.base, world.test, retrained=path, train_data=world.train)
        ours, theirs = (one["answers"]["retrained"]["membership"]["entropy"]["auc"] for one in (found, evaluation))
        assert ours == pytest.approx(theirs, abs=2e-3)
        ours, theirs = (one["answers"]["unlearned"]["forgotten"]["kl"] for one in (found, evaluation))
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert found["seconds"]["retrained"] is None

    def test_logits_with_minus_infinity(self, world: World, tmp_path: Path, evaluation: dict[str, Any]) -> None:
        p = np.insert(answers_of(world.retrained, arrays(world.test)[0]), FORGOTTEN, 0.0, axis=1)
        with np.errstate(divide="ignore"):
            path = self.stored(world, tmp_path, answers=None, answers_train=None, test=np.log(p) + 3)
        found = evaluate(world.original, world.base, world.test, retrained=path, train_data=world.train)
        ours, theirs = (one["answers"]["unlearned"]["forgotten"]["kl"] for one in (found, evaluation))
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert found["answers"]["retrained"]["membership"] is None
        assert found["answers"]["unlearned"]["membership"] is not None

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"answers": np.full((7, 5), 0.2)}, "not about the examples"),
            ({"answers": np.full((200, 3), 1 / 3)}, "other classes"),
            ({"answers": np.full((200, 5), np.nan)}, "NaN or infinity in 200 of 200 rows"),
            ({"answers": np.full((200, 5), -np.inf)}, "minus infinity"),
            ({"answers": None}, "holds no answers"),
            ({"answers": np.float64(0.2)}, "no array of rows"),
            ({"answers": np.full((200, 5), 20.0)}, "cannot be told what"),  # percentages
            ({"answers": np.full((200, 5), 0.2) + 0.1 * np.eye(5)[0] * (np.arange(200) == 7)[:, None]}, "row 7 first"),
            ({"answers_train": np.full((900, 5), 0.2)}, "not about the examples"),
        ],
    )
    def test_refused(self, world: World, tmp_path: Path, change: dict[str, Any], words: str) -> None:
        path = self.stored(world, tmp_path, **change)
        with pytest.raises(DataError, match=words):
            evaluate(world.original, world.base, world.test, retrained=path, train_data=world.train)

    def test_positive_logits_by_their_name(self, world: World, tmp_path: Path, evaluation: dict[str, Any]) -> None:
        logits = np.log(answers_of(world.retrained, arrays(world.test)[0])) + 100
        path = self.stored(world, tmp_path, answers=None, answers_train=None, logits=logits)
        found = evaluate(world.original, world.base, world.test, retrained=path)
        ours, theirs = (one["answers"]["unlearned"]["forgotten"]["kl"] for one in (found, evaluation))
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert found["retrained"]["kind"] == "logits"

    def test_a_member_that_is_no_array(self, world: World, tmp_path: Path) -> None:
        path = self.stored(world, tmp_path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("notes.txt", "not an array")
        with pytest.raises(DataError, match=r"notes\.txt: no array of rows"):
            evaluate(world.original, world.base, world.test, retrained=path)

    @pytest.mark.parametrize("other", ["original", "unlearned"])
    def test_no_retrained_model(self, world: World, other: str) -> None:
        with pytest.raises(DataError, match="exactly as the un"):
            evaluate(world.original, world.base, world.test, retrained=getattr(world, other))

    def test_the_same_model_twice_is_no_floor(self, world: World) -> None:
        with pytest.raises(DataError, match="exactly as the retrained one"):
            evaluate(
                world.original, world.base, world.test, retrained=world.retrained, second_retrained=world.retrained
            )

    def test_one_that_knows_the_class(self, world: World, tmp_path: Path) -> None:
        p = answers_of(world.original, arrays(world.test)[0])
        path = self.stored(world, tmp_path, answers=0.99 * p + 0.002, answers_train=None)
        found = evaluate(world.original, world.base, world.test, retrained=path)
        assert any("it has seen them" in sentence for sentence in found["limits"])

    def test_one_in_another_order(self, world: World, tmp_path: Path) -> None:
        p = answers_of(world.retrained, arrays(world.test)[0])
        path = self.stored(world, tmp_path, answers=np.roll(p, 1, axis=0), answers_train=None)
        found = evaluate(world.original, world.base, world.test, retrained=path)
        assert any("not in the order of the data" in sentence for sentence in found["limits"])

    def test_mass_on_forgotten_classes_is_told_and_left_out(
        self, world: World, tmp_path: Path, evaluation: dict[str, Any]
    ) -> None:
        p = np.insert(0.96 * answers_of(world.retrained, arrays(world.test)[0]), FORGOTTEN, 0.04, axis=1)
        path = self.stored(world, tmp_path, answers=p, answers_train=None)
        found = evaluate(world.original, world.base, world.test, retrained=path)
        assert found["retrained_mass_on_forgotten"] == pytest.approx(0.04)
        assert any("probability of 0.040 in the mean" in sentence for sentence in found["limits"])
        ours, theirs = (one["answers"]["unlearned"]["forgotten"]["kl"] for one in (found, evaluation))
        assert ours == pytest.approx(theirs, rel=1e-4)


class TestExamples:
    def test_test_and_train_in_one_file(self, world: World, tmp_path: Path, evaluation: dict[str, Any]) -> None:
        (x, y), (x_train, y_train) = arrays(world.test), arrays(world.train)
        path = tmp_path / "both.npz"
        np.savez(path, x_test=x, y_test=y[:, None].astype(np.uint8), x_train=x_train, y_train=y_train)
        found = evaluate(world.original, world.base, path)
        ours, theirs = (one["answers"]["unlearned"]["membership"] for one in (found, evaluation))
        assert ours == theirs
        assert found["data"]["per_class"] == [40] * CLASSES

    def test_one_array_per_input(self, world: World, tmp_path: Path) -> None:
        class TwoInputs(tf.Module):
            @tf.function(
                input_signature=[tf.TensorSpec([None, 2], tf.float32, "a"), tf.TensorSpec([None, 2], tf.float32, "b")]
            )
            def answer(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
                return {"probabilities": tf.nn.softmax(tf.concat([a, b], 1))}

        module = TwoInputs()
        tf.saved_model.save(module, str(tmp_path / "two" / "1"), signatures={"serving_default": module.answer})
        mpru_tf.forget(tmp_path / "two", [1], load_check=False)
        random = np.random.default_rng(0)
        a, b = random.standard_normal((2, 80, 2)).astype(np.float32)
        np.savez(tmp_path / "two.npz", a=a, b=b, y=np.arange(80) % 4)
        found = evaluate(tmp_path / "two" / "1", tmp_path / "two", tmp_path / "two.npz")
        p = softmax(np.concatenate([a, b], 1).astype(np.float64))
        kept = np.arange(80) % 4 != 1
        right = (p.argmax(1) == np.arange(80) % 4)[kept].mean()
        assert found["answers"]["unfiltered"]["accuracy_retained"] == pytest.approx(right)

    def test_none_of_a_forgotten_class(self, world: World, tmp_path: Path) -> None:
        x, y = arrays(world.test)
        np.savez(tmp_path / "d.npz", x=x[y != FORGOTTEN], y=y[y != FORGOTTEN])
        found = evaluate(world.original, world.base, tmp_path / "d.npz", retrained=world.retrained)
        assert found["answers"]["unlearned"]["forgotten"] is None
        assert found["answers"]["unlearned"]["retained"]["rows"] == 160
        assert "no example of a forgotten class" in " ".join(found["limits"])
        assert "There are no examples" in page(found)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"y": None}, "no labelled examples"),
            ({"y": np.zeros(200)}, "no class indices"),
            ({"y": np.full(200, CLASSES)}, "do not fit the model"),
            ({"y": np.zeros(7, int)}, "as many rows"),
            ({"x": np.zeros((200, 4), np.float32)}, "does not fit input"),
            ({"x": np.full((200, 3), np.nan, np.float32)}, "NaN or infinity in 200 of 200 rows"),
        ],
    )
    def test_refused(self, world: World, tmp_path: Path, change: dict[str, Any], words: str) -> None:
        x, y = arrays(world.test)
        np.savez(tmp_path / "d.npz", **{k: v for k, v in ({"x": x, "y": y} | change).items() if v is not None})
        with pytest.raises(DataError, match=words):
            evaluate(world.original, world.base, tmp_path / "d.npz")

    def test_unreadable(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 no")
        with pytest.raises(DataError, match="cannot be read"):
            evaluate(world.original, world.base, tmp_path / "d.npz")
        np.save(tmp_path / "d.npy", np.zeros(3))
        with pytest.raises(DataError, match="no .npz file"):
            evaluate(world.original, world.base, tmp_path / "d.npy")


class TestWhatIsSaid:
    def test_without_retraining_and_training_examples(self, world: World) -> None:
        found = evaluate(world.original, world.base, world.test)
        one = found["answers"]["unlearned"]
        assert (one["retained"], one["forgotten"], one["class_kl"], one["membership"]) == (None,) * 4
        limits = " ".join(found["limits"])
        assert "No retrained model was given" in limits
        assert "Membership inference was not tried" in limits
        assert "Class means were taken from the test examples" in limits

    def test_made_from_another_model(self, world: World) -> None:
        found = evaluate(world.second, world.base, world.test)
        assert found["limits"][0].startswith("By its manifest, the unlearned version was not made from this original")

    def test_what_is_in_the_weights_and_what_in_the_filter(self, evaluation: dict[str, Any]) -> None:
        both = copy.deepcopy(evaluation)
        both["unlearned"]["unlearned_in_weights"] = [1]
        said = " ".join(limits(both, True, None, ()))
        assert "UNSIR changed the weights for class 1," in said
        assert f"The weights in the file still hold class {FORGOTTEN}:" in said
        assert f"do not apply to what it does to class {FORGOTTEN}." in said
        shown = page(both)
        assert "UNSIR in the weights (bee), and on top a filter (cat): tempered" in shown

    def test_changed_afterwards(self, world: World, tmp_path: Path) -> None:
        base = Path(shutil.copytree(world.unlearned, tmp_path / "m" / "2"))
        with open(base / "saved_model.pb", "ab") as file:
            file.write(b"\x7a\x01a")  # a field that nobody knows
        found = evaluate(world.original, base, world.test)
        assert "was changed after it was published" in found["limits"][0]

    def test_redacted_labels_stay_redacted(self, world: World, tmp_path: Path) -> None:
        base = tmp_path / "m"
        shutil.copytree(world.original, base / "1")
        mpru_tf.forget(base, ["cat"], redact_labels=True, load_check=False)
        found = evaluate(base / "1", base, world.test)
        assert found["labels"] == ["ant", "bee", None, "dog", "eel"]
        for text in (to_json(found), page(found)):
            assert "dog" in text
            assert "cat" not in text.replace("indicat", "").replace("vocat", "")


class TestModels:
    def test_no_manifest(self, world: World) -> None:
        with pytest.raises(ForgetListError, match="Nothing says which classes"):
            evaluate(world.original, world.second, world.test)
        found = evaluate(world.original, world.second, world.test, classes=["cat"])
        assert (found["forgotten"], found["method"]) == ([FORGOTTEN], None)
        assert not any("filter" in sentence for sentence in found["limits"])

    def test_contradiction(self, world: World) -> None:
        with pytest.raises(ForgetListError, match="other classes than were named"):
            evaluate(world.original, world.base, world.test, classes=["dog"])

    def test_original_forgets_itself(self, world: World) -> None:
        with pytest.raises(UnsupportedModelError, match="cannot stand for the original"):
            evaluate(world.unlearned, world.unlearned, world.test)

    def test_other_number_of_classes(self, world: World) -> None:
        with pytest.raises(ManifestError, match="was not made from the original"):
            evaluate(world.retrained, world.base, world.test)

    def test_multi_label(self, world: World, tmp_path: Path) -> None:
        class Tagger(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([None, 5], tf.float32, "x")])
            def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
                return {"probabilities": tf.sigmoid(2 * x)}

        module = Tagger()
        tf.saved_model.save(module, str(tmp_path / "t" / "1"), signatures={"serving_default": module.answer})
        mpru_tf.forget(tmp_path / "t", [1], multi_label=True, load_check=False)
        with pytest.raises(UnsupportedModelError, match="judges each class on its own"):
            evaluate(tmp_path / "t" / "1", tmp_path / "t", world.test)

    def test_labels_do_not_fit(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "labels.txt").write_text("a\nb\n")
        with pytest.raises(LabelsError, match="do not fit"):
            evaluate(world.original, world.base, world.test, labels=tmp_path / "labels.txt")

    def test_candidates_need_names_of_their_own(self, world: World) -> None:
        with pytest.raises(DataError, match="a name of its own"):
            evaluate(world.original, world.base, world.test, candidates={"mean": world.second})

    def test_missing(self, world: World, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            evaluate(world.original, world.base, world.test, retrained=tmp_path / "nothing")


class TestWriting:
    def test_a_file_is_in_the_way(self, evaluation: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(PublishError, match="cannot be written"):
            write(evaluation, "page", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "mine"

    def test_replaces_both_and_leaves_nothing_else(self, evaluation: dict[str, Any], tmp_path: Path) -> None:
        for content in ("first", "second"):
            json_path, html_path = write(evaluation, content, tmp_path / "a" / "out")
        assert html_path.read_text() == "second"
        assert sorted(path.name for path in html_path.parent.iterdir()) == ["evaluation.json", "report.html"]
        assert json.loads(json_path.read_text()) == evaluation

    def test_no_half_is_left(self, evaluation: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "report.html").mkdir()  # the last rename fails
        with pytest.raises(MPRUError):
            write(evaluation, "page", tmp_path)
        assert not list(tmp_path.glob(".*"))


class TestCommand:
    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)])

    def test_table_and_files(self, world: World, tmp_path: Path) -> None:
        out = tmp_path / "out"
        given = ("--original", world.original, "--unlearned", world.base, "--data", world.test, "--out", out)
        result = self.run(*given, "--retrained", world.retrained, "--candidate", f"unsir={world.second}")
        assert result.exit_code == 0, result.stderr
        assert "unsir" in result.stdout
        assert str(out / "report.html") in result.stdout
        found = json.loads((out / "evaluation.json").read_text())
        assert (out / "report.html").read_text() == page(found)
        # The version is the tempered baseline itself, which is not counted as another way.
        assert "tempered" in found["answers"]
        told = verdict(without_twin(found))[2]
        assert told.startswith(f"Of {len(found['answers']) - 4} other ways")
        assert told in (out / "report.html").read_text()

    def test_json(self, world: World, tmp_path: Path) -> None:
        given = ("--original", world.original, "--unlearned", world.base, "--data", world.test)
        result = self.run(*given, "--out", tmp_path, "--json")
        assert json.loads(result.stdout) == json.loads((tmp_path / "evaluation.json").read_text())

    def test_refused_writes_nothing(self, world: World, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = self.run(
            *("--original", world.unlearned, "--unlearned", world.base, "--data", world.test, "--out", out)
        )
        assert result.exit_code == 1
        assert "cannot stand for the original" in result.stderr
        assert not out.exists()

    @pytest.mark.parametrize("candidate", ["unsir", "=there", "name="])
    def test_wrong_usage(self, world: World, tmp_path: Path, candidate: str) -> None:
        given = ("--original", world.original, "--unlearned", world.base, "--data", world.test, "--out", tmp_path)
        assert self.run(*given, "--candidate", candidate).exit_code == 2

    def test_help(self) -> None:
        assert "$ mpru-tf evaluate" in self.run("--help").stdout
