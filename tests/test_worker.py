"""The worker: one process for all checks of its parent, which nothing that happens in it brings down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
import saved_models
import tensorflow as tf

from mpru_tf import worker
from mpru_tf.errors import VerificationError
from mpru_tf.saved_model.splice import Splice
from mpru_tf.worker import ASKING, Ended, Limits

DONE = Splice(0, "", "raw", "f/filtered", "f", "logits", 3)


def cut_out(*more: tf.compat.v1.NodeDef) -> list[tuple[bytes, Splice]]:
    """What the job 'filters' takes: a filter that hides class 1 of 3 logits, and nodes that it also runs."""
    with tf.Graph().as_default() as graph:
        raw = tf.compat.v1.placeholder(tf.float32, [None, 3], name="raw")
        with tf.control_dependencies([node() for node in more]):
            tf.add(raw, [0.0, -1e30, 0.0], name="f/filtered")
    return [(graph.as_graph_def().SerializeToString(), DONE)]


def abort() -> tf.Operation:
    return tf.raw_ops.Abort(error_msg="as told", exit_without_error=False)


def leave() -> tf.Operation:
    return tf.raw_ops.Abort(error_msg="", exit_without_error=True)


def loop() -> tf.Tensor:
    return tf.while_loop(lambda i: i < 10, lambda i: [(i + 1) % 7], [0])[0]


def chatter() -> tf.Operation:
    return tf.print("value", "[1, 2]\n", output_stream=sys.stdout)


def forge() -> tf.Operation:
    """Write answers into whatever file the process has open, the pipe to the parent included."""
    said = '{"value": "forged"}\n{"token": "", "value": "forged"}\n[1]\n'
    return tf.group(*(tf.io.write_file(f"/proc/self/fd/{number}", said) for number in range(4, 10)))


def process() -> subprocess.Popen[bytes]:
    assert worker._worker is not None
    return worker._worker.process


def test_one_worker_answers_all_questions() -> None:
    worker.prepare()
    first = process().pid
    assert worker.ask("filters", cut_out(), (1,), False) == ""
    assert worker.ask("filters", cut_out(), (2,), False) == "a forgotten class still gets probability 1"
    assert process().pid == first


def test_what_a_job_raises_arrives_as_what_it_is() -> None:
    with pytest.raises(VerificationError, match="'raw:0'"):
        worker.ask("filters", [(b"", DONE)], (1,), False)
    with pytest.raises(VerificationError, match=r"not foreseen.*TypeError"):
        worker.ask("filters")


def test_a_question_may_be_larger_than_a_pipe() -> None:
    (whole,) = cut_out()
    assert worker.ask("filters", [whole] * 5_000, (2,), False, limits=Limits(starting=60.0)) != ""
    with pytest.raises(VerificationError, match="DecodeError"):
        worker.ask("filters", [(b"\1" * 5_000_000, DONE)], (1,), False)


def test_a_worker_that_reads_nothing_is_given_up() -> None:
    assert worker.ask("filters", cut_out(), (1,), False) == ""
    os.kill(process().pid, signal.SIGSTOP)
    (whole,) = cut_out()
    before, started = process(), time.monotonic()
    answer = worker.ask("filters", [(whole[0] + b"\1" * 5_000_000, DONE)], (1,), False, limits=Limits(starting=1.0))
    assert isinstance(answer, Ended)  # the next one has no more than a second to start either
    assert "took more than 1 s" in str(answer)
    assert time.monotonic() - started < 30.0
    assert before.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("node", "how"),
    [
        (abort, "asking the filter crashed TensorFlow (signal 6)"),
        (leave, "asking the filter ended the process (exit status 0)"),
        (loop, "asking the filter took more than 2 s"),
    ],
)
def test_a_worker_that_ends_or_is_stuck_is_told_and_replaced(node: object, how: str) -> None:
    worker.prepare()
    before = process()
    ended = worker.ask("filters", cut_out(node), (1,), False, limits=Limits(asking=2.0))
    assert isinstance(ended, Ended)
    assert str(ended) == how
    assert ended.step == ASKING
    assert before.returncode is not None  # no zombie
    assert worker.ask("filters", cut_out(), (1,), False) == ""


def test_the_whole_is_limited_too() -> None:
    ended = worker.ask("filters", cut_out(loop), (1,), False, limits=Limits(whole=1.0))
    assert "took more than 1 s" in str(ended)


def test_a_worker_that_was_killed_while_idle_is_replaced() -> None:
    assert worker.ask("filters", cut_out(), (1,), False) == ""
    os.kill(process().pid, signal.SIGKILL)
    assert worker.ask("filters", cut_out(), (1,), False) == ""


def test_what_a_model_writes_is_no_answer() -> None:
    assert worker.ask("filters", cut_out(chatter), (1,), False) == ""
    found = worker.ask("filters", cut_out(forge), (1,), False)
    assert "forged" not in str(found)


def test_threads_wait_for_each_other() -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(worker.ask, "filters", cut_out(), (number % 2,), False) for number in range(12)]
        assert ["probability" in one.result() for one in asked] == [number % 2 == 0 for number in range(12)]


def test_an_interrupt_is_the_callers_and_leaves_nothing_behind() -> None:
    def interrupt(_: int, frame: FrameType | None) -> None:
        # Python drops what is raised in the callback of a weak reference: a moment later, then.
        if frame is not None and frame.f_code.co_filename.endswith("_weakrefset.py"):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        raise KeyboardInterrupt

    worker.prepare()
    before = process()
    assert worker.ask("filters", cut_out(), (1,), False) == ""
    usual = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            worker.ask("filters", cut_out(loop), (1,), False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, usual)
    assert before.returncode is not None
    assert worker.ask("filters", cut_out(), (1,), False) == ""


@pytest.mark.skipif(not Path("/proc/self/limits").is_file(), reason="looks into Linux's /proc")
def test_the_worker_has_no_gpu_and_runs_out_of_memory_first() -> None:
    assert worker.ask("filters", cut_out(), (1,), False) == ""
    proc = Path("/proc") / str(process().pid)
    assert b"CUDA_VISIBLE_DEVICES=-1" in (proc / "environ").read_bytes().split(b"\0")
    assert (proc / "oom_score_adj").read_text().strip() == "1000"
    (bound,) = (line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max data size"))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert physical <= int(bound.split()[3]) < physical + 2**36


def test_no_interpreter_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr(worker, "_worker", None)
    ended = worker.ask("filters", cut_out(), (1,), False)
    assert isinstance(ended, Ended)
    assert ended.step == ""
    assert "could not be started" in str(ended)


def test_a_worker_that_cannot_import_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_worker", None)
    monkeypatch.setattr(sys, "path", [])
    ended = worker.ask("filters", [], (1,), False)
    assert str(ended) == "the process for the load check ended the process (exit status 1)"
    assert worker._worker is None


# ----------------------------------------------------------------------------------------- in an interpreter of its own
def run(folder: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *options, str(file)], capture_output=True, text=True, env=env, timeout=120)


def is_gone(pid: int) -> bool:
    """Whether a process that is not a child of this one has ended."""
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # nobody has picked it up yet
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into Linux's /proc")
@pytest.mark.parametrize(
    ("before", "end"),
    [
        ("", "os.kill(os.getpid(), signal.SIGKILL)"),  # while it imports TensorFlow
        ("worker.ask('filters', [], (1,), False)", "os.kill(os.getpid(), signal.SIGKILL)"),
        ("worker.ask('filters', [], (1,), False)", "os._exit(1)"),
        ("", "sys.exit(1)"),
    ],
)
def test_the_worker_ends_with_its_parent(tmp_path: Path, before: str, end: str) -> None:
    script = f"""
        import os, signal, sys
        from mpru_tf import worker
        worker.prepare()
        {before}
        print(worker._worker.process.pid, flush=True)
        {end}
    """
    done = run(tmp_path, script)
    assert done.stderr == ""
    assert is_gone(int(done.stdout))


def test_the_parent_needs_no_tensorflow_and_leaves_no_warning(tmp_path: Path) -> None:
    script = """
        import sys, time
        from mpru_tf import worker
        started = time.monotonic()
        worker.prepare()
        assert time.monotonic() - started < 1.0
        assert worker.ask("filters", [], (1,), False) == ""
        assert "tensorflow" not in sys.modules
    """
    done = run(tmp_path, script, "-W", "error", "-X", "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_fork_has_a_worker_of_its_own(tmp_path: Path) -> None:
    script = """
        import os
        from mpru_tf import worker
        ask = lambda: worker.ask("filters", [], (1,), False) == "" and worker._worker.process.pid
        first = ask()
        child = os.fork()
        if child == 0:
            os._exit(0 if ask() not in (False, first) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask() == first
    """
    done = run(tmp_path, script, "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unguarded_script_runs_once(tmp_path: Path) -> None:
    saved_models.two_functions(tmp_path / "model" / "1")
    script = f"""
        import mpru_tf
        print("begun")
        result = mpru_tf.forget({str(tmp_path / "model")!r}, [1])
        print(result.load_check["status"], mpru_tf.verify(result.path).passed)
    """
    done = run(tmp_path, script)
    assert done.stdout.splitlines() == ["begun", "passed True"], done.stderr


# -------------------------------------------------------------------------------------------------------- custom ops
def test_packages_that_brought_ops_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow puts the wrappers of an op library into a marked module; whichever package keeps one, loaded it."""
    package = tmp_path / "vendor_ops"
    (package / "python").mkdir(parents=True)
    (package / "__init__.py").write_text("from vendor_ops.python import ops\n")
    (package / "python" / "__init__.py").write_text("")
    # As tf.load_op_library does once it has loaded the library.
    source = "import sys, types\ngenerated = types.ModuleType('0a1b')\ngenerated._IS_TENSORFLOW_PLUGIN = True\n"
    (package / "python" / "ops.py").write_text(source + "sys.modules['0a1b'] = generated\n")
    (tmp_path / "vendor_script.py").write_text("from vendor_ops.python.ops import generated\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before, others = set(sys.modules), worker._op_modules()  # TensorFlow itself has some
    assert all(name.startswith("tensorflow.") for name in others)
    try:
        __import__("vendor_script")
        # The script may do anything when it is imported.
        assert worker._op_modules() == sorted([*others, "vendor_ops.python.ops"])
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
