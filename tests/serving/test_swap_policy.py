"""The availability-preserving policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.serving.swap_policy import Action, State, Version, next_action

versions = st.lists(
    st.builds(Version, st.integers(-5, 20), st.sampled_from(State), st.booleans()),
    max_size=6,
    unique_by=lambda version: version.number,
)


def test_the_new_one_is_loaded_before_the_old_one_goes() -> None:
    old = Version(1, State.AVAILABLE, False)
    assert next_action([old, Version(2, State.START, True)]) == (Action.LOAD, 2)
    assert next_action([old, Version(2, State.LOADING, True)]) is None
    assert next_action([old, Version(2, State.AVAILABLE, True)]) == (Action.UNLOAD, 1)


def test_a_failed_new_one_leaves_the_old_one() -> None:
    assert next_action([Version(1, State.AVAILABLE, False), Version(2, State.END, True)]) is None


def test_nothing_wanted_unloads_everything() -> None:
    assert next_action([Version(1, State.AVAILABLE, False)]) == (Action.UNLOAD, 1)
    assert next_action([]) is None


def test_the_highest_wanted_is_loaded_first() -> None:
    assert next_action([Version(3, State.START, True), Version(7, State.START, True)]) == (Action.LOAD, 7)


@given(versions)
def test_what_is_unloaded_is_unwanted_and_never_the_last_hope(versions: list[Version]) -> None:
    action = next_action(versions)
    if action is None or action[0] is Action.LOAD:
        return
    unloaded = next(version for version in versions if version.number == action[1])
    assert unloaded.state is State.AVAILABLE
    assert not unloaded.is_aspired
    if any(version.is_aspired for version in versions):
        assert any(v.state is State.AVAILABLE for v in versions if v is not unloaded)


@given(versions)
def test_what_is_loaded_is_wanted_and_was_not_tried(versions: list[Version]) -> None:
    action = next_action(versions)
    if action is not None and action[0] is Action.LOAD:
        loaded = next(version for version in versions if version.number == action[1])
        assert loaded.is_aspired
        assert loaded.state is State.START
