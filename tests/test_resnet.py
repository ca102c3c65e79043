"""ResNets: their shapes and sizes, that they learn, and that they are exported whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mpru_tf import resnet
from mpru_tf.errors import DataError, LabelsError, ModelError, PublishError
from mpru_tf.labels import find_labels


@pytest.fixture(scope="module")
def small() -> Any:
    return resnet.build_resnet(8, (8, 8, 1), 3, width=4, scale=1 / 16)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # He et al. give 0.27 M and 0.85 M for the depths 20 and 56 (table 6).
    [(20, 0.27e6), (56, 0.85e6)],
)
def test_sizes_of_the_paper(depth: int, parameters: float) -> None:
    model = resnet.build_resnet(depth, (32, 32, 3), 10)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == pytest.approx(parameters, rel=0.02)
    assert sum(isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) for layer in model.layers) == depth


@pytest.mark.parametrize("depth", [8, 18])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [8, 9])  # an odd size must not break the sum of shortcut and convolution
def test_answers_probabilities(depth: int, shortcut: Any, size: int) -> None:
    model = resnet.build_resnet(depth, (size, size, 3), 5, width=4, shortcut=shortcut)
    x = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype("float32")
    p = np.asarray(model(x))
    assert p.shape == (3, 5)
    assert p.dtype == np.float32
    assert np.all(p >= 0)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert not resnet.answers_logits(model)


def test_logits_have_the_same_softmax() -> None:
    keras.utils.set_random_seed(0)
    model = resnet.build_resnet(8, (8, 8, 1), 3, width=4)
    twin = resnet.build_resnet(8, (8, 8, 1), 3, width=4, logits=True)
    twin.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(keras.ops.softmax(twin(x)), model(x), rtol=1e-5)
    assert resnet.answers_logits(twin)


@pytest.mark.parametrize("size", [32, 33])
def test_the_stem_for_pictures_leaves_a_sixteenth_of_the_pixels(size: int) -> None:
    model = resnet.build_resnet(18, (size, size, 3), 10, shortcut="B", stem="imagenet")
    assert model.get_layer("stem_pool").output.shape == (None, -(-size // 4), -(-size // 4), 64)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    # He et al., table 1, without the layer for 1,000 classes (0.5 M): 11.2 M.
    assert trainable == pytest.approx(11.2e6, rel=0.01)
    assert np.asarray(model(np.zeros((2, size, size, 3), "float32"))).shape == (2, 10)


def test_option_a_has_no_weights_in_shortcuts() -> None:
    def count(shortcut: Any) -> int:
        model = resnet.build_resnet(8, (8, 8, 1), 3, width=4, shortcut=shortcut)
        return sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers)

    assert count("B") == count("A") + 2


@pytest.mark.parametrize("depth", [0, 2, 7, 9, 19, -4])
def test_refuses_other_depths(depth: int) -> None:
    with pytest.raises(ModelError, match=f"depth {depth}"):
        resnet.stages(depth)


def test_refuses_no_width() -> None:
    with pytest.raises(ModelError, match="width 0"):
        resnet.stages(20, width=0)


def test_learns() -> None:
    """Three classes that differ in where the light is: learnt in a few epochs, or training does not train."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 240)
    x = random.normal(0, 1, size=(240, 8, 8, 1)).astype("float32")
    for row, label in zip(x, y, strict=True):
        row[2 * label : 2 * label + 2] += 6
    keras.utils.set_random_seed(0)
    model = resnet.build_resnet(8, (8, 8, 1), 3, width=4)
    history = resnet.train(model, x, y, epochs=6, batch_size=32, shift=1, flip=True, validation=(x, y))
    assert history["val_accuracy"][-1] >= 0.95
    assert len(history["loss"]) == 6


def test_batch_larger_than_data(small: Any) -> None:
    x, y = np.zeros((5, 8, 8, 1), "float32"), np.zeros(5, "int64")
    assert len(resnet.train(small, x, y, epochs=1, batch_size=128)["loss"]) == 1


@pytest.mark.parametrize(("examples", "labels", "epochs"), [(0, 0, 1), (4, 3, 1), (4, 4, 0)])
def test_nothing_to_train_on(small: Any, examples: int, labels: int, epochs: int) -> None:
    with pytest.raises(DataError, match=f"{examples} examples, {labels} labels, {epochs} epochs"):
        resnet.train(small, np.zeros((examples, 8, 8, 1), "float32"), np.zeros(labels, "int64"), epochs=epochs)


def test_progress_goes_to_stderr(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.zeros((8, 8, 8, 1), "float32"), np.zeros(8, "int64")
    resnet.train(small, x, y, epochs=2, batch_size=4, validation=(x, y), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 2/2" in captured.err
    assert "test" in captured.err


def test_augmentation_moves_whole_images() -> None:
    random = np.random.default_rng(0)
    image = np.zeros((64, 5, 5, 1), "float32")
    image[:, 2, 2] = 1
    moved = resnet._augment(image, 1, False, random)
    assert moved.shape == image.shape
    assert np.all(moved.sum(axis=(1, 2, 3)) == 1)
    assert np.all(moved[:, 1:4, 1:4].sum(axis=(1, 2, 3)) == 1)
    assert len({int(row.argmax()) for row in moved.reshape(64, -1)}) == 9
    image = np.arange(2 * 3 * 3, dtype="float32").reshape(2, 3, 3, 1)
    flipped = resnet._augment(np.repeat(image, 16, axis=0), 0, True, random)
    assert not np.array_equal(flipped, np.repeat(image, 16, axis=0))
    for before, after in zip(np.repeat(image, 16, axis=0), flipped, strict=True):
        assert np.array_equal(after, before) or np.array_equal(after, before[:, ::-1])


class TestExport:
    def test_versions_count_up(self, small: Any, tmp_path: Path) -> None:
        base = tmp_path / "models" / "small"
        first = resnet.export_version(small, base, ["cat", "dog", "bird"])
        assert first == base / "1"
        assert find_labels(first) == ["cat", "dog", "bird"]
        (base / "7").mkdir()
        second = resnet.export_version(small, base)
        assert second == base / "8"
        assert find_labels(second) is None
        assert sorted(child.name for child in base.iterdir()) == ["1", "7", "8"]  # no staging is left

    def test_answers_the_same_after_loading(self, small: Any, tmp_path: Path) -> None:
        version = resnet.export_version(small, tmp_path)
        x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
        loaded = keras.layers.TFSMLayer(str(version), call_endpoint="serving_default")
        (p,) = loaded(x).values()
        np.testing.assert_allclose(p, small(x), rtol=1e-5)

    def test_nothing_is_left_of_a_failure(self, small: Any, tmp_path: Path) -> None:
        with pytest.raises(LabelsError):
            resnet.export_version(small, tmp_path, ["cat", "", "bird"])
        assert list(tmp_path.iterdir()) == []

    def test_base_path_is_a_file(self, small: Any, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PublishError, match="file"):
            resnet.export_version(small, tmp_path / "file")
