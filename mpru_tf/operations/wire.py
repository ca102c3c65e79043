"""The messages of ModelService and the ModelSpec, for clients that do not want TensorFlow.

``tensorflow_serving.apis`` imports TensorFlow for an enum of error codes: seconds and hundreds of MB, too much for a
probe that asks every few seconds. The fields are public interface (``get_model_status.proto``,
``get_model_metadata.proto``, ``model_management.proto``, ``model.proto``) and are written down here as data. They live
in a descriptor pool of their own, so that they do not collide with the real modules in the same process.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "tensorflow.serving"
_SPEC = f".{_PACKAGE}.ModelSpec"

#: Message: field name, number and type: a scalar of protobuf, or the full name of a message; ``*`` is repeated.
#: Enums are int32, and messages that are only passed through are bytes: on the wire each is the same.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "ModelSpec": (("name", 1, "string"), ("version", 2, ".google.protobuf.Int64Value"), ("version_label", 4, "string")),
    "StatusProto": (("error_code", 1, "int32"), ("error_message", 2, "string")),
    "GetModelStatusRequest": (("model_spec", 1, _SPEC),),
    "ModelVersionStatus": (("version", 1, "int64"), ("state", 2, "int32"), ("status", 3, f".{_PACKAGE}.StatusProto")),
    "GetModelStatusResponse": (("model_version_status", 1, f".{_PACKAGE}.ModelVersionStatus*"),),
    "GetModelMetadataRequest": (("model_spec", 1, _SPEC), ("metadata_field", 2, "string*")),
    "GetModelMetadataResponse": (("model_spec", 1, _SPEC),),
    "ReloadConfigRequest": (("config", 1, "bytes"),),
    "ReloadConfigResponse": (("status", 1, f".{_PACKAGE}.StatusProto"),),
}


@cache
def message_type(name: str) -> Any:
    """Return the class of a message, ``"GetModelStatusRequest"`` for example."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="wire.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, entries in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in entries:
            label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
            field, kind = message.field.add(name=field_name, number=number, label=label), kind.rstrip("*")
            if kind.startswith("."):
                field.type, field.type_name = _Field.TYPE_MESSAGE, kind
            else:
                field.type = getattr(_Field, f"TYPE_{kind.upper()}")
    pool.AddSerializedFile(file.SerializeToString())
    return pool
