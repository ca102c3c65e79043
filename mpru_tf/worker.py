"""A process of its own for whatever loads a model.

A SavedModel is a program. A broken or hostile one can abort the process that runs it, never come back, or eat its
memory; here that happens to a worker. This is no sandbox: the worker may do whatever its user may do.

One worker serves its parent for as long as both live: importing TensorFlow takes seconds. It is a fresh interpreter,
not a fork (TensorFlow does not survive forks) and not one of :mod:`multiprocessing` (which would run an unguarded
script of the caller again). Questions go to it as pickles; what comes back is JSON, for a hostile model could have had
a hand in it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import math
import os
import pickle
import queue
import secrets
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpru_tf import errors
from mpru_tf.errors import MPRUError, VerificationError, explain

LOADING, ASKING = "loading", "asking"
"""The steps of a job that may take long."""

Report = Callable[[str, str], None]
"""What a job calls before each step: which one, and what it is about ('loading', 'the new version')."""

_START = "import sys; sys.path[:] = sys.argv[1:]; from mpru_tf.worker import work; work()"
_LENGTH = struct.Struct("!Q")
_LONGEST_LINE = 1 << 24  # bytes; what a worker has to say takes some hundreds
_NONSENSE = "made the process answer nonsense"
_IDLE_SECONDS = 900.0


@dataclass(frozen=True)
class Limits:
    """How many seconds a worker may take before it is taken for stuck.

    Attributes:
        starting: until it has imported TensorFlow.
        loading: for loading one model, variables included.
        asking: for one request.
        whole: for a whole job.
    """

    starting: float = 120.0
    loading: float = 120.0
    asking: float = 60.0
    whole: float = 600.0

    def of(self, step: str) -> float:
        """The limit of a step."""
        return {LOADING: self.loading, ASKING: self.asking}.get(step, self.starting)


@dataclass(frozen=True)
class Ended:
    """How a worker ended that had no answer yet.

    Attributes:
        step: what it was doing, '' if it had not begun.
        about: which model that was about.
        how: what happened, a verb and more ('crashed TensorFlow (signal 6)').
    """

    step: str
    about: str
    how: str

    def __str__(self) -> str:
        return f"{self.step} {self.about} {self.how}" if self.step else f"the process for the load check {self.how}"


# --------------------------------------------------------------------------------------------------- the parent's side
def prepare() -> None:
    """Start the worker, if there is none, and do not wait for it: it imports TensorFlow while the caller goes on.

    Without an answer to give, what goes wrong here goes wrong again, and is told, when there is something to ask.
    """
    if _lock.acquire(blocking=False):  # else another thread has one at work
        try:
            with contextlib.suppress(OSError):
                _started()
        finally:
            _lock.release()


def ask(job: str, *arguments: object, limits: Limits | None = None) -> Any:
    """Have the worker do a job of :mod:`mpru_tf.load_check`, and return what it says, as JSON has it; or an `Ended`.

    One job at a time: threads wait for each other. A worker that ended, or was stuck and therefore ended, is replaced
    when the next question comes.

    Args:
        job: name of a function in ``mpru_tf.load_check.JOBS``.
        arguments: its arguments behind the first, each of which can be pickled.
        limits: default ``Limits()``.

    Raises:
        MPRUError: what the job raised, of the same class.
        VerificationError: it failed in an unforeseen way.
    """
    limits = limits or Limits()
    with _lock:
        for _ in range(2):
            try:
                worker, is_new = _started()
            except OSError as error:
                return Ended("", "", f"could not be started ({error})")
            try:
                answer = worker.ask(job, arguments, limits)
            except BaseException:  # above all an interrupt: an answer to this would be taken for one to the next
                _stop()
                raise
            if not isinstance(answer, Ended):
                break
            _stop()
            if is_new or answer.step:
                return answer
            # It had been idle and ended, of its own or by another's hand, just now: that is not about the model.
    if "error" not in answer:
        return answer["value"]
    raised = getattr(errors, str(answer["error"]), None)
    is_ours = isinstance(raised, type) and issubclass(raised, MPRUError)
    raise (raised if is_ours and raised else VerificationError)(str(answer.get("message")))


class _Worker:
    """One child process and the two pipes to it."""

    def __init__(self) -> None:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}  # the GPU may be busy serving the version in question
        paths = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        wants_log = os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1")
        self.process = subprocess.Popen(
            [sys.executable or "", "-c", _START, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if wants_log else subprocess.DEVNULL,
            env=env,
            bufsize=0,
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)  # a stuck process reads nothing either
        self._is_ready = False
        self._received = b""

    def ask(self, job: str, arguments: tuple[object, ...], limits: Limits) -> Any:
        if not self._is_ready:
            started = self._line(time.monotonic() + limits.starting, limits.starting)
            if not isinstance(started, dict):
                return Ended("", "", started)
            self._is_ready = True
        token = secrets.token_hex(16)
        question = pickle.dumps((token, _op_modules(), job, arguments, math.ceil(limits.whole)))
        unheard = self._send(_LENGTH.pack(len(question)) + question, limits.starting)
        if unheard:
            return Ended("", "", unheard)
        step, about = "", ""
        end = time.monotonic() + limits.whole
        while True:
            limit, now = limits.of(step), time.monotonic()
            line = self._line(min(end, now + limit), limit if now + limit < end else limits.whole)
            if not isinstance(line, dict):
                return Ended(step, about, line)
            if line.get("token") != token:
                continue  # said by a model that found the pipe
            if "value" in line or "error" in line:
                return line
            step, about = str(line.get("step")), str(line.get("about"))

    def _send(self, data: bytes, limit: float) -> str:
        """Put a question; what happened instead, in words, or ''."""
        assert self.process.stdin is not None
        pipe, rest, deadline = self.process.stdin.fileno(), memoryview(data), time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_WRITE)
            while rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return f"took more than {limit:g} s"
                try:
                    rest = rest[os.write(pipe, rest) :]
                except BrokenPipeError:
                    return _how(self.process)
        return ""

    def _line(self, deadline: float, limit: float) -> dict[str, Any] | str:
        """The next line, a JSON object; or what happened instead, in words. ``limit`` is for those words."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return f"took more than {limit:g} s"
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    return _how(self.process)
                self._received += data
                if len(self._received) > _LONGEST_LINE:
                    return _NONSENSE
        line, _, self._received = self._received.partition(b"\n")
        try:
            value = json.loads(line)
        except ValueError:
            return _NONSENSE
        return value if isinstance(value, dict) else _NONSENSE

    def stop(self) -> None:
        """End the process, which has nothing to save, and let nothing of it remain."""
        self.process.kill()
        self.process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the pipes only: the process is another's."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _how(process: subprocess.Popen[bytes]) -> str:
    """What happened to a worker from which nothing more comes."""
    try:
        code = process.wait(timeout=30.0)  # until the system has taken back its memory
    except subprocess.TimeoutExpired:
        return "made the process fall silent"
    if code == -signal.SIGKILL:
        return "was ended by the system (signal 9), most likely for want of memory"
    return f"crashed TensorFlow (signal {-code})" if code < 0 else f"ended the process (exit status {code})"


def _op_modules() -> list[str]:
    """Modules of the packages that have brought custom ops into this process, for the worker to import as well.

    TensorFlow marks the module that it generates for each op library. Whichever module of a package holds one has
    loaded the library; importing it anew loads it anew. A single-file module may be somebody's script and is not run.
    """
    modules = [(name, vars(module)) for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")]
    generated = {id(space) for _, space in modules if "_IS_TENSORFLOW_PLUGIN" in space}
    if not generated:
        return []
    found = []
    for name, space in modules:
        if "." not in name and "__path__" not in space:
            continue
        values = list(space.values())
        if any(isinstance(value, type(sys)) and id(vars(value)) in generated for value in values):
            found.append(name)
    return sorted(found)


_lock = threading.Lock()
_worker: _Worker | None = None


def _started() -> tuple[_Worker, bool]:
    """The worker, and whether it was started just now. Only to be called under the lock."""
    global _worker
    if _worker is not None and _worker.process.poll() is None:
        return _worker, False
    _stop()
    _worker = _Worker()
    return _worker, True


def _stop() -> None:
    global _worker
    if _worker is not None:
        worker, _worker = _worker, None
        worker.stop()


def _forget_after_fork() -> None:
    """In a fork of the parent: the worker is not its own, and the lock may have been held when it forked."""
    global _lock, _worker
    _lock = threading.Lock()
    if _worker is not None:
        _worker.abandon()  # so that the worker sees its parent go
        _worker.process.returncode = 0  # not this process's to wait for
        _worker = None


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget_after_fork)


# --------------------------------------------------------------------------------------------------- the worker's side
def work() -> None:
    """Answer questions until the parent is gone. Never returns."""
    # The pipes get numbers of their own: a model may write to standard output, or read standard input.
    questions, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, asked), daemon=True).start()

    def say(**values: object) -> None:
        data = json.dumps(values).encode() + b"\n"
        while data:
            data = data[os.write(answers, data) :]

    import tensorflow as tf  # noqa: F401  before anyone waits for an answer

    from mpru_tf.load_check import JOBS

    _bound_memory()
    say(ready=True)
    while True:
        try:
            question = asked.get(timeout=_IDLE_SECONDS)
        except queue.Empty:  # TensorFlow holds half a gigabyte; the next question may wait for another worker
            os._exit(0)
        token, modules, job, arguments, seconds = pickle.loads(question)
        # Whatever a model does to this process, the kernel ends it, even when the parent no longer can.
        signal.alarm(seconds + 5)
        _import_all(modules)
        said = _said(lambda step, about: say(token=token, step=step, about=about), JOBS[job], arguments)  # noqa: B023
        signal.alarm(0)
        say(token=token, **said)


def _listen(questions: int, asked: queue.SimpleQueue[bytes]) -> None:
    """Pass questions on; end the process when the parent closes its end, as it does by ending, however it ends."""
    with os.fdopen(questions, "rb") as pipe:
        while True:
            length = pipe.read(_LENGTH.size)
            if len(length) < _LENGTH.size:
                os._exit(0)
            asked.put(pipe.read(*_LENGTH.unpack(length)))


def _said(report: Report, job: Callable[..., object], arguments: tuple[object, ...]) -> dict[str, object]:
    try:
        return {"value": job(report, *arguments)}
    except MPRUError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001  there is no list of what broken models make TensorFlow raise
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        message = explain("The load check failed in a way that was not foreseen.", received=said)
        return {"error": VerificationError.__name__, "message": message}


def _import_all(modules: list[str]) -> None:
    for name in modules:
        if name not in sys.modules:
            # Without its op library a model is not loaded, and the check says so.
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _bound_memory() -> None:
    """If memory runs out, it runs out here first."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # Linux only; a container's limit is met in this way too
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # Private writable memory, on top of what TensorFlow itself takes; not addresses, of which allocators reserve many.
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (used + physical, hard))
