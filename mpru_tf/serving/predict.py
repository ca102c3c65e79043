"""What Predict checks and answers, in the real server's order and words, for gRPC and REST alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy.typing as npt
import tensorflow as tf

from mpru_tf.errors import UnsupportedModelError
from mpru_tf.serving.servable import DEFAULT_SIGNATURE, Servable, Signature
from mpru_tf.serving.status import RequestError, from_tensorflow, invalid_argument
from mpru_tf.serving.tensors import dtype_name

Array = npt.NDArray[Any]
T = TypeVar("T")

_SERVED_METHODS = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")


def predict(
    servable: Servable,
    signature_name: str,
    inputs: Mapping[str, T],
    read: Callable[[T], Array | None],
    output_filter: Sequence[str] = (),
) -> dict[str, Array]:
    """Check a request against its signature and run it.

    Args:
        servable: the version that answers.
        signature_name: the signature key; empty means ``serving_default``.
        inputs: what the request carries, by input key.
        read: turns one of these into an array, ``None`` if it is malformed.
        output_filter: the output keys wanted; empty means all.

    Returns:
        One array per wanted output key, keys ascending.

    Raises:
        RequestError: FAILED_PRECONDITION no such signature; INTERNAL a signature that is not for serving;
            INVALID_ARGUMENT wrong input keys, dtypes, shapes or output keys; otherwise the graph's own error.
    """
    signature = servable.signatures.get(signature_name or DEFAULT_SIGNATURE)
    if signature is None:
        raise RequestError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f'Serving signature key "{signature_name or DEFAULT_SIGNATURE}" not found.',
        )
    if signature.method_name not in _SERVED_METHODS:
        raise RequestError(
            grpc.StatusCode.INTERNAL,
            f"Expected prediction signature method_name to be one of {_set(_SERVED_METHODS)}. "
            f"Was: {signature.method_name}",
        )
    feeds = _feeds(signature, inputs, read)
    outputs = _outputs(signature, output_filter)
    try:
        return dict(zip(outputs, servable.model.step(signature.name, outputs)(*feeds), strict=True))
    except tf.errors.OpError as error:
        raise from_tensorflow(error) from error
    except UnsupportedModelError as error:  # sparse or composite tensors in the signature
        raise invalid_argument(str(error)) from error


def _feeds(signature: Signature, inputs: Mapping[str, T], read: Callable[[T], Array | None]) -> list[Array]:
    wanted = signature.inputs
    if len(inputs) > len(wanted) or (len(inputs) < len(wanted) and not signature.defaults):
        sent, expected = sorted(inputs), sorted(wanted)
        raise invalid_argument(
            f"input size does not match signature: {len(inputs)}!={len(wanted)} "
            f"len({_set(sent)}) != len({_set(expected)}). "
            f"Sent extra: {_set(sorted(inputs.keys() - wanted.keys()))}. "
            f"Missing but required: {_set(sorted(wanted.keys() - inputs.keys()))}."
        )
    feeds = []
    for index, (key, dtype) in enumerate(wanted.items()):
        if key in inputs:
            array = read(inputs[key])
            if array is None:
                raise invalid_argument(f"tensor parsing error: {key}")
        elif key in signature.defaults:
            array = signature.defaults[key]
        else:
            raise invalid_argument(
                f"Signature input alias: {key}(feed name: {signature.feed_names[key]}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_set(sorted(inputs))}, "
                f"or default input alias set: {','.join(sorted(signature.defaults))}"
            )
        if array.dtype != tf.as_dtype(dtype).as_numpy_dtype:
            raise invalid_argument(
                f"Expects arg[{index}] to be {dtype_name(dtype)} but {dtype_name(array.dtype)} is provided"
            )
        feeds.append(array)
    unknown = sorted(inputs.keys() - wanted.keys())
    if unknown:
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(inputs.keys() & wanted.keys()))}, "
            f"request input: {','.join(sorted(inputs))}"
        )
    return feeds


def _outputs(signature: Signature, output_filter: Sequence[str]) -> tuple[str, ...]:
    if not output_filter:
        return signature.outputs
    seen: set[str] = set()
    for key in output_filter:
        if key not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {key} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if key in seen:
            raise invalid_argument(f"duplicate output tensor alias: {key}")
        seen.add(key)
    # One step per set of outputs, not per order of them: clients that permute a filter must not fill the cache.
    return tuple(sorted(seen))


def _set(keys: Iterable[str]) -> str:
    return "{" + ",".join(keys) + "}"
