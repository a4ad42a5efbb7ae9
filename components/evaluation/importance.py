# SPDX-License-Identifier: Apache-2.0
"""Which features the model leans on, by shuffling one at a time."""

from typing import Any

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.metrics import MAIN_METRIC
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.evaluation.metrics import improvement, measure_of
from kfloop.components.evaluation.score import Scorer

_REPEATS = 2


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
    metric = MAIN_METRIC[package.task]

    def value(judged: pa.Table) -> float:
        outputs = score(judged).astype(np.float64)
        return measure_of(package.task, labels, outputs, 0.5).values[metric]

    whole, losses = value(sample), []
    if np.isnan(whole):
        return {}
    for name in package.feature_names:
        at, column = sample.column_names.index(name), sample[name]
        found = []
        for _ in range(_REPEATS):
            shuffled = column.take(pa.array(generator.permutation(len(labels))))
            found.append(improvement(metric, whole, value(sample.set_column(at, name, shuffled))))
        losses.append({"feature": name, "loss": float(np.mean(found))})
    losses.sort(key=lambda entry: (-float(str(entry["loss"])), str(entry["feature"])))
    return {"metric": metric, "rows": len(labels), "features": losses}
