# SPDX-License-Identifier: Apache-2.0
"""Choosing the probability from which a row is called positive."""

import numpy as np


def best_threshold(
    labels: np.ndarray,
    scores: np.ndarray,
    rule: str,
    false_positive_cost: float = 1.0,
    false_negative_cost: float = 1.0,
) -> float:
    """Returns the score from which calling rows positive serves the rule best on these rows.

    It lies just above every score when calling none is best; among equals the highest wins.

    Args:
        labels: 0 or 1 per row, at least one row.
        scores: Probability of 1 per row.
        rule: One of the contract's `THRESHOLD_RULES`: `f1`; `accuracy`; `youden` (true positive
            rate less false positive rate, Youden 1950); `cost`: least total of the two costs.
        false_positive_cost: What calling a negative row positive costs.
        false_negative_cost: What missing a positive row costs.
    """
    distinct, of_row = np.unique(scores.astype(np.float64), return_inverse=True)
    positives = np.bincount(of_row, labels, len(distinct))
    rows = np.bincount(of_row, minlength=len(distinct))
    # With everything called from each score on, from the highest down; first with nothing called.
    found = np.concatenate([[0.0], positives[::-1].cumsum()])
    called = np.concatenate([[0], rows[::-1].cumsum()])
    false_alarms, total = called - found, found[-1]
    negatives = len(labels) - total
    if rule == "f1":
        gain = 2 * found / np.maximum(called + total, 1)
    elif rule == "youden":
        gain = found / max(total, 1) - false_alarms / max(negatives, 1)
    else:
        wrong, missed = (false_positive_cost, false_negative_cost) if rule == "cost" else (1.0, 1.0)
        gain = -(wrong * false_alarms + missed * (total - found))
    best = int(gain.argmax())
    return float(distinct[-best]) if best else float(np.nextafter(distinct[-1], 2.0))
