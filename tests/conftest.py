"""What all tests share: a quiet TensorFlow on the CPU, one hypothesis profile, and the data that may lie outside."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Before any test module imports TensorFlow. The numbers must not depend on the GPU of whoever runs the tests.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Pictures are drawn into files.
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import tensorflow as tf  # noqa: F401 (imported here, where pytest holds back what it writes to the terminal)
from hypothesis import HealthCheck, settings

# The same examples in every run: a failure in CI is a failure on the next desk. The first example of a test may have
# to trace a TensorFlow graph, so no deadline and no complaint about slowness.
settings.register_profile(
    "mpru_tf", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mpru_tf")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with other people's models and data sets, named by MPRU_SHARED; tests that need it skip without."""
    named = os.environ.get("MPRU_SHARED")
    if not named:
        pytest.skip("needs the folder of models and data that the environment variable MPRU_SHARED names; it is unset")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"MPRU_SHARED names no folder: {folder}")
    return folder


class ModelStore:
    """SavedModels of tests/saved_models.py, each made once and copied for every test that wants one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pristine(self, name: str) -> Path:
        """A version directory to read from; nobody may write to it."""
        import saved_models

        path = self._folder / name / "1"
        if not path.exists():
            saved_models.MAKERS[name](path)
        return path

    def base(self, name: str, folder: Path) -> Path:
        """A base path below ``folder`` with a copy of the model as version 1."""
        base = folder / name
        shutil.copytree(self.pristine(name), base / "1")
        return base


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """The store of small SavedModels."""
    return ModelStore(tmp_path_factory.mktemp("models"))
