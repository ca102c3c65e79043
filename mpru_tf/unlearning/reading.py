"""Read the Keras model that a person brings to UNSIR. Whatever is wrong with the file is told in words."""

from __future__ import annotations

import os
from typing import Any

from mpru_tf.errors import ModelError, explain


def read_keras(path: str | os.PathLike[str], valid: str, hint: str | None = None) -> Any:
    """A whole Keras model, not compiled.

    Args:
        path: of the file.
        valid: what it must be, in words.
        hint: what to do otherwise.

    Raises:
        ModelError: it is none that Keras can load without running code from the file.
    """
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever it stumbles on: KeyError, BadZipFile, AttributeError ...
        raise ModelError(
            explain(
                "The model cannot be loaded.",
                received=f"{os.fspath(path)} ({_reason(error)})",
                valid=valid,
                hint=hint,
            )
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # The innermost cause comes last; whole configurations stand before it.
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
