"""The report as a document: what it says, in which order, and that strangers' words stay words."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from mpru_tf.evaluation.figures import Series, histogram, roc
from mpru_tf.evaluation.report import page, verdict

VOID = {"meta", "line", "br"}


class Document(HTMLParser):
    """Reads a page; an element that is not closed, or not the one that is open, fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', text, re.DOTALL)
    assert found is not None, name
    return found.group()


def grown(evaluation: dict[str, Any], n: int, forgotten: list[int]) -> dict[str, Any]:
    """An evaluation of more classes, made of one of few: nobody wants to wait for a hundred classes to be learned."""
    big = copy.deepcopy(evaluation)
    random = np.random.default_rng(0)
    big |= {"classes": n, "forgotten": forgotten, "labels": [f"a rather long label, number {c}" for c in range(n)]}
    big["data"]["per_class"] = [100] * n
    for one in big["answers"].values():
        one["destinations"] = random.dirichlet(np.full(n, 0.05), len(forgotten)).tolist()
        if one["class_kl"] is not None:
            one["class_kl"] = random.exponential(0.3, n).tolist()
        (attack,) = one["nearest_class"].values()
        one["nearest_class"] = {str(f): {**attack, "forgotten": f, "nearest": (f + 1) % n} for f in forgotten}
    return big


class TestDocument:
    def test_stands_alone(self, evaluation: dict[str, Any]) -> None:
        text = page(evaluation)
        document = Document(text)
        assert not re.search(r"(https?:)?//[a-z]|url\(|@import", text)
        assert not {"script", "link", "img", "iframe", "object"} & set(document.tags)
        assert not [name for name, _ in document.attributes if name in ("src", "href") or name.startswith("on")]
        assert ("name", "viewport") in document.attributes

    @pytest.mark.parametrize(
        "name", ["what", "verdict", "destinations", "confidence", "classes", "membership", "nearest", "limits"]
    )
    def test_sections(self, evaluation: dict[str, Any], name: str) -> None:
        assert "<h2>" in section(page(evaluation), name)

    def test_what_comes_from_files_stays_text(self, evaluation: dict[str, Any]) -> None:
        hostile = "<script>alert('1')</script>\"&\x1b[2J\u202e"
        evil = copy.deepcopy(evaluation)
        evil["labels"] = [hostile] * 5
        evil["answers"][hostile] = copy.deepcopy(evil["answers"]["mean"])
        evil["unlearned"] |= {"path": f"/{hostile}/{hostile}", "version": None, "created": hostile}
        evil["retrained"] |= {"path": f"/x/{hostile}", "answers": True}
        evil["data"] |= {"file": hostile, "train_file": hostile}
        evil |= {"method": hostile, "left_out": {hostile: hostile}, "limits": [hostile], "mpru_tf": hostile}
        text = page(evil)
        assert "script" not in Document(text).tags
        assert "&lt;script&gt;" in text
        assert not {"\x1b", "\u202e"} & set(text)

    def test_no_path_of_the_machine(self, evaluation: dict[str, Any]) -> None:
        text = page(evaluation)
        assert "small/2" in text
        assert evaluation["unlearned"]["path"] not in text

    def test_redacted_classes_go_by_their_index(self, evaluation: dict[str, Any]) -> None:
        redacted = {**evaluation, "labels": ["ant", "bee", None, "dog", "eel"], "redacted": True}
        text = page(redacted)
        assert "Does it forget class 2?" in text
        assert "redacted" in section(text, "what")
        assert "Does it forget class 2?" in page({**evaluation, "labels": None})


class TestVerdictTable:
    def rows(self, evaluation: dict[str, Any]) -> list[list[str]]:
        return Document(section(page(evaluation), "verdict")).rows

    def test_nearest_first(self, evaluation: dict[str, Any]) -> None:
        head, *rows = self.rows(evaluation)
        assert head[1:3] == ["KLforgotten", "KLretained"]
        assert rows[0][0].startswith("retrained")
        shown = [float(row[1]) for row in rows[1:]]
        assert shown == sorted(shown)
        names = [row[0] for row in rows]
        answers = evaluation["answers"]
        assert len(names) == len(answers) - 1 + 1  # less the twin of what is judged, and the floor
        for row in rows:
            if row[0] in answers:
                assert float(row[1]) == pytest.approx(answers[row[0]]["forgotten"]["kl"], abs=5e-4)
        floor = next(row for row in rows if "floor" in row[0])
        assert float(floor[1]) == pytest.approx(evaluation["floor"]["forgotten"]["kl"], abs=5e-4)

    def test_this_one_stands_out(self, evaluation: dict[str, Any]) -> None:
        text = section(page(evaluation), "verdict")
        assert text.count('<tr class="this">') == 1
        assert re.search(r'<tr class="this"><th scope="row">version 2<', text)

    def test_only_columns_with_data(self, evaluation: dict[str, Any]) -> None:
        bare = copy.deepcopy(evaluation)
        bare |= {"retrained": None, "second_retrained": None, "floor": None}
        del bare["answers"]["retrained"]
        for one in bare["answers"].values():
            one |= dict.fromkeys(("retained", "forgotten", "class_kl", "membership", "membership_retained"))
        head, *rows = self.rows(bare)
        of_retained = ["accuracyretained", "accuracyforgotten", "calibrationretained", "movedretained"]
        assert head == ["answers", "ZRFforgotten", *of_retained]
        assert rows[0][0].startswith("version 2")
        assert rows[-1][0].startswith("unfiltered")
        text = page(bare)
        assert "Not tried" in section(text, "membership")
        assert 'id="classes"' not in text


class TestVerdict:
    def at(self, evaluation: dict[str, Any], kl: float, floor: float | None) -> str:
        changed = copy.deepcopy(evaluation)
        changed["answers"]["unlearned"]["forgotten"]["kl"] = kl
        if floor is None:
            changed["floor"] = None
        else:
            changed["floor"]["forgotten"]["kl"] = floor
        return verdict(changed)[0]

    def test_first_sentence(self, evaluation: dict[str, Any]) -> None:
        assert "no further from a retrained model than another" in self.at(evaluation, 0.4, 0.41)
        assert "2.5 times as far from a retrained model as another" in self.at(evaluation, 1.0, 0.4)
        assert "much further from a retrained model than another" in self.at(evaluation, 1.0, 0.0)
        assert "is 0.400 from a retrained model" in self.at(evaluation, 0.4, None)

    def test_a_class_that_is_still_answered_is_shown_as_bad(self, evaluation: dict[str, Any]) -> None:
        assert 'class="verdict"' in page(evaluation)
        leaking = copy.deepcopy(evaluation)
        leaking["answers"]["unlearned"]["accuracy_forgotten"] = 0.01
        assert 'class="verdict bad"' in page(leaking)


class TestManyClasses:
    def test_heat_maps_show_the_top(self, evaluation: dict[str, Any]) -> None:
        text = section(page(grown(evaluation, 120, list(range(0, 120, 10)))), "destinations")
        assert text.count("<figure>") == 12
        assert "6 more forgotten classes" in text
        for one in re.findall(r"<figure>.*?</figure>", text):
            _, *rows = Document(one).rows
            assert len(rows) <= 12
            assert rows[-1][0].endswith("others")
            for column in (1, 2, 3):
                shares = [float(row[column].removesuffix(" %")) for row in rows if row[column] != "·"]
                assert sum(shares) == pytest.approx(100, abs=1)

    def test_all_of_few(self, evaluation: dict[str, Any]) -> None:
        _, *rows = Document(section(page(evaluation), "destinations")).rows
        assert [row[0] for row in rows] == ["cat", "ant", "bee", "dog", "eel"]

    def test_bars_and_columns_stay_few(self, evaluation: dict[str, Any]) -> None:
        text = page(grown(evaluation, 120, list(range(0, 120, 10))))
        bars = section(text, "classes")
        assert bars.count("<li") == 24
        assert bars.count('<li class="gone">') == 12
        assert max(map(len, Document(section(text, "nearest")).rows)) == 8


class TestTitle:
    @pytest.mark.parametrize(
        ("labels", "forgotten", "title"),
        [
            (["a", "b", "c"], [1], "Does it forget “b”?"),
            (["a", "b", "c"], [0, 1], "Does it forget “a” and “b”?"),
            (["a", "b", None], [0, 2], "Does it forget “a” and class 2?"),
            (list("abcdefg"), [0, 1, 2, 3, 4], "Does it forget “a”, “b”, “c”, “d” and 1 more class?"),
            (["a" * 60, "b" * 60, "c"], [0, 1], f"Does it forget “{'a' * 60}” and 1 more class?"),
        ],
    )
    def test_names_what_fits(
        self, evaluation: dict[str, Any], labels: list[str], forgotten: list[int], title: str
    ) -> None:
        text = page(grown(evaluation, len(labels), forgotten) | {"labels": labels})
        assert f"<h1>{title}</h1>" in text


class TestFigures:
    def points(self, drawn: str, style: str) -> list[list[float]]:
        found = re.search(rf'class="line {style}" points="([^"]+)"', drawn)
        assert found is not None
        return [[float(number) for number in pair.split(",")] for pair in found.group(1).split()]

    def test_curve_goes_from_corner_to_corner(self) -> None:
        drawn = roc([Series("after", "after", [0, 0, 1], [0, 1, 1])], "An attack")
        assert self.points(drawn, "after") == [[40, 192], [40, 10], [330, 10]]
        assert 'aria-label="An attack: after"' in drawn

    def test_histogram_fills_its_frame(self) -> None:
        drawn = histogram([Series("before", "before", [0, 0.5, 1], [0.25, 0.4])], "How sure", "sure")
        steps = self.points(drawn, "before")
        assert steps[0] == [40, 192]
        assert min(y for _, y in steps) == 10  # 0.4 is the top of its scale
        assert steps[-1] == [330, 192]
