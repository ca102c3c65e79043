"""Read .npz files that people bring. Whatever is wrong with one is told in words."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, explain


def read_arrays(
    path: str | os.PathLike[str], valid: str, names: Collection[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file, each of at least one dimension.

    Args:
        path: of the file.
        valid: what the file must be, in words.
        names: of the arrays that are looked for; others are not read. Default: all.

    Returns:
        Those that are there, by name.

    Raises:
        DataError: it is no such file, or it is damaged.
    """
    try:
        # Opened here, since NumPy leaves a file open that turns out to be damaged.
        with open(path, "rb") as opened:
            archive: Any = np.load(opened, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise _refused(path, "a single array, no .npz file", valid)
            found = {name: archive[name] for name in archive.files if names is None or name in names}
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy raise a dozen kinds about damaged files
        strange = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise _refused(path, strange or type(error).__name__, valid) from error
    # NumPy gives a member that is no array as bytes; a single number has no rows.
    odd = [name for name, array in found.items() if not isinstance(array, np.ndarray) or array.ndim == 0]
    if odd:
        raise _refused(path, f"{', '.join(odd)}: no array of rows", valid)
    return found


def _refused(path: str | os.PathLike[str], why: str, valid: str) -> DataError:
    return DataError(explain("The data cannot be read.", received=f"{os.fspath(path)} ({why})", valid=valid))
