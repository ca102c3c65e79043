"""The report in a real browser: it is drawn, dark where that is wanted, and no phone has to scroll it sideways."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpru_tf.evaluation.report import page

WIDTHS = (390, 1280)


@pytest.fixture(scope="session")
def browser() -> str:
    """A Chromium."""
    found = next(
        (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("needs chromium or google-chrome on PATH, and there is none")
    return found


@pytest.fixture
def wide(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The evaluation with labels as long as they come, and a candidate whose name is one long word."""
    changed = copy.deepcopy(evaluation)
    changed["labels"] = ["x" * 90, "Ein sehr langes Etikett, das aus vielen Worten besteht", "cat" * 40, "d", "e"]
    changed["answers"]["w" * 120] = copy.deepcopy(changed["answers"]["mean"])
    return changed


def run(browser: str, folder: Path, *arguments: str) -> str:
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
    ]
    command += [f"--user-data-dir={folder / 'profile'}", "--disable-dev-shm-usage", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def screenshot(browser: str, folder: Path, text: str, *arguments: str) -> np.ndarray[Any, Any]:
    """Draw a page; returns RGB in [0, 1], [height, width, 3]."""
    from matplotlib import image

    (folder / "report.html").write_text(text, encoding="utf-8")
    shot = folder / "shot.png"
    size = "--window-size=1280,2400"
    run(browser, folder, size, f"--screenshot={shot}", *arguments, (folder / "report.html").as_uri())
    return np.asarray(image.imread(shot))[:, :, :3]


def test_it_is_drawn(browser: str, evaluation: dict[str, Any], tmp_path: Path) -> None:
    drawn = screenshot(browser, tmp_path, page(evaluation))
    assert drawn.shape[:2] == (2400, 1280)
    ground = drawn[2, 2]
    assert ground.min() > 0.95
    differs = np.abs(drawn - ground).max(axis=2) > 0.1
    assert 0.01 < differs.mean() < 0.5
    # Something stands in every tenth of the page: no section is missing or invisible.
    assert all(part.any() for part in np.array_split(differs, 10))


def test_dark(browser: str, evaluation: dict[str, Any], tmp_path: Path) -> None:
    drawn = screenshot(browser, tmp_path, page(evaluation), "--blink-settings=preferredColorScheme=0")
    assert drawn[2, 2].max() < 0.2
    assert (drawn.min(axis=2) > 0.7).mean() > 0.002  # letters


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out(browser: str, wide: dict[str, Any], tmp_path: Path, width: int) -> None:
    # A window has a smallest width, wider than a phone; a frame has none. The page's copy tells the frame's page.
    tell = (
        "<script>addEventListener('load', () => { document.querySelectorAll('details').forEach(d => d.open = true);"
        "parent.postMessage([document.documentElement.scrollWidth, innerWidth,"
        " document.querySelectorAll('section').length], '*') })</script></body>"
    )
    (tmp_path / "copy.html").write_text(page(wide).replace("</body>", tell), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        "<script>addEventListener('message', e => document.title = 'seen ' + e.data.join(' '))</script>"
        f"<iframe src='copy.html' width={width} height=800 style='border:0'></iframe>"
    )
    seen = run(browser, tmp_path, "--window-size=1400,900", "--dump-dom", (tmp_path / "frame.html").as_uri())
    found = re.search(r"<title>seen (\d+) (\d+) (\d+)</title>", seen)
    assert found is not None, seen[:500]
    needed, given, sections = map(int, found.groups())
    assert (needed, given, sections) == (width, width, 8)


def test_the_dom_is_what_was_written(browser: str, evaluation: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(evaluation), encoding="utf-8")
    seen = run(browser, tmp_path, "--dump-dom", (tmp_path / "report.html").as_uri())
    # A browser mends what is wrong, and so would show it: a table that is not closed, a row outside of a table.
    for tag in ("section", "table", "tr", "td", "th", "svg", "polyline", "li", "dt"):
        assert seen.count(f"<{tag}") == page(evaluation).count(f"<{tag}"), tag
