# SPDX-License-Identifier: Apache-2.0
"""How far a column has moved from its baseline, and how far chance alone would move it.

Numbers are compared on bins fixed from the baseline's deciles, by the population stability index
(PSI). TFDV's own numeric distance re-bins two histograms of different ranges and is mostly noise.
Strings are compared by the largest change of one value's share (L-infinity), as TFDV does.
"""

import math
from itertools import pairwise
from statistics import NormalDist

from kfloop.components.validation.summary import Column

BINS = 10
# Of a hundred validations of data that did not change, about one says that it did.
FALSE_ALARMS = 0.01
# The theory knows exact shares; ours are read from sketches, whose cuts may fall on tied values. On
# random halves of one data set, PSI is on average 0.7 to 1.2 times what the theory says, by the
# column's shape (tests/validation/test_validation_calibration.py).
SKETCH_FACTOR = 1.25


def baseline_edges(baseline: Column) -> list[float]:
    """Returns the inner bin edges: the baseline's deciles, without repetitions.

    Whole numbers are cut between two values, so that a value is never on an edge.
    """
    half = 0.5 if baseline.kind in ("int", "bool") else 0.0
    deciles = {baseline.quantile(step / BINS) + half for step in range(1, BINS)}
    return sorted(edge for edge in deciles if math.isfinite(edge) and edge < baseline.cuts[-1])


def population_stability_index(current: Column, baseline: Column) -> tuple[float, int]:
    """Returns the PSI of a numeric column and the number of bins.

    PSI = Σ (p − q) ln(p / q) over the bins, with p and q the two shares (Siddiqi, Credit Risk
    Scorecards, 2006: below 0.1 little has changed, above 0.25 much). Half a row is added to each
    bin, so that an empty one does not make it infinite. A constant baseline has no deciles to cut
    at: its two bins are "up to the value" and "above", or "below" when all else is equal.
    """
    edges = baseline_edges(baseline) or _edges_around(current, baseline)
    if not edges:
        return 0.0, 1
    p = _bin_shares(current, edges)
    q = _bin_shares(baseline, edges)
    index = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    return index, len(p)


def psi_noise(current: int, baseline: int, bins: int, false_alarms: float = FALSE_ALARMS) -> float:
    """Returns the PSI that two samples of one distribution exceed with probability `false_alarms`.

    Without any change, PSI is distributed as (1/n₁ + 1/n₂) χ² with bins − 1 degrees of freedom
    (Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of
    Risk Model Validation 14(4), 2020), so its mean is (bins − 1)(1/n₁ + 1/n₂). The quantile of χ²
    is Wilson and Hilferty's approximation (1931), here times `SKETCH_FACTOR`.

    Args:
        current: Number of values now.
        baseline: Number of values in the baseline.
        bins: Number of bins.
        false_alarms: Accepted probability of a false alarm.
    """
    if bins < 2:
        return 0.0
    freedom = bins - 1
    z = NormalDist().inv_cdf(1 - false_alarms)
    chi_square = freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
    return SKETCH_FACTOR * chi_square * (1 / current + 1 / baseline)


def l_infinity(current: Column, baseline: Column) -> tuple[float, str]:
    """Returns the largest change of one value's share in a string column, and that value."""
    now, before = _value_shares(current), _value_shares(baseline)
    changes = {
        value: abs(now.get(value, 0.0) - before.get(value, 0.0)) for value in now.keys() | before
    }
    if not changes:
        return 0.0, ""
    largest = max(sorted(changes), key=lambda value: changes[value])
    return changes[largest], largest


def l_infinity_noise(
    current: int, baseline: int, values: int, false_alarms: float = FALSE_ALARMS
) -> float:
    """Returns the L-infinity distance that chance exceeds with probability <= `false_alarms`.

    A share changes with a standard deviation of at most √(¼ (1/n₁ + 1/n₂)); the normal quantile is
    divided among the values (Bonferroni).
    """
    z = NormalDist().inv_cdf(1 - false_alarms / (2 * max(values, 1)))
    return z * math.sqrt(0.25 * (1 / current + 1 / baseline))


def missing_noise(share: float, current: int, baseline: int) -> float:
    """Returns the increase of a missing share that chance exceeds once in a thousand times.

    The normal approximation to the difference of two proportions, `share` being the baseline's.
    """
    z = NormalDist().inv_cdf(0.999)
    return z * math.sqrt(share * (1 - share) * (1 / current + 1 / baseline))


def _edges_around(current: Column, baseline: Column) -> list[float]:
    value = baseline.cuts[-1]
    if current.cuts[-1] > value:
        return [value]
    return [math.nextafter(value, -math.inf)] if current.cuts[0] < value else []


def _bin_shares(column: Column, edges: list[float]) -> list[float]:
    reached = [0.0, *(column.share_up_to(edge) for edge in edges), 1.0]
    bins = len(edges) + 1
    return [
        (max(high - low, 0.0) * column.count + 0.5) / (column.count + 0.5 * bins)
        for low, high in pairwise(reached)
    ]


def _value_shares(column: Column) -> dict[str, float]:
    return {value: count / column.count for value, count in column.values if column.count}
