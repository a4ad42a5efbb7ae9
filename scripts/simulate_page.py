# SPDX-License-Identifier: Apache-2.0
"""The page of a simulation; it opens without a network."""

from html import escape
from typing import Any

from kfloop.components.contracts.charts import Series, line_chart
from kfloop.components.contracts.decision import STYLE


def simulation_page(name: str, document: dict[str, Any]) -> str:
    """Returns a simulation as a self-contained HTML page.

    Args:
        name: The loop.
        document: `metric`, `months`, `scores`, `means` and `trainings`, as `kfloop simulate` has
            them.
    """
    metric, months, scores = document["metric"], document["months"], document["scores"]
    lines = [
        Series(curve, [(index + 1, score["value"]) for index, score in enumerate(row)], marks=True)
        for curve, row in scores.items()
    ]
    chart = line_chart(f"{metric} by month", f"month from {months[0]['since'][:7]}", metric, lines)
    heads = "".join(f"<th>{escape(curve)}" for curve in scores)
    rows = "".join(
        _row(month, [row[i] for row in scores.values()]) for i, month in enumerate(months)
    )
    means = "".join(f"<td>{document['means'][curve]:.4f}" for curve in scores)
    trainings = "".join(f"<td>{document['trainings'][curve]}" for curve in scores)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{escape(name)}: simulation</title>{STYLE}
<h1>{escape(name)}: {len(months)} months of the past</h1>
<p>Each month was served by the model that was live in it, and at its end the loop decided. The same
months, all of their rows, scored by the first model alone and by one trained anew every month.
<i>Measured</i> is on the replayed requests once their labels were there, <i>estimated</i> what the
monitoring made of the same requests without labels.</p>
{chart}
<table><tr><th>month<th>live<th>drift<th>performance<th>decision{heads}<th>measured<th>estimated<th>why</tr>
{rows}
<tr><th>mean<td><td><td><td>{means}<td><td><td></tr>
<tr><th>trainings<td><td><td><td>{trainings}<td><td><td></tr></table></html>
"""


def _row(month: dict[str, Any], scores: list[dict[str, float]]) -> str:
    decision = month["action"]
    if decision == "retrain":
        promoted = month["promoted"]
        decision += f" → version {promoted}" if promoted else " → not promoted"
    values = "".join(
        f"<td title='95 %: {score['low']:.4f} to {score['high']:.4f}'>{score['value']:.4f}"
        for score in scores
    )
    return (
        f"<tr><th>{month['since'][:7]}<td>version {escape(month['version'])}"
        f"<td>{month['drift']}<td>{month['performance']}<td>{decision}{values}"
        f"<td>{_number(month['measured'])}<td>{_number(month['estimated'])}"
        f"<td>{escape(month['why'])}</tr>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
