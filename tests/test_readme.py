"""Every figure in README is one that a benchmark wrote into benchmarks/results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def result(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return values


def figures() -> str:
    """README's section of figures, without line breaks."""
    return " ".join(README.split("## Figures")[1].split("\n## ")[0].split())


def test_reexport_figures() -> None:
    measured = result("reexport")
    shown = figures()
    for name, median in measured["median_seconds"].items():
        peak = measured["added_peak_mib"].get(name)
        memory = f"{peak:.0f}" if peak is not None else ""
        assert re.search(rf"\| `?{re.escape(name)}`? \| {median:.3f} \| {memory} ?\|", shown), (name, median, memory)
    assert f"{measured['ratio_to_cp']:.2f} of `cp -r`" in shown
    assert f"{measured['times_faster_than_load_wrap_save']:.0f} times faster" in shown
    assert f"{measured['median_seconds_load_check']:.1f} s" in shown


def test_cifar10_figures() -> None:
    measured = result("cifar10_forget")
    shown = figures()
    assert f"from {measured['unfiltered']['retained_top1']:.4f}" in shown
    assert f"to {measured['filtered']['tempered']['retained_top1']:.4f}" in shown
    assert measured["filtered"]["tempered"]["largest_forgotten_probability"] == 0.0


def test_no_figure_stands_outside_its_section() -> None:
    prose = README.replace(README.split("## Figures")[1].split("\n## ")[0], "")
    assert not re.search(r"\d+ (ms|MiB|times faster)\b", prose)


def test_links_and_named_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:export_scripts|mpru_tf|benchmarks)/[\w/]+\.(?:py|md))`", README):
        assert (ROOT / target).is_file(), target
