"""Warm-up requests: ``PredictionLog`` messages made from arrays, cut to batch sizes, and kept true to a new version.

A record is one request and nothing else. What an older version answered to it is left out: it may show a forgotten
class.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, explain
from mpru_tf.warmup import MOST_RECORDS

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

    Values = Mapping[str, npt.NDArray[Any]]

DEFAULT_SIGNATURE = "serving_default"
_EXAMPLES = "inputs"  # the only input of a signature that classifies or regresses
_METHODS = {"tensorflow/serving/classify": "classify_log", "tensorflow/serving/regress": "regress_log"}
_SERVED = frozenset({"tensorflow/serving/predict", *_METHODS})
_MOST_BYTES = 64 << 20  # of all records; servers read them at each start
_LARGEST_RECORD = 1 << 30  # bytes; protocol buffers end at twice that


def served(signatures: Mapping[str, SignatureDef]) -> dict[str, SignatureDef]:
    """The signatures that a server answers, the one that most clients ask for first."""
    names = sorted(signatures, key=lambda name: (name != DEFAULT_SIGNATURE, name))
    return {name: signatures[name] for name in names if signatures[name].method_name in _SERVED}


# ----------------------------------------------------------------------------------------------------- from arrays
def record(name: str, signature: SignatureDef, inputs: Values) -> Any:
    """Return a request as a record.

    Args:
        name: the signature key.
        signature: one that classifies or regresses is asked so if the inputs are serialized ``tf.Example`` messages.
        inputs: one array per input key, in the signature's dtypes.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    examples = _parsed(inputs[_EXAMPLES]) if signature.method_name in _METHODS and set(inputs) == {_EXAMPLES} else None
    if examples:
        request = getattr(log, _METHODS[signature.method_name]).request
        request.input.example_list.examples.extend(examples)
    else:
        request = log.predict_log.request
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    request.model_spec.signature_name = name
    return log


def _parsed(array: npt.NDArray[Any]) -> list[Any] | None:
    from google.protobuf.message import DecodeError
    from tensorflow.core.example.example_pb2 import Example

    try:
        return [Example.FromString(value) for value in array.ravel().tolist()]
    except (DecodeError, TypeError):
        return None


def in_batches(name: str, signature: SignatureDef, inputs: Values, sizes: Sequence[int]) -> Iterator[Any]:
    """Yield the examples as records, one of each batch size in turn.

    The first of each size comes in any case, with examples repeated if there are too few; then those that are left, as
    long as they fill a request. A batch that the signature fixes is the only size.

    Raises:
        DataError: one request of such a size would be too large.
    """
    total = min((len(array) for array in inputs.values() if array.ndim), default=1)
    sizes = [fixed] if (fixed := fixed_batch(signature)) else list(dict.fromkeys(sizes))
    if all(array.ndim == 0 for array in inputs.values()):
        sizes = [1]
    for turn in itertools.count():
        fitting = [size for size in sizes if turn == 0 or (turn + 1) * size <= total]
        if not fitting:
            return
        for size in fitting:
            rows = np.arange(turn * size, (turn + 1) * size) % total
            yield record(name, signature, taken(inputs, rows))


def fixed_batch(signature: SignatureDef) -> int | None:
    """How many examples a request must hold, None if that is open."""
    return next((info.tensor_shape.dim[0].size for info in signature.inputs.values() if _fixes(info)), None)


def _fixes(info: TensorInfo) -> bool:
    return bool(info.tensor_shape.dim) and info.tensor_shape.dim[0].size > 0


def taken(inputs: Values, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """The rows of every input.

    Raises:
        DataError: that many would be too large for one request.
    """
    row = sum(array[:1].nbytes for array in inputs.values() if array.ndim)
    if row * len(rows) > _LARGEST_RECORD:
        raise DataError(
            explain(
                "A warm-up request of this batch size would be too large.",
                received=f"{len(rows)} examples of {row} bytes",
                valid=f"at most {_LARGEST_RECORD // row} examples",
            )
        )
    return {key: array[rows] if array.ndim else array for key, array in inputs.items()}


def at_most(records: Iterable[Any], needed: int) -> list[bytes]:
    """Serialize as many records as a warm-up file should hold: 1000, and no more than 64 MiB behind the first ones.

    Args:
        records: the most useful first.
        needed: how many must be in it.

    Raises:
        DataError: more than 1000 are needed.
    """
    if needed > MOST_RECORDS:
        raise DataError(
            explain(
                "These are too many warm-up requests.",
                received=f"{needed}, one per signature and batch size",
                valid=f"at most {MOST_RECORDS}",
            )
        )
    found: list[bytes] = []
    size = 0
    for log in itertools.islice(records, MOST_RECORDS):
        data = log.SerializeToString(deterministic=True)
        size += len(data)
        if size > _MOST_BYTES and len(found) >= needed:
            break
        found.append(data)
    return found


def in_turn(*several: Iterable[Any]) -> Iterator[Any]:
    """Yield of each in turn, until all are through."""
    for entries in itertools.zip_longest(*several):
        yield from (entry for entry in entries if entry is not None)


# ------------------------------------------------------------------------------------------------- recorded elsewhere
def kept(log: Any, dropped: Collection[str]) -> Any | None:
    """Return a record without what the new version cannot be asked for, and without answers; None if nothing is left.

    Args:
        log: the record, which is not changed.
        dropped: outputs that were removed, as SIG:KEY.
    """
    kind = log.WhichOneof("log_type")
    copy = type(log)()
    copy.CopyFrom(log)
    if kind is None:
        return copy
    body = getattr(copy, kind)
    if "response" in body.DESCRIPTOR.fields_by_name:
        body.ClearField("response")
    if kind == "predict_log":
        request = body.request
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        wanted = list(request.output_filter)
        left = [key for key in wanted if f"{name}:{key}" not in dropped]
        if wanted and not left:
            return None  # an empty filter would ask for all outputs
        request.output_filter[:] = left
    return copy


def of_sizes(
    logs: Mapping[int, Any], signatures: Mapping[str, SignatureDef], sizes: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Yield, for each signature in the records and each batch size that none of them has, the first one made so long.

    Records have numbers, by which to tell where one came from. Only Predict, Classify and Regress are made longer or
    shorter; what is for no signature of the model is left to the replay.
    """
    first: dict[str, tuple[int, Any]] = {}
    there: set[tuple[str, int]] = set()
    for number, log in logs.items():
        name, rows = _asks(log)
        if name in signatures and rows:
            first.setdefault(name, (number, log))
            there.add((name, rows))
    for size in sizes:
        for name, (number, log) in first.items():
            if (name, size) not in there and not fixed_batch(signatures[name]):
                yield number, _resized(log, size)


def _asks(log: Any) -> tuple[str, int]:
    """The signature that a record asks, and for how many examples; 0 if that cannot be told."""
    kind = log.WhichOneof("log_type")
    if kind not in ("predict_log", *_METHODS.values()):
        return "", 0
    request = getattr(log, kind).request
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if kind != "predict_log":
        return name, len(request.input.example_list.examples)
    return name, next((tensor.tensor_shape.dim[0].size for tensor in request.inputs.values() if _batched(tensor)), 0)


def _batched(tensor: Any) -> bool:
    return len(tensor.tensor_shape.dim) > 0


def _resized(log: Any, size: int) -> Any:
    import tensorflow as tf

    from mpru_tf.serving.tensors import decode

    copy = type(log)()
    copy.CopyFrom(log)
    kind = copy.WhichOneof("log_type")
    request = getattr(copy, kind).request
    if kind != "predict_log":
        examples = list(request.input.example_list.examples)
        del request.input.example_list.examples[:]
        request.input.example_list.examples.extend(itertools.islice(itertools.cycle(examples), size))
        return copy
    inputs = {key: decode(tensor) for key, tensor in request.inputs.items() if _batched(tensor)}
    for key, array in inputs.items():
        if array is not None and len(array):  # what is malformed is left to the replay
            rows = taken({key: array}, np.arange(size) % len(array))
            request.inputs[key].CopyFrom(tf.make_tensor_proto(rows[key]))
    return copy
