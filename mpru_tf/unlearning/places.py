"""Whether something can be written at a place, seen before minutes of training are spent on it."""

from __future__ import annotations

import os
from pathlib import Path

from mpru_tf.errors import PublishError, explain


def check_file(path: str | os.PathLike[str], what: str) -> None:
    """See that a file can be written, and its folders made where they are missing.

    Args:
        path: of the file; one that exists would be replaced.
        what: what is written, in words.

    Raises:
        PublishError: it cannot.
    """
    file = Path(path).absolute()
    if file.is_dir():
        raise _unfit(path, what, "it is a folder")
    if file.exists() and not os.access(file, os.W_OK):
        raise _unfit(path, what, "the file is write-protected")
    _check_can_hold(file.parent, path, what)


def check_folder(path: str | os.PathLike[str], what: str) -> None:
    """See that files can be written in a folder, which is made where it is missing.

    Raises:
        PublishError: they cannot.
    """
    _check_can_hold(Path(path).absolute(), path, what)


def _check_can_hold(folder: Path, path: str | os.PathLike[str], what: str) -> None:
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise _unfit(path, what, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unfit(path, what, f"{there} cannot be written to")


def _unfit(path: str | os.PathLike[str], what: str, why: str) -> PublishError:
    return PublishError(
        explain(f"There, {what} cannot be written; nothing was trained.", received=f"{os.fspath(path)} ({why})")
    )
