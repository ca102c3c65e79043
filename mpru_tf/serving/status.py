"""Status codes: one exception for every request that is refused, and what HTTP calls its code."""

from __future__ import annotations

import grpc
import tensorflow as tf

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, MPRUError, UnsupportedModelError

#: TensorFlow, gRPC and absl number their status codes alike.
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

#: The HTTP status of each code, as TensorFlow Serving's REST API has it; what is not named here is 500.
_HTTP = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}

_MESSAGE_LIMIT = 1024  # characters; TensorFlow Serving cuts there, as gRPC carries the message in a trailer


class RequestError(MPRUError):
    """A request that is answered with a status code; it never leaves the server.

    Attributes:
        code: the gRPC status code.
        message: what the client is told.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def grpc_details(self) -> str:
        """The message as a gRPC trailer carries it, cut at 1024 characters."""
        return self.message if len(self.message) <= _MESSAGE_LIMIT else self.message[:_MESSAGE_LIMIT] + "...TRUNCATED"

    @property
    def http_status(self) -> int:
        """The HTTP status code that stands for :attr:`code`."""
        return _HTTP.get(self.code, 500)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def invalid_argument(message: str) -> RequestError:
    """Return the commonest refusal."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def from_tensorflow(error: tf.errors.OpError) -> RequestError:
    """Return TensorFlow's own error with its own code and message."""
    return RequestError(CODES.get(error.error_code, grpc.StatusCode.UNKNOWN), str(error.message))


def of_load_failure(error: Exception) -> RequestError:
    """Return the status under which GetModelStatus shows a version that did not load."""
    cause = error.__cause__
    if isinstance(cause, tf.errors.OpError):
        code = CODES.get(cause.error_code, grpc.StatusCode.UNKNOWN)
    elif isinstance(error, ModelNotFoundError | UnsupportedModelError):
        code = grpc.StatusCode.NOT_FOUND
    elif isinstance(error, CorruptModelError):
        code = grpc.StatusCode.DATA_LOSS
    else:
        code = grpc.StatusCode.UNKNOWN
    return RequestError(code, str(error) or type(error).__name__)
