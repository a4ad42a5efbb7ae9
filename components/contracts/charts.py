# SPDX-License-Identifier: Apache-2.0
"""Line charts as inline SVG, for pages that must open without a network."""

import html
import math
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 380, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 40
COLOURS = ("#1f5fbf", "#c2571a", "#0a7d3c", "#7a3fa0")


class Range(NamedTuple):
    """The span of one axis."""

    low: float
    high: float


@dataclass
class Series:
    """One line of a chart.

    Attributes:
        name: Shown in the legend; empty for no entry.
        points: (x, y) in drawing order; points that are not finite are left out.
        marks: Whether to draw a dot at every point.
        dashed: Whether the line is dashed and grey, for a reference.
    """

    name: str
    points: list[tuple[float, float]]
    marks: bool = False
    dashed: bool = False


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: list[Series],
    x_range: Range | None = None,
    y_range: Range | None = None,
) -> str:
    """Returns an SVG element; an axis without a range spans the points."""
    drawn = [_finite(line) for line in series]
    points = [point for line in drawn for point in line.points]
    x_axis = x_range or _span([x for x, _ in points])
    y_axis = y_range or _span([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_axis.low) / (x_axis.high - x_axis.low)
        up = (y - y_axis.low) / (y_axis.high - y_axis.low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="system-ui,sans-serif" font-size="11">',
        _text(LEFT, 16, title, "start", "600"),
    ]
    for x in _ticks(x_axis):
        across, _ = place(x, y_axis.low)
        parts.append(_text(across, HEIGHT - BOTTOM + 14, f"{x:.4g}", "middle"))
    for y in _ticks(y_axis):
        _, down = place(x_axis.low, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" '
            'stroke="#e3e6ec"/>'
        )
        parts.append(_text(LEFT - 5, down + 4, f"{y:.4g}", "end"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 8, x_label, "middle"))
    upright = _text(0, 0, y_label, "middle")
    parts.append(f'<g transform="translate(12 {HEIGHT / 2}) rotate(-90)">{upright}</g>')
    legend = ""
    for index, line in enumerate(drawn):
        colour = "#8a93a3" if line.dashed else COLOURS[index % len(COLOURS)]
        parts.append(_polyline([place(x, y) for x, y in line.points], line, colour))
        if line.name:
            legend += f'<tspan dx="8" fill="{colour}">{html.escape(line.name)}</tspan>'
    # Beside the title: above the lines, wherever they run.
    parts.append(f'<text x="{WIDTH - RIGHT}" y="16" text-anchor="end">{legend}</text>')
    return "".join(parts) + "</svg>"


def _finite(line: Series) -> Series:
    kept = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    return Series(line.name, kept, line.marks, line.dashed)


def _span(values: list[float]) -> Range:
    if not values:
        return Range(0.0, 1.0)
    low, high = min(values), max(values)
    return Range(low, high) if high > low else Range(low - 0.5, high + 0.5)


def _ticks(axis: Range, wanted: int = 5) -> list[float]:
    """Returns round positions: multiples of 1, 2 or 5 times a power of ten."""
    rough = (axis.high - axis.low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _polyline(places: list[tuple[float, float]], line: Series, colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="4 4"' if line.dashed else ""
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
    if line.marks:
        drawn += "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in places
        )
    return drawn


def _text(x: float, y: float, text: str, anchor: str, weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="#5b6474">{html.escape(text)}</text>'
    )
