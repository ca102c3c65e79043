"""README: its figures are those that the benchmarks wrote, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def figures() -> Any:
    """benchmarks/figures.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_what_the_results_say() -> None:
    module = figures()
    for page, expected in ((module.README, module.render()), (module.METHOD, module.render_method())):
        shown = page.read_text(encoding="utf-8").split(module.BEGIN)[1].split(module.END)[0].strip()
        assert shown == expected, f"{page.name}: run `python benchmarks/figures.py`"


def test_figures_are_written_between_the_marks_alone(tmp_path: Path) -> None:
    module = figures()
    copy = tmp_path / "README.md"
    copy.write_text(f"before\n{module.BEGIN}\n99 times faster\n{module.END}\nafter\n", encoding="utf-8")
    module.put("3 times faster", copy)
    assert copy.read_text(encoding="utf-8") == f"before\n{module.BEGIN}\n3 times faster\n{module.END}\nafter\n"


def test_what_the_project_promises_of_a_forgotten_class_is_what_was_measured() -> None:
    filtered = figures().result("cifar10_forget")["filtered"]
    assert {row["largest_forgotten_probability"] for row in filtered.values()} == {0.0}


def test_no_figure_stands_outside_its_section() -> None:
    module = figures()
    prose = README.replace(README.split(module.BEGIN)[1].split(module.END)[0], "")
    assert not re.search(r"\d+ (ms|MiB|times faster)\b", prose)


def test_links_and_named_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:export_scripts|mpru_tf|benchmarks)/[\w/]+\.(?:py|md))`", README):
        assert (ROOT / target).is_file(), target
