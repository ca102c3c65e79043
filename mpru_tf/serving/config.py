"""Configuration files of the real server: text protos, read strictly, and what a ModelServerConfig asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from mpru_tf.errors import ServingError, explain
from mpru_tf.serving.source import VersionPolicy, all_versions, latest, specific
from mpru_tf.serving.status import RequestError, invalid_argument

Message = TypeVar("Message")

_PLATFORM = "tensorflow"
_URI = re.compile(r"[a-zA-Z][0-9a-zA-Z.]*://")


@dataclass(frozen=True)
class ServedModel:
    """One entry of the list of models.

    Attributes:
        name: what clients call it.
        base_path: directory whose numeric children are its versions.
        policy: which of them are wanted.
        labels: version number by label.
    """

    name: str
    base_path: Path
    policy: VersionPolicy
    labels: Mapping[str, int] = field(default_factory=dict)


def read_text_proto(path: str | Path, message: Message) -> Message:
    """Read a text proto from a file into a message and return it.

    Raises:
        ServingError: the file cannot be read, or is not a text proto of this type.
    """
    name = message.DESCRIPTOR.full_name  # type: ignore[attr-defined]
    try:
        text = Path(path).read_text(encoding="utf-8")
        text_format.Parse(text, message)
    except OSError as error:
        raise ServingError(
            explain("The configuration file cannot be read.", received=path, hint=error.strerror or str(error))
        ) from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServingError(
            explain(f"Invalid protobuf file: '{path}'.", valid=f"a {name} as text", hint=str(error))
        ) from error
    return message


def single_model(name: str, base_path: str | Path) -> Any:
    """Return the ``ModelServerConfig`` of one model, as ``--model_name`` and ``--model_base_path`` mean it."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=str(Path(base_path).absolute()), model_platform=_PLATFORM)
    return config


def served_models(config: Any) -> dict[str, ServedModel]:
    """Return what a ``ModelServerConfig`` asks for, by model name, in its order.

    Raises:
        RequestError: INVALID_ARGUMENT, in the real server's words: a model listed twice, a relative path, a platform
            that is not TensorFlow's, or a configuration that is not a list of models.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("ModelServer does not yet support custom model config.")
    models: dict[str, ServedModel] = {}
    for entry in config.model_config_list.config:
        if entry.name in models:
            raise invalid_argument(f"Illegal to list model {entry.name} multiple times in config list")
        models[entry.name] = ServedModel(
            entry.name,
            Path(entry.base_path),
            version_policy(entry.model_version_policy),
            dict(sorted(entry.version_labels.items())),
        )
    for entry in config.model_config_list.config:
        if _URI.match(entry.base_path):
            raise RequestError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Model {entry.name}: this server reads local directories only; got base_path()={entry.base_path}",
            )
        if not entry.base_path.startswith("/") and not Path(entry.base_path).is_absolute():
            raise invalid_argument(
                f"Expected model {entry.name} to have an absolute path or URI; got base_path()={entry.base_path}"
            )
    for entry in config.model_config_list.config:
        _check_platform(entry)
    return models


def version_policy(policy: Any) -> VersionPolicy:
    """Return the policy that a ``ServableVersionPolicy`` means; none is the latest version."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return all_versions()
    if choice == "specific":
        return specific(policy.specific.versions)
    return latest(policy.latest.num_versions or 1)


def _check_platform(entry: Any) -> None:
    platform = entry.model_platform
    if entry.model_type:
        if platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
            )
        if entry.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(f"ModelServerConfig::model_type choice {entry.model_type} not supported.")
        platform = _PLATFORM
    if not platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    if platform != _PLATFORM:
        raise invalid_argument(f"Model {entry.name} requests unsupported platform {platform}")
