# SPDX-License-Identifier: Apache-2.0
"""The performance page: metrics beside those at release, and the reliability of probabilities."""

import numpy as np

from kfloop.components.contracts.charts import Range, Series, line_chart
from kfloop.components.monitoring.metrics import Estimate, calibration_bins
from kfloop.components.monitoring.window import Numbers


def tables(
    estimates: dict[str, Estimate],
    release: dict[str, Estimate],
    expected: dict[str, float],
    confidence: float,
) -> str:
    """Returns the metrics as an HTML table; nothing when there is no metric at all."""
    names = [*estimates, *(name for name in expected if name not in estimates)]
    if not names:
        return ""
    rows = "".join(
        f"<tr><td>{name}<td>{estimates.get(name, '–')}<td>{release.get(name, '–')}"
        f"<td>{_number(expected.get(name))}</tr>"
        for name in names
    )
    return (
        f"<h2>Metrics</h2><p>With {confidence:.0%} intervals. The estimate uses no label: it is "
        "what the model expects of itself, right only while its probabilities are calibrated.</p>"
        f"<table><tr><th>metric<th>now<th>at release<th>estimate without labels</tr>{rows}</table>"
    )


def reliability(labels: Numbers, scores: Numbers) -> str:
    """Returns predicted against observed shares of positives, in bins of equal size."""
    bins = calibration_bins(scores)
    counts = np.bincount(bins)
    filled = counts > 0
    predicted = np.bincount(bins, scores)[filled] / counts[filled]
    observed = np.bincount(bins, labels)[filled] / counts[filled]
    pairs = [(float(x), float(y)) for x, y in zip(predicted, observed, strict=True)]
    highest = max(float(predicted.max()), float(observed.max()), 0.01)
    whole = Range(0.0, highest)
    lines = [
        Series("calibrated", [(0.0, 0.0), (highest, highest)], dashed=True),
        Series("this window", pairs, marks=True),
    ]
    chart = line_chart(
        "Reliability in ten equal bins", "mean prediction", "positives", lines, whole, whole
    )
    return f"<h2>Reliability</h2>{chart}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
