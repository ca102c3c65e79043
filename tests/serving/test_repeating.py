"""Work that is repeated in a thread: again and again, until it is stopped, and never without a pause."""

from __future__ import annotations

import threading

import pytest

from mpru_tf.serving.repeating import Repeating


def test_again_and_again_until_it_is_stopped() -> None:
    times = 0
    enough = threading.Event()

    def work() -> None:
        nonlocal times
        times += 1
        if times == 3:
            enough.set()

    repeating = Repeating(work, 0.01, "counts")
    repeating.start()
    assert enough.wait(30)
    repeating.stop()
    assert not any(thread.name == "counts" for thread in threading.enumerate())
    stopped_at = times
    threading.Event().wait(0.05)
    assert times == stopped_at


@pytest.mark.parametrize("seconds", [0, -1])
def test_never_without_a_pause(seconds: float) -> None:
    repeating = Repeating(lambda: None, seconds, "never")
    repeating.start()
    assert not any(thread.name == "never" for thread in threading.enumerate())
    repeating.stop()
