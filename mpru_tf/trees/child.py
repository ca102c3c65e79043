"""Processes of their own for what must not run in the caller's: XGBoost, which crashes on some files and brings threads
and 300 MB of libraries along, and timing, which wants TensorFlow with one thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

_SECONDS = 300  # for one job


_START = (
    "import sys; job, folder = sys.argv[1:3]; sys.path[:] = sys.argv[3:]; "
    "from mpru_tf.trees.child import work; work(job, folder)"
)


class Child:
    """A fresh interpreter that does one job with the files in a folder; it is ended when the context is left."""

    def __init__(self, job: str, folder: Path, question: Mapping[str, object]) -> None:
        self.folder = folder
        (folder / "question.json").write_text(json.dumps(question), encoding="utf-8")
        paths = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable or "", "-c", _START, job, str(folder), *paths],
                stdin=subprocess.PIPE,  # nothing comes through it; it closes when this process ends, however it ends
                stdout=log,
                stderr=log,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
                start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
            )

    def wait(self) -> str:
        """How it failed, in words; '' if it did not."""
        code = self._process.wait()
        if code == 0:
            return ""
        if code == -signal.SIGALRM:
            return f"it took more than {_SECONDS} s"
        if code < 0:
            return f"it crashed with signal {-code}"
        lines = (self.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        # XGBoost's errors go on for a stack trace; the line with the name of the error is what people can use.
        told = [line for line in lines if "Error" in line.split(":")[0]]
        return " ".join((told or lines or [f"exit status {code}"])[-1].split())[:300]

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def work(job: str, folder: str) -> None:
    """The child's side: do a job with ``question.json`` and the arrays in ``folder``, and leave the answer there."""
    signal.alarm(_SECONDS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from mpru_tf.trees.self_check import answer_as_xgboost
    from mpru_tf.trees.timing import time_backends

    jobs: dict[str, Callable[..., object]] = {"answer_as_xgboost": answer_as_xgboost, "time_backends": time_backends}
    question = json.loads(Path(folder, "question.json").read_text(encoding="utf-8"))
    said = jobs[job](Path(folder), **question)
    Path(folder, "said.json").write_text(json.dumps(said), encoding="utf-8")


def _end_with_parent() -> None:
    """What is left of a parent that was killed is cleaned up by the next conversion; nobody may write there then."""
    os.read(0, 1)  # not by way of sys.stdin, whose lock Python wants at its end
    os._exit(1)
