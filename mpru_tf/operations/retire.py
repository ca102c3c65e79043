"""Versions that answer forgotten classes leave the base path, once a filtered one answers in their place."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpru_tf.errors import PublishError, ServingError, VerificationError, explain
from mpru_tf.operations import configuration
from mpru_tf.operations.client import AVAILABLE, USUAL_LABELS, Progress, Server, silent
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.remembering import BaseVersion, forgotten_in, labels_of, named, versions_in
from mpru_tf.saved_model.bundle import has_saved_model

_PAUSE = 0.1  # seconds between looks at the server

RETIRED_PREFIX = "retired-"
"""Retired version directories stay in the base path under a name that no server takes for a number."""


@dataclass(frozen=True)
class Retired:
    """One version that left the base path.

    Attributes:
        version: its number.
        path: where its directory is now; None if it was deleted.
    """

    version: int
    path: Path | None


@dataclass(frozen=True)
class Retirement:
    """What retiring did.

    Attributes:
        base: the base path.
        newest: the filtered version that stays in their place.
        forgotten: the classes that it forgets.
        retired: the versions that left.
        left: other versions that still lie in the base path and answer a class that the newest one forgets.
        still_loaded: retired versions that the server went on answering from; it may look at its files rarely.
    """

    base: Path
    newest: int
    forgotten: tuple[int, ...]
    retired: tuple[Retired, ...]
    left: tuple[int, ...]
    still_loaded: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "base": str(self.base),
            "newest": self.newest,
            "forgotten": list(self.forgotten),
            "retired": [
                {"version": one.version, "path": None if one.path is None else str(one.path)} for one in self.retired
            ],
            "left": list(self.left),
            "still_loaded": list(self.still_loaded),
        }


def retire(
    base: str | os.PathLike[str],
    *,
    older_than: int | None = None,
    to: str | os.PathLike[str] | None = None,
    delete: bool = False,
    server: Server | None = None,
    config: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    timeout: float = 10.0,
    progress: Progress = silent,
) -> Retirement:
    """Move versions that answer forgotten classes out of the base path; the newest version never.

    Args:
        base: the base path.
        older_than: every version below this number; None for those that answer a class that the newest one forgets.
        to: directory to move them to. Default: they stay in the base path, as ``retired-N``, which is no number.
        delete: remove them instead.
        server: the model; then the newest version must be AVAILABLE there, and no label may stand for a version that
            would leave.
        config: the server's configuration file, for its labels; versions that leave also leave the policy, if that
            names versions.
        dry_run: say what would leave, and do nothing.
        timeout: seconds to wait until the server has unloaded what was retired.
        progress: told what is going on.

    Raises:
        ModelNotFoundError: there is no version.
        VerificationError: the newest version is not filtered, or not as it was published, or answers a class that
            another version forgets.
        ServingError: the newest version is not AVAILABLE, or a label stands for a version that would leave.
        PublishError: a directory cannot be moved.
    """
    versions = versions_in(base)
    path, newest = versions[-1].path.parent, versions[-1]
    _check_newest(versions, progress)
    chosen = [version for version in versions[:-1] if _leaves(version, newest, older_than)]
    if server is not None:
        states = {state.version: state.state for state in server.versions()}
        if states.get(newest.version) != AVAILABLE:
            raise ServingError(
                explain(
                    f"Version {newest.version} does not answer yet, so nothing was retired.",
                    received=f"{server.target}: {states.get(newest.version, 'not known there')}",
                    valid=AVAILABLE,
                    hint=f"`mpru-tf wait --server {server.target} --model {server.model} --version {newest.version}`",
                )
            )
        _check_labels(server, config, {version.version for version in chosen})
    retired: list[Retired] = []
    still: tuple[int, ...] = ()
    if not dry_run:
        if server is not None and config is not None:
            _leave_policy(server, config, {version.version for version in chosen})
        for version in chosen:
            progress(f"retiring version {version.version}")
            retired.append(Retired(version.version, _move(version, path, to, delete)))
        if server is not None and chosen:
            still = _unloaded(server, {version.version for version in chosen}, timeout)
    gone = {version.path for version in chosen}
    left = [v.version for v in versions[:-1] if v.path not in gone and not set(newest.forgotten) <= set(v.forgotten)]
    said = retired if not dry_run else [Retired(version.version, version.path) for version in chosen]
    return Retirement(path, newest.version, newest.forgotten, tuple(said), tuple(left), still)


def _leaves(version: BaseVersion, newest: BaseVersion, older_than: int | None) -> bool:
    if older_than is not None:
        return version.version < older_than
    return not set(newest.forgotten) <= set(version.forgotten)


def _check_newest(versions: Sequence[BaseVersion], progress: Progress) -> None:
    from mpru_tf.verification import verify

    newest = versions[-1]
    hint = "Nothing was retired."
    if newest.manifest is None or not newest.is_complete:
        reason = "it is no complete SavedModel" if not newest.is_complete else newest.problem or "it has no manifest"
        raise VerificationError(
            explain(
                f"Version {newest.version}, the newest, forgets nothing, so no version can be retired in its favour.",
                received=reason,
                valid="a newest version that `mpru-tf forget` wrote",
                hint=hint,
            )
        )
    back = set(forgotten_in(versions)) - set(newest.forgotten)
    if back:
        raise VerificationError(
            explain(
                f"Version {newest.version}, the newest, itself answers {named(back, labels_of(versions))} again.",
                valid="a newest version that forgets whatever any other one forgets",
                hint=hint,
            )
        )
    progress(f"verifying version {newest.version}")
    found = verify(newest.path, load_check=False)
    if not found.passed:
        raise VerificationError(
            explain(
                f"Version {newest.version}, the newest, is not as it was published.",
                received="; ".join(check.detail for check in found.checks if check.passed is False),
                hint=hint,
            )
        )


def _check_labels(server: Server, config: str | os.PathLike[str] | None, leaving: set[int]) -> None:
    labels: dict[str, int | None] = {label: server.version_of_label(label) for label in USUAL_LABELS}
    if config is not None:
        labels.update(Configuration.read(config).labels(server.model))
    held = {label: version for label, version in labels.items() if version in leaving}
    if held:
        raise ServingError(
            explain(
                "Labels stand for versions that would leave, so nothing was retired.",
                received=", ".join(f"{label}: version {version}" for label, version in held.items()),
                hint="Move them first, with `mpru-tf label move`.",
            )
        )


def _unloaded(server: Server, gone: set[int], timeout: float) -> tuple[int, ...]:
    """Wait until a server has unloaded versions; return those that it has not."""
    deadline = time.monotonic() + timeout
    while (still := gone.intersection(server.available())) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return tuple(sorted(still))


def _leave_policy(server: Server, path: str | os.PathLike[str], leaving: set[int]) -> None:
    with configuration.alone_with(path):
        before = Configuration.read(path)
        specific = before.specific_versions(server.model)
        if specific is not None and leaving & set(specific):
            stay = [version for version in specific if version not in leaving]
            configuration.replace(server, path, before, before.with_specific_versions(server.model, stay))


# ------------------------------------------------------------------------------------------------------------- moving
def _move(version: BaseVersion, base: Path, to: str | os.PathLike[str] | None, delete: bool) -> Path | None:
    """Move a version away; for a server it is gone with one rename, whatever comes after that."""
    aside = _free(base, f"{RETIRED_PREFIX}{version.version}")
    try:
        if to is not None and not delete:
            folder = _folder(Path(to).absolute(), base)
            target = _free(folder, f"{RETIRED_PREFIX}{version.version}")
            try:
                version.path.rename(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                version.path.rename(aside)
                shutil.move(aside, target)
            return target
        version.path.rename(aside)
        if delete:
            if aside.is_symlink():  # what it leads to is not ours to remove
                aside.unlink()
            else:
                shutil.rmtree(aside)
            return None
        return aside
    except OSError as error:
        raise PublishError(
            explain(
                f"Version {version.version} could not be retired.",
                received=f"{error.filename or version.path}: {error.strerror or error}",
                valid="a base path and a target that this user may write to",
            )
        ) from error


def _folder(folder: Path, base: Path) -> Path:
    if folder.resolve().is_relative_to(base.resolve()) or has_saved_model(folder):
        raise PublishError(
            explain("Retired versions cannot go there.", received=folder, valid="a directory outside the base path")
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _free(folder: Path, name: str) -> Path:
    number, path = 1, folder / name
    while path.exists() or path.is_symlink():
        number += 1
        path = folder / f"{name}.{number}"
    return path
