# SPDX-License-Identifier: Apache-2.0
"""Is a difference more than chance? Tests by alibi-detect, and two bounds it does not have."""

import logging
import math
import os
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from kfloop.components.monitoring.window import Codes, Numbers

# alibi-detect imports transformers, which warns that no deep learning framework is there.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
logging.getLogger("alibi_detect").setLevel(logging.ERROR)

from alibi_detect.cd import ChiSquareDrift, ClassifierDrift, KSDrift  # noqa: E402


def kolmogorov_smirnov(reference: Numbers, current: Numbers) -> float:
    """Returns the p-value of the two-sample Kolmogorov-Smirnov test; neither may hold NaN."""
    detector = KSDrift(reference.reshape(-1, 1))
    answer = detector.predict(current.reshape(-1, 1), drift_type="feature")
    return float(answer["data"]["p_val"][0])


def chi_square(reference: Codes, current: Codes) -> float:
    """Returns the p-value of Pearson's chi-square test on two samples of category codes."""
    detector = ChiSquareDrift(reference.reshape(-1, 1))
    answer = detector.predict(current.reshape(-1, 1), drift_type="feature")
    return float(answer["data"]["p_val"][0])


def classifier(reference: Numbers, current: Numbers, seed: int) -> tuple[float, float]:
    """Tells two samples apart with a classifier (Lopez-Paz and Oquab 2017).

    Args:
        reference: Rows by columns, standardised, without NaN.
        current: The same columns.
        seed: Of the folds and the model.

    Returns:
        The p-value and the Kolmogorov-Smirnov distance between the out-of-fold scores of the two
        samples: 0 when the classifier cannot tell them apart, 1 when it always can.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    detector = ClassifierDrift(
        reference,
        HistGradientBoostingClassifier(max_iter=50, random_state=seed),
        backend="sklearn",
        preds_type="probs",
        n_folds=3,
        seed=seed,
    )
    # At this size its threads wait for each other longer than they work.
    with threadpool_limits(1):
        answer = detector.predict(current)
    return float(answer["data"]["p_val"]), float(answer["data"]["distance"])


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number (Holm 1979), in the order given."""
    ascending = np.argsort(p_values, kind="stable")
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for position, index in enumerate(ascending):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def difference_of_shares(
    hits_1: int, rows_1: int, hits_2: int, rows_2: int, significance: float
) -> tuple[float, float]:
    """Returns the interval of share 2 minus share 1 (Newcombe 1998, method 10, Wilson scores)."""
    share_1, share_2 = hits_1 / rows_1, hits_2 / rows_2
    low_1, high_1 = _wilson(hits_1, rows_1, significance)
    low_2, high_2 = _wilson(hits_2, rows_2, significance)
    difference = share_2 - share_1
    return (
        difference - math.hypot(share_2 - low_2, high_1 - share_1),
        difference + math.hypot(high_2 - share_2, share_1 - low_1),
    )


def _wilson(hits: int, rows: int, significance: float) -> tuple[float, float]:
    z = float(norm.ppf(1 - significance / 2))
    share = hits / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + (z / rows) ** 2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def vanished_by_chance(reference_hits: int, reference_rows: int, current_rows: int) -> float:
    """Returns the chance that none of a category's rows falls into the window.

    This is Fisher's exact test with no hit in the window: all `reference_hits` rows lie among the
    reference's by chance alone.
    """
    total = reference_rows + current_rows
    taken = np.arange(reference_hits)
    return float(np.exp(np.sum(np.log((reference_rows - taken) / (total - taken)))))
