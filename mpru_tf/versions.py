"""Version directories below a base path: find one, stage the next one, publish it with a single rename.

TensorFlow Serving takes every child of a base path whose name is an integer for a version and loads the newest at its
next poll, complete or not. A new version is therefore built in a sibling whose name is no integer and gets its number
only when it is whole. Killing the process at any moment leaves either no new version or a complete one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, PublishError, explain
from mpru_tf.saved_model.bundle import has_saved_model

STAGING_PREFIX = ".mpru-staging-"

_MOST_FILES = 100_000  # in one version directory; an honest one has some dozen
_LARGEST_VERSION = 2**63 - 1  # the server's version numbers are int64
_FICLONE = 0x40049409  # <linux/fs.h>
_RENAME_NOREPLACE = 1  # <linux/fs.h>
_NO_SUCH_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})  # from older kernels and some file systems
_AT_FDCWD = -100  # <fcntl.h>
# What os.link answers where hard links are impossible: another file system, a file system without them, somebody
# else's file under fs.protected_hardlinks, or too many links. A copy still works then.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True)
class VersionDirectory:
    """One SavedModel on disk.

    Attributes:
        path: the directory that holds saved_model.pb.
        base: the base path it belongs to, or None when its name is no version number.
        version: its servable version, or None likewise.
    """

    path: Path
    base: Path | None
    version: int | None


def parse_version(name: str) -> int | None:
    """The version that a directory name stands for, or None; as the server, which takes any unsigned integer."""
    return int(name) if name.isascii() and name.isdigit() and int(name) <= _LARGEST_VERSION else None


def list_versions(base: Path) -> list[int]:
    """All servable versions in a base path, ascending, whether or not they are complete."""
    if not base.is_dir():
        return []
    versions = (parse_version(child.name) for child in base.iterdir() if child.is_dir())
    return sorted(version for version in versions if version is not None)


def find_version(model: str | os.PathLike[str]) -> VersionDirectory:
    """Find the version directory that a user means by a path.

    Args:
        model: a version directory, or a base path, which stands for its newest version.

    Raises:
        ModelNotFoundError: there is neither.
    """
    path = Path(model)
    if "://" in os.fspath(model):
        raise ModelNotFoundError(
            explain(
                "Object stores are not read yet.",
                received=os.fspath(model),
                valid="a path on a local or mounted file system",
                hint="Copy the base path to a local folder, or mount the bucket.",
            )
        )
    if not path.exists():
        raise ModelNotFoundError(
            explain(
                "There is nothing at this path.",
                received=os.fspath(model),
                valid="a version directory (with saved_model.pb) or a base path (with numbered version directories)",
            )
        )
    if not path.is_dir():
        raise ModelNotFoundError(
            explain(
                "This is a file, not a SavedModel's directory.",
                received=os.fspath(model),
                valid="a version directory (with saved_model.pb) or a base path (with numbered version directories)",
            )
        )
    path = path.absolute()
    if has_saved_model(path):
        version = parse_version(path.name)
        return VersionDirectory(path, path.parent if version is not None else None, version)
    versions = list_versions(path)
    if not versions:
        raise ModelNotFoundError(
            explain(
                "This directory holds no SavedModel and no version of one.",
                received=os.fspath(model),
                valid="a version directory (with saved_model.pb) or a base path (with numbered version directories)",
            )
        )
    newest = next(child for child in path.iterdir() if child.is_dir() and parse_version(child.name) == versions[-1])
    return VersionDirectory(newest, path, versions[-1])


# --------------------------------------------------------------------------------------------------------- staging
def target_base_path(path: str | os.PathLike[str]) -> Path:
    """The base path that somebody named for a new version; it need not exist.

    Raises:
        PublishError: it is a version directory, a file, or in an object store.
    """
    base, valid = Path(path).absolute(), "a base path, whose children are numbered version directories"
    if "://" in os.fspath(path):
        raise PublishError(explain("Object stores are not written to yet.", received=os.fspath(path), valid=valid))
    if has_saved_model(base):
        raise PublishError(
            explain(
                "The target is itself a version directory; a new version would lie inside it.",
                received=os.fspath(path),
                valid=valid,
            )
        )
    if base.exists() and not base.is_dir():
        raise PublishError(explain("The target is a file.", received=os.fspath(path), valid=valid))
    return base


@contextlib.contextmanager
def staged(base: Path) -> Iterator[Path]:
    """A fresh directory beside the versions that no server takes for one; gone afterwards unless it was published.

    The directory is locked while it is in use, so that a later run can tell one that a killed process left behind.

    Raises:
        PublishError: the base path cannot be written.
    """
    try:
        missing = [folder for folder in (base, *base.parents) if not folder.exists()]
        base.mkdir(parents=True, exist_ok=True)
        _remove_stale(base)
        staging, descriptor = _new_staging(base)
    except OSError as error:
        raise _unwritable(base, error) from error
    try:
        yield staging
    except OSError as error:
        raise _unwritable(base, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # of what was made here, what holds nothing in the end
            for folder in missing:
                folder.rmdir()


def _new_staging(base: Path) -> tuple[Path, int]:
    while True:
        staging = base / f"{STAGING_PREFIX}{secrets.token_hex(8)}"
        staging.mkdir()
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(staging, os.O_RDONLY)
            with contextlib.suppress(OSError):  # no locks there (NFS, object stores): then nobody takes it for stale
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if staging.exists():
                return staging, descriptor
            os.close(descriptor)
        # Another run took it for a leftover before it was locked; try again under a new name.


def _remove_stale(base: Path) -> None:
    """Delete staging directories whose process is gone; where that cannot be told, leave them."""
    for leftover in base.glob(f"{STAGING_PREFIX}*"):
        try:
            descriptor = os.open(leftover, os.O_RDONLY)
        except OSError:
            continue  # gone by now, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # another export is at work there, or the file system has no locks
        else:
            shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(descriptor)


def link_tree(source: Path, target: Path, *, without: Collection[str] = (), copy: bool = False) -> str:
    """Bring all files of a version directory into another one.

    Each file is cloned (FICLONE) where the file system can, else hard-linked, else copied. A hard link shares its
    bytes with the source: whoever truncates the source's file in place ruins the new version too.

    Args:
        source: the version directory to take from.
        target: an existing directory.
        without: paths relative to ``source`` to leave out.
        copy: copy every byte instead.

    Links are followed, also out of ``source``, as Kubernetes mounts and artifact stores need it.

    Returns:
        How the files came over: 'reflink', 'hard link' or 'copy' (the last one that was needed).

    Raises:
        CorruptModelError: a link leads to nothing or back to a directory it lies in, or a file is a pipe, a socket or
            a device.
    """
    how = "copy" if copy else "reflink"
    for name, is_folder in _contents(source, without):  # all of them, before anything is written
        if is_folder:
            (target / name).mkdir(exist_ok=True)
        else:
            how = _bring(source / name, target / name, how)
    return how


def _contents(source: Path, without: Collection[str]) -> list[tuple[str, bool]]:
    """Names of everything to bring over, relative to ``source``, each with whether it is a directory; parents first."""
    found: list[tuple[str, bool]] = []
    # Directories from the root to this one: a link to any of them would lead around in a circle, and past the very
    # directory that is being written.
    above = frozenset(_identity(os.stat(folder)) for folder in (source.resolve(), *source.resolve().parents))
    queue = [("", above)]
    while queue:
        folder, above = queue.pop()
        for name in sorted(os.listdir(source / folder)):
            relative = f"{folder}/{name}" if folder else name
            if relative in without:
                continue
            status = _status(source / relative)
            is_folder = stat.S_ISDIR(status.st_mode)
            if is_folder:
                if _identity(status) in above:
                    raise _unfit(source / relative, "leads back to a directory that it lies in")
                queue.append((relative, above | {_identity(status)}))
            elif not stat.S_ISREG(status.st_mode):
                raise _unfit(source / relative, "is a pipe, a socket or a device")
            found.append((relative, is_folder))
            if len(found) > _MOST_FILES:
                raise _unfit(source, f"holds more than {_MOST_FILES} files, perhaps by links that multiply")
    return found


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        raise _unfit(path, "is a link that leads nowhere") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _unfit(path: Path, what: str) -> CorruptModelError:
    return CorruptModelError(
        explain(
            f"{path} {what}, so it cannot be part of a new version.",
            valid="files, directories, and links to them",
            hint="Remove it from the version directory, or copy the version without it.",
        )
    )


def _bring(source: Path, target: Path, how: str) -> str:
    if how == "reflink":
        if _reflink(source, target):
            return how
        how = "hard link"
    if how == "hard link":
        try:
            os.link(source.resolve(), target)
            return how
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            how = "copy"
    shutil.copy2(source, target)
    return how


def _reflink(source: Path, target: Path) -> bool:
    """Share the source's blocks copy-on-write; False where the file system cannot."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            pass
        else:
            shutil.copystat(source, target)
            return True
    target.unlink()
    return False


# ------------------------------------------------------------------------------------------------------ publishing
def publish(staging: Path, base: Path) -> int:
    """Give a staged directory the next free version number, durably and without ever replacing anything.

    Returns:
        The version.

    Raises:
        PublishError: the rename is refused by the file system, or no number is left.
    """
    try:
        _sync_tree(staging)
        version = 0
        while True:
            # Past every number tried: a plain file of that name, which is no version, takes the number too.
            version = max(version, *list_versions(base), 0) + 1
            if version > _LARGEST_VERSION:
                raise _no_number_left(base)
            try:
                _rename_exclusively(staging, base / str(version))
            except FileExistsError:
                continue  # another writer took the number in between
            _sync(base)
            return version
    except OSError as error:
        raise _unwritable(base, error) from error


def _rename_exclusively(source: Path, target: Path) -> None:
    """Rename, failing with FileExistsError if the target exists (plain rename would replace an empty directory)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        if libc.renameat2(*arguments) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_SUCH_FLAG:
            raise OSError(code, os.strerror(code), os.fspath(target))
    _rename_in_turn(source, target)


def _rename_in_turn(source: Path, target: Path) -> None:
    """The same where no flag says so: writers take turns, and a rename never replaces a directory with content."""
    lock = os.open(target.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # NFS locks no directory
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from error
            raise
    finally:
        os.close(lock)


def _sync_tree(root: Path) -> None:
    """Make what was written here durable; linked files were so before."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.stat().st_nlink == 1:
                _sync(path)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_number_left(base: Path) -> PublishError:
    return PublishError(
        explain(
            f"The newest version below {base} has the largest number there is, so none is left for a newer one.",
            received=_LARGEST_VERSION,
            valid="version numbers with room above them",
            hint="Rename that version, or choose another base path.",
        )
    )


def _unwritable(base: Path, error: OSError) -> PublishError:
    hint = {
        errno.ENOSPC: "Free some space and run the same command again; nothing was published.",
        errno.EACCES: "Run as a user who may write there, or choose another base path.",
        errno.EROFS: "Choose a base path on a writable file system.",
    }
    return PublishError(
        explain(
            f"The new version could not be written below {base}.",
            received=error.strerror or str(error),
            valid="a base path on a writable file system with room for the new files",
            hint=hint.get(error.errno or 0, "Nothing was published."),
        )
    )
