"""The page of a validation: what was found, and every column with a small plot. Opens offline."""

import html
import math
from datetime import UTC, datetime
from itertools import pairwise

from kfloop.components.contracts.decision import Decision, render
from kfloop.components.validation.findings import REPORTED
from kfloop.components.validation.summary import Column, Summary

WIDTH, HEIGHT, BARS, TOP_VALUES = 220, 56, 22, 6
_STYLE = """<style>
.columns td{padding:.45rem .6rem} .columns svg{display:block;max-width:none} .name{font-weight:600}
.kind,.note{color:#5b6474;font-size:.85em} .warn{color:#8a5a00} .now{fill:#2f6fb3}
.then{fill:none;stroke:#d9822b;stroke-width:1.5}
.then-bar{fill:#d9822b} .key span{margin-right:1rem}
text{font:10px system-ui,sans-serif;fill:#1c2330}
</style>"""


def render_page(decision: Decision, now: Summary, before: Summary | None) -> str:
    """Returns the decision's page with the columns below it, those with findings first."""
    findings = _findings(decision)
    names = sorted(now.columns, key=lambda name: name not in findings)
    rows = "".join(
        _row(now.columns[name], before.columns.get(name) if before else None, findings.get(name))
        for name in names
    )
    compared = " <th>baseline" if before else ""
    key = (
        '<p class="key"><span style="color:#2f6fb3">■ this data</span>'
        '<span style="color:#d9822b">■ baseline</span></p>'
        if before
        else ""
    )
    return render(
        decision,
        f"{_STYLE}<h2>{now.rows:,} rows, {len(now.columns)} columns</h2>{key}"
        f'<table class="columns"><tr><th>column<th>missing<th>values<th>distribution{compared}'
        f"</tr>{rows}</table>",
    )


def _findings(decision: Decision) -> dict[str, list[tuple[str, str]]]:
    """Returns for each column what was found about it: a style and a sentence."""
    found: dict[str, list[tuple[str, str]]] = {}
    for reason in decision.reasons:
        if not reason.passed:
            found.setdefault(reason.metric, []).append(("fail", reason.why))
        elif reason.check.endswith(REPORTED):
            found.setdefault(reason.metric, []).append(("warn", reason.why))
    return found


def _row(column: Column, baseline: Column | None, findings: list[tuple[str, str]] | None) -> str:
    notes = "".join(
        f'<div class="{style}">{html.escape(why)}</div>' for style, why in findings or []
    )
    plot = _number_plot(column, baseline) if column.is_number else _value_plot(column, baseline)
    then = f"<td>{_facts(baseline)}" if baseline else ""
    return (
        f'<tr><td><span class="name">{html.escape(column.name)}</span> '
        f'<span class="kind">{column.kind}</span>{notes}'
        f"<td>{_missing(column, baseline)}<td>{_facts(column)}<td>{plot}{then}</tr>"
    )


def _missing(column: Column, baseline: Column | None) -> str:
    then = f'<div class="note">baseline {baseline.missing:.2%}</div>' if baseline else ""
    return f"{column.missing:.2%}{then}"


def _facts(column: Column) -> str:
    if not column.count:
        return "empty"
    if not column.is_number:
        most = ", ".join(html.escape(_cut(value)) for value, _ in column.values[:3])
        return f"{column.unique:,} different<div class='note'>most: {most}</div>"
    low, middle, high = (_say(column, each) for each in (column.min, column.median, column.max))
    spread = "" if column.is_time else f"<div class='note'>mean {_say(column, column.mean)}"
    if spread:
        spread += f", sd {_say(column, column.std)}, {column.zeros or 0:.1%} zero</div>"
    return f"{low} … <b>{middle}</b> … {high}{spread}"


def _say(column: Column, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return str(value)
    if not column.is_time:
        return f"{value:.4g}"
    try:
        moment = datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):  # beyond the years that datetime knows
        return f"{value:.4g} s"
    return moment.strftime("%Y-%m-%d" if column.kind == "date" else "%Y-%m-%d %H:%M")


def _cut(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


def _number_plot(column: Column, baseline: Column | None) -> str:
    """Draws shares in bars of equal width between the 1st and 99th percentile of both."""
    both = [each for each in (column, baseline) if each is not None and each.is_number]
    low = min(each.quantile(0.01) for each in both)
    high = max(each.quantile(0.99) for each in both)
    if not math.isfinite(high - low):
        return '<span class="note">not drawn: infinite values</span>'
    if low == high:
        return f'<span class="note">always {_say(column, low)}</span>'
    shares = [_bars(each, low, high) for each in both]
    tallest = max(max(bars) for bars in shares)
    step = WIDTH / BARS
    marks = "".join(
        f'<rect class="now" x="{index * step:.1f}" y="{HEIGHT * (1 - share / tallest):.1f}" '
        f'width="{step - 1:.1f}" height="{HEIGHT * share / tallest:.1f}"/>'
        for index, share in enumerate(shares[0])
    )
    if len(shares) > 1:
        points = " ".join(
            f"{(index + side) * step:.1f},{HEIGHT * (1 - share / tallest):.1f}"
            for index, share in enumerate(shares[1])
            for side in (0, 1)
        )
        marks += f'<polyline class="then" points="{points}"/>'
    axis = (
        f'<text x="0" y="{HEIGHT + 11}">{_say(column, low)}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 11}" text-anchor="end">{_say(column, high)}</text>'
    )
    return _svg(HEIGHT + 14, marks + axis, f"Distribution of {column.name}")


def _bars(column: Column, low: float, high: float) -> list[float]:
    bounds = [low + (high - low) * step / BARS for step in range(BARS + 1)]
    reached = [column.share_up_to(bound) for bound in bounds]
    # A value may lie exactly on the first bound.
    reached[0] = column.share_up_to(math.nextafter(low, -math.inf))
    return [max(b - a, 0.0) for a, b in pairwise(reached)]


def _value_plot(column: Column, baseline: Column | None) -> str:
    """Draws the most frequent values as horizontal bars, the baseline's below each."""
    if not column.values:
        return ""
    before = {}
    if baseline is not None and baseline.count:
        before = {value: count / baseline.count for value, count in baseline.values}
    top = [(value, count / column.count) for value, count in column.values[:TOP_VALUES]]
    longest = max([share for _, share in top] + [before.get(value, 0.0) for value, _ in top])
    room, marks = WIDTH - 90 - 36, ""
    for index, (value, share) in enumerate(top):
        y, width = index * 14, room * share / longest
        marks += (
            f'<text x="86" y="{y + 9}" text-anchor="end">{html.escape(value[:14])}</text>'
            f'<rect class="now" x="90" y="{y + 1}" width="{width:.1f}" height="6"/>'
            f'<text x="{WIDTH}" y="{y + 9}" text-anchor="end">{share:.1%}</text>'
        )
        if before:
            width = room * before.get(value, 0.0) / longest
            marks += f'<rect class="then-bar" x="90" y="{y + 7}" width="{width:.1f}" height="4"/>'
    return _svg(len(top) * 14, marks, f"Most frequent values of {column.name}")


def _svg(height: int, content: str, title: str) -> str:
    return (
        f'<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{html.escape(title)}</title>{content}</svg>"
    )
