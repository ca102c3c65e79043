"""Labelled or unlabelled examples as batches: from arrays, from batches, or streamed out of an .npz file.

An .npz file is read member by member and row by row, so that memory does not grow with the number of examples.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, explain

Batch = tuple[Any, Any]
"""Inputs (arrays by input key) and labels (int ``[N]``, or None)."""

_NPZ = "an .npz file with arrays x [N, ...] and, if labelled, y int [N]"


def batches(data: Any, keys: tuple[str, ...], size: int) -> tuple[Iterator[Batch], int | None]:
    """Return the data as batches of at most ``size`` examples, and how many examples there are, where known.

    Args:
        data: the path of an .npz file with ``x`` (or one array per input key) and, if labelled, ``y``; or arrays
            ``(x, y)``, ``(x,)`` or ``x``, where ``x`` may be a dictionary by input key; or an iterable over batches of
            those.
        keys: the input keys of the signature that is to be asked.
        size: examples per batch, at least 1.

    Raises:
        DataError: the data cannot be read, has other inputs than ``keys``, or inputs and labels differ in length.
    """
    if isinstance(data, (str, os.PathLike)):
        return _from_npz(Path(data), keys, size)
    if _is_arrays(data):
        x, y = _pair(data, keys)
        examples = _length(x, y)
        return _slices(x, y, examples, size), examples
    if not isinstance(data, Iterable):
        raise DataError(
            explain(
                "This is no calibration data.",
                received=type(data).__name__,
                valid="the path of an .npz file, arrays (x, y), or an iterable over batches (x, y)",
            )
        )

    def sliced() -> Iterator[Batch]:
        for item in data:
            x, y = _pair(item, keys)
            yield from _slices(x, y, _length(x, y), size)

    return sliced(), None


def _is_arrays(data: Any) -> bool:
    if isinstance(data, tuple) and 1 <= len(data) <= 2:
        return isinstance(data[0], Mapping) or hasattr(data[0], "shape")
    return isinstance(data, Mapping) or hasattr(data, "shape")


def _pair(item: Any, keys: tuple[str, ...]) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any] | None]:
    """Return inputs by key, and labels, of (x, y), (x,) or x."""
    x, y = item if isinstance(item, tuple) and len(item) == 2 else (item[0] if isinstance(item, tuple) else item, None)
    if isinstance(x, Mapping):
        _check_keys(x, keys)
        inputs = {key: np.asarray(x[key]) for key in keys}
    elif len(keys) == 1:
        inputs = {keys[0]: np.asarray(x)}
    else:
        raise DataError(
            explain("The model has several inputs.", received="one array", valid=f"arrays for {', '.join(keys)}")
        )
    return inputs, None if y is None else np.asarray(y)


def _check_keys(x: Iterable[str], keys: tuple[str, ...]) -> None:
    if set(x) != set(keys):
        raise DataError(
            explain("The data has other inputs than the model.", received=", ".join(sorted(x)), valid=", ".join(keys))
        )


def _length(x: Mapping[str, npt.NDArray[Any]], y: npt.NDArray[Any] | None) -> int:
    arrays = [*x.values(), *([] if y is None else [y])]
    lengths = {array.shape[:1] for array in arrays}
    if len(lengths) != 1 or () in lengths:
        raise DataError(
            explain(
                "Inputs and labels must have as many rows as each other.",
                received=", ".join(f"shape {array.shape}" for array in arrays),
                valid="[N, ...] for all of them",
            )
        )
    return int(arrays[0].shape[0])


def _slices(x: Mapping[str, npt.NDArray[Any]], y: npt.NDArray[Any] | None, examples: int, size: int) -> Iterator[Batch]:
    for start in range(0, examples, size):
        end = start + size
        yield {key: array[start:end] for key, array in x.items()}, None if y is None else y[start:end]


def _from_npz(path: Path, keys: tuple[str, ...], size: int) -> tuple[Iterator[Batch], int]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            explain(f"The data cannot be read from {path}.", received=_reason(error), valid=_NPZ)
        ) from error
    with archive:
        have = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        names = dict.fromkeys(keys) if have.issuperset(keys) else {}
        members = {key: key for key in names} or ({keys[0]: "x"} if len(keys) == 1 and "x" in have else {})
        if not members:
            raise DataError(
                explain(
                    f"{path} has not the arrays that the model needs.",
                    received=", ".join(sorted(have)) or "no arrays",
                    valid=("x and, if labelled, y" if len(keys) == 1 else f"{', '.join(keys)} and, if labelled, y"),
                )
            )
        label = ["y"] if "y" in have and "y" not in members.values() else []
        lengths = {name: _npy_header(archive, path, name)[0][:1] for name in [*members.values(), *label]}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise DataError(
            explain(
                f"The arrays in {path} must have as many rows as each other.",
                received=", ".join(f"{name} {shape}" for name, shape in lengths.items()),
                valid="[N, ...] for all of them",
            )
        )

    def streamed() -> Iterator[Batch]:
        with zipfile.ZipFile(path) as opened:
            streams = {key: _npy_rows(opened, path, name, size) for key, name in members.items()}
            labels = _npy_rows(opened, path, "y", size) if label else None
            for parts in zip(*streams.values(), strict=True):
                yield dict(zip(streams, parts, strict=True)), None if labels is None else next(labels)

    return streamed(), next(iter(lengths.values()))[0]


def _npy_header(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is in Fortran order, and dtype of an array in an .npz file."""
    with archive.open(f"{name}.npy") as member:
        return _read_header(member, path, name)


def _read_header(member: Any, path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy: Any = np.lib.format  # untyped
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(member)
        shape, fortran, dtype = readers[version](member)
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            explain(f"The array {name} in {path} is damaged.", received=_reason(error), valid=_NPZ)
        ) from error
    if dtype.hasobject or dtype.names is not None:
        raise DataError(
            explain(f"The array {name} in {path} is not plain.", received=f"dtype {dtype}", valid="numbers or bytes")
        )
    return tuple(shape), bool(fortran), dtype


def _npy_rows(archive: zipfile.ZipFile, path: Path, name: str, size: int) -> Iterator[npt.NDArray[Any]]:
    """Yield an array's rows, ``size`` at a time, without ever holding more of them."""
    with archive.open(f"{name}.npy") as member:
        shape, fortran, dtype = _read_header(member, path, name)
        if fortran and len(shape) > 1:  # its first axis is the innermost one on disk: there are no rows to stream
            raise DataError(
                explain(
                    f"The array {name} in {path} is stored in Fortran order and cannot be streamed.",
                    hint="Save it again after numpy.ascontiguousarray.",
                )
            )
        row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            try:
                data = member.read(count * row)
            except (OSError, zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
                raise DataError(
                    explain(f"The array {name} in {path} is damaged.", received=_reason(error), valid=_NPZ)
                ) from error
            if len(data) != count * row:
                raise DataError(
                    explain(
                        f"The array {name} in {path} is cut off.",
                        received=f"{start + len(data) // max(row, 1)} rows",
                        valid=f"{shape[0]} rows",
                    )
                )
            yield np.frombuffer(data, dtype=dtype).reshape(count, *shape[1:])


def describe(data: Any) -> str:
    """A few words for where examples came from."""
    return Path(data).name if isinstance(data, (str, os.PathLike)) else "data in memory"


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
