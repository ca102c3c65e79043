"""The command `unsir`: from two files to a served version, or to a refusal that leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn import datasets
from typer.testing import CliRunner

import mpru_tf
from mpru_tf.cli import app
from mpru_tf.errors import DataError, ManifestError, ModelError, PublishError
from mpru_tf.evaluation.evaluate import evaluate
from mpru_tf.evaluation.report import page
from mpru_tf.lineage import check_nothing_comes_back
from mpru_tf.resnet import export_version
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.unlearning.config import UnsirConfig
from mpru_tf.unlearning.history import History
from mpru_tf.unlearning.publishing import check_retained, publish_unlearned, remarks, saved
from mpru_tf.unlearning.record import RECORD, read_record, write_record
from mpru_tf.unlearning.unsir import Accuracy, UnsirResult

SCRIPT = Path(__file__).parents[1] / "export_scripts" / "export_resnet.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits as vectors of 64 pixels, and data."""
    folder = tmp_path_factory.mktemp("unsir")
    digits = datasets.load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=10, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "all.npz", x=x, y=y)
    few_x, few_y = x[y != 2], y[y != 2]
    np.savez(folder / "few.npz", x=few_x, y=few_y)  # so few that noise drowns them
    np.savez(folder / "retain.npz", x=np.tile(few_x, (4, 1)), y=np.tile(few_y, 4))
    (folder / "labels.txt").write_text(
        "zero one two three four five six seven eight nine".replace(" ", "\n"), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """A version directory of it; nobody may write to it."""
    return export_version(keras.models.load_model(folder / "model.keras"), folder / "exported")


def run(*arguments: Any) -> Any:
    return invoke("unsir", *arguments)


def invoke(*arguments: Any) -> Any:
    """Refusals end in exit statuses; an exception that nobody turned into words fails the test."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def given(folder: Path, base: Path) -> list[Any]:
    data = ["--retain-data", folder / "retain.npz", "--into", base]
    return [folder / "model.keras", *data, "--preset", "paper"]


def is_one_refusal(done: Any, *words: str) -> bool:
    """Whether a command was refused in one paragraph, before any bar of training was shown."""
    text = " ".join(done.stderr.split())
    return done.exit_code == 1 and text.count("refused: ") == 1 and "━" not in text and all(w in text for w in words)


def test_publishes_with_a_filter(folder: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "unlearned.keras"
    options = ["--classes", "two", "--labels", folder / "labels.txt", "--test-data", folder / "all.npz"]
    options += ["--then-filter", "tempered", "--temperature", 2, "--out-model", out, "--json"]
    options += ["--history", tmp_path / "history.csv"]
    done = run(*given(folder, base), *options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["version"], told["forgotten"], told["path"]) == (1, [2], str(base / "1"))
    assert told["filtered"]["labels"] == ["two"]
    assert min(told["before"].values()) > 0.9
    assert told["after"]["forgotten"] < 0.1
    assert told["after"]["retained"] > 0.95 * told["before"]["retained"]
    assert told["remarks"] == []
    assert mpru_tf.verify(base / "1").passed
    record = read_record(base / "1")
    assert record is not None
    assert record["source"]["path"] == str(folder / "model.keras")
    with np.load(folder / "all.npz") as arrays:
        answers = np.asarray(keras.models.load_model(out)(arrays["x"][arrays["y"] == 2]))
    assert float((answers.argmax(-1) == 2).mean()) == pytest.approx(told["after"]["forgotten"])
    assert (tmp_path / "history.csv").read_text(encoding="utf-8").startswith("phase,step,loss")
    # Without a filter, the class would come back: refused before anything is trained.
    again = run(*given(folder, base), "--classes", "2")
    assert again.exit_code == 1
    assert "would answer classes again" in again.stderr
    assert [path.name for path in base.iterdir()] == ["1"]


def test_says_what_it_does_not_protect(folder: Path, tmp_path: Path) -> None:
    done = run(*given(folder, tmp_path / "base"), "--classes", "2")
    assert done.exit_code == 0, done.output
    assert "may still be predicted" in " ".join(done.stdout.split())
    # Nothing was given to see it with.
    assert "not measured" in done.stdout
    assert "have forgotten the classes was not measured" in " ".join(done.stderr.split())
    version = tmp_path / "base" / "1"
    assert not (version / "assets.extra" / "mpru_manifest.json").exists()
    found = mpru_tf.inspect(version)
    assert (found.unlearned, found.forgotten) == ((2,), ())
    with pytest.raises(ManifestError, match="unlearned in this version's weights"):
        mpru_tf.verify(version)
    assert "unlearned in the weights: 2" in invoke("inspect", version).stdout
    shown = " ".join(invoke("history", version).stdout.split())
    assert "unlearned in the weights: 2" in shown
    assert "no filter" in shown
    audited = invoke("audit", version.parent, "--json")
    assert audited.exit_code == 0
    (one,) = json.loads(audited.stdout)["versions"]
    assert (one["unlearned"], one["forgotten"]) == ([2], [])


def test_a_report_about_unlearned_weights(folder: Path, tmp_path: Path) -> None:
    first = export_version(keras.models.load_model(folder / "model.keras"), tmp_path / "base")
    assert run(*given(folder, tmp_path / "plain"), "--classes", "2").exit_code == 0
    assert run(*given(folder, tmp_path / "both"), "--classes", "2", "--then-filter", "tempered").exit_code == 0
    for base, method, limit in (
        ("plain", "UNSIR in the weights, no filter", "guarantees nothing"),
        ("both", "and on top a filter (class 2): tempered", "by construction of the filter"),
    ):
        evaluation = evaluate(first, tmp_path / base, folder / "all.npz")
        assert evaluation["forgotten"] == evaluation["unlearned"]["unlearned_in_weights"] == [2]
        assert method in page(evaluation)
        assert any(limit in sentence for sentence in evaluation["limits"])
        assert not any("still hold the class" in sentence for sentence in evaluation["limits"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--classes", "2", "--then-filter", "mean"], "no such filter"),
        (["--classes", "2", "--temperature", "2"], "no filter is named"),
        (["--classes", "2", "--temperature", "2", "--then-filter", "renormalize"], "tempered"),
        (["--classes", "1"], "728 of class 1"),
        (["--classes", "ten"], "ten"),
        (["--classes", "2", "--retain-data", "nowhere.npz"], "cannot be read"),
        (["--classes", "2", "--out-model", "{folder}/few.npz/m.keras"], "is no folder"),
        (["--classes", "2", "--history", "{folder}"], "it is a folder"),
        (["--classes", "2", "--history", "{folder}/few.npz/h.csv"], "is no folder"),
        (["--classes", "2", "--tensorboard", "{folder}/few.npz"], "is no folder"),
        (["--classes", "2", "--into", "{folder}/few.npz/base"], "is no folder"),
        (["--classes", "2", "--retained-floor", "1.0", "--test-data", "{folder}/wrong.npz"], "below the floor"),
    ],
)
def test_refusals_leave_nothing(folder: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    with np.load(folder / "all.npz") as arrays:
        np.savez(folder / "wrong.npz", x=-arrays["x"], y=arrays["y"])
    done = run(*given(folder, tmp_path / "base"), *(option.format(folder=folder) for option in options))
    assert is_one_refusal(done, reason), done.output
    assert not (tmp_path / "base").exists()


def test_a_ruined_model_is_not_published(folder: Path, tmp_path: Path) -> None:
    options = ["--classes", "2", "--retain-data", folder / "few.npz", "--test-data", folder / "all.npz"]
    done = run(*given(folder, tmp_path / "base"), *options, "--out-model", tmp_path / "out" / "m.keras")
    assert done.exit_code == 1
    told = " ".join(done.stderr.split())
    assert "nothing was published" in told
    assert "--retained-floor" in told
    assert not (tmp_path / "base").exists()
    assert not (tmp_path / "out").exists()
    # Whoever says that it will do gets it.
    done = run(*given(folder, tmp_path / "base"), *options, "--retained-floor", "0.05", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["after"]["retained"] < 0.8 * told["before"]["retained"]


def test_remarks_on_an_outcome() -> None:
    done: Any = {"classes": 10, "config": UnsirConfig(), "impaired": Accuracy(0.1, 0.0), "measured_on": "validation"}
    done |= {"model": None, "steps": {}, "seconds": {}, "history": (), "before": Accuracy(1.0, 1.0), "forgotten": (2,)}
    assert remarks(UnsirResult(**done, after=Accuracy(0.9, 0.1)), None) == []
    (told,) = remarks(UnsirResult(**done, after=Accuracy(0.9, 0.11)), None)
    assert "11% of their examples" in told
    assert remarks(UnsirResult(**done, after=Accuracy(0.9, 0.11)), "tempered") == []
    (told,) = remarks(UnsirResult(**done, after=Accuracy(0.9, None)), "tempered")
    assert "not measured" in told
    check_retained(UnsirResult(**done, after=Accuracy(0.8, None)))
    with pytest.raises(ModelError, match="nothing was published"):
        check_retained(UnsirResult(**done, after=Accuracy(0.799, None)))


def test_nothing_is_published_where_the_model_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    model = keras.models.load_model(folder / "model.keras")
    with pytest.raises(KeyError), saved(model, tmp_path / "out.keras"):
        raise KeyError("publishing failed")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.keras").write_bytes(b"mine")
    with pytest.raises(PublishError, match="replace"), saved(model, tmp_path / "out.keras"):
        pytest.fail("published all the same")
    assert (tmp_path / "out.keras").read_bytes() == b"mine"


def test_a_history_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    """Its folder goes while it is kept."""
    with pytest.raises(PublishError, match="history"), History(tmp_path / "a" / "h.csv", None, False):
        (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").unlink()
    history = History(tmp_path / "a" / "h.csv", tmp_path / "a", False)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ModelError, match="went astray"), history:
        raise ModelError("Training went astray.")
    with pytest.raises(PublishError, match="TensorBoard"):
        History(None, tmp_path / "a", False)


def damaged(folder: Path, into: Path) -> Iterator[Path]:
    """Files of examples, each broken in another way."""
    with np.load(folder / "few.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    np.save(into / "array.npy", x)
    (into / "empty.npz").write_bytes(b"")
    np.savez(into / "scalar.npz", x=np.float32(3), y=np.int64(1))
    np.savez(into / "objects.npz", x=x, y=np.asarray([{}, 1], dtype=object))
    np.savez(into / "no_y.npz", x=x)
    with zipfile.ZipFile(into / "text.npz", "w") as archive:
        archive.writestr("x", "text")
        archive.writestr("y.npy", b"\x93NUMPY\x01\x00\x08\x00{nothing")
    np.savez_compressed(into / "deflate.npz", x=x, y=y)
    whole = (into / "deflate.npz").read_bytes()
    (into / "deflate.npz").write_bytes(whole[:400] + bytes([whole[400] ^ 255]) + whole[401:])
    (into / "short.npz").write_bytes(whole[: len(whole) // 2])
    whole = (folder / "few.npz").read_bytes()
    (into / "checksum.npz").write_bytes(whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:])
    yield from sorted(into.glob("*.np*"))


def test_refuses_what_are_no_examples(folder: Path, tmp_path: Path) -> None:
    files = list(damaged(folder, tmp_path))
    assert len(files) == 9
    for file in files:
        done = run(*given(folder, tmp_path / "base"), "--classes", "2", "--retain-data", file)
        assert is_one_refusal(done, str(file)), (file, done.output)
    assert not (tmp_path / "base").exists()


def test_refuses_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none.keras").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("x", "y")
    with zipfile.ZipFile(folder / "model.keras") as whole:
        for name in ("config.json", "model.weights.h5"):
            with zipfile.ZipFile(tmp_path / f"list_for_{name}.keras", "w") as archive:
                for each in whole.namelist():
                    archive.writestr(each, b"[]" if each == name else whole.read(each))
    data = (folder / "model.keras").read_bytes()
    middle = len(data) // 2
    (tmp_path / "checksum.keras").write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    (tmp_path / "folder.keras").mkdir()
    for file in tmp_path.glob("*.keras"):
        done = run(file, *given(folder, tmp_path / "base")[1:], "--classes", "2")
        assert is_one_refusal(done, "cannot be loaded", str(file)), (file, done.output)


def test_refuses_a_seed_below_zero(folder: Path, tmp_path: Path) -> None:
    done = run(*given(folder, tmp_path / "base"), "--classes", "2", "--seed", "-1")
    assert done.exit_code == 2
    assert "--seed" in done.stderr


def test_what_was_unlearned_stays_so(folder: Path, tmp_path: Path) -> None:
    """Version 1 unlearned class 2 in the weights; from the same old file, version 2 would bring it back."""
    base = tmp_path / "base"
    assert run(*given(folder, base), "--classes", "2").exit_code == 0
    for filtered in ([], ["--then-filter", "tempered"]):
        done = run(*given(folder, base), "--classes", "5", *filtered)
        assert is_one_refusal(done, "unlearned in the weights of version 1", "with 2 as well"), done.output
    with np.load(folder / "retain.npz") as arrays:
        kept = arrays["y"] != 5
        np.savez(tmp_path / "both.npz", x=arrays["x"][kept], y=arrays["y"][kept])
    done = run(*given(folder, base), "--classes", "2,5", "--retain-data", tmp_path / "both.npz")
    assert done.exit_code == 0, done.output
    assert mpru_tf.inspect(base / "2").unlearned == (2, 5)


@pytest.mark.parametrize(
    "record", [{"forgotten": [99]}, {"forgotten": [-1]}, {"forgotten": {}}, {"forgotten": "2"}, {"forgotten": [True]},
               {"forgotten": []}, {"classes": "10"}, {"classes": 200, "forgotten": [99]}, None]
)  # fmt: skip
def test_a_damaged_record_is_refused_in_words(exported: Path, tmp_path: Path, record: dict[str, Any] | None) -> None:
    version = Path(shutil.copytree(exported, tmp_path / "base" / "1"))
    write_record(version, {"forgotten": [2], "classes": 10, **(record or {})}, None)
    if record is None:
        (version / RECORD).write_text("[1]", encoding="utf-8")
    done = invoke("inspect", version)
    assert is_one_refusal(done, RECORD), done.output
    if record is None or record.get("classes") != 200:  # that it is of another model takes the graph to see
        assert is_one_refusal(invoke("verify", version), RECORD)
        shown = invoke("history", version, "--json")
        assert shown.exit_code == 1, shown.output
        assert any(RECORD in problem for step in json.loads(shown.stdout)["steps"] for problem in step["problems"])
        audited = json.loads(invoke("audit", version.parent, "--json").stdout)
        assert [finding["kind"] for finding in audited["findings"]] == ["damaged_version"]
        with pytest.raises(ManifestError, match="record of UNSIR"):
            check_nothing_comes_back(version.parent, (), "say so", unlearned=(2,))


@pytest.mark.parametrize("dtype", ["float16", "float64", "mixed_float16", "mixed_bfloat16"])
def test_publishes_models_of_other_types(dtype: str, tmp_path: Path) -> None:
    """Inputs of another type, and computations that a Session rounds otherwise than Keras."""
    digits = datasets.load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    mixed = dtype.startswith("mixed")
    layers: Any = [keras.Input((64,), dtype="float32" if mixed else dtype)]
    policy = dtype if mixed else "float32"
    layers += [keras.layers.Dense(32, dtype=policy), keras.layers.BatchNormalization(dtype=policy)]
    layers += [keras.layers.ReLU(dtype=policy), keras.layers.Dense(10, dtype=policy)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, verbose=0)
    config = UnsirConfig(noise_batch=32, noise_rounds=1, noise_batches=2, batch_size=64)
    result = mpru_tf.unsir(model, 2, (x[y != 2], y[y != 2]), config, in_place=True)
    published = publish_unlearned(result, tmp_path / "base", x[:200])
    with LoadedModel(published.path) as loaded:
        (given,) = loaded.signatures["serving_default"].inputs
        kind = x[:200] if mixed else x[:200].astype(dtype)
        (answers,) = loaded.run("serving_default", {given: kind}).values()
    expected = np.asarray(result.model(kind)).astype("float32")
    assert float((answers.argmax(-1) == expected.argmax(-1)).mean()) > 0.97
    for examples in (x[:0], x[:4, :3], x[0]):
        with pytest.raises(DataError, match="do not fit"):
            publish_unlearned(result, tmp_path / "base", examples)


def test_keeps_a_model_that_exists(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there.keras").write_bytes(b"mine")
    done = run(*given(folder, tmp_path / "base"), "--classes", "2", "--out-model", tmp_path / "there.keras")
    assert done.exit_code == 2
    assert (tmp_path / "there.keras").read_bytes() == b"mine"


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light in the upper, middle or lower rows, many pictures and few of them, and a model that tells them apart."""
    folder = tmp_path_factory.mktemp("lights")
    random = np.random.default_rng(0)
    y = np.arange(6000) % 3
    x = random.integers(0, 60, size=(6000, 8, 8, 3)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 2] = 255
    np.savez(folder / "lights.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    np.savez(folder / "few.npz", x_train=x[:60], y_train=y[:60])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit((x / 255 - 0.4) / 0.3, y, epochs=2, verbose=0)
    model.save(folder / "model.keras")
    return folder


def export(lights: Path, data: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the export script; it takes what is retained out of the training data itself."""
    command = [sys.executable, str(SCRIPT), "--weights", "model.keras", "--data", data, *options]
    command += ["--mean", "0.4,0.4,0.4", "--std", "0.3,0.3,0.3", "--unsir", "1"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=lights, timeout=300)


def test_the_export_script_unlearns_too(lights: Path) -> None:
    done = export(lights, "lights.npz", "--out", "base", "--then-filter", "renormalize")
    assert done.returncode == 0, done.stderr
    assert "base/1 with [1] unlearned (renormalize)" in done.stdout
    assert "warning: " not in done.stderr
    found = re.findall(r"unlearning: accuracy on the classes that stay (\S+), on \[1\] (\S+)", done.stdout)
    before, after = [tuple(map(float, each)) for each in found]
    assert min(before) > 0.9
    assert after[0] > 0.9
    assert after[1] < 0.1
    assert [path.name for path in (lights / "base").iterdir()] == ["1"]  # the original is not published
    record = read_record(lights / "base" / "1")
    assert record is not None
    assert record["forgotten"] == [1]
    assert mpru_tf.verify(lights / "base" / "1").passed


def test_the_export_script_publishes_no_ruin(lights: Path) -> None:
    """Sixty examples are nothing beside the noise."""
    done = export(lights, "few.npz", "--out", "ruin", "--preset", "paper")
    assert done.returncode == 1, done.stdout
    assert "refused: The model has lost too much of the classes that stay; nothing was published." in done.stderr
    assert not (lights / "ruin").exists()
    done = export(lights, "few.npz", "--out", "gentle")
    assert done.returncode == 0, done.stderr
    assert "was not measured" in done.stderr
