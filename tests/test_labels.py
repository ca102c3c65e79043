"""Labels: read, found, written, and the ways to name a class."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.errors import ForgetListError, LabelsError
from mpru_tf.labels import FoundLabels, find_labels, labels_of_model, parse_classes, read_labels, write_labels

ANIMALS = ["cat", "dog", "crane, bird", "horse", "crane"]

# Labels as people write them, commas and quotes included: one line, no blanks around.
labels_of_classes = st.lists(
    st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1).filter(
        lambda text: text == text.strip() and len(text.splitlines()) == 1 and not text.startswith("﻿")
    ),
    min_size=1,
    max_size=12,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestRead:
    @pytest.mark.parametrize("text", ["cat\ndog\n", "cat\ndog", "\ufeffcat\r\ndog\r\n\r\n", "  cat \ndog\n\n\n"])
    def test_lines(self, tmp_path: Path, text: str) -> None:
        assert read_labels(write(tmp_path / "labels.txt", text)) == ["cat", "dog"]

    @pytest.mark.parametrize("value", [["cat", "dog"], {"0": "cat", "1": "dog"}, {"1": "dog", "0": "cat"}])
    def test_json(self, tmp_path: Path, value: object) -> None:
        assert read_labels(write(tmp_path / "labels.json", json.dumps(value))) == ["cat", "dog"]

    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("0 cat\n1 crane, bird\n2 two words\n", ["cat", "crane, bird", "two words"]),
            ("0\tcat\n1\tdog\n", ["cat", "dog"]),
            ("0 cat\n2 dog\n", ["0 cat", "2 dog"]),
            ("0\n1\n", ["0", "1"]),
            ("0 cat\n", ["0 cat"]),
        ],
    )
    def test_numbered_lines(self, tmp_path: Path, text: str, labels: list[str]) -> None:
        assert read_labels(write(tmp_path / "labels.txt", text)) == labels

    @pytest.mark.parametrize(
        ("name", "text", "labels"),
        [
            ("labels.csv", 'index,label\n1,"crane, bird"\n0,cat\n', ["cat", "crane, bird"]),
            ("labels.csv", "cat,0\ndog,1\n\n", ["cat", "dog"]),
            ("labels.csv", 'cat\n"crane, bird"\n', ["cat", "crane, bird"]),
            ("labels.tsv", "0\tcat\n1\tdog\n", ["cat", "dog"]),
        ],
    )
    def test_columns(self, tmp_path: Path, name: str, text: str, labels: list[str]) -> None:
        assert read_labels(write(tmp_path / name, text)) == labels

    @pytest.mark.parametrize(
        "text",
        ["cat,dog\nant,bee\n", "1,cat\n2,dog\n", "0,1\n1,0\n", "0,cat,x\n1,dog,y\n", "0,cat\n1,\n", "0,a\n0,b\n"],
    )
    def test_columns_that_could_mean_anything(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(LabelsError, match=r"columns.*labels\.csv"):
            read_labels(write(tmp_path / "labels.csv", text))

    def test_line_numbers_stay_class_indices(self, tmp_path: Path) -> None:
        with pytest.raises(LabelsError, match="line 2"):
            read_labels(write(tmp_path / "labels.txt", "cat\n\ndog\n"))

    @pytest.mark.parametrize(
        "text", ["{", "{}", "[]", "3", '{"a": "cat"}', '{"0": "cat", "2": "dog"}', '["cat", 1]', '["cat", " "]']
    )
    def test_bad_json(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(LabelsError, match=r"labels\.json"):
            read_labels(write(tmp_path / "labels.json", text))

    def test_missing_empty_binary(self, tmp_path: Path) -> None:
        with pytest.raises(LabelsError, match="cannot be read"):
            read_labels(tmp_path / "labels.txt")
        with pytest.raises(LabelsError, match="cannot be read"):
            read_labels(tmp_path)
        with pytest.raises(LabelsError, match="no labels"):
            read_labels(write(tmp_path / "empty.txt", "\n"))
        (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(LabelsError, match="not UTF-8"):
            read_labels(tmp_path / "binary.txt")


class TestFind:
    def test_none(self, tmp_path: Path) -> None:
        assert find_labels(tmp_path) is None

    @given(labels=labels_of_classes)
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
        version = tmp_path_factory.mktemp("version")
        write_labels(version, labels)
        assert find_labels(version) == labels

    @pytest.mark.parametrize("label", ["", " ", "two\nlines"])
    def test_unwritable(self, tmp_path: Path, label: str) -> None:
        with pytest.raises(LabelsError, match="class 1"):
            write_labels(tmp_path, ["cat", label])


class TestOfModel:
    """The files; what the graph says is tested with it, in saved_model/test_label_sources.py."""

    def found(self, version: Path, classes: int = 3) -> FoundLabels | None:
        return labels_of_model(version, [], classes)

    def version(self, tmp_path: Path) -> Path:
        path = tmp_path / "model" / "1"
        (path / "assets").mkdir(parents=True)
        return path

    def test_nothing(self, tmp_path: Path) -> None:
        assert self.found(self.version(tmp_path)) is None

    @pytest.mark.parametrize(
        "name",
        ["assets/labels.txt", "assets/Class_Names.txt", "assets.extra/imagenet.labels", "labels.txt", "../labels.txt"],
    )
    def test_places(self, tmp_path: Path, name: str) -> None:
        version = self.version(tmp_path)
        (version / name).parent.mkdir(exist_ok=True)
        write(version / name, "0 cat\n1 dog\n2 eel\n")
        found = self.found(version)
        assert found is not None
        assert found.labels == ("cat", "dog", "eel")
        assert Path(name).name in found.where
        assert self.found(version, 4) is None

    @pytest.mark.parametrize("name", ["assets/vocab.txt", "assets/tokens.csv", "../names.txt", "../../labels.txt"])
    def test_other_files_of_three_lines(self, tmp_path: Path, name: str) -> None:
        version = self.version(tmp_path)
        write(version / name, "cat\ndog\neel\n")
        assert self.found(version) is None

    def test_the_explicit_file_wins_whatever_it_holds(self, tmp_path: Path) -> None:
        version = self.version(tmp_path)
        write(version / "labels.txt", "cat\ndog\neel\n")
        write_labels(version, ["one", "two"])
        assert self.found(version) == FoundLabels(("one", "two"), "assets.extra/labels.txt")

    def test_contradiction(self, tmp_path: Path) -> None:
        version = self.version(tmp_path)
        write(version / "labels.txt", "cat\ndog\neel\n")
        write(version / "assets" / "classes.txt", "cat\neel\ndog\n")
        found = self.found(version)
        assert found is not None
        assert found.labels is None
        assert "labels.txt calls class 1 'dog', assets/classes.txt calls it 'eel'" in found.where

    def test_files_that_only_look_like_labels(self, tmp_path: Path) -> None:
        version = self.version(tmp_path)
        (version / "assets" / "labels.txt").write_bytes(b"\xff\xfe\x00")
        (version / "assets" / "classes.txt").mkdir()
        write(version / "assets" / "labels.json", "{")
        assert self.found(version) is None


class TestParse:
    @pytest.mark.parametrize(
        ("specs", "expected"),
        [
            ([3], (3,)),
            ([np.int64(3), 0], (0, 3)),
            (["3"], (3,)),
            ("3", (3,)),
            (["3,0", "1"], (0, 1, 3)),
            (["cat"], (0,)),
            ("horse,cat", (0, 3)),
            ([" horse , 0 "], (0, 3)),
            (["crane, bird"], (2,)),
            (['"crane, bird",cat'], (0, 2)),
            (["crane"], (4,)),
            (["label:crane, bird"], (2,)),
            (["label:cat", "index:1"], (0, 1)),
        ],
    )
    def test_forms(self, specs: list[str | int] | str, expected: tuple[int, ...]) -> None:
        assert parse_classes(specs, ANIMALS, 5) == expected

    def test_without_labels(self) -> None:
        assert parse_classes(["2,0"], None, 3) == (0, 2)
        with pytest.raises(ForgetListError, match="the model has no labels"):
            parse_classes(["cat"], None, 3)
        with pytest.raises(ForgetListError, match="disagree: one says a, one b.*--labels FILE"):
            parse_classes(["cat"], None, 3, contradiction="one says a, one b")

    @pytest.mark.parametrize("spec", ["10", 10, -1, "-1", "index:10", "+10"])
    def test_no_such_index(self, spec: str | int) -> None:
        with pytest.raises(ForgetListError, match=rf"no such class.*Received: {spec}.*0 to 9".replace("+", r"\+")):
            parse_classes([spec], None, 10)

    def test_unknown_label_names_the_closest(self) -> None:
        with pytest.raises(ForgetListError, match=r"'hrose'.*Closest: 'horse'"):
            parse_classes(["hrose"], ANIMALS, 5)
        with pytest.raises(ForgetListError, match="Closest: 'cat'"):
            parse_classes(["Cat"], ANIMALS, 5)

    def test_redacted_labels_are_told(self) -> None:
        with pytest.raises(ForgetListError, match=r"'dog'.*--redact-labels; name one by its index"):
            parse_classes(["dog"], ["cat", "forgotten_1", "eel"], 3)
        assert parse_classes(["forgotten_1"], ["cat", "forgotten_1", "eel"], 3) == (1,)

    def test_all_problems_at_once(self) -> None:
        with pytest.raises(ForgetListError) as caught:
            parse_classes(["9,unicorn", "cat", "0"], ANIMALS, 5)
        for word in ("9", "unicorn", "named twice"):
            assert word in str(caught.value)

    @pytest.mark.parametrize("specs", [["3", "horse"], ["3,3"], [3, "index:3"], ["horse", "label:horse"]])
    def test_duplicates(self, specs: list[str | int]) -> None:
        with pytest.raises(ForgetListError, match="'horse'. is named twice"):
            parse_classes(specs, ANIMALS, 5)

    @pytest.mark.parametrize("specs", [[], [""], ["3,,4"], "", [" "]])
    def test_nothing_named(self, specs: list[str | int]) -> None:
        with pytest.raises(ForgetListError):
            parse_classes(specs, ANIMALS, 5)

    @pytest.mark.parametrize("spec", [True, 2.0, None])
    def test_neither_index_nor_label(self, spec: object) -> None:
        with pytest.raises(ForgetListError):
            parse_classes([spec], ANIMALS, 5)  # type: ignore[list-item]

    def test_number_as_label_of_another_class(self) -> None:
        shifted = ["1", "2", "3", "4"]
        with pytest.raises(ForgetListError, match=r"class 3 \('4'\) by its index.*class 2 by its label.*label:3"):
            parse_classes(["3"], shifted, 4)
        assert parse_classes(["index:3"], shifted, 4) == (3,)
        assert parse_classes(["label:3"], shifted, 4) == (2,)
        assert parse_classes(["4"], shifted, 4) == (3,)  # no class has the index 4: one reading is left

    def test_number_as_label_of_itself(self) -> None:
        digits = [str(digit) for digit in range(10)]
        assert parse_classes(["3,7"], digits, 10) == (3, 7)

    def test_an_int_is_an_index(self) -> None:
        assert parse_classes([3], ["1", "2", "3", "4"], 4) == (3,)

    def test_label_of_two_classes(self) -> None:
        with pytest.raises(ForgetListError, match=r"2 classes have the label 'crane'.*index:1"):
            parse_classes(["crane"], ["cat", "crane", "crane"], 3)
        assert parse_classes(["index:2"], ["cat", "crane", "crane"], 3) == (2,)

    def test_labels_that_do_not_fit(self) -> None:
        with pytest.raises(LabelsError, match="5 labels for 6 classes"):
            parse_classes(["cat"], ANIMALS, 6)

    @given(labels=labels_of_classes, data=st.data())
    def test_every_class_can_be_named_by_its_index(self, labels: list[str], data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, unique=True))
        assert parse_classes(chosen, labels, len(labels)) == tuple(sorted(chosen))
        as_text = [f"index:{index}" for index in chosen]
        if not any(label.startswith("index:") for label in labels):
            assert parse_classes(as_text, labels, len(labels)) == tuple(sorted(chosen))

    @given(labels=labels_of_classes)
    def test_every_unique_label_names_its_class(self, labels: list[str]) -> None:
        for index, label in enumerate(labels):
            if labels.count(label) == 1 and not label.startswith(("label:", "index:")):
                assert parse_classes([f"label:{label}"], labels, len(labels)) == (index,)

    @given(spec=st.text(max_size=30))
    def test_any_text_is_answered_or_refused(self, spec: str) -> None:
        with contextlib.suppress(ForgetListError):
            assert set(parse_classes([spec], ANIMALS, 5)) <= set(range(5))
