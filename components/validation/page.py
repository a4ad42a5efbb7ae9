# SPDX-License-Identifier: Apache-2.0
"""The page of a validation: what was found, and every column with a small plot. Opens offline."""

import html
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

from kfloop.components.contracts.decision import STYLE, Decision, Reason, reasons_table
from kfloop.components.validation.findings import REPORTED
from kfloop.components.validation.schema import NOT_COUNTED
from kfloop.components.validation.summary import Column, Summary

WIDTH, HEIGHT, BARS, MOST_BARS, TOP_VALUES = 240, 60, 24, 48, 6
METER = 110  # width of a distance that is twice its limit or more
_STYLE = """<style>
.chips span{display:inline-block;padding:.1rem .6rem;margin-right:.5rem;border-radius:1rem;
background:#eef0f4} .chips .fail{background:#fbe9e7} .chips .warn{background:#fdf3df}
.found{padding:0;list-style:none} .found li{padding:.15rem 0} .warn{color:#8a5a00}
.columns{width:100%} .columns td{padding:.5rem .6rem} .columns svg{display:block;max-width:none}
.name{font-weight:600;overflow-wrap:anywhere} .kind,.note{color:#5b6474;font-size:.85em}
.now{fill:#2f6fb3} .then{fill:none;stroke:#d9822b;stroke-width:1.6} .then-bar{fill:#d9822b}
.a{color:#2f6fb3} .b{color:#b9651b} .key span{margin-right:1rem}
.limit{stroke:#1c2330;stroke-width:1} .meter{fill:#e9ecf1} .low{fill:#9db7d4} .high{fill:#c8732a}
text{font:10px system-ui,sans-serif;fill:#1c2330} summary{cursor:pointer;margin-top:1.6rem}
</style>"""


@dataclass
class Findings:
    """What the decision says of one column.

    Attributes:
        failed: What failed, in words.
        reported: What was only told.
        slices: Where something was told of a slice alone.
        distances: The checks of its distribution.
    """

    failed: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    distances: list[Reason] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the columns: failures, then reports, then the furthest from the baseline."""
        severity = 0 if self.failed else 1 if self.reported else 2 if self.slices else 3
        return severity, -max(map(_excess, self.distances), default=0.0)


def render_page(decision: Decision, now: Summary, before: Summary | None, name: str) -> str:
    """Returns the page: what was found first, then the columns, then every check.

    Args:
        decision: The decision.
        now: The data that is judged.
        before: The data it is drawn beside, if any.
        name: What that is: the baseline, or the serving data.
    """
    outcome = html.escape(decision.decision)
    size = f"{now.rows:,} rows, {len(now.columns)} columns"
    beside = f", beside {name} of {before.rows:,} rows" if before else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{html.escape(decision.gate)}: {outcome}</title>{STYLE}{_STYLE}
<h1>{html.escape(decision.gate)}: <span class="{outcome}">{outcome}</span></h1>
<p>{size}{beside}.</p>
{_found(decision)}
{_columns(decision, now, before, name)}
{_slices(decision, now, before, name)}
<details><summary>All {len(decision.reasons)} checks</summary>{reasons_table(decision)}</details>
</html>
"""


def _found(decision: Decision) -> str:
    failed = [reason for reason in decision.reasons if not reason.passed]
    told = [reason for reason in decision.reasons if reason.check.endswith(REPORTED)]
    holding = len(decision.reasons) - len(failed) - len(told)
    chips = "".join(
        f'<span class="{style}">{count} {word}</span>'
        for count, word, style in (
            (len(failed), "failed", "fail" if failed else ""),
            (len(told), "reported", "warn" if told else ""),
            (holding, "hold", ""),
        )
    )
    lines = [f'<li class="fail">✗ {html.escape(reason.why)}' for reason in failed]
    whole = [reason for reason in told if not reason.slice]
    lines += [f'<li class="warn">! {html.escape(reason.why)}' for reason in whole]
    if len(whole) < len(told):
        lines.append(f'<li class="warn">! {len(told) - len(whole)} findings in slices, see below')
    found = f'<ul class="found">{"".join(lines)}</ul>' if lines else "<p>Every check holds.</p>"
    return f'<p class="chips">{chips}</p><h2>What was found</h2>{found}'


def _by_column(decision: Decision) -> dict[str, Findings]:
    found: dict[str, Findings] = {}
    for reason in decision.reasons:
        column = found.setdefault(reason.metric, Findings())
        why = reason.why.removeprefix(f"column {reason.metric!r} ")
        if not reason.passed:
            column.failed.append(why)
        elif reason.check.endswith(REPORTED) and reason.slice:
            column.slices.append(reason.slice)
        elif reason.check.endswith(REPORTED):
            column.reported.append(why)
        if not reason.slice and reason.check.startswith(("drift ", "skew ")):
            column.distances.append(reason)
    return found


def _columns(decision: Decision, now: Summary, before: Summary | None, name: str) -> str:
    if not now.columns:
        return ""
    found = _by_column(decision)
    names = sorted(now.columns, key=lambda each: found.get(each, Findings()).rank)
    rows = "".join(
        _row(now.columns[each], before.columns.get(each) if before else None, found.get(each))
        for each in names
    )
    key = f'<p class="key"><span class="a">■ this data</span><span class="b">■ {name}</span></p>'
    distance = "<th>distance" if any(each.distances for each in found.values()) else ""
    head = f"<tr><th>column<th>missing<th>values{distance}<th>distribution</tr>"
    table = f'<table class="columns">{head}{rows}</table>'
    return f"<h2>Columns</h2>{key if before else ''}{table}"


def _row(column: Column, baseline: Column | None, found: Findings | None) -> str:
    found = found or Findings()
    notes = "".join(f'<div class="fail">{html.escape(why)}</div>' for why in found.failed)
    notes += "".join(f'<div class="warn">{html.escape(why)}</div>' for why in found.reported)
    if found.slices:
        notes += f'<div class="warn">found in {html.escape(", ".join(found.slices))}</div>'
    plot = _number_plot(column, baseline) if column.is_number else _value_plot(column, baseline)
    facts, missing = _facts(column), f"{column.missing:.2%}"
    if baseline:
        facts = f'<div class="a">{facts}</div><div class="b">{_facts(baseline)}</div>'
        missing = f'<div class="a">{missing}</div><div class="b">{baseline.missing:.2%}</div>'
    meters = f"<td>{''.join(map(_meter, found.distances))}" if baseline else ""
    return (
        f'<tr><td><span class="name">{html.escape(column.name)}</span> '
        f'<span class="kind">{column.kind}</span>{notes}'
        f"<td>{missing}<td>{facts}{meters}<td>{plot}</tr>"
    )


def _excess(reason: Reason) -> float:
    """Returns a distance as a multiple of its limit."""
    if not isinstance(reason.value, float) or not isinstance(reason.threshold, float):
        return 0.0
    return reason.value / reason.threshold if reason.threshold else 0.0


def _meter(reason: Reason) -> str:
    """Draws a distance beside its limit, which is in the middle."""
    excess = _excess(reason)
    if not isinstance(reason.value, float):
        return ""
    style = "high" if excess > 1 else "low"
    told = f"{reason.check.removesuffix(REPORTED).split()[-1]} {reason.value:.2g}"
    drawn = (
        f'<rect class="meter" width="{METER}" height="6"/>'
        f'<rect class="{style}" width="{METER / 2 * min(excess, 2):.1f}" height="6"/>'
        f'<line class="limit" x1="{METER / 2}" x2="{METER / 2}" y1="-2" y2="8"/>'
    )
    return (
        f'{told}<svg width="{METER}" height="12" viewBox="0 -2 {METER} 12" role="img">'
        f"<title>limit {reason.threshold}</title>{drawn}</svg>"
    )


def _slices(decision: Decision, now: Summary, before: Summary | None, name: str) -> str:
    if not now.slices:
        return ""
    told: dict[str, list[Reason]] = {}
    for reason in decision.reasons:
        if reason.slice and (not reason.passed or reason.check.endswith(REPORTED)):
            told.setdefault(reason.slice, []).append(reason)
    rows = ""
    for each in sorted(now.slices, key=lambda each: (-len(told.get(each, [])), each)):
        share = f"{now.slices[each].rows:,} ({now.slices[each].rows / now.rows:.1%})"
        then = ""
        if before:
            then = "<td>–"
            if each in before.slices:
                rows_then = before.slices[each].rows
                then = f"<td>{rows_then:,} ({rows_then / before.rows:.1%})"
        columns = [(reason.metric, reason.passed) for reason in told.get(each, [])]
        found = ", ".join(
            f'<span class="{"warn" if passed else "fail"}">{html.escape(metric)}</span>'
            for metric, passed in columns
        )
        rows += f"<tr><td>{html.escape(each)}<td>{share}{then}<td>{found}</tr>"
    other = f"<th>rows of {name}" if before else ""
    head = f"<tr><th>slice<th>rows{other}<th>columns with findings</tr>"
    return f"<h2>Slices</h2><table>{head}{rows}</table>"


def _facts(column: Column) -> str:
    if not column.count:
        return "empty"
    if not column.is_number:
        most = ", ".join(html.escape(_cut(value)) for value, _ in column.values[:3])
        return f"{column.unique:,} different<div class='note'>most: {most}</div>"
    low, middle, high = (_say(column, each) for each in (column.min, column.median, column.max))
    told = f"{low} … <b>{middle}</b> … {high}"
    if column.is_time:
        return told
    spread = f"mean {_say(column, column.mean)}, sd {_say(column, column.std)}"
    if not math.isfinite(column.mean or 0.0):
        spread = "no mean: infinite values"
    zeros = f", {column.zeros:.1%} zero" if column.zeros else ""
    return f"{told}<div class='note'>{spread}{zeros}</div>"


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
    if text in NOT_COUNTED:
        return "(long or no text)"
    return text if len(text) <= 24 else text[:23] + "…"


def _number_plot(column: Column, baseline: Column | None) -> str:
    """Draws shares in bars of equal width between the 1st and 99th percentile of both.

    Whole numbers have a bar each where they are few.
    """
    both = [each for each in (column, baseline) if each is not None and each.is_number]
    low = min(each.quantile(0.01) for each in both)
    high = max(each.quantile(0.99) for each in both)
    if not math.isfinite(high - low):
        return '<span class="note">not drawn: infinite values</span>'
    if low == high:
        return f'<span class="note">always {_say(column, low)}</span>'
    left, right, count = low, high, BARS
    if column.kind in ("int", "bool") and high - low < MOST_BARS:
        left, right, count = low - 0.5, high + 0.5, round(high - low) + 1
    shares = [_bars(each, left, right, count) for each in both]
    tallest = max(max(bars) for bars in shares)
    step = WIDTH / count
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


def _bars(column: Column, low: float, high: float, count: int) -> list[float]:
    bounds = [low + (high - low) * step / count for step in range(count + 1)]
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
