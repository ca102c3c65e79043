"""Examples out of a file, as the inputs of whichever signature they fit.

======================  ==============================================================================================
file                    what it holds
======================  ==============================================================================================
``.npz``                one array per input key; for a signature with one input, ``x`` or the only array will do
``.npy``                the array of the only input
``.json``               the body of a REST request: ``{"instances": [...]}``, ``{"inputs": ...}``, or the instances
======================  ==============================================================================================

The first axis of each array is the batch.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, explain

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

    Values = dict[str, npt.NDArray[Any]]

SUFFIXES = (".npz", ".npy", ".json")
_FORMS = (
    ".npz with one array per input, .npy for a model with one input, or JSON as REST takes it: "
    '{"instances": [...]} or {"inputs": ...}'
)
_ONLY = "x"  # what calibration data calls the only input


class RequestFile:
    """Examples from one file.

    Args:
        path: a file whose name ends as :data:`SUFFIXES` says.

    Raises:
        DataError: it cannot be read, or holds no examples.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._body = b""
        self._arrays: Values = {}
        self._document: dict[str, Any] | None = None
        try:
            if self._path.suffix == ".json":
                self._body = self._path.read_bytes()
                self._document = _document(self._body)
            elif self._path.suffix == ".npz":
                with np.load(self._path, allow_pickle=False) as archive:
                    self._arrays = {key: archive[key] for key in archive.files}
            else:
                self._arrays = {_ONLY: np.load(self._path, allow_pickle=False)}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(
                explain(f"The examples cannot be read from {self._path}.", received=reason, valid=_FORMS)
            ) from error

    def fit(self, signatures: Mapping[str, SignatureDef]) -> dict[str, Values]:
        """Return the examples as inputs of every signature that they fit, by signature key.

        Raises:
            DataError: they fit none.
        """
        named = self._document.get("signature_name") if self._document is not None else None
        wanted = {name: signatures[name] for name in signatures if not named or name == named}
        fitting: dict[str, Values] = {}
        problems = [] if wanted else [f"there is no signature {named!r}"]
        for name, signature in wanted.items():
            try:
                fitting[name] = self._inputs(signature)
            except DataError as error:
                problems.append(f"{name}: {error}")
        if not fitting:
            raise DataError(
                explain(
                    f"The examples in {self._path} fit no signature of the model.",
                    received="; ".join(problems),
                    valid=_FORMS,
                )
            )
        return fitting

    def _inputs(self, signature: SignatureDef) -> Values:
        given = self._from_arrays(signature) if self._document is None else self._from_json(self._document, signature)
        inputs = {key: _cast(key, given[key], info) for key, info in sorted(signature.inputs.items())}
        lengths = {len(array) for array in inputs.values() if array.ndim}
        if len(lengths) != 1 or 0 in lengths:
            raise DataError(f"the inputs have {', '.join(map(str, sorted(lengths))) or 'no'} rows")
        return inputs

    def _from_json(self, document: dict[str, Any], signature: SignatureDef) -> Values:
        from mpru_tf.serving.json_tensors import read_tensors
        from mpru_tf.serving.status import RequestError

        dtypes = {key: signature.inputs[key].dtype for key in sorted(signature.inputs)}
        try:
            return read_tensors(document, dtypes, self._body)[0]
        except RequestError as error:
            raise DataError(error.message) from error

    def _from_arrays(self, signature: SignatureDef) -> Values:
        keys = sorted(signature.inputs)
        if len(keys) == 1 and keys[0] not in self._arrays:
            only = next(iter(self._arrays.values())) if len(self._arrays) == 1 else self._arrays.get(_ONLY)
            if only is not None:
                return {keys[0]: only}
        missing = [key for key in keys if key not in self._arrays]
        if missing:
            raise DataError(f"there is no {', '.join(missing)} among {', '.join(sorted(self._arrays))}")
        return self._arrays


def _document(body: bytes) -> dict[str, Any]:
    """The REST request in a file.

    Raises:
        DataError: it is no JSON object, nor a list of instances.
    """
    from mpru_tf.serving.json_tensors import parse_request
    from mpru_tf.serving.status import RequestError

    try:
        return parse_request(b'{"instances": %s}' % body if body.lstrip().startswith(b"[") else body)
    except RequestError as error:
        raise DataError(error.message) from error


def _cast(key: str, array: npt.NDArray[Any], info: Any) -> npt.NDArray[Any]:
    """An array as an input takes it, without losing anything but digits.

    Raises:
        DataError: it is of another kind or another shape.
    """
    import tensorflow as tf

    dtype = tf.dtypes.as_dtype(info.dtype)
    sizes = None if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim]
    # The first axis is the batch: how many examples go into one request is decided later.
    if sizes is not None and not _has_shape(array.shape, [-1, *sizes[1:]] if sizes else []):
        raise DataError(f"{key} has the shape {list(array.shape)}, wanted are examples of shape {sizes[1:]}")
    if dtype == tf.string:
        if array.dtype.kind not in "SUO":
            raise DataError(f"{key} is {array.dtype}, wanted are strings")
        strings = np.empty(array.shape, np.object_)
        for index in np.ndindex(array.shape):
            strings[index] = tf.compat.as_bytes(array[index])
        return strings
    kinds = "iufb" if dtype.is_floating else ("b" if dtype == tf.bool else "iub")
    cast = array.astype(dtype.as_numpy_dtype) if array.dtype.kind in kinds or array.dtype == dtype else None
    if cast is None or (not dtype.is_floating and not np.array_equal(cast, array)):
        raise DataError(f"{key} is {array.dtype}, wanted is {dtype.name}")
    return cast


def _has_shape(shape: tuple[int, ...], sizes: list[int]) -> bool:
    return len(shape) == len(sizes) and all(
        size < 0 or size == length for size, length in zip(sizes, shape, strict=True)
    )
