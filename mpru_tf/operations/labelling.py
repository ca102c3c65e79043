"""Labels of versions, in a server and in its configuration file. A label of a version that is not loaded is refused."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from mpru_tf.errors import ServingError, explain
from mpru_tf.operations import configuration, remembering
from mpru_tf.operations.client import Progress, Server, silent
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.waiting import wait_until_available


@dataclass(frozen=True)
class LabelChange:
    """What became of a label.

    Attributes:
        model: the model's name.
        label: the label.
        version: the version that it stands for now.
        before: the one that it stood for; None for a new label.
    """

    model: str
    label: str
    version: int
    before: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def set_label(
    server: Server,
    config: str | os.PathLike[str],
    label: str,
    version: int,
    *,
    move: bool = False,
    timeout: float = 300.0,
    i_know_it_remembers: bool = False,
    progress: Progress = silent,
) -> LabelChange:
    """Give a version a new label, or with ``move`` an existing label to another version.

    Waits until the version is AVAILABLE, has the server take over the configuration with the label, asks it whom the
    label reaches, and writes the file.

    Args:
        server: the model.
        config: the server's configuration file.
        label: the label.
        version: the version.
        move: the label is there already.
        timeout: seconds to wait for the version.
        i_know_it_remembers: also if the version answers a forgotten class; can be told only where the base path that
            the configuration names is reachable from here.
        progress: told what is going on.

    Raises:
        ServingError: the label is there (or, with ``move``, is not), the version does not become AVAILABLE, the server
            refuses, or the file cannot be written.
        ForgetListError: the version would answer a forgotten class.
    """
    with configuration.alone_with(config):
        before = Configuration.read(config)
        labels = before.labels(server.model)
        if move != (label in labels) and labels.get(label) != version:
            raise ServingError(
                explain(
                    "There is no such label to move." if move else f"The label stands for version {labels[label]}.",
                    received=label,
                    valid=", ".join(labels) or "no labels yet",
                    hint="Make it with `label set`." if move else "Move it with `label move`.",
                )
            )
        wait_until_available(server, version, timeout, progress=progress)
        versions = remembering.local_versions(before.base_path(server.model))
        if any(found.version == version for found in versions):
            remembering.check_forgets(versions, version, f"to give it the label {label!r}", i_know_it_remembers)
        give(server, config, before, before.with_label(server.model, label, version), label)
    return LabelChange(server.model, label, version, labels.get(label))


def give(
    server: Server, config: str | os.PathLike[str], before: Configuration, after: Configuration, label: str
) -> None:
    """Take over a configuration with a label, and see whom it reaches.

    Raises:
        ServingError: it is refused, or the label reaches another version; the old configuration is back.
    """
    configuration.replace(server, config, before, after)
    wanted, reached = after.labels(server.model)[label], server.version_of_label(label)
    if reached != wanted:
        configuration.replace(server, config, after, before)
        raise ServingError(
            explain(
                f"The server took the label {label!r} over but does not go by it; the old configuration is back.",
                received=f"version {reached}" if reached is not None else "no version",
                valid=f"version {wanted}",
                hint="Does this server run with this configuration file?",
            )
        )
