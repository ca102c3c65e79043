"""The drawings of the report, as inline SVG that takes its colours from the page: light, dark and on paper.

Each is as wide as a phone, so that its letters stay readable there; on wider screens several stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 38


@dataclass(frozen=True)
class Series:
    """One line of a drawing.

    Attributes:
        key: CSS class of the line: 'before', 'after' or 'retrained'.
        name: what the legend calls it.
        x, y: its points, in [0, 1] and of the same length; of a histogram, edges and shares, one edge more.
    """

    key: str
    name: str
    x: Sequence[float]
    y: Sequence[float]


def histogram(series: Sequence[Series], title: str, x_label: str) -> str:
    """Draw histograms over [0, 1] as steps on top of each other."""
    largest = max((max(each.y) for each in series), default=0.0)
    top = next(limit for limit in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if largest <= limit + 1e-9)
    parts = [_grid([0, top / 2, top], [0, 0.25, 0.5, 0.75, 1], top, x_label)]
    for each in series:
        steps = [(each.x[0], 0.0)]
        for left, right, share in zip(each.x, each.x[1:], each.y, strict=False):
            steps += [(left, share), (right, share)]
        steps.append((each.x[-1], 0.0))
        points = _points(steps, top)
        parts.append(f'<polygon class="area {each.key}" points="{points}"/>')
        parts.append(f'<polyline class="line {each.key}" points="{points}"/>')
    return _figure("".join(parts), title, "share of examples", series)


def roc(series: Sequence[Series], title: str) -> str:
    """Draw ROC curves over the diagonal of an attacker who guesses."""
    grid = [0, 0.25, 0.5, 0.75, 1]
    parts = [_grid(grid, grid, 1.0, "false positives")]
    parts.append(f'<polyline class="guess" points="{_points([(0.0, 0.0), (1.0, 1.0)], 1.0)}"/>')
    for each in series:
        points = _points(list(zip(each.x, each.y, strict=True)), 1.0)
        parts.append(f'<polyline class="line {each.key}" points="{points}"/>')
    return _figure("".join(parts), title, "true positives", series)


def legend(series: Sequence[Series]) -> str:
    """The names of the lines, each beside a piece of it."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true">'
        f'<line class="line {each.key}" x1="1" y1="4" x2="23" y2="4"/></svg>{escape(each.name)}</li>'
        for each in series
    )
    return f'<ul class="legend">{items}</ul>'


def _figure(content: str, title: str, y_label: str, series: Sequence[Series]) -> str:
    described = escape(f"{title}: {', '.join(each.name for each in series)}", quote=True)
    return (
        f"<figure><figcaption>{escape(title)} <small>{escape(y_label)}</small></figcaption>"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">{content}</svg>'
        f"{legend(series)}</figure>"
    )


def _grid(rows: Sequence[float], columns: Sequence[float], top: float, x_label: str) -> str:
    parts = []
    for value in rows:
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value * 100:g}&#8239;%</text>')
    for value in columns:
        anchor = "end" if value == columns[-1] else "middle"
        parts.append(f'<text x="{_x(value):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{value:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _points(points: Sequence[tuple[float, float]], top: float) -> str:
    return " ".join(f"{_x(x):.1f},{_y(y, top):.1f}" for x, y in points)


def _x(value: float) -> float:
    return _LEFT + value * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - value / top * (HEIGHT - _BOTTOM - _TOP)
