"""What goes wrong while a version is written: the old one keeps answering, and the next `forget` cleans up."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpru_tf
from mpru_tf.versions import STAGING_PREFIX

MODEL, ROWS = "small", [[1.0, 2.0, 3.0]]
Start = Callable[..., Any]

#: Each export is a fork of a process that has everything imported: starting twenty would take a minute. One that takes
#: longer than its alarm is no killed one.
EXPORTER = """
import os, signal, sys, time
import tensorflow
import mpru_tf, mpru_tf.reexport, mpru_tf.verification
base = sys.argv[1]
mpru_tf.forget(base, [0], into=sys.argv[2], load_check=False)
print("ready", flush=True)
for line in sys.stdin:
    temperature, delay = map(float, line.split())
    child = os.fork()
    if not child:
        signal.alarm(30)
        status = 1
        try:
            mpru_tf.forget(base, [1], method="tempered", temperature=temperature, load_check=False)
            status = 0
        finally:
            os._exit(status)
    if delay >= 0:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

#: Not set in a fork of this process: Python that runs in a fork of one with gRPC's threads may crash.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def children(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


def test_sigkill_of_the_exporter_at_any_moment(start: Start, base: Path, tmp_path: Path) -> None:
    """Twenty exporters are killed at random moments; whatever they leave, versions are whole and clients answered."""
    program = start(f"--model_name={MODEL}", f"--model_base_path={base}")
    random_delay = random.Random(0)
    command = [sys.executable, "-c", EXPORTER, str(base), str(tmp_path / "warm")]
    killed, whole = 0, {"1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as exporter:
        assert exporter.stdin is not None
        assert exporter.stdout is not None
        assert exporter.stdout.readline() == "ready\n"
        seconds = 0.0
        for attempt in range(21):
            delay = random_delay.uniform(0, seconds) if attempt else -1
            begun = time.monotonic()
            # Another filter each time, or there would be nothing to write.
            exporter.stdin.write(f"{1.5 + attempt} {delay}\n")
            exporter.stdin.flush()
            status = int(exporter.stdout.readline())
            if not attempt:
                assert status == 0
                seconds = time.monotonic() - begun  # how long an undisturbed export takes here
                continue
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            version, (row,) = program.client.predict(ROWS)
            assert version >= 1
            assert version == 1 or row[1] == 0
            for name in children(base):
                assert name.isdigit() or name.startswith(STAGING_PREFIX)
                if name.isdigit() and name not in whole:
                    assert mpru_tf.verify(base / name, load_check=False).passed
                    whole.add(name)
        exporter.stdin.close()
    assert killed > 0
    result = mpru_tf.forget(base, [2])
    assert result.forgotten == (1, 2)
    assert not [name for name in children(base) if name.startswith(STAGING_PREFIX)]
    program.wait_for(**{f"v{result.version}": "AVAILABLE"})
    version, (row,) = program.client.predict(ROWS)
    assert (version, row[1], row[2]) == (result.version, 0, 0)


def test_a_full_disk(start: Start, base: Path) -> None:
    """No file may grow beyond some bytes, as on a disk that is full: refused in words, and nothing is left behind."""
    program = start(f"--model_name={MODEL}", f"--model_base_path={base}")
    size = (base / "1" / "saved_model.pb").stat().st_size
    before = children(base)
    for limit in (64, size // 2):
        command = ["-m", "mpru_tf.cli", "forget", str(base), "--classes", "owl", "--skip-load-check"]
        ran = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), *command], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "File too large" in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
        assert children(base) == before
        assert program.client.predict(ROWS)[0] == 1
    assert mpru_tf.forget(base, ["owl"]).version == 2
    program.wait_for(v2="AVAILABLE")
    assert program.client.predict(ROWS)[1][0][2] == 0
