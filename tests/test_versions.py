"""Version directories: found, staged, linked and published; never replaced, never half there, whoever is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
from conftest import ModelStore
from hypothesis import given
from hypothesis import strategies as st

import mpru_tf
from mpru_tf.errors import CorruptModelError, ModelNotFoundError, PublishError
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.versions import (
    STAGING_PREFIX,
    _rename_in_turn,
    find_version,
    link_tree,
    list_versions,
    parse_version,
    publish,
    staged,
)

LARGEST = 2**63 - 1


def version(base: Path, name: str | int) -> Path:
    """A version directory with one file in it."""
    path = base / str(name)
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"")
    return path


def publish_one(base: Path, content: str = "") -> int:
    with staged(base) as staging:
        (staging / "saved_model.pb").write_text(content)
        return publish(staging, base)


# ------------------------------------------------------------------------------------------------------- finding
@given(st.integers(0, LARGEST))
def test_every_version_number_is_read_back(number: int) -> None:
    assert parse_version(str(number)) == number
    assert parse_version(f"00{number}") == number


@pytest.mark.parametrize(
    "name",
    ["", "-1", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "1_000", "one", "²", "１", ".mpru-staging-1", str(LARGEST + 1)],
)
def test_other_names_are_no_versions(name: str) -> None:
    assert parse_version(name) is None


def test_versions_are_listed_by_number(tmp_path: Path) -> None:
    assert list_versions(tmp_path / "nowhere") == []
    for name in (10, 9, "007", 1700000000, "notes", ".mpru-staging-5"):
        version(tmp_path, name)
    (tmp_path / "8").write_text("a file is no version")
    (tmp_path / "empty").mkdir()
    (tmp_path / "3").mkdir()  # a server takes it for one, whether or not it is complete
    (tmp_path / "4").symlink_to(tmp_path / "10")
    assert list_versions(tmp_path) == [3, 4, 7, 9, 10, 1700000000]


def test_a_version_directory_or_the_newest_of_a_base_path_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "model"
    for name in ("9", "010"):
        version(base, name)
    assert find_version(base / "9") == mpru_tf.versions.VersionDirectory(base / "9", base, 9)
    assert find_version(base) == mpru_tf.versions.VersionDirectory(base / "010", base, 10)
    monkeypatch.chdir(base)
    assert find_version(".").path == base / "010"
    assert find_version("9").base == base
    unnumbered = version(tmp_path, "export")
    assert find_version(unnumbered) == mpru_tf.versions.VersionDirectory(unnumbered, None, None)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path, match in (
        (tmp_path / "nowhere", "nothing at this path"),
        (tmp_path, "no SavedModel and no version"),
        (version(tmp_path, "x") / "saved_model.pb", "is a file"),
        ("s3://bucket/model", "Object stores"),
    ):
        with pytest.raises(ModelNotFoundError, match=match):
            find_version(path)


# ------------------------------------------------------------------------------------------------------- staging
def test_staging_is_beside_the_versions_and_gone_afterwards(tmp_path: Path) -> None:
    with staged(tmp_path) as staging:
        assert staging.parent == tmp_path
        assert parse_version(staging.name) is None
        (staging / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), staged(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_base_path_is_made_and_taken_away_again_if_nothing_came_of_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyError), staged(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert publish_one(tmp_path / "a" / "b") == 1
    assert list((tmp_path / "a" / "b").iterdir()) == [tmp_path / "a" / "b" / "1"]


def test_what_a_killed_process_left_is_cleaned_but_not_what_a_living_one_uses(tmp_path: Path) -> None:
    dead = tmp_path / f"{STAGING_PREFIX}dead"
    (dead / "variables").mkdir(parents=True)
    (dead / "variables" / "data").write_text("half")
    code = (
        "import sys; from pathlib import Path; from mpru_tf.versions import staged\n"
        "with staged(Path(sys.argv[1])) as staging: print(staging, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        living = Path(process.stdout.readline().strip())
        assert not dead.exists()
        with staged(tmp_path) as one, staged(tmp_path) as two:  # nor does one process clean up under itself
            assert all(path.is_dir() for path in (living, one, two))
        process.kill()
        process.wait()
        assert living.exists()
        process.stdin.close()
    with staged(tmp_path):
        assert not living.exists()


def test_leftovers_that_cannot_be_judged_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING_PREFIX}gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / f"{STAGING_PREFIX}loop").symlink_to(tmp_path / f"{STAGING_PREFIX}loop")
    assert publish_one(tmp_path) == 1


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "base path"), (errno.EIO, "Nothing was published")],
)
def test_failures_while_staging_say_what_to_do(tmp_path: Path, code: int, hint: str) -> None:
    with pytest.raises(PublishError, match=hint) as caught, staged(tmp_path):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_base_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="could not be written"), staged(tmp_path / "file" / "base"):
        pass
    assert (tmp_path / "file").is_file()


def test_a_read_only_base_path_is_refused() -> None:
    code = (
        "import os, sys; from pathlib import Path; from mpru_tf.versions import staged\n"
        "from mpru_tf.errors import PublishError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # whom the mode of a directory does stop
        "try:\n"
        "    with staged(Path(sys.argv[1])): print('staged')\n"
        "except PublishError as error: print(error)"
    )
    base = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        base.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=True)
    finally:
        base.chmod(0o755)
        shutil.rmtree(base)
    assert "could not be written" in done.stdout
    assert "base path" in done.stdout


# --------------------------------------------------------------------------------------------------------- linking
@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = version(tmp_path / "base", 1)
    for name, data in (
        ("variables/data", b"weights"),
        ("assets/vocab.txt", b"a\nb"),
        ("assets.extra/x/y", b"z"),
        ("note", b"n"),
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "empty").mkdir()
    return path


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_every_file_comes_over_but_those_left_out(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    how = link_tree(source, target, without={"saved_model.pb", "assets.extra/x/y"})
    assert how in ("reflink", "hard link")
    assert files(target) == {"variables/data": b"weights", "assets/vocab.txt": b"a\nb", "note": b"n"}
    assert (target / "empty").is_dir()
    shared = inode(target / "variables/data") == inode(source / "variables/data")
    assert shared == (how == "hard link")


def test_a_copy_shares_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    assert link_tree(source, target, copy=True) == "copy"
    assert files(target) == files(source)
    assert inode(target / "note") != inode(source / "note")
    (source / "note").write_bytes(b"changed in place")
    assert (target / "note").read_bytes() == b"n"
    assert (target / "note").stat().st_mtime_ns <= (source / "note").stat().st_mtime_ns


def test_symbolic_links_come_over_as_what_they_point_to(source: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts them, and as artifact stores keep them: version 1 may be a forest of links."""
    store = tmp_path / "store"
    (store / "folder").mkdir(parents=True)
    (store / "blob").write_bytes(b"blob")
    (store / "folder" / "deep").write_bytes(b"deep")
    (source / "linked").symlink_to(store / "blob")
    (source / "relative").symlink_to(Path("note"))
    (source / "folder").symlink_to(store / "folder")
    target = tmp_path / "target"
    target.mkdir()
    link_tree(source, target)
    assert files(target) == files(source) | {"folder/deep": b"deep"}
    assert not [path for path in target.rglob("*") if path.is_symlink()]
    shutil.rmtree(store)
    assert (target / "linked").read_bytes() == b"blob"


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "folder", "self"])
def test_links_that_lead_in_a_circle_are_refused(source: Path, tmp_path: Path, target: str) -> None:
    (source / "folder").mkdir()
    (source / "folder" / "self").symlink_to(target)
    new = tmp_path / "target"
    new.mkdir()
    with pytest.raises(CorruptModelError, match="folder/self (leads back|is a link that leads nowhere)"):
        link_tree(source, new)
    assert list(new.iterdir()) == []


def test_a_link_to_the_folder_above_the_base_path_is_a_circle_too(source: Path, tmp_path: Path) -> None:
    """It would lead to the very directory that is being written."""
    (source / "up").symlink_to(tmp_path.parent)
    target = tmp_path / "base" / "target"
    target.mkdir()
    with pytest.raises(CorruptModelError, match="up leads back"):
        link_tree(source, target)


def test_one_directory_may_come_over_twice(source: Path, tmp_path: Path) -> None:
    (source / "first").mkdir()
    (source / "first" / "x").write_text("x")
    (source / "second").symlink_to("first")
    target = tmp_path / "target"
    target.mkdir()
    link_tree(source, target)
    assert files(target)["second/x"] == b"x"


def test_links_that_multiply_are_refused(source: Path, tmp_path: Path) -> None:
    """Sixty links stand for more files than any disk holds."""
    for number in range(30):
        (source / f"d{number}").mkdir()
        for name in "ab":
            (source / f"d{number}" / name).symlink_to(f"../d{number + 1}")
    (source / "d30").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CorruptModelError, match="links that multiply"):
        link_tree(source, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "nowhere"])
def test_what_is_no_file_is_refused_and_not_opened(source: Path, tmp_path: Path, kind: str) -> None:
    path = source / "variables" / "special"
    listening = socket.socket(socket.AF_UNIX)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's address has room for hundred letters
            listening.bind(path.name)
            os.chdir(here)
        case "device":
            path.symlink_to("/dev/zero")
        case "nowhere":
            path.symlink_to("/nowhere")
    target = tmp_path / "target"
    target.mkdir()
    with listening, pytest.raises(CorruptModelError, match="variables/special is a"):
        link_tree(source, target)
    assert list(target.iterdir()) == []
    link_tree(source, target, without={"variables/special"})
    assert (target / "variables" / "data").is_file()


def test_another_file_system_gets_copies(source: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == source.stat().st_dev:
        pytest.skip("needs a second file system that can be written, at /dev/shm")
    target = Path(tempfile.mkdtemp(dir=shm))
    try:
        assert link_tree(source, target) == "copy"
        assert files(target) == files(source)
    finally:
        shutil.rmtree(target)


def test_a_model_is_published_on_another_file_system(models: ModelStore, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system that can be written, at /dev/shm")
    target = Path(tempfile.mkdtemp(dir=shm))
    try:
        result = mpru_tf.forget(models.base("keras3", tmp_path), [1], into=target)
        assert (result.files, result.path) == ("copy", target / "1")
        assert mpru_tf.verify(result.path).passed
    finally:
        shutil.rmtree(target)


# ------------------------------------------------------------------------------------------------------ publishing
def test_the_next_number_is_taken_and_nothing_replaced(tmp_path: Path) -> None:
    assert publish_one(tmp_path, "first") == 1
    assert publish_one(tmp_path, "second") == 2
    (tmp_path / "7").mkdir()
    assert publish_one(tmp_path) == 8
    assert list((tmp_path / "7").iterdir()) == []
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "7", "8"]


def test_what_is_no_version_keeps_its_name_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a file")
    (tmp_path / "2").symlink_to(tmp_path / "nowhere")
    assert publish_one(tmp_path) == 3
    assert (tmp_path / "1").read_text() == "a file"
    assert (tmp_path / "2").is_symlink()


def test_the_largest_number_has_no_next(tmp_path: Path) -> None:
    version(tmp_path, LARGEST)
    with pytest.raises(PublishError, match="none is left"):
        publish_one(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [str(LARGEST)]


@pytest.mark.parametrize("taken", ["full", "empty", "file", "dangling", None])
def test_renaming_where_the_file_system_knows_no_exclusive_rename(tmp_path: Path, taken: str | None) -> None:
    """As on NFS: the way that is taken there, taken here."""
    one, target = version(tmp_path, "staging"), tmp_path / "1"
    match taken:
        case "full":
            version(tmp_path, 1)
        case "empty":
            target.mkdir()
        case "file":
            target.write_text("x")
        case "dangling":
            target.symlink_to(tmp_path / "nowhere")
    if taken is None:
        _rename_in_turn(one, target)
        assert (target / "saved_model.pb").is_file()
        assert not one.exists()
    else:
        with pytest.raises(FileExistsError):
            _rename_in_turn(one, target)
        assert one.is_dir()


def test_writers_in_several_processes_get_a_number_each(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mpru_tf.versions import publish, staged\n"
        "base = Path(sys.argv[1]); print('ready', flush=True); sys.stdin.read(1)\n"
        "for number in range(10):\n"
        "    with staged(base) as staging:\n"
        "        (staging / 'saved_model.pb').write_text(f'{sys.argv[2]} {number}')\n"
        "        print(publish(staging, base), f'{sys.argv[2]} {number}', flush=True)"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(writer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for writer in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("g")
        writer.stdin.flush()
    lines = [line.split(" ", 1) for writer in writers for line in writer.communicate()[0].splitlines()]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sorted(int(number) for number, _ in lines) == list(range(1, 31))
    for number, content in lines:
        assert (tmp_path / number / "saved_model.pb").read_text() == content
    assert len(list(tmp_path.iterdir())) == 30


# --------------------------------------------------------------------------------- the whole job, interrupted
# Imports TensorFlow once and then forks one process for each job that it reads, so that a test can have many of them.
# A job may be told to kill itself at its n-th call of the operating system that has to do with files.
FORKING_SERVER = """
import json, os, resource, signal, sys
import tensorflow, mpru_tf, mpru_tf.layer, mpru_tf.verification
from mpru_tf.errors import MPRUError

def run(job):
    calls = 0
    def count(event, arguments):
        nonlocal calls
        if event in ("open", "os.mkdir", "os.link", "os.remove", "os.rename", "os.rmdir", "ctypes.dlsym"):
            calls += 1
            if calls == job.get("kill_at"):
                os.kill(os.getpid(), signal.SIGKILL)
    if job.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    sys.addaudithook(count)
    try:
        result = mpru_tf.forget(job["model"], job["classes"], into=job["into"], load_check=False)
        return {"version": result.version, "calls": calls}
    except MPRUError as error:
        return {"error": type(error).__name__, "message": str(error)}

print("ready", flush=True)
for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(run(json.loads(line))).encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    answer = os.read(reading, 65536) or json.dumps({"killed": os.WTERMSIG(status)}).encode()
    os.close(reading)
    print(answer.decode(), flush=True)
"""


class ForkingServer:
    """Runs mpru_tf.forget in processes that may die."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._jobs, self._answers = process.stdin, process.stdout
        while self._answers.readline() != "ready\n":
            assert process.poll() is None

    def run(self, model: Path, into: Path, **job: Any) -> dict[str, Any]:
        self._jobs.write(json.dumps({"model": str(model), "into": str(into), "classes": [2], **job}) + "\n")
        self._jobs.flush()
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[ForkingServer]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKING_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield ForkingServer(process)
        process.kill()


def test_killed_at_any_moment_there_is_no_new_version_or_a_complete_one(
    server: ForkingServer, models: ModelStore, tmp_path: Path
) -> None:
    def fresh(name: str) -> Path:
        return models.base("keras3", tmp_path / name)

    base = fresh("whole")
    before = files(base / "1")
    whole = server.run(base, base)
    calls, complete = whole["calls"], set(files(base / "2"))
    assert calls > 20
    seen: set[str] = set()
    # Some moments of the whole way, and all of its end: syncing, renaming, cleaning up.
    for moment in sorted({*np.linspace(1, calls - 6, 6, dtype=int).tolist(), *range(calls - 5, calls + 1)}):
        base = fresh(str(moment))
        assert server.run(base, base, kill_at=moment) == {"killed": 9}, moment
        assert files(base / "1") == before
        leftovers, published = list(base.glob(f"{STAGING_PREFIX}*")), list_versions(base)[1:]
        seen |= {"staged"} if leftovers else ({"published"} if published else {"nothing"})
        assert len(leftovers) + len(published) <= 1
        for number in published:
            assert set(files(base / str(number))) == complete
            assert mpru_tf.verify(base / str(number), load_check=False).passed
        later = server.run(base / "1", base)
        assert later["version"] == 2 + len(published)
        assert {path.name for path in base.iterdir()} == {"1", *map(str, published), str(later["version"])}
    assert seen == {"nothing", "staged", "published"}
    assert mpru_tf.verify(base).passed
    with LoadedModel(base / "1") as model:
        (key,) = model.signatures["serving_default"].inputs
        assert np.all(model.run("serving_default", {key: saved_models.inputs()})["output_0"][:, 2] > 0)


@pytest.mark.parametrize("largest_file", [1, 2_000, 20_000])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(
    server: ForkingServer, models: ModelStore, tmp_path: Path, largest_file: int
) -> None:
    base = models.base("keras3", tmp_path)
    before = files(base)
    assert (base / "1" / "saved_model.pb").stat().st_size > 20_000
    answer = server.run(base, base, largest_file=largest_file)
    assert answer["error"] == "PublishError"
    assert "could not be written" in answer["message"]
    assert files(base) == before
    assert [path.name for path in base.iterdir()] == ["1"]
    assert server.run(base, base)["version"] == 2
