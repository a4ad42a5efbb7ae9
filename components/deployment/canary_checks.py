# SPDX-License-Identifier: Apache-2.0
"""Candidate against live: the checks, as pure functions of the evidence.

Each check has its own `alpha` (`sequential.ALPHA` over the steps of the rollout), which bounds the
chance that it is *ever* wrong, however often it is looked at: that it fails a candidate that is
within the limit, and for errors also that it passes one that is not.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kfloop.components.contracts.decision import FAIL, NO_DATA, PASS, Reason
from kfloop.components.deployment.canary_evidence import Evidence, Pairs
from kfloop.components.deployment.latencies import quantile_bounds
from kfloop.components.deployment.sequential import (
    ALPHA,
    EVEN,
    Arm,
    Interval,
    increase_bounds,
    mean_radius,
    rate_bounds,
    trials_to_exclude,
)

QUANTILES = (0.5, 0.95, 0.99)
# Of fewer values a mean's confidence sequence, which is asymptotic, says nothing: nothing fails.
MINIMUM_VALUES = 50


@dataclass(frozen=True)
class Limits:
    """What a candidate may differ by.

    Attributes:
        minimum_requests: Requests that each version must have had; see `requests_needed`.
        max_error_rate_increase: Largest rise of the error rate, 0 to 1, that the evidence must
            exclude. At the default of 0.05 a candidate without an error needs 97 requests, with
            one error 169, with two 218; one that fails every fifth request is found out after
            about 60 (each where the live version, with four times the requests, has no error).
        max_latency_ratio: Largest p50, p95 and p99 latency, as a multiple of the live version's.
        latency_floor_ms: Extra milliseconds that are always allowed, so that a fast model is not
            refused for the machine's noise.
        max_prediction_shift: Largest distance of the mean predictions in standard deviations of
            the live version's; for classes the largest difference of a class's share, and only
            up to 1. The default of 1 finds a broken scale and lets a retrained model differ.
        max_disagreement: Largest mean difference on the same rows: probability for binary, share
            of the live predictions' 5 % to 95 % range for regression, share of rows with another
            class for multiclass.
        max_loss_increase: Largest rise of the mean loss on labelled rows: Brier score for binary,
            share of wrong classes for multiclass, absolute error in multiples of the live
            version's for regression.
    """

    minimum_requests: int = 100
    max_error_rate_increase: float = 0.05
    max_latency_ratio: float = 2.0
    latency_floor_ms: float = 50.0
    max_prediction_shift: float = 1.0
    max_disagreement: float = 0.2
    max_loss_increase: float = 0.05

    def requests_needed(self, steps: int = 1) -> int:
        """Returns the requests of each version before it can pass.

        At least as many that a candidate without any error could: of fewer, the bound of the
        error rate is above `max_error_rate_increase` whatever the candidate does. With the
        default rise of 0.05 that is 97 at one step, 111 at two and 125 at four.
        """
        if not 0 < self.max_error_rate_increase < 1:
            return self.minimum_requests
        passable = trials_to_exclude(self.max_error_rate_increase, ALPHA / steps)
        return max(self.minimum_requests, passable)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        reason: For the decision; `passed` only when the outcome is `pass`.
        outcome: `pass`, `fail`, or `no_data` while the evidence allows both.
    """

    reason: Reason
    outcome: str


def found(
    outcome: str,
    check: str,
    metric: str,
    value: float | str | None,
    threshold: float | str | None,
    why: str,
) -> Finding:
    """Returns a finding with its reason."""
    return Finding(Reason(check, metric, value, threshold, outcome == PASS, why), outcome)


def _told(why: str, outcome: str) -> str:
    return f"{why}; more requests are needed to tell" if outcome == NO_DATA else why


def check_volume(live: Evidence, candidate: Evidence, needed: int) -> list[Finding]:
    """Returns whether each version had enough requests to be judged by."""
    return [
        found(
            PASS if one.requests >= needed else NO_DATA,
            "minimum_requests",
            "requests",
            one.requests,
            needed,
            f"version {one.version} had {one.requests} requests, it takes {needed} to judge",
        )
        for one in (live, candidate)
    ]


def check_traffic(
    live: Evidence, candidate: Evidence, task: str, limits: Limits, alpha: float = ALPHA
) -> list[Finding]:
    """Compares what both versions did with the requests they had."""
    findings = [_check_errors(live, candidate, limits.max_error_rate_increase, alpha)]
    findings += _check_latency(live, candidate, limits, alpha)
    missing = len(candidate.predictions or []) - len(candidate.known)
    if missing:
        why = f"{missing} answered rows have no prediction"
        findings.append(found(FAIL, "missing", "prediction", missing, 0, why))
    if live.known and candidate.known:
        if task == "multiclass":
            findings.append(_check_classes(live, candidate, limits.max_prediction_shift, alpha))
        else:
            findings.append(_check_mean(live, candidate, limits.max_prediction_shift, alpha))
    return findings


def _check_errors(live: Evidence, candidate: Evidence, limit: float, alpha: float) -> Finding:
    rise = increase_bounds(
        Arm(live.errors, live.requests), Arm(candidate.errors, candidate.requests), alpha
    )
    why = (
        f"{candidate.errors} of {candidate.requests} requests failed, live {live.errors} of "
        f"{live.requests}: the rate changes by {rise.low:+.1%} to {rise.high:+.1%}"
    )
    outcome = _side(rise, limit)
    return found(outcome, "error_rate", "increase", rise.high, limit, _told(why, outcome))


def _side(bounds: Interval, limit: float) -> str:
    if bounds.high <= limit:
        return PASS
    return FAIL if bounds.low > limit else NO_DATA


def _check_latency(
    live: Evidence, candidate: Evidence, limits: Limits, alpha: float
) -> list[Finding]:
    """Fails a quantile that is surely above the limit; what nothing is known of is left out."""
    findings = []
    for quantile in QUANTILES:
        # Two versions and three quantiles share the check's alpha.
        share = alpha / (2 * len(QUANTILES))
        before = quantile_bounds(live.latencies, quantile, share)
        after = quantile_bounds(candidate.latencies, quantile, share)
        if math.isinf(before.high) or math.isinf(after.low):
            continue
        allowed = max(limits.max_latency_ratio * before.high, before.high + limits.latency_floor_ms)
        name = f"p{100 * quantile:g}"
        why = (
            f"{name} is {candidate.latencies.quantile(quantile):.1f} ms (surely at least "
            f"{after.low:.1f} ms), live {live.latencies.quantile(quantile):.1f} ms (surely at "
            f"most {before.high:.1f} ms)"
        )
        outcome = PASS if after.low <= allowed else FAIL
        findings.append(found(outcome, "latency", f"{name} ms", after.low, allowed, why))
    return findings


def _check_mean(live: Evidence, candidate: Evidence, limit: float, alpha: float) -> Finding:
    before, after = live.numbers, candidate.numbers
    spread, moved = float(before.std()), float(abs(after.mean() - before.mean()))
    radius = _radius(before, alpha) + _radius(after, alpha)
    why = f"the mean prediction is {after.mean():.4g}, live {before.mean():.4g} ± {spread:.3g}"
    return _distance("shift", "mean prediction", moved, radius, spread, limit, why)


def _check_classes(live: Evidence, candidate: Evidence, limit: float, alpha: float) -> Finding:
    before, after = class_shares(live), class_shares(candidate)
    names = sorted({*before, *after})
    moved = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in names}
    name = max(names, key=lambda name: abs(moved[name]))
    bounds = increase_bounds(
        Arm(live.known.count(name), len(live.known)),
        Arm(candidate.known.count(name), len(candidate.known)),
        alpha / len(names),
        EVEN,
    )
    value, low = abs(moved[name]), max(bounds.low, -bounds.high)
    outcome = PASS if value <= limit else FAIL if low > limit else NO_DATA
    why = f"the share of class {name!r} moved by {moved[name]:+.3g}"
    return found(outcome, "shift", "class share", value, limit, _told(why, outcome))


def _radius(values: npt.NDArray[np.float64], alpha: float) -> float:
    if len(values) < MINIMUM_VALUES:
        return math.inf
    return mean_radius(len(values), float(values.std()), alpha / 2)


def _distance(
    check: str, metric: str, moved: float, radius: float, unit: float, limit: float, why: str
) -> Finding:
    """Returns `pass` for an estimate within the limit, `fail` when it is surely beyond."""
    if unit:
        value, low = moved / unit, max(moved - radius, 0.0) / unit
    else:
        value = math.inf if moved else 0.0
        low = value if math.isfinite(radius) else 0.0
    outcome = PASS if value <= limit else FAIL if low > limit else NO_DATA
    return found(outcome, check, metric, value, limit, _told(why, outcome))


def check_agreement(pairs: Pairs, task: str, max_disagreement: float) -> Finding:
    """Compares the predictions for the candidate's reference rows: all that there are."""
    value = disagreement(pairs.live, pairs.candidate, task)
    why = f"on the same {len(pairs.live)} rows the predictions differ by {value:.3g} {UNITS[task]}"
    outcome = PASS if value <= max_disagreement else FAIL
    return found(outcome, "agreement", "prediction", value, max_disagreement, why)


def check_shadow(pairs: Pairs, task: str, max_disagreement: float, alpha: float = ALPHA) -> Finding:
    """Compares the predictions for live requests that the candidate got copies of."""
    count = len(pairs.live)
    value = disagreement(pairs.live, pairs.candidate, task)
    if task == "regression":
        moved = np.abs(np.subtract(np.array(pairs.candidate, float), np.array(pairs.live, float)))
        unit = _range(np.array(pairs.live, dtype=float)) or math.inf
        low = value - mean_radius(count, float(moved.std()), alpha) / unit
    else:
        low = rate_bounds(value * count, count, alpha, EVEN).low
    outcome = PASS if value <= max_disagreement else FAIL if low > max_disagreement else NO_DATA
    why = f"on {count} rows of copied live requests the predictions differ by {value:.3g}"
    why = _told(f"{why} {UNITS[task]}", outcome)
    return found(outcome, "shadow_agreement", "prediction", value, max_disagreement, why)


def check_labels(
    live: Pairs, candidate: Pairs, task: str, max_increase: float, alpha: float = ALPHA
) -> Finding:
    """Compares the mean loss on labelled rows; see `Limits.max_loss_increase`.

    Args:
        live: Labels (`live`) and predictions (`candidate`) of the live version's rows.
        candidate: The same of the candidate's.
        task: The model's task.
        max_increase: Largest rise of the mean loss.
        alpha: Chance that the check is ever wrong.
    """
    rows = [len(one.live) for one in (live, candidate)]
    if min(rows) < MINIMUM_VALUES:
        why = f"{rows[1]} rows of the candidate and {rows[0]} of the live version have a label"
        why += f"; it takes {MINIMUM_VALUES}"
        return found(NO_DATA, "labels", LOSSES[task], None, max_increase, why)
    before, after = (losses(one, task) for one in (live, candidate))
    rise = float(after.mean() - before.mean())
    unit = float(before.mean()) if task == "regression" else 1.0
    radius = _radius(before, alpha) + _radius(after, alpha)
    why = (
        f"the {LOSSES[task]} is {after.mean():.4g} on {rows[1]} labelled rows, live "
        f"{before.mean():.4g} on {rows[0]}"
    )
    return _distance("labels", LOSSES[task], max(rise, 0.0), radius, unit, max_increase, why)


LOSSES = {
    "binary": "Brier score",
    "regression": "mean absolute error",
    "multiclass": "share of wrong classes",
}
UNITS = {
    "binary": "in probability, on average",
    "regression": "of the live version's range, on average",
    "multiclass": "of the rows",
}


def losses(labelled: Pairs, task: str) -> npt.NDArray[np.float64]:
    """Returns each row's loss, of labels (`live`) and predictions (`candidate`)."""
    if task == "multiclass":
        pairs = zip(labelled.live, labelled.candidate, strict=True)
        return np.array([str(label) != str(told) for label, told in pairs], dtype=float)
    missed = np.array(labelled.candidate, dtype=float) - np.array(labelled.live, dtype=float)
    return missed**2 if task == "binary" else np.abs(missed)


def disagreement(live: list[Any], candidate: list[Any], task: str) -> float:
    """Returns the mean difference on the same rows; see `Limits.max_disagreement`."""
    if task == "multiclass":
        return float(np.mean([a != b for a, b in zip(live, candidate, strict=True)]))
    before, after = np.array(live, dtype=float), np.array(candidate, dtype=float)
    mean = float(np.mean(np.abs(after - before)))
    if task == "binary" or mean == 0:
        return mean
    spread = _range(before)
    return mean / spread if spread else math.inf


def _range(values: npt.NDArray[np.float64]) -> float:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(high - low)


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
    known = evidence.known
    return {name: known.count(name) / len(known) for name in sorted(set(known))}
