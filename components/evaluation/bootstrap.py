# SPDX-License-Identifier: Apache-2.0
"""Metric values with confidence intervals, by the Poisson bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kfloop.components.evaluation.metrics import Measure

CONFIDENCE = 0.95
# Weights, of a byte each, that are held at once.
_WEIGHTS_AT_ONCE = 20_000_000
# Poisson(1) by table: the k-th of 65536 equally likely numbers, so each probability is exact to
# 1/65536; drawing 16-bit integers is ten times as fast as Generator.poisson.
_POISSON_CDF = np.cumsum([np.exp(-1.0) / np.prod(np.arange(1, k + 1)) for k in range(9)])
_POISSON = np.searchsorted(_POISSON_CDF, (np.arange(65536) + 0.5) / 65536).astype(np.uint8)


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its `CONFIDENCE` interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


# A measure, and the rows it was prepared with; None for all of them.
Part = tuple[Measure, np.ndarray | None]


def estimate(measure: Measure, rows: int, resamples: int, seed: int) -> dict[str, Estimate]:
    """Returns every metric of `measure`, which was prepared with `rows` rows, with its interval."""
    return estimate_parts([(measure, None)], rows, resamples, seed)[0]


def estimate_parts(
    parts: Sequence[Part], rows: int, resamples: int, seed: int
) -> list[dict[str, Estimate]]:
    """Returns the metrics of many parts of the same rows, with percentile bootstrap intervals.

    Each resample weighs each row with an independent Poisson(1) draw, which for more than some
    hundred rows behaves like drawing rows with replacement and needs no indexing. All parts are
    resampled by the same draws.

    Args:
        parts: What to measure, on which rows.
        rows: Number of all rows, at least 1.
        resamples: Number of resamples; the intervals are None with 0.
        seed: Of the draws.
    """
    if not parts:
        return []
    generator = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // rows)
    drawn: list[dict[str, list[np.ndarray]]] = [
        {name: [] for name in measure.values} for measure, _ in parts
    ]
    for start in range(0, resamples, at_once):
        size = (rows, min(at_once, resamples - start))
        weights = _POISSON[generator.integers(0, 65536, size, dtype=np.uint16)]
        for (measure, chosen), kept in zip(parts, drawn, strict=True):
            found = measure.resample(weights if chosen is None else weights[chosen])
            for name, value in found.items():
                kept[name].append(value)
    return [
        {name: _estimate(value, kept[name]) for name, value in measure.values.items()}
        for (measure, _), kept in zip(parts, drawn, strict=True)
    ]


def _estimate(value: float, drawn: list[np.ndarray]) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, None)
    samples = np.concatenate(drawn) if drawn else np.zeros(0)
    # A resample of a small slice may lack a class; the interval is over those that do not.
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return Estimate(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
