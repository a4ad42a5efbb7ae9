# SPDX-License-Identifier: Apache-2.0
"""Bounds that stay true however often they are looked at.

A bound for a fixed number of requests is wrong too often when it is asked again and again while
requests come in, and acted on at the first answer that one likes. What is here are confidence
sequences: with probability 1 - alpha they hold for *all* numbers of requests at once, so an
analysis may look after every request, wait longer, stop early or be run again.

Sources: Robbins, Annals of Mathematical Statistics 41 (1970), 1397-1409 (the mixture martingale);
Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", Annals of Statistics 49 (2021), 1055-1080; Johari, Koomen, Pekelis and Walsh, "Always
valid inference: continuous monitoring of A/B tests", Operations Research 70 (2022), 1806-1821.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

# Chance that a check is ever wrong, over all looks and all steps of a rollout.
ALPHA = 0.05
HALVINGS = 60


@dataclass(frozen=True)
class Prior:
    """The beta distribution that alternatives are mixed by: where the bound is tightest.

    Any prior keeps the promise; it only says for which rates the fewest requests are needed.
    """

    a: float
    b: float


# Errors are rare: a faultless version is bounded with 97 requests instead of 131 with (1/2, 1/2).
ERRORS = Prior(0.25, 1.0)
EVEN = Prior(0.5, 0.5)


@dataclass(frozen=True)
class Interval:
    """A lower and an upper bound that hold together."""

    low: float
    high: float


def log_evidence(events: float, trials: float, rate: float, prior: Prior) -> float:
    """Returns the log of the evidence against `rate`, after `events` in `trials`.

    The likelihood ratio of all other rates, mixed by the prior, to `rate`: a martingale that
    starts at 1 when `rate` is the true one, so by Ville's inequality it ever reaches 1 / alpha
    with probability alpha at most. It holds for values between 0 and 1 with mean `rate`, too;
    `events` is their sum then (Howard et al. 2021: sub-Bernoulli).
    """
    misses = trials - events
    log_ratio = _log_beta(prior.a + events, prior.b + misses) - _log_beta(prior.a, prior.b)
    for count, share in ((events, rate), (misses, 1 - rate)):
        if count:
            log_ratio += math.inf if share <= 0 else -count * math.log(share)
    return log_ratio


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@lru_cache(maxsize=100_000)
def rate_bounds(
    events: float, trials: float, alpha: float = ALPHA, prior: Prior = ERRORS
) -> Interval:
    """Returns the confidence sequence of a rate, or of the mean of values between 0 and 1.

    Args:
        events: How often it happened, or the sum of the values.
        trials: How often it could have; 0 bounds nothing.
        alpha: Chance that the true rate is ever outside.
        prior: Where the bounds are tightest.
    """
    if trials <= 0:
        return Interval(0.0, 1.0)
    limit = math.log(1 / alpha)
    observed = events / trials

    def edge(outside: float) -> float:
        """Bisects between what was observed and 0 or 1: the evidence grows with the distance."""
        if log_evidence(events, trials, outside, prior) < limit:
            return outside
        inside = observed
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if log_evidence(events, trials, middle, prior) < limit:
                inside = middle
            else:
                outside = middle
        return outside

    return Interval(edge(0.0), edge(1.0))


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: so many events in so many trials."""

    events: float
    trials: float


def increase_bounds(
    before: Arm, after: Arm, alpha: float = ALPHA, prior: Prior = ERRORS
) -> Interval:
    """Returns the confidence sequence of the rise of a rate from one arm to another.

    Half of `alpha` for each arm, so the share of the traffic that each gets may change at will.
    """
    lower = rate_bounds(before.events, before.trials, alpha / 2, prior)
    upper = rate_bounds(after.events, after.trials, alpha / 2, prior)
    return Interval(upper.low - lower.high, upper.high - lower.low)


@lru_cache
def trials_to_exclude(increase: float, alpha: float = ALPHA, prior: Prior = ERRORS) -> int:
    """Returns how many trials without any event it takes to exclude a rise by `increase`.

    With alpha 0.05: 97 for a rise of 0.05, 534 for 0.01, 29 for 0.15.
    """
    low, high = 0, 1
    while rate_bounds(0, high, alpha / 2, prior).high > increase:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if rate_bounds(0, middle, alpha / 2, prior).high > increase:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Ranks:
    """Which of n values, sorted and counted from 1, bound a quantile; None: no bound yet."""

    low: int | None
    high: int | None


@lru_cache(maxsize=10_000)
def quantile_ranks(count: int, quantile: float, alpha: float = ALPHA) -> Ranks:
    """Returns the confidence sequence of a quantile, whatever the distribution.

    How many values are above a quantile is a count of events of a known rate; the ranks at which
    that count would be too strange bound the quantile (Howard and Ramdas, "Sequential estimation
    of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28
    (2022), 1704-1728, the beta-binomial case).

    A p99 has a lower bound from the first values on where they are far out, and an upper bound
    from some 600 values on (alpha 0.05 / 6); a p50 from 10, a p95 from 119.
    """
    tail = 1 - quantile
    prior = Prior(0.5, 0.5 * quantile / tail)
    limit = math.log(1 / alpha)

    def strange(above: int) -> bool:
        return log_evidence(above, count, tail, prior) >= limit

    expected = round(tail * count)
    if strange(expected):  # nearly no values: the rounding alone is strange
        return Ranks(None, None)
    most = _last(lambda above: not strange(above), expected, count)
    fewest = expected - _last(lambda down: not strange(expected - down), 0, expected)
    return Ranks(count - most or None, count - fewest + 1 if fewest else None)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Returns the last whole number up to `high` for which `holds`, which it does at `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def mean_radius(count: int, deviation: float, alpha: float = ALPHA, best_at: int = 200) -> float:
    """Returns the half width of the asymptotic confidence sequence of a mean.

    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
    asymptotic confidence sequences", Annals of Statistics 52 (2024), 2613-2640, equation for
    Robbins' normal mixture: like the central limit theorem it promises nothing for a few values.

    Args:
        count: Number of values.
        deviation: Their standard deviation.
        alpha: Chance that the true mean is ever outside.
        best_at: Number of values at which the width is smallest for what it promises.
    """
    if not count:
        return math.inf
    spread = -2 * math.log(alpha)
    rho2 = (spread + math.log(spread + 1)) / best_at
    scale = count * rho2 + 1
    return deviation * math.sqrt(2 * scale / (count**2 * rho2) * math.log(math.sqrt(scale) / alpha))
