"""Which children of a base path are versions, and which versions are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpru_tf.serving.source import (
    FileSystemSource,
    Watched,
    all_versions,
    find_versions,
    latest,
    parse_version,
    specific,
)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", 1),
        ("0", 0),
        ("007", 7),
        ("-3", -3),
        ("+4", 4),
        (" 5 ", 5),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", None),
        ("1" * 5000, None),
        ("v1", None),
        ("1.tmp", None),
        ("1e3", None),
        ("0x1", None),
        ("1_000", None),
        ("", None),
        ("-", None),
        ("- 1", None),
        ("\u0663", None),  # a digit, but not to C++
        (".mpru-staging-2", None),
    ],
)
def test_parse_version(name: str, version: int | None) -> None:
    assert parse_version(name) == version


def test_only_numeric_children_are_versions(tmp_path: Path) -> None:
    for name in ("10", "9", "-1", "tmp", "2.staging", "008"):
        (tmp_path / name).mkdir()
    assert list(find_versions(tmp_path).items()) == [
        (-1, tmp_path / "-1"),
        (8, tmp_path / "008"),
        (9, tmp_path / "9"),
        (10, tmp_path / "10"),
    ]


def test_of_two_names_for_one_version_the_alphabetically_last_counts(tmp_path: Path) -> None:
    for name in ("7", "007"):
        (tmp_path / name).mkdir()
    assert find_versions(tmp_path) == {7: tmp_path / "7"}


def test_latest_wants_the_highest_numbers() -> None:
    versions = {number: Path(str(number)) for number in (3, 1, 10, 2)}
    assert list(latest()(versions)) == [10]
    assert list(latest(2)(versions)) == [3, 10]
    assert list(latest(9)(versions)) == [1, 2, 3, 10]
    assert latest()({}) == {}


def test_all_and_specific_versions() -> None:
    versions = {number: Path(str(number)) for number in (1, 3, 10)}
    assert all_versions()(versions) == versions
    assert list(specific([10, 1, 7])(versions)) == [1, 10]
    assert specific([2])(versions) == {}


def test_a_poll_tells_what_is_wanted_now(tmp_path: Path) -> None:
    told: list[tuple[str, dict[int, Path]]] = []
    source = FileSystemSource(lambda *news: told.append(news))
    source.watch({"a": Watched(tmp_path, latest())})
    for change in ((tmp_path / "1").mkdir, (tmp_path / "2").mkdir, (tmp_path / "2").rmdir):
        change()
        source.poll()
    assert told == [("a", {}), ("a", {1: tmp_path / "1"}), ("a", {2: tmp_path / "2"}), ("a", {1: tmp_path / "1"})]


def test_a_base_path_that_is_gone_changes_nothing_for_any_model(tmp_path: Path) -> None:
    told: list[tuple[str, dict[int, Path]]] = []
    source = FileSystemSource(lambda *news: told.append(news))
    source.watch({"gone": Watched(tmp_path / "gone", latest()), "there": Watched(tmp_path, latest())})
    assert told == [("there", {})]


def test_a_new_list_replaces_the_old_one(tmp_path: Path) -> None:
    told: list[tuple[str, dict[int, Path]]] = []
    source = FileSystemSource(lambda *news: told.append(news))
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "b" / "2").mkdir(parents=True)
    source.watch({"old": Watched(tmp_path / "a", latest()), "both": Watched(tmp_path / "a", latest())})
    told.clear()
    source.watch({"both": Watched(tmp_path / "b", latest()), "new": Watched(tmp_path / "b", latest())})
    assert told == [("old", {}), ("both", {2: tmp_path / "b" / "2"}), ("new", {2: tmp_path / "b" / "2"})]
    told.clear()
    source.poll()
    assert [name for name, _ in told] == ["both", "new"]


def test_a_negative_pause_never_looks(tmp_path: Path) -> None:
    told: list[tuple[str, dict[int, Path]]] = []
    source = FileSystemSource(lambda *news: told.append(news), -1)
    source.watch({"a": Watched(tmp_path, latest())})
    source.start()
    source.stop()
    assert told == []
