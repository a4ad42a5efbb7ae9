"""Which features the model leans on, by shuffling one at a time."""

import html
from typing import Any

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.evaluation.metrics import MAIN_METRIC, improvement, measure_of
from kfloop.components.evaluation.score import Scorer

_REPEATS = 2
_SHOWN = 30
_ROW, _LEFT, _WIDTH = 18, 210, 560


def permutation_importance(
    score: Scorer,
    table: pa.Table,
    labels: np.ndarray,
    package: ModelPackage,
    rows: int,
    seed: int,
) -> dict[str, Any]:
    """Returns how much worse the main metric gets when one feature's values are shuffled.

    Breiman 2001, section 10, on a bounded sample: a rank, not a measurement. Of two features that
    say the same, each looks unimportant.

    Args:
        score: The model.
        table: Labelled rows.
        labels: Their labels.
        package: The model's package.
        rows: Most rows to shuffle, taken at random; 0 for no importance.
        seed: Of the sample and of the shuffles.

    Returns:
        `metric`, `rows` and `features` ([{feature, loss}], largest first; the mean of
        `_REPEATS` shuffles); nothing when it is off, or the metric is undefined.
    """
    if not rows or not table.num_rows:
        return {}
    generator = np.random.default_rng(seed)
    taken = generator.permutation(table.num_rows)[:rows]
    sample, labels = table.take(pa.array(np.sort(taken))), labels[np.sort(taken)]
    everything, metric = np.ones((1, len(labels))), MAIN_METRIC[package.task]

    def value(judged: pa.Table) -> np.ndarray:
        outputs = score(judged).astype(np.float64)
        return measure_of(package.task, labels, outputs, 0.5)(everything)[metric]

    whole, losses = value(sample), []
    if np.isnan(whole[0]):
        return {}
    for name in package.feature_names:
        at, column = sample.column_names.index(name), sample[name]
        found = []
        for _ in range(_REPEATS):
            shuffled = column.take(pa.array(generator.permutation(len(labels))))
            found.append(
                improvement(metric, whole, value(sample.set_column(at, name, shuffled)))[0]
            )
        losses.append({"feature": name, "loss": float(np.mean(found))})
    losses.sort(key=lambda entry: (-float(str(entry["loss"])), str(entry["feature"])))
    return {"metric": metric, "rows": len(labels), "features": losses}


def importance_chart(found: dict[str, Any]) -> str:
    """Returns the largest losses as a bar chart in SVG."""
    shown = found["features"][:_SHOWN]
    largest = max([entry["loss"] for entry in shown] + [1e-12])
    bars = []
    for index, entry in enumerate(shown):
        top, name = index * _ROW, html.escape(entry["feature"])
        width = max(entry["loss"], 0.0) / largest * (_WIDTH - _LEFT - 70)
        bars.append(
            f'<text x="{_LEFT - 6}" y="{top + 13}" text-anchor="end">{name}</text>'
            f'<rect x="{_LEFT}" y="{top + 3}" width="{width:.1f}" height="12" fill="#1f5fbf"/>'
            f'<text x="{_LEFT + width + 5:.1f}" y="{top + 13}">{entry["loss"]:.4g}</text>'
        )
    title = f"Loss of {found['metric']} when one feature is shuffled, on {found['rows']} rows"
    height = len(shown) * _ROW + 4
    return (
        f"<h2>{title}</h2>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{title}" font-family="system-ui,sans-serif" font-size="11" fill="#5b6474">'
        + "".join(bars)
        + "</svg>"
    )
