# SPDX-License-Identifier: Apache-2.0
"""Pictures of the model card that are no line charts: bars, intervals, a coloured matrix."""

import html
from typing import Any

_SHOWN = 30
_ROW, _LEFT, _WIDTH = 18, 230, 640
_BLUE, _GREY = "#1f5fbf", "#8a93a3"


def importance_chart(found: dict[str, Any]) -> str:
    """Returns the largest losses of `permutation_importance` as a bar chart."""
    shown = found["features"][:_SHOWN]
    largest = max([entry["loss"] for entry in shown] + [1e-12])
    bars = []
    for index, entry in enumerate(shown):
        width = max(entry["loss"], 0.0) / largest * (_WIDTH - _LEFT - 70)
        bars.append(
            _label(index, entry["feature"])
            + f'<rect x="{_LEFT}" y="{index * _ROW + 3}" width="{width:.1f}" height="12" '
            f'fill="{_BLUE}"/>' + _text(_LEFT + width + 5, index, f"{entry['loss']:.4f}")
        )
    return _svg(f"loss of {found['metric']} when one feature is shuffled", bars)


def interval_chart(metric: str, document: dict[str, Any]) -> str:
    """Returns a metric of all rows and of every judged slice: a dot with its interval each.

    Args:
        metric: The metric.
        document: The evaluation.
    """
    entries = [("all rows", document["metrics"][metric])]
    entries += [
        (part["slice"], part["metrics"][metric])
        for part in document["slices"]
        if part["metrics"] and part["metrics"][metric]["value"] is not None
    ]
    whole = entries[0][1]["value"]
    if whole is None or len(entries) < 2:
        return ""
    bounds = [
        value
        for _, entry in entries
        for value in (entry["low"], entry["value"], entry["high"])
        if value is not None
    ]
    low, high = min(bounds), max(bounds)
    span = (high - low) or 1.0

    def across(value: float) -> float:
        return _LEFT + (value - low) / span * (_WIDTH - _LEFT - 70)

    drawn = [
        f'<line x1="{across(whole):.1f}" x2="{across(whole):.1f}" y1="0" '
        f'y2="{len(entries) * _ROW}" stroke="{_GREY}" stroke-dasharray="4 4"/>'
    ]
    for index, (name, entry) in enumerate(entries):
        down = index * _ROW + 9
        if entry["low"] is not None:
            drawn.append(
                f'<line x1="{across(entry["low"]):.1f}" x2="{across(entry["high"]):.1f}" '
                f'y1="{down}" y2="{down}" stroke="{_BLUE}" stroke-width="2"/>'
            )
        drawn.append(
            _label(index, name)
            + f'<circle cx="{across(entry["value"]):.1f}" cy="{down}" r="4" fill="{_BLUE}"/>'
            + _text(across(entry["high"] or entry["value"]) + 8, index, f"{entry['value']:.4g}")
        )
    return _svg(f"{metric} of all rows and of the slices, with 95 % intervals", drawn)


def confusion_table(names: list[str], matrix: list[list[int]]) -> str:
    """Returns the confusion matrix; a cell is darker, the larger its share of the true class."""
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    lines = []
    for name, counts in zip(names, matrix, strict=True):
        total = sum(counts) or 1
        cells = "".join(
            f'<td style="background:rgba(31,95,191,{0.55 * count / total:.2f})">{count:,}'
            f" <small>{count / total:.0%}</small>"
            for count in counts
        )
        lines.append(f"<tr><th>{html.escape(name)}{cells}")
    return f"<table class=matrix><tr><th>true ↓ called →{head}{''.join(lines)}</table>"


def _svg(title: str, lines: list[str]) -> str:
    rows = max(1, sum("<text" in line for line in lines))
    height = rows * _ROW + 4
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="system-ui,sans-serif" font-size="11" '
        f'fill="#3c4656">{"".join(lines)}</svg>'
    )


def _label(index: int, name: str) -> str:
    shown = name if len(name) <= 36 else name[:35] + "…"
    return _text(_LEFT - 6, index, shown, ' text-anchor="end"')


def _text(across: float, index: int, text: str, more: str = "") -> str:
    return f'<text x="{across:.1f}" y="{index * _ROW + 13}"{more}>{html.escape(text)}</text>'
