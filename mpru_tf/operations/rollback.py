"""Back to an older version, unless it would answer a forgotten class again."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpru_tf.errors import ServingError, VerificationError, explain
from mpru_tf.operations import configuration, labelling
from mpru_tf.operations.client import Progress, Server, silent
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.remembering import BaseVersion, check_forgets, the_version, versions_in
from mpru_tf.operations.waiting import wait_until_available
from mpru_tf.versions import link_tree, publish, staged

_PATIENCE = 5.0  # seconds after which a version that was unloaded before is loading again, at a poll of one second


@dataclass(frozen=True)
class Rollback:
    """What rolling back did.

    Attributes:
        base: the base path.
        to: the version whose content is answered from again.
        version: the version that it is published as; ``to`` itself where a label was moved.
        before: the version that answered before: the newest, or the one of the label.
        label: the label that was moved, None where the content was published again.
        remembers: classes that are answered again although they were forgotten.
        files: how the files came over, None where a label was moved.
        available: whether the server was seen to answer from it; None without a server.
    """

    base: Path
    to: int
    version: int
    before: int
    label: str | None
    remembers: tuple[int, ...]
    files: str | None
    available: bool | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**asdict(self), "base": str(self.base), "remembers": list(self.remembers)}


def rollback(
    base: str | os.PathLike[str],
    to: int,
    *,
    server: Server | None = None,
    config: str | os.PathLike[str] | None = None,
    label: str = "stable",
    i_know_it_remembers: bool = False,
    timeout: float = 300.0,
    progress: Progress = silent,
) -> Rollback:
    """Answer from an older version again.

    With a configuration file, its label moves back; the version is loaded for that if the policy names versions.
    Without one, a server follows the newest version of the base path, so the old version's content is published once
    more, with hard links and a new, higher number. Its manifest goes with it.

    Args:
        base: the base path.
        to: the version to go back to.
        server: the model; needed with ``config``. Without one, nobody looks whether it is answered from.
        config: the server's configuration file.
        label: the label to move, with ``config``.
        i_know_it_remembers: also if that version answers a class that is forgotten in the base path.
        timeout: seconds to wait until it is AVAILABLE.
        progress: told what is going on.

    Raises:
        ForgetListError: it would answer a forgotten class again.
        ModelNotFoundError: there is no such version.
        VerificationError: it is a filtered version that is not as it was published.
        PublishError, ServingError: it could not be published, loaded or labelled.
    """
    versions = versions_in(base)
    target = the_version(versions, to)
    remembers = check_forgets(versions, to, "to roll back to it", i_know_it_remembers)
    _check_whole(target, progress)
    path = target.path.parent
    if config is not None:
        if server is None:
            raise ServingError("To move a label, the server must be named (--server, --model).")
        before = _move_label(server, config, label, to, timeout, progress)
        return Rollback(path, to, to, before, label, remembers, None, True)
    newest = versions[-1].version
    if to == newest:
        raise ServingError(
            explain(
                f"Version {to} is the newest already.", hint="Without labels, servers answer from the newest version."
            )
        )
    progress(f"publishing the content of version {to} again")
    with staged(path) as staging:
        files = link_tree(target.path, staging)
        version = publish(staging, path)
    if server is not None:
        wait_until_available(server, version, timeout, progress=progress)
    return Rollback(path, to, version, newest, None, remembers, files, None if server is None else True)


def _check_whole(target: BaseVersion, progress: Progress) -> None:
    from mpru_tf.verification import verify

    if target.manifest is None:
        return
    progress(f"verifying version {target.version}")
    found = verify(target.path, load_check=False)
    if not found.passed:
        raise VerificationError(
            explain(
                f"Version {target.version} is not as it was published; nothing was rolled back.",
                received="; ".join(check.detail for check in found.checks if check.passed is False),
                valid="a version that `mpru-tf verify` passes",
            )
        )


def _move_label(
    server: Server, path: str | os.PathLike[str], label: str, to: int, timeout: float, progress: Progress
) -> int:
    """Move the label; returns the version that had it."""
    with configuration.alone_with(path):
        original = before = Configuration.read(path)
        labels = before.labels(server.model)
        if label not in labels:
            raise ServingError(
                explain("There is no such label to move back.", received=label, valid=", ".join(labels) or "no labels")
            )
        specific = before.specific_versions(server.model)
        if specific is not None and to not in specific:
            after = before.with_specific_versions(server.model, [*specific, to])
            configuration.replace(server, path, before, after)
            before = after
        try:
            if before.kept(server.model) is not None and to not in server.available():
                raise ServingError(
                    explain(
                        f"Version {to} is not loaded, and the policy does not load it.",
                        valid="a model_version_policy that names versions (specific), or keeps them (all)",
                    )
                )
            wait_until_available(server, to, timeout, progress=progress, patience=_PATIENCE)
            labelling.give(server, path, before, before.with_label(server.model, label, to), label)
        except ServingError:
            if before is not original:
                configuration.replace(server, path, before, original)
            raise
        return labels[label]
