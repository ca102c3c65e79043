"""Which children of a base path are versions, and which versions are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpru_tf.serving.source import FileSystemSource, find_versions, latest, parse_version


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


def test_a_poll_tells_what_is_wanted_now(tmp_path: Path) -> None:
    told: list[dict[int, Path]] = []
    source = FileSystemSource(tmp_path, told.append)
    source.poll()
    (tmp_path / "1").mkdir()
    source.poll()
    (tmp_path / "2").mkdir()
    source.poll()
    (tmp_path / "2").rmdir()
    source.poll()
    assert told == [{}, {1: tmp_path / "1"}, {2: tmp_path / "2"}, {1: tmp_path / "1"}]


def test_a_base_path_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    told: list[dict[int, Path]] = []
    FileSystemSource(tmp_path / "gone", told.append).poll()
    assert told == []
