"""Messages of the real server's configuration files that ``tensorflow-serving-api`` does not ship.

Their fields are public interface (``monitoring_config.proto``, ``ssl_config.proto``, ``session_bundle_config.proto``)
and are written down here as data; so is ``grpc.health.v1``, whose package is not worth a dependency. They live in a
descriptor pool of their own, so that whoever has the real modules in the same process does not collide with them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_INT = ".google.protobuf.Int64Value"

#: Message: field name, number, and type: a scalar of protobuf, or the full name of a message; ``*`` is repeated.
_MESSAGES: dict[str, dict[str, list[tuple[str, int, str]]]] = {
    "tensorflow.serving": {
        "PrometheusConfig": [("enable", 1, "bool"), ("path", 2, "string")],
        "MonitoringConfig": [("prometheus_config", 1, ".tensorflow.serving.PrometheusConfig")],
        "SSLConfig": [
            ("server_key", 1, "string"),
            ("server_cert", 2, "string"),
            ("custom_ca", 3, "string"),
            ("client_verify", 4, "bool"),
        ],
        "BatchingParameters": [
            ("max_batch_size", 1, _INT),
            ("batch_timeout_micros", 2, _INT),
            ("max_enqueued_batches", 3, _INT),
            ("num_batch_threads", 4, _INT),
            ("thread_pool_name", 5, ".google.protobuf.StringValue"),
            ("allowed_batch_sizes", 6, "int64*"),
            ("pad_variable_length_inputs", 7, "bool"),
            # Only text is read, in which numbers do not matter: those of these two are not upstream's.
            ("enable_large_batch_splitting", 8, ".google.protobuf.BoolValue"),
            ("max_execution_batch_size", 9, _INT),
        ],
    },
    "grpc.health.v1": {
        "HealthCheckRequest": [("service", 1, "string")],
        # The field is an enum, ServingStatus; an open enum and an int32 are the same bytes.
        "HealthCheckResponse": [("status", 1, "int32")],
    },
}


@cache
def message_type(full_name: str) -> Any:
    """Return the class of one message, ``"tensorflow.serving.SSLConfig"`` for example."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    for package, messages in _MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
        file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
        for name, entries in messages.items():
            message = file.message_type.add(name=name)
            for field_name, number, kind in entries:
                label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
                field = message.field.add(name=field_name, number=number, label=label)
                if kind.startswith("."):
                    field.type, field.type_name = _Field.TYPE_MESSAGE, kind
                else:
                    field.type = getattr(_Field, f"TYPE_{kind.rstrip('*').upper()}")
        pool.AddSerializedFile(file.SerializeToString())
    return pool
