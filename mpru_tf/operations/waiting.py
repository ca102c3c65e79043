"""Wait for a version: that one, not any."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from mpru_tf.errors import ServingError, explain
from mpru_tf.operations.client import AVAILABLE, END, Progress, Server, Sighting, VersionState, silent

_PAUSE = 0.1  # seconds between looks; the server's own is a second
_LONGEST_LOOK = 5.0  # seconds; a server that is starting up may accept and not answer


@dataclass(frozen=True)
class Waited:
    """A version that is AVAILABLE.

    Attributes:
        model: the model's name.
        version: the version.
        seconds: how long that took.
    """

    model: str
    version: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def wait_until_available(
    server: Server,
    version: int | None = None,
    timeout: float = 300.0,
    *,
    progress: Progress = silent,
    patience: float = 0.0,
) -> Waited:
    """Wait until a version of a model is AVAILABLE.

    A server that cannot be reached yet, or does not know the version yet, is waited for.

    Args:
        server: the model.
        version: the version; None for any.
        timeout: seconds to wait at most.
        progress: told what is seen, whenever that changes.
        patience: seconds for which a version that was unloaded without an error is still waited for: it may be about
            to be loaded again.

    Raises:
        ServingError: the version ended (with the server's reason), or the time is over.
    """
    started = time.monotonic()
    name = f"version {version} of {server.model}" if version is not None else f"any version of {server.model}"
    shown = ""
    while True:
        left = timeout - (time.monotonic() - started)
        seen = server.look(min(max(left, 1.0), _LONGEST_LOOK))
        wanted = _wanted(seen, version)
        ready = [state for state in wanted if state.state == AVAILABLE]
        seconds = time.monotonic() - started
        if ready:
            return Waited(server.model, ready[-1].version, seconds)
        ended = wanted and all(state.state == END for state in wanted)
        if ended and (seconds >= patience or any(state.error_code for state in wanted)):
            raise ServingError(
                explain(
                    f"There is no more waiting for {name}: it has ended.",
                    received="; ".join(map(str, wanted)),
                    hint="Look at the server's log."
                    if any(state.error_code for state in wanted)
                    else "It was unloaded.",
                )
            )
        said = str(seen)
        if version is not None and seen.versions and not wanted:
            said += f"; version {version} is not known there yet"
        if said != shown:
            progress(said)
            shown = said
        if seconds >= timeout:
            raise ServingError(explain(f"Waited {timeout:g} s for {name} to be AVAILABLE, in vain.", received=said))
        time.sleep(_PAUSE)


def _wanted(seen: Sighting, version: int | None) -> list[VersionState]:
    return [state for state in seen.versions or () if version in (None, state.version)]


@dataclass(frozen=True)
class Status:
    """What a server says about a model.

    Attributes:
        server: its address.
        model: the model's name.
        versions: their states, ascending.
        labels: version by label, of the labels that were asked for and stand for a loaded version.
    """

    server: str
    model: str
    versions: tuple[VersionState, ...]
    labels: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "server": self.server,
            "model": self.model,
            "versions": [state.to_dict() for state in self.versions],
            "labels": dict(self.labels),
        }


def status(server: Server, labels: tuple[str, ...] = ()) -> Status:
    """Ask a server for the states of a model's versions, and for what labels stand for.

    Args:
        server: the model.
        labels: names of the labels to ask for; a server does not list them.

    Raises:
        ServingError: the server cannot be asked, or does not know the model.
    """
    versions = server.versions()
    if not versions:
        raise ServingError(
            explain("The server has no version of this model.", received=server.model, valid="a model that it serves")
        )
    found = {label: server.version_of_label(label) for label in dict.fromkeys(labels)}
    return Status(
        server.target, server.model, versions, {label: number for label, number in found.items() if number is not None}
    )
