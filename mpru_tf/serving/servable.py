"""One version of a model, loaded and ready to answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from mpru_tf.errors import MPRUError
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.serving.tensors import decode

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Signature:
    """What a request is checked against, read out of the SignatureDef once.

    Attributes:
        name: the signature key.
        method_name: as the SignatureDef has it.
        inputs: dtype enum by input key, keys ascending.
        feed_names: tensor name by input key.
        outputs: the output keys, ascending.
        defaults: values of the inputs that a request may leave out.
    """

    name: str
    method_name: str
    inputs: dict[str, int]
    feed_names: dict[str, str]
    outputs: tuple[str, ...]
    defaults: dict[str, npt.NDArray[Any]]


class Servable:
    """A loaded version.

    Attributes:
        name: the model's name.
        version: the version number.
        model: the loaded SavedModel.
        signatures: by signature key.
    """

    def __init__(self, name: str, version: int, model: LoadedModel) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.signatures = {key: _signature(key, definition) for key, definition in model.signatures.items()}

    @classmethod
    def load(
        cls,
        name: str,
        version: int,
        version_dir: Path,
        threads: tuple[int, int] = (0, 0),
        tags: Sequence[str] = ("serve",),
        config: Any = None,
    ) -> Servable:
        """Load a version and make it ready; a version becomes AVAILABLE only after this returned.

        Args:
            name: the model's name.
            version: the version number.
            version_dir: directory that holds ``saved_model.pb``.
            threads: intra-op and inter-op threads of the session; 0 leaves a number to TensorFlow.
            tags: of the MetaGraph to load.
            config: a ``ConfigProto`` with further settings of the session.

        Raises:
            MPRUError: as :class:`~mpru_tf.saved_model.session.LoadedModel` does.
        """
        servable = cls(name, version, LoadedModel(version_dir, tags, threads=threads, config=config))
        servable._prepare()
        return servable

    def close(self) -> None:
        """Free the model."""
        self.model.close()

    def _prepare(self) -> None:
        # Builds the executor of the signature that nearly every request names, so that no request pays for it. A
        # signature that cannot be built fails its own requests, not the load.
        signature = self.signatures.get(DEFAULT_SIGNATURE)
        if signature is not None:
            with contextlib.suppress(MPRUError, tf.errors.OpError):
                self.model.step(signature.name, signature.outputs)


def _signature(name: str, definition: Any) -> Signature:
    inputs = {key: definition.inputs[key] for key in sorted(definition.inputs)}
    defaults = {key: decode(proto) for key, proto in getattr(definition, "defaults", {}).items()}
    return Signature(
        name=name,
        method_name=definition.method_name,
        inputs={key: info.dtype for key, info in inputs.items()},
        feed_names={key: info.name for key, info in inputs.items()},
        outputs=tuple(sorted(definition.outputs)),
        defaults={key: value for key, value in defaults.items() if value is not None},
    )
