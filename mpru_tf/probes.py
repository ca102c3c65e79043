"""Requests made up from a SignatureDef, to try a version before it is published.

They are random numbers of the declared dtypes and shapes: enough to compare two versions of one model with each other
and with the NumPy reference, not to say anything about accuracy. Nothing can be made up for most string inputs; a
model with such an input is then loaded, but not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

ROWS = 4
# Lengths to try for axes that the signature leaves open, the likeliest first.
_LENGTHS = (32, 224, 8, 1, 128)


def requests(signature: SignatureDef, seed: int = 0) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield requests for a signature, the likeliest to be answered first.

    Floats are standard normal at first, then 0 or 1 and then 0 (for models that look ids up); integers are 0 or 1,
    then 0. Axes that the signature leaves open have several lengths in turn.

    Args:
        signature: its inputs give dtypes and shapes; an open first axis is the batch, of :data:`ROWS` examples.
        seed: of the random numbers.

    Yields:
        One array per input key.
    """
    infos = dict(sorted(signature.inputs.items()))
    open_axes = any(dim.size < 0 for info in infos.values() for dim in info.tensor_shape.dim[1:])
    for draw in (_normal, _zero_or_one, _zeros):
        for length in _LENGTHS if open_axes else _LENGTHS[:1]:
            random = np.random.default_rng(seed)
            yield {key: _values(info, length, draw, random) for key, info in infos.items()}


def _normal(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    return random.standard_normal(shape)


def _zero_or_one(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    return random.integers(0, 2, shape)


def _zeros(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    return np.zeros(shape)


def _values(
    info: TensorInfo,
    length: int,
    draw: Callable[[tuple[int, ...], np.random.Generator], npt.NDArray[Any]],
    random: np.random.Generator,
) -> npt.NDArray[Any]:
    sizes = [-1] if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim]
    shape = tuple(size if size >= 0 else (ROWS if axis == 0 else length) for axis, size in enumerate(sizes))
    dtype = _numpy_dtype(info)
    if dtype == np.object_:
        return np.full(shape, b"", dtype)
    if not np.issubdtype(dtype, np.floating):
        draw = _zero_or_one if draw is _normal else draw
    return draw(shape, random).astype(dtype)


def _numpy_dtype(info: TensorInfo) -> Any:
    import tensorflow as tf

    dtype = tf.dtypes.as_dtype(info.dtype)
    return np.dtype(np.object_) if dtype == tf.string else np.dtype(dtype.as_numpy_dtype)
