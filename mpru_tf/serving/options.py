"""What a server can be told: the flags of ``tensorflow_model_server``, each once, with its default and its help.

The command line is made from this table, and :class:`~mpru_tf.serving.server.ModelServer` takes the same names.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mpru_tf.errors import ServingError, explain

#: Flags of the real server that are accepted so that its command lines work here, and why they change nothing.
WITHOUT_EFFECT = {
    "enable_grpc_healthcheck_service": "grpc.health.v1 is always answered here; the real server needs the flag",
    "enable_profiler": "there is no profiler service",
    "enable_serialization_as_tensor_content": "answers use the typed fields, which every client reads",
    "enable_signature_method_name_check": "method names are always checked",
    "flush_filesystem_caches": "the page cache is the operating system's affair",
    "num_tflite_interpreters_per_pool": "TensorFlow Lite models are not served",
    "num_tflite_pools": "TensorFlow Lite models are not served",
    "num_unload_threads": "every unload has a thread of its own",
    "per_process_gpu_memory_fraction": "memory on a GPU grows as needed",
    "prefer_tflite_model": "TensorFlow Lite models are not served",
    "remove_unused_fields_from_bundle_metagraph": "the graph is kept as it was loaded",
    "rest_api_enable_cors_support": "no CORS headers are sent",
    "xla_cpu_compilation_enabled": "XLA is as the TensorFlow of this process has it",
}

#: Those of them that are on or off, and may stand without a value.
SWITCHES_WITHOUT_EFFECT = frozenset(
    name for name in WITHOUT_EFFECT if name.startswith(("enable_", "flush_", "prefer_", "remove_", "rest_api_", "xla_"))
)

_MODELS, _NETWORK, _LOADING, _RUNNING = "Models", "Network", "Loading", "Running"


def _flag(default: Any, group: str, help_text: str, metavar: str = "N") -> Any:
    return field(default=default, metadata={"group": group, "help": help_text, "metavar": metavar})


@dataclass(frozen=True)
class ServerOptions:
    """One field per flag; names, types and defaults are those of the real server unless the help says otherwise."""

    model_base_path: str = _flag("", _MODELS, "Base path to serve.", "BASE")
    model_name: str = _flag("default", _MODELS, "Name that clients ask for.", "NAME")
    model_config_file: str = _flag(
        "", _MODELS, "ModelServerConfig as text: several models. The two flags above are ignored then.", "FILE"
    )
    model_config_file_poll_wait_seconds: int = _flag(0, _MODELS, "Between looks at that file; 0 reads it once.", "S")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, _MODELS, "A label that is not yet in use may name a version that is not yet available."
    )
    file_system_poll_wait_seconds: float = _flag(
        1.0, _MODELS, "Between looks for new versions; 0: one look, -1: none.", "S"
    )
    port: int = _flag(8500, _NETWORK, "gRPC port; 0 takes any that is free.", "PORT")
    host: str = _flag("127.0.0.1", _NETWORK, "Address to bind; 0.0.0.0 is reachable from outside.", "HOST")
    grpc_socket_path: str = _flag("", _NETWORK, "A UNIX socket for gRPC as well.", "PATH")
    grpc_channel_arguments: str = _flag("", _NETWORK, "For the gRPC server, comma separated.", "KEY=VALUE")
    grpc_max_threads: int = _flag(0, _NETWORK, "gRPC requests worked on at once; 0: by the number of CPUs.")
    ssl_config_file: str = _flag("", _NETWORK, "SSLConfig as text: gRPC over TLS.", "FILE")
    rest_api_port: int = _flag(0, _NETWORK, "REST port; 0 serves no REST.", "PORT")
    rest_api_num_threads: int = _flag(0, _NETWORK, "REST requests worked on at once; 0: by the number of CPUs.")
    rest_api_timeout_in_ms: int = _flag(
        30_000, _NETWORK, "How long a REST request waits for its turn at most; 0: without end.", "MS"
    )
    monitoring_config_file: str = _flag(
        "", _NETWORK, "MonitoringConfig as text: Prometheus metrics on the REST port.", "FILE"
    )
    max_num_load_retries: int = _flag(5, _LOADING, "Further attempts after a load failed.")
    load_retry_interval_micros: int = _flag(
        1_000_000, _LOADING, "Before each of them. The real server waits a minute.", "US"
    )
    num_load_threads: int = _flag(0, _LOADING, "Loads at once; 0: as many as there are.")
    enable_model_warmup: bool = _flag(True, _LOADING, "Replay the warm-up requests in assets.extra before serving.")
    num_request_iterations_for_warmup: int = _flag(0, _LOADING, "How often each of them is replayed; 0: once.")
    saved_model_tags: str = _flag("serve", _LOADING, "Tags of the MetaGraph to load, comma separated.", "TAGS")
    tensorflow_session_parallelism: int = _flag(0, _RUNNING, "Threads within and between operations; 0: automatic.")
    tensorflow_intra_op_parallelism: int = _flag(0, _RUNNING, "Threads within an operation; 0: automatic.")
    tensorflow_inter_op_parallelism: int = _flag(0, _RUNNING, "Threads between operations; 0: automatic.")
    tensorflow_session_config_file: str = _flag("", _RUNNING, "ConfigProto as text, for the sessions.", "FILE")
    enable_batching: bool = _flag(False, _RUNNING, "Join requests of one signature and answer them together.")
    batching_parameters_file: str = _flag("", _RUNNING, "BatchingParameters as text.", "FILE")
    enable_per_model_batching_parameters: bool = _flag(
        False, _RUNNING, "Batch only versions with a batching_params.pbtxt, as it says; threads stay those of the file."
    )

    def check(self) -> None:
        """Refuse combinations that the real server refuses as well.

        Raises:
            ServingError: see the message.
        """
        if not self.model_base_path and not self.model_config_file:
            raise ServingError(
                explain(
                    "There is nothing to serve.",
                    received="neither a base path nor a configuration file",
                    valid="--model_base_path=BASE or --model_config_file=FILE",
                )
            )
        if self.rest_api_port > 0 and self.rest_api_port == self.port:
            raise ServingError(
                explain("gRPC and REST cannot share a port.", received=self.port, valid="two different ports")
            )
        if self.batching_parameters_file and not self.enable_batching:
            raise ServingError(
                explain(
                    "--batching_parameters_file is set without --enable_batching.",
                    received=self.batching_parameters_file,
                    valid="both, or neither",
                )
            )
        if self.enable_per_model_batching_parameters and not self.enable_batching:
            raise ServingError(
                explain(
                    "--enable_per_model_batching_parameters is set without --enable_batching.", valid="both, or neither"
                )
            )
        if (
            self.tensorflow_session_parallelism > 0
            and self.tensorflow_intra_op_parallelism > 0
            and self.tensorflow_inter_op_parallelism > 0
        ):
            raise ServingError(
                explain(
                    "The session's threads are given twice.",
                    valid="--tensorflow_session_parallelism, or the flags for intra- and inter-op threads",
                )
            )

    @property
    def session_threads(self) -> tuple[int, int]:
        """Intra-op and inter-op threads; 0 leaves a number to TensorFlow."""
        if self.tensorflow_intra_op_parallelism > 0 or self.tensorflow_inter_op_parallelism > 0:
            return self.tensorflow_intra_op_parallelism, self.tensorflow_inter_op_parallelism
        return self.tensorflow_session_parallelism, self.tensorflow_session_parallelism


@dataclass(frozen=True)
class Flag:
    """One flag as a command line shows it.

    Attributes:
        name: without dashes.
        type: of its value.
        default: its value if it is not given.
        group: heading under which it is listed.
        help: one line.
        metavar: what stands for its value.
    """

    name: str
    type: type
    default: Any
    group: str
    help: str
    metavar: str


def flags() -> list[Flag]:
    """Return every flag that means something here, in the order of the help page."""
    result = []
    for entry in fields(ServerOptions):
        assert entry.default is not MISSING
        metavar = "BOOL" if isinstance(entry.default, bool) else entry.metadata["metavar"]
        result.append(
            Flag(
                entry.name,
                type(entry.default),
                entry.default,
                entry.metadata["group"],
                entry.metadata["help"],
                metavar,
            )
        )
    return result
