"""Candidate against live: the checks, as pure functions of the evidence."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kfloop.components.contracts.decision import Reason
from kfloop.components.deployment.canary_evidence import Evidence

# One-sided confidence of the bounds below, and its normal quantile.
CONFIDENCE = 0.95
Z = 1.6449


@dataclass(frozen=True)
class Limits:
    """What a candidate may differ by.

    Attributes:
        minimum_requests: Requests that each version must have had; see `requests_needed`.
        max_error_rate_increase: Largest rise of the error rate, 0 to 1, that the evidence must
            exclude with 95 % confidence. With the default of 100 requests, one error still passes
            the default of 0.05.
        max_latency_ratio: Largest p99 latency, as a multiple of the live version's.
        latency_floor_ms: Extra milliseconds that are always allowed, so that a fast model is not
            refused for the machine's noise.
        max_prediction_shift: Largest distance of the mean predictions in standard deviations of
            the live version's; for classes the largest difference of a class's share, and only
            up to 1. The default of 1 finds a broken scale and lets a retrained model differ.
        max_disagreement: Largest mean difference on the same rows: probability for binary, share
            of the live predictions' 5 % to 95 % range for regression, share of rows with another
            class for multiclass.
    """

    minimum_requests: int = 100
    max_error_rate_increase: float = 0.05
    max_latency_ratio: float = 2.0
    latency_floor_ms: float = 50.0
    max_prediction_shift: float = 1.0
    max_disagreement: float = 0.2

    @property
    def requests_needed(self) -> int:
        """Requests of each version before it is judged.

        At least as many that a candidate without any error could pass: of fewer, Wilson's bound
        is above `max_error_rate_increase` whatever the candidate does.
        """
        if not 0 < self.max_error_rate_increase < 1:
            return self.minimum_requests
        # The upper bound of 0 errors in n requests is z² / (n + z²).
        passable = math.ceil(Z * Z * (1 / self.max_error_rate_increase - 1))
        return max(self.minimum_requests, passable)


def check_volume(live: Evidence, candidate: Evidence, limits: Limits) -> list[Reason]:
    """Returns whether each version had enough requests to be judged by."""
    return [
        Reason(
            "minimum_requests",
            "requests",
            evidence.requests,
            limits.requests_needed,
            evidence.requests >= limits.requests_needed,
            f"version {evidence.version} had {evidence.requests} requests, "
            f"it takes {limits.requests_needed} to judge",
        )
        for evidence in (live, candidate)
    ]


def check_traffic(live: Evidence, candidate: Evidence, task: str, limits: Limits) -> list[Reason]:
    """Compares what both versions did with live requests; both must have had some."""
    reasons = [_check_errors(live, candidate, limits.max_error_rate_increase)]
    if live.latencies_ms and candidate.latencies_ms:
        reasons.append(_check_latency(live, candidate, limits))
    missing = sum(value is None for value in candidate.predictions)
    if missing:
        why = f"{missing} answered rows have no prediction"
        reasons.append(Reason("missing", "prediction", missing, 0, False, why))
    if len(live.predictions) > 1 and len(candidate.predictions) > missing:
        reasons.append(_check_shift(live, candidate, task, limits.max_prediction_shift))
    return reasons


def check_agreement(
    live: list[Any], candidate: list[Any], task: str, max_disagreement: float
) -> Reason:
    """Compares the predictions for the same rows."""
    value = disagreement(live, candidate, task)
    why = f"on the same {len(live)} rows the predictions differ by {value:.3g} {UNITS[task]}"
    return Reason(
        "agreement", "prediction", value, max_disagreement, value <= max_disagreement, why
    )


UNITS = {
    "binary": "in probability, on average",
    "regression": "of the live version's range, on average",
    "multiclass": "of the rows",
}


def disagreement(live: list[Any], candidate: list[Any], task: str) -> float:
    """Returns the mean difference on the same rows; see `Limits.max_disagreement`."""
    if task == "multiclass":
        return float(np.mean([a != b for a, b in zip(live, candidate, strict=True)]))
    before, after = np.array(live, dtype=float), np.array(candidate, dtype=float)
    mean = float(np.mean(np.abs(after - before)))
    if task == "binary" or mean == 0:
        return mean
    low, high = np.quantile(before, [0.05, 0.95])
    return mean / float(high - low) if high > low else math.inf


def error_rate_increase_bound(live: Evidence, candidate: Evidence) -> float:
    """Returns the one-sided 95 % upper bound of the candidate's error rate less the live one's.

    Newcombe's hybrid score interval, method 10 (Statistics in Medicine 17, 1998, 873-890): it
    stays honest where there is no error at all, unlike the normal approximation.
    """
    _, highest = wilson(candidate.errors, candidate.requests)
    lowest, _ = wilson(live.errors, live.requests)
    rise = candidate.error_rate - live.error_rate
    return rise + math.hypot(highest - candidate.error_rate, live.error_rate - lowest)


def wilson(events: int, trials: int, z: float = Z) -> tuple[float, float]:
    """Returns Wilson's score interval of a rate (JASA 22, 1927, 209-212)."""
    rate = events / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def quantile_lower_bound(values: list[float], quantile: float) -> float:
    """Returns a one-sided 95 % lower bound of a quantile, whatever the distribution.

    The k-th smallest of n values is one when at least k of n fall below the quantile with that
    probability (David and Nagaraja, Order Statistics, 2003, section 7.1).
    """
    n, tail = len(values), 0.0
    for k in range(n, 0, -1):
        tail += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(quantile)
            + (n - k) * math.log1p(-quantile)
        )
        if tail >= CONFIDENCE:
            return sorted(values)[k - 1]
    return min(values)


def prediction_stability(live: Evidence, candidate: Evidence, bins: int = 10) -> float:
    """Returns the population stability index on deciles of the live predictions; for the page."""
    edges = np.unique(np.quantile(live.numbers, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (live.numbers, candidate.numbers):
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def class_shares(evidence: Evidence) -> dict[str, float]:
    """Returns each class's share of the predictions."""
    known = [value for value in evidence.predictions if value is not None]
    return {name: known.count(name) / len(known) for name in sorted(set(known))}


def _check_errors(live: Evidence, candidate: Evidence, limit: float) -> Reason:
    bound = error_rate_increase_bound(live, candidate)
    why = (
        f"{candidate.errors} of {candidate.requests} requests failed, live {live.errors} of "
        f"{live.requests}: with 95 % confidence the rate rises by less than {bound:.3g}"
    )
    return Reason("error_rate", "increase", bound, limit, bound <= limit, why)


def _check_latency(live: Evidence, candidate: Evidence, limits: Limits) -> Reason:
    before, after = live.latency_ms(0.99), candidate.latency_ms(0.99)
    allowed = max(limits.max_latency_ratio * before, before + limits.latency_floor_ms)
    # A p99 of a hundred requests is nearly their maximum: one hiccup must not decide.
    surely = quantile_lower_bound(candidate.latencies_ms, 0.99)
    why = (
        f"p99 is {after:.1f} ms (with 95 % confidence at least {surely:.1f} ms), live "
        f"{before:.1f} ms"
    )
    return Reason("latency", "p99 ms", surely, allowed, surely <= allowed, why)


def _check_shift(live: Evidence, candidate: Evidence, task: str, limit: float) -> Reason:
    if task == "multiclass":
        before, after = class_shares(live), class_shares(candidate)
        moved = {name: after.get(name, 0) - before.get(name, 0) for name in {*before, *after}}
        name, shift = max(moved.items(), key=lambda item: abs(item[1]))
        why = f"the share of class {name!r} moved by {shift:+.3g}"
        return Reason("shift", "class share", abs(shift), limit, abs(shift) <= limit, why)
    before_mean, after_mean = float(live.numbers.mean()), float(candidate.numbers.mean())
    spread = float(live.numbers.std())
    moved_by = abs(after_mean - before_mean)
    value = moved_by / spread if spread else (math.inf if moved_by else 0.0)
    why = f"the mean prediction is {after_mean:.4g}, live {before_mean:.4g} ± {spread:.3g}"
    return Reason("shift", "mean prediction", value, limit, value <= limit, why)
