"""Copies of Keras models to train on, so that the caller's stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mpru_tf.errors import UnsupportedModelError, explain

if TYPE_CHECKING:
    import keras


def copied(model: keras.Model) -> keras.Model:
    """A copy with weights of its own, not compiled: the loss that a model was fitted with need not be rebuilt.

    Raises:
        UnsupportedModelError: Keras cannot rebuild the model.
    """
    try:
        with _as_if_not_compiled(model):
            return copy.deepcopy(model)
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        raise UnsupportedModelError(
            explain(
                "The model cannot be copied: Keras cannot rebuild it from its configuration.",
                received=" ".join(str(error).split())[-300:],
                hint="Register its custom layers with keras.saving.register_keras_serializable, or have UNSIR "
                "change the model itself with in_place=True.",
            )
        ) from error


@contextmanager
def _as_if_not_compiled(model: keras.Model) -> Iterator[None]:
    """Keras writes the compile configuration of a model, and of each in it, only where ``compiled`` is set."""
    import keras

    compiled = [layer for layer in model._flatten_layers() if isinstance(layer, keras.Model) and layer.compiled]
    for each in compiled:
        each.compiled = False
    try:
        yield
    finally:
        for each in compiled:
            each.compiled = True
