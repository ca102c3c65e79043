"""Other people's trained models, where they are at hand: they forget a class, and nothing that stays gets worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mpru_tf
from mpru_tf import make_filter
from mpru_tf.resnet import export_version
from mpru_tf.saved_model.session import LoadedModel

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # keras-team/keras#21288, open
def test_cifar10_resnet20_forgets_cat(shared: Path, tmp_path: Path) -> None:
    import keras

    file = shared / "models" / "cifar10_resnet20.keras"
    if not file.is_file():
        pytest.skip(f"{file.name} is not in the folder that MPRU_SHARED names")
    try:
        model = keras.models.load_model(file, compile=False)
    except (TypeError, ValueError) as error:
        pytest.skip(f"Keras {keras.__version__} cannot read {file.name}: {str(error).splitlines()[-1]}")
    first = export_version(model, tmp_path / "cifar10", LABELS)
    result = mpru_tf.forget(tmp_path / "cifar10", ["cat"])
    assert result.labels == ("cat",)
    x = np.random.default_rng(0).standard_normal((64, 32, 32, 3)).astype(np.float32)
    answers = []
    for version in (first, result.path):
        with LoadedModel(version) as model:
            signature = model.signatures["serving_default"]
            (given,), (shown,) = signature.inputs, signature.outputs
            answers.append(np.asarray(model.run("serving_default", {given: x})[shown]))
    before, after = answers
    spec = make_filter(10, [3], result.method)
    np.testing.assert_allclose(after, spec.logits(before), rtol=1e-5, atol=1e-4)
    retained = [c for c in range(10) if c != 3]
    np.testing.assert_array_equal(after[:, retained].argmax(-1), before[:, retained].argmax(-1))
    assert 3 not in after.argmax(-1)
