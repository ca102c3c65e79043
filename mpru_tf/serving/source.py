"""Which versions lie in the base path, and which of them are wanted: TensorFlow Serving's storage path source."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

#: What absl::SimpleAtoi takes for a number: white space around it, one sign, ASCII digits. Leading zeros are fine.
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)[ \t\n\v\f\r]*")
_INT64 = range(-(2**63), 2**63)

#: Chooses among the versions found.
VersionPolicy = Callable[[Mapping[int, Path]], dict[int, Path]]


def parse_version(name: str) -> int | None:
    """Return the version number that a child of the base path stands for, or ``None`` if it is not a version.

    As the real server parses: ``"7"``, ``"007"`` and ``"-3"`` are versions, ``"v7"``, ``"7.tmp"`` and numbers beyond
    64 bits are not.
    """
    match = _NUMBER.fullmatch(name)
    version = int(match.group(1)) if match and len(name) < 64 else None
    return version if version is not None and version in _INT64 else None


def find_versions(base_path: Path) -> dict[int, Path]:
    """Return every version in the base path by number, ascending.

    Of two names for one number (``7`` and ``007``) the alphabetically last counts, as in the real server. A plain file
    with a numeric name counts too: it will fail to load, and say so.

    Raises:
        OSError: the base path cannot be listed.
    """
    found: dict[int, Path] = {}
    for name in sorted(os.listdir(base_path)):
        version = parse_version(name)
        if version is not None:
            if version in found:
                logger.warning(
                    "Duplicate version directories: version %d is taken from %s, %s is ignored",
                    version,
                    name,
                    found[version].name,
                )
            found[version] = base_path / name
    return dict(sorted(found.items()))


def latest(number: int = 1) -> VersionPolicy:
    """Return the policy that wants the highest ``number`` (>= 1) versions."""

    def choose(versions: Mapping[int, Path]) -> dict[int, Path]:
        return {version: versions[version] for version in sorted(versions)[-max(number, 1) :]}

    return choose


class FileSystemSource:
    """Polls one base path and tells a target which versions are wanted.

    Args:
        base_path: directory whose numeric children are versions.
        aspire: called after each poll with the wanted versions; calls with unchanged versions are normal.
        policy: chooses among the versions found.
        poll_wait_seconds: pause between polls; 0 polls once, a negative number never.
    """

    def __init__(
        self,
        base_path: Path,
        aspire: Callable[[dict[int, Path]], None],
        policy: VersionPolicy | None = None,
        poll_wait_seconds: float = 1.0,
    ) -> None:
        self._base_path = base_path
        self._aspire = aspire
        self._policy = policy or latest()
        self._wait_seconds = poll_wait_seconds
        self._stopping = threading.Event()
        self._complaint = ""
        self._thread = threading.Thread(target=self._poll_until_stopped, name="file-system-source", daemon=True)

    def start(self) -> None:
        """Begin polling, at once."""
        if self._wait_seconds >= 0:
            self._thread.start()

    def stop(self) -> None:
        """Stop polling; returns when the poller is gone."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def poll(self) -> None:
        """Look once. A base path that cannot be read changes nothing: it may be back at the next poll."""
        try:
            versions = find_versions(self._base_path)
        except OSError as error:
            self._complain(f"Could not read base path {self._base_path}: {error.strerror or error}")
            return
        if versions:
            self._complaint = ""
        else:
            self._complain(
                f"No versions found under base path {self._base_path}. "
                "Did you forget to name your leaf directory as a number (eg. '/1/')?"
            )
        self._aspire(self._policy(versions))

    def _poll_until_stopped(self) -> None:
        self.poll()
        while self._wait_seconds > 0 and not self._stopping.wait(self._wait_seconds):
            self.poll()

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:  # once, not once a second
            self._complaint = complaint
            logger.warning(complaint)
