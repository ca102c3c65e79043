"""The export scripts, run as a person runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import mpru_tf
from mpru_tf.labels import find_labels
from mpru_tf.resnet import build_resnet
from mpru_tf.unlearning.record import write_record

SCRIPTS = Path(__file__).parents[1] / "export_scripts"


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def answers_of(version: Path, x: Any) -> Any:
    (scores,) = keras.layers.TFSMLayer(str(version), call_endpoint="serving_default")(x).values()
    return np.asarray(scores)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty tiny images of three classes that differ in where the light is."""
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = random.integers(0, 60, size=(60, 8, 8, 3)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 2] = 255
    path = tmp_path_factory.mktemp("data") / "lights.npz"
    np.savez(path, x_train=x, y_train=y[:, None], x_test=x[:15], y_test=y[:15])
    return path


class TestResnet:
    def test_trains_exports_and_forgets(self, data: Path, tmp_path: Path) -> None:
        labels = tmp_path / "labels.json"
        labels.write_text(json.dumps(["top", "middle", "bottom"]))
        base = tmp_path / "models" / "lights"
        done = script(
            *("export_resnet.py", "--dataset", data, "--depth", "20", "--epochs", "2"),
            *("--labels", labels, "--out", base, "--forget", "middle"),
        )
        assert done.returncode == 0, done.stderr
        assert "trained ResNet-20" in done.stdout
        assert "on 15 examples" in done.stdout
        assert "['middle'] forgotten" in done.stdout
        assert sorted(child.name for child in base.iterdir()) == ["1", "2"]
        assert find_labels(base / "1") == ["top", "middle", "bottom"]
        assert mpru_tf.inspect(base).forgotten == (1,)
        x = np.load(data)["x_test"].astype("float32")
        before, after = answers_of(base / "1", x), answers_of(base / "2", x)
        assert before.shape == after.shape == (15, 3)
        assert np.all(before[:, 1] > 0)
        assert np.all(after[:, 1] == 0)
        np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-5)

    def test_whole_model_is_exported_as_it_is(self, data: Path, tmp_path: Path) -> None:
        keras.utils.set_random_seed(0)
        model = build_resnet(8, (8, 8, 3), 3, width=4, logits=True)
        model.save(tmp_path / "model.keras")
        base = tmp_path / "base"
        options = ["--weights", tmp_path / "model.keras", "--out", base]
        done = script("export_resnet.py", *options)
        assert done.returncode == 0, done.stderr
        assert "logits of 3 classes" in done.stdout
        x = np.load(data)["x_test"].astype("float32")
        np.testing.assert_allclose(answers_of(base / "1", x), model(x), rtol=1e-4, atol=1e-4)
        # A second time: the next version, the first one untouched.
        written = (base / "1" / "saved_model.pb").stat()
        done = script("export_resnet.py", *options, "--data", data, "--mean", "0.4,0.4,0.4", "--std", ".2,.2,.2")
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
        assert (base / "1" / "saved_model.pb").stat() == written
        assert sorted(child.name for child in base.iterdir()) == ["1", "2"]

    def test_weights_of_the_same_network(self, data: Path, tmp_path: Path) -> None:
        model = build_resnet(20, (8, 8, 3), 3, scale=1 / 255)
        model.save_weights(tmp_path / "model.weights.h5")
        options = ["--weights", tmp_path / "model.weights.h5", "--out", tmp_path / "base"]
        done = script("export_resnet.py", *options, "--dataset", data)
        assert done.returncode == 0, done.stderr
        x = np.load(data)["x_test"].astype("float32")
        np.testing.assert_allclose(answers_of(tmp_path / "base" / "1", x), model(x), rtol=1e-4, atol=1e-5)
        done = script("export_resnet.py", *options)
        assert done.returncode == 1
        assert "Give --dataset" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--dataset", "nothing.npz"], "nothing.npz"),
            (["--weights", "nothing.keras"], "nothing.keras"),
            (["--dataset", "digits", "--data", "{here}"], "cannot be read"),
        ],
    )
    def test_refusals(self, tmp_path: Path, arguments: list[str], words: str) -> None:
        (tmp_path / "here").write_text("no archive")
        given = [argument.replace("{here}", str(tmp_path / "here")) for argument in arguments]
        done = script("export_resnet.py", "--out", tmp_path / "base", *given)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("refused: ")
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
        assert not (tmp_path / "base").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--unsir", "3"], "no such class"),
            (["--unsir", "1", "--retained-floor", "2"], "retained_floor"),
            (["--unsir", "1", "--out", "{base}"], "that version 2"),
            (["--unsir", "1", "--then-filter", "tempered", "--out", "{unlearned}"], "with 2 as well"),
            (["--out", "{data}/base"], "is no folder"),
        ],
    )
    def test_what_cannot_be_unlearned_is_refused_before_training(
        self, data: Path, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        build_resnet(8, (8, 8, 3), 3, width=4).export(str(tmp_path / "base" / "1"), verbose=False)
        shutil.copytree(tmp_path / "base", tmp_path / "unlearned")
        write_record(tmp_path / "unlearned" / "1", {"forgotten": [2], "classes": 3}, None)
        mpru_tf.forget(tmp_path / "base", 0, load_check=False)
        places = {"base": tmp_path / "base", "unlearned": tmp_path / "unlearned", "data": data}
        given = [argument.format(**places) for argument in arguments]
        done = script("export_resnet.py", "--dataset", data, "--epochs", "100000", "--out", tmp_path / "new", *given)
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["array.npy", "empty.npz"])
    def test_damaged_data(self, data: Path, tmp_path: Path, name: str) -> None:
        with np.load(data) as arrays:
            x, y = arrays["x_train"], arrays["y_train"]
        np.save(tmp_path / "array.npy", x)
        np.savez(tmp_path / "empty.npz", x_train=x[:0], y_train=y[:0])
        done = script("export_resnet.py", "--dataset", tmp_path / name, "--out", tmp_path / "base")
        assert done.returncode == 1
        assert done.stderr.startswith("refused: The data ")
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--dataset", "digits", "--seed", "-1"],
            ["--depth", "19", "--dataset", "digits"],
            ["--weights", "m", "--mean", "1"],
        ],
    )
    def test_wrong_usage(self, tmp_path: Path, arguments: list[str]) -> None:
        done = script("export_resnet.py", "--out", tmp_path / "base", *arguments)
        assert done.returncode == 2
        assert "usage:" in done.stderr

    def test_shared_resnet(self, shared: Path, tmp_path: Path) -> None:
        """The trained CIFAR-10 ResNet that comes with the project's data keeps its logits through the export."""
        source = shared / "models" / "cifar10_resnet20.keras"
        with zipfile.ZipFile(source) as archive:
            saved_by = json.loads(archive.read("metadata.json"))["keras_version"]
        if release(keras.__version__) < release(saved_by):
            pytest.skip(f"the model was saved by Keras {saved_by}, which Keras {keras.__version__} cannot read")
        done = script("export_resnet.py", "--weights", source, "--out", tmp_path, "--forget", "3")
        assert done.returncode == 0, done.stderr
        x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
        raw, filtered = answers_of(tmp_path / "1", x), answers_of(tmp_path / "2", x)
        assert np.all(filtered[:, 3] < -1e29)
        retained = [c for c in range(10) if c != 3]
        assert np.array_equal(raw[:, retained].argmax(axis=1), filtered[:, retained].argmax(axis=1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("exported")
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(inputs)).export(str(base / "1"), verbose=False)
    return base


class TestReexport:
    def test_writes_the_next_version(self, exported: Path, tmp_path: Path) -> None:
        base = Path(shutil.copytree(exported, tmp_path / "model"))
        done = script("reexport_saved_model.py", base, "2")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert str(base / "2") in done.stdout
        assert mpru_tf.inspect(base).forgotten == (2,)

    def test_refuses(self, exported: Path) -> None:
        done = script("reexport_saved_model.py", exported, "7")
        assert done.returncode == 1
        assert done.stderr.startswith("refused: ")
        assert [child.name for child in exported.iterdir()] == ["1"]

    def test_explains_itself(self) -> None:
        done = script("reexport_saved_model.py")
        assert done.returncode != 0
        assert "models/resnet cat" in done.stderr
