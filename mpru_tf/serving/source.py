"""Which versions lie in the base paths, and which of them are wanted: TensorFlow Serving's storage path source."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpru_tf.serving.repeating import Repeating

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


def all_versions() -> VersionPolicy:
    """Return the policy that wants every version."""
    return dict


def specific(numbers: Iterable[int]) -> VersionPolicy:
    """Return the policy that wants these versions, as far as they are there."""
    wanted = frozenset(numbers)

    def choose(versions: Mapping[int, Path]) -> dict[int, Path]:
        return {version: path for version, path in versions.items() if version in wanted}

    return choose


@dataclass(frozen=True)
class Watched:
    """What is polled for one model.

    Attributes:
        base_path: directory whose numeric children are versions.
        policy: chooses among them.
    """

    base_path: Path
    policy: VersionPolicy


class FileSystemSource(Repeating):
    """Polls the base paths of a list of models and tells a target which versions are wanted.

    Args:
        aspire: called with a model's name and its wanted versions after each poll, and with none when a model leaves
            the list; calls with unchanged versions are normal.
        poll_wait_seconds: pause between polls; 0 polls once per list, a negative number never.
    """

    def __init__(self, aspire: Callable[[str, dict[int, Path]], None], poll_wait_seconds: float = 1.0) -> None:
        # What is watched has been looked at when this is started: the first poll comes a pause later.
        super().__init__(self.poll, poll_wait_seconds, "file-system-source")
        self._aspire = aspire
        self._watched: dict[str, Watched] = {}
        self._complaints: dict[str, str] = {}
        # Held for a whole poll: what a poll of the old list has found must not be aspired after the new list is there.
        self._lock = threading.Lock()

    def watch(self, models: Mapping[str, Watched]) -> None:
        """Replace the list of models, and look at once. Models that are not named any more are not wanted any more."""
        with self._lock:
            for name in self._watched.keys() - models.keys():
                self._complaints.pop(name, None)
                self._aspire(name, {})
            self._watched = dict(models)
            if self._wait_seconds >= 0:
                self._poll()

    def poll(self) -> None:
        """Look once. A base path that cannot be read changes nothing: it may be back at the next poll."""
        with self._lock:
            self._poll()

    def _poll(self) -> None:
        for name, watched in self._watched.items():
            try:
                versions = find_versions(watched.base_path)
            except OSError as error:
                self._complain(name, f"Could not read base path {watched.base_path}: {error.strerror or error}")
                continue
            wanted = watched.policy(versions)
            if wanted:
                self._complaints.pop(name, None)
            else:
                self._complain(
                    name,
                    f"No versions of servable {name} found under base path {watched.base_path}. "
                    "Did you forget to name your leaf directory as a number (eg. '/1/')?",
                )
            self._aspire(name, wanted)

    def _complain(self, name: str, complaint: str) -> None:
        if complaint != self._complaints.get(name):  # once, not once a second
            self._complaints[name] = complaint
            logger.warning(complaint)
