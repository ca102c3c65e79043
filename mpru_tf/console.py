"""The terminal: what is asked for goes to stdout, everything else to stderr, TensorFlow's own log nowhere."""

from __future__ import annotations

import logging
import os
import sys

from rich.console import Console


def output() -> Console:
    """Return the console for what was asked for."""
    return Console()


def messages() -> Console:
    """Return the console for progress, warnings and refusals, which must not mix with JSON on stdout."""
    return Console(stderr=True)


def hush_tensorflow() -> None:
    """Keep the log of TensorFlow's C++ side off the terminal; call it in a program, before TensorFlow is imported.

    ``TF_CPP_MIN_LOG_LEVEL=3`` alone does not do it: TensorFlow 2.19 to 2.21 write some lines before their log is set
    up, errors about CUDA on machines without a GPU among them (tensorflow/tensorflow#100442). So file descriptor 2 is
    pointed at the null device, and Python's ``sys.stderr`` at what descriptor 2 was before. Whoever sets
    ``TF_CPP_MIN_LOG_LEVEL`` to 0 or 1 wants to see the log, and does.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stderr.flush()
    terminal = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
