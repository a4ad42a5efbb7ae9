# SPDX-License-Identifier: Apache-2.0
"""Latencies as a source tells them: each value, or how many were in each bucket."""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from kfloop.components.deployment.sequential import Interval, quantile_ranks


@dataclass
class Values:
    """Every latency.

    Attributes:
        ms: Milliseconds, in any order.
    """

    ms: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.ms)

    def quantile(self, quantile: float) -> float:
        """Returns a quantile; NaN without a value."""
        return float(np.quantile(self.ms, quantile)) if self.ms else math.nan

    def at_rank(self, rank: int) -> Interval:
        """Returns the rank-th smallest value, from 1."""
        value = float(np.partition(self.ms, rank - 1)[rank - 1])
        return Interval(value, value)


@dataclass
class Buckets:
    """A histogram, as Prometheus keeps it.

    Attributes:
        edges: Upper bounds in milliseconds, rising; the last is infinite.
        counts: Latencies in each bucket, not cumulative.
    """

    edges: list[float]
    counts: list[int]

    @property
    def count(self) -> int:
        """How many latencies there are."""
        return sum(self.counts)

    def quantile(self, quantile: float) -> float:
        """Returns a quantile as `histogram_quantile` of Prometheus does; NaN without a value.

        Within a bucket it is interpolated; in the last one it is the lower edge.
        """
        if not self.count:
            return math.nan
        wanted = quantile * self.count
        cumulative = list(accumulate(self.counts))
        index = bisect_left(cumulative, wanted)
        low, high = self._edges(index)
        if math.isinf(high):
            return low
        before = cumulative[index] - self.counts[index]
        return low + (high - low) * (wanted - before) / (self.counts[index] or 1)

    def at_rank(self, rank: int) -> Interval:
        """Returns the edges of the bucket that holds the rank-th smallest value, from 1."""
        return Interval(*self._edges(bisect_left(list(accumulate(self.counts)), rank)))

    def _edges(self, index: int) -> tuple[float, float]:
        return (self.edges[index - 1] if index else 0.0), self.edges[index]


Latencies = Values | Buckets


def quantile_bounds(latencies: Latencies, quantile: float, alpha: float) -> Interval:
    """Returns the confidence sequence of a latency quantile; infinite where it has no bound yet.

    Of a histogram the bounds are edges of buckets, on the safe side.
    """
    ranks = quantile_ranks(latencies.count, quantile, alpha)
    low = latencies.at_rank(ranks.low).low if ranks.low else -math.inf
    return Interval(low, latencies.at_rank(ranks.high).high if ranks.high else math.inf)
