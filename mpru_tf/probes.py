"""Requests made up from a SignatureDef, to try a version before it is published.

They are random numbers of the declared dtypes and shapes: enough to compare two versions of one model with each other
and with the NumPy reference, not to say anything about accuracy. Nothing can be made up for most string inputs; a
model with such an input is then loaded, but not asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

ROWS = 4
# Lengths to try for axes that the signature leaves open, the likeliest first.
_LENGTHS = (32, 224, 8, 1, 128)


def requests(signature: SignatureDef, seed: int = 0) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield requests for a signature: first what it says, then, for open axes, the same with other lengths.

    Args:
        signature: its inputs give dtypes and shapes; an open first axis is the batch, of :data:`ROWS` examples.
        seed: of the random numbers.

    Yields:
        One array per input key.
    """
    infos = dict(sorted(signature.inputs.items()))
    open_axes = any(dim.size < 0 for info in infos.values() for dim in info.tensor_shape.dim[1:])
    for length in _LENGTHS if open_axes else _LENGTHS[:1]:
        for high in (2, 1):  # ids below 2 suit most vocabularies, ids of 0 all
            random = np.random.default_rng(seed)
            yield {key: _values(info, length, high, random) for key, info in infos.items()}
            if not any(np.issubdtype(_numpy_dtype(info), np.integer) for info in infos.values()):
                break


def _values(info: TensorInfo, length: int, high: int, random: np.random.Generator) -> npt.NDArray[Any]:
    sizes = [dim.size for dim in info.tensor_shape.dim]
    if info.tensor_shape.unknown_rank:
        sizes = [-1]
    shape = tuple(size if size >= 0 else (ROWS if axis == 0 else length) for axis, size in enumerate(sizes))
    dtype = _numpy_dtype(info)
    if dtype == np.object_:
        return np.full(shape, b"", dtype)
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        return random.integers(0, high, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _numpy_dtype(info: TensorInfo) -> Any:
    import tensorflow as tf

    dtype = tf.dtypes.as_dtype(info.dtype)
    return np.dtype(np.object_) if dtype == tf.string else np.dtype(dtype.as_numpy_dtype)


def take(requests_to_try: Iterator[dict[str, npt.NDArray[Any]]], limit: int = 10) -> list[dict[str, npt.NDArray[Any]]]:
    """The first few requests, as a list."""
    return list(itertools.islice(requests_to_try, limit))
