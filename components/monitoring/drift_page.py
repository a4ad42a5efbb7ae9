# SPDX-License-Identifier: Apache-2.0
"""The drift page: distributions side by side as inline SVG, the strongest effect first."""

import html

import numpy as np

from kfloop.components.monitoring import charts
from kfloop.components.monitoring.compare import Comparison
from kfloop.components.monitoring.window import Numbers

BINS = 24
CATEGORIES = 12


def distributions(comparisons: list[Comparison]) -> str:
    """Returns the HTML that goes below the table of reasons; nothing for no comparisons."""
    if not comparisons:
        return ""
    figures = "".join(_figure(comparison) for comparison in comparisons)
    return (
        f"{charts.STYLE}<h2>Distributions</h2>"
        f'<p class="key">Share of the rows, missing values left out:'
        f'{charts.key("reference", "window")}</p><div class="plots">{figures}</div>'
    )


def _figure(comparison: Comparison) -> str:
    verdict = '<span class="fail">drifted</span>' if comparison.drifted else "<span>stable</span>"
    effects = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g} / {threshold:.3g}"
        for name, (value, threshold) in comparison.effects.items()
    )
    before, now = comparison.missing_rates
    return (
        f"<figure><figcaption>{html.escape(comparison.name)}: {verdict}</figcaption>"
        f"{_plot(comparison)}<p>{effects or 'too few values'}"
        f"<br>missing {before:.1%} → {now:.1%}</p></figure>"
    )


def _plot(comparison: Comparison) -> str:
    if not len(comparison.reference) or not len(comparison.current):
        return "<p>No values on one side.</p>"
    labels, before, now = (
        _histogram(comparison) if comparison.categories is None else _categories(comparison)
    )
    return charts.paired_bars(labels, before, now, f"Distribution of {comparison.name}")


def _histogram(comparison: Comparison) -> tuple[list[str], Numbers, Numbers]:
    """Bins between the outer percentiles of both samples; what lies outside is in the end bins."""
    old, new = comparison.reference, comparison.current
    low = min(np.quantile(old, 0.005), np.quantile(new, 0.005))
    high = max(np.quantile(old, 0.995), np.quantile(new, 0.995))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, BINS + 1)
    before, now = (
        np.histogram(np.clip(values, low, high), edges)[0] / len(values) for values in (old, new)
    )
    labels = [f"{low:.4g}"] + [""] * (BINS - 2) + [f"{high:.4g}"]
    return labels, before, now


def _categories(comparison: Comparison) -> tuple[list[str], Numbers, Numbers]:
    labels = comparison.categories or []
    before, now = (
        np.bincount(codes, minlength=len(labels)) / len(codes)
        for codes in (comparison.reference, comparison.current)
    )
    order = np.argsort(-np.maximum(before, now), kind="stable")
    shown, rest = order[:CATEGORIES], order[CATEGORIES:]
    names = [labels[code] for code in shown]
    before_shown, now_shown = list(before[shown]), list(now[shown])
    if len(rest):
        names.append(f"{len(rest)} others")
        before_shown.append(before[rest].sum())
        now_shown.append(now[rest].sum())
    return names, np.array(before_shown), np.array(now_shown)
