"""What to do next with the versions of one model, so that it never stops answering."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum


class State(IntEnum):
    """The life of a servable version; numbers and names of ``ModelVersionStatus.State``."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class Action(Enum):
    """What can be done with a version."""

    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Version:
    """What the policy knows of one version.

    Attributes:
        number: the version number.
        state: where it is in its life.
        is_aspired: whether the source wants it.
    """

    number: int
    state: State
    is_aspired: bool


def next_action(versions: Iterable[Version]) -> tuple[Action, int] | None:
    """Return the next step, or ``None`` if there is nothing to do now.

    TensorFlow Serving's availability-preserving policy: an unwanted version is unloaded once a wanted one answers,
    or if nothing is wanted at all, or if it is not the last that answers; otherwise the highest wanted version that
    has not been tried is loaded. A wanted version that failed therefore never costs the old one its place.
    """
    versions = list(versions)
    wanted = [version for version in versions if version.is_aspired]
    unwanted_ready = [v.number for v in versions if not v.is_aspired and v.state is State.AVAILABLE]
    wanted_answers = any(version.state is State.AVAILABLE for version in wanted)
    if unwanted_ready and (not wanted or wanted_answers or len(unwanted_ready) > 1):
        return Action.UNLOAD, min(unwanted_ready)
    untried = [version.number for version in wanted if version.state is State.START]
    return (Action.LOAD, max(untried)) if untried else None
