# SPDX-License-Identifier: Apache-2.0
"""The canary analysis as a page: both versions side by side."""

import html
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from kfloop.components.contracts.charts import Range, Series, line_chart
from kfloop.components.deployment.canary_checks import (
    QUANTILES,
    class_shares,
    prediction_stability,
)
from kfloop.components.deployment.canary_evidence import Evidence
from kfloop.components.deployment.canary_sources import Look, Side
from kfloop.components.deployment.latencies import quantile_bounds
from kfloop.components.deployment.sequential import rate_bounds

LEVELS = np.linspace(0, 1, 101)
Rows = list[tuple[str, str, str, str]]


def details(
    live: Side,
    candidate: Side,
    look: Look,
    since: datetime,
    alpha: float,
    told: str,
    unchecked: list[str],
) -> str:
    """Returns what stands below the decision: the versions' table, charts, what was not checked.

    Args:
        live: The live version.
        candidate: The candidate.
        look: The evidence that was judged.
        since: When it begins.
        alpha: Chance that a check is ever wrong.
        told: Where the evidence is from.
        unchecked: Sentences about what was not checked.
    """
    moment = f"{since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    rows = _traffic_rows(live, candidate, look, alpha) + _prediction_rows(look, live.package.task)
    head = f"<th>live: {_text(look.live.version)}<th>candidate: {_text(look.candidate.version)}"
    body = "".join(
        f"<tr><td>{_text(label)}" + "".join(f"<td>{_text(cell)}" for cell in cells) + "</tr>"
        for label, *cells in rows
    )
    notes = "".join(f"<li>{_text(note)}" for note in unchecked)
    return (
        f"<h2>Both versions since {moment}</h2><table><tr><th>{head}<th>change</tr>{body}</table>"
        f"{_charts(look, live.package.task)}"
        + (f"<h2>Not checked</h2><ul>{notes}</ul>" if notes else "")
        + f"<p>Evidence: {_text(told)}. Ranges hold however often they are looked at, each with "
        f"{1 - alpha:.4g} confidence.</p>"
    )


def _traffic_rows(live: Side, candidate: Side, look: Look, alpha: float) -> Rows:
    before, after = look.live, look.candidate
    copies = f", {look.copies} of them copies" if look.copies else ""
    rows = [
        ("model", live.target.storage_uri, candidate.target.storage_uri, ""),
        ("share of the traffic", f"{live.traffic} %", f"{candidate.traffic} %", ""),
        ("requests", f"{before.requests:,}", f"{after.requests:,}{copies}", ""),
        ("failed", f"{before.errors:,}", f"{after.errors:,}", ""),
        (
            "error rate",
            _rate(before, alpha),
            _rate(after, alpha),
            _change(before.error_rate, after.error_rate, "{:+.2%}") if _both(look) else "",
        ),
    ]
    for quantile in QUANTILES:
        moved = _change(
            before.latencies.quantile(quantile), after.latencies.quantile(quantile), "{:+.1f} ms"
        )
        cells = _latency(before, quantile, alpha), _latency(after, quantile, alpha)
        rows.append((f"p{100 * quantile:g} latency", *cells, moved))
    return rows


def _both(look: Look) -> bool:
    return bool(look.live.requests and look.candidate.requests)


def _rate(one: Evidence, alpha: float) -> str:
    if not one.requests:
        return "–"
    bounds = rate_bounds(one.errors, one.requests, alpha)
    return f"{one.error_rate:.2%} ({bounds.low:.2%} to {bounds.high:.2%})"


def _latency(one: Evidence, quantile: float, alpha: float) -> str:
    if not one.latencies.count:
        return "–"
    bounds = quantile_bounds(one.latencies, quantile, alpha)
    high = "no upper bound yet" if np.isinf(bounds.high) else f"{bounds.high:.1f}"
    return f"{one.latencies.quantile(quantile):.1f} ms ({max(bounds.low, 0):.1f} to {high})"


def _change(before: float, after: float, form: str) -> str:
    # Plus zero, so that nothing is written as -0.
    return form.format(round(after - before, 5) + 0.0) if np.isfinite(after - before) else ""


def _prediction_rows(look: Look, task: str) -> Rows:
    before, after = look.live, look.candidate
    if not before.known or not after.known:
        return []
    if task == "multiclass":
        shares = class_shares(before), class_shares(after)
        names = sorted({*shares[0], *shares[1]})
        pairs = [(name, shares[0].get(name, 0.0), shares[1].get(name, 0.0)) for name in names]
        return [(f"class {n}", f"{a:.1%}", f"{b:.1%}", f"{b - a:+.1%}") for n, a, b in pairs]
    cells = _spread(before), _spread(after)
    moved = f"{after.numbers.mean() - before.numbers.mean():+.4g}"
    psi = prediction_stability(before, after)
    return [("mean prediction", *cells, moved), ("prediction PSI to live", "", f"{psi:.3f}", "")]


def _spread(one: Evidence) -> str:
    return f"{one.numbers.mean():.4g} ± {one.numbers.std():.3g}"


def _charts(look: Look, task: str) -> str:
    names = [f"live: {look.live.version}", f"candidate: {look.candidate.version}"]
    charts = []
    sides = (look.live, look.candidate)
    if task != "multiclass" and all(len(one.known) > 1 for one in sides):
        curves = [np.quantile(one.numbers, LEVELS) for one in sides]
        charts.append(_curves("Predictions on live requests", "prediction", names, curves))
    if all(one.latencies.count > 1 for one in sides):
        # The last percent is a few requests that would squeeze all others into a corner.
        curves = [
            np.array([one.latencies.quantile(level) for level in LEVELS[:-1]]) for one in sides
        ]
        charts.append(_curves("Latency of the answered requests", "ms", names, curves))
    pairs = look.shadow
    if pairs.live and task != "multiclass":
        moved = np.subtract(np.array(pairs.candidate, float), np.array(pairs.live, float))
        charts.append(
            line_chart(
                "The same live rows, answered by both",
                "candidate less live",
                "share below",
                [Series("", _points(np.quantile(moved, LEVELS), LEVELS))],
            )
        )
    return "".join(charts)


def _curves(title: str, unit: str, names: list[str], curves: list[npt.NDArray[np.float64]]) -> str:
    """Draws quantiles, with room above the lines for the legend."""
    series = [
        Series(name, _points(LEVELS, curve)) for name, curve in zip(names, curves, strict=True)
    ]
    low = min(0.0, *(float(curve.min()) for curve in curves))
    high = max(float(curve.max()) for curve in curves)
    top = high + 0.2 * (high - low or 1.0)
    across, up = Range(0.0, 1.0), Range(low, top)
    return line_chart(title, "share of the requests below", unit, series, across, up)


def _points(across: Iterable[float], up: Iterable[float]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(across, up, strict=False)]


def _text(value: str) -> str:
    return html.escape(value)
