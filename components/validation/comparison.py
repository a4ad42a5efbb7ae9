# SPDX-License-Identifier: Apache-2.0
"""Checks of statistics against others: a baseline, slice by slice, and what is served."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kfloop.components.contracts.decision import Reason
from kfloop.components.validation import distances
from kfloop.components.validation.findings import OFF, Limits, failed, found, of_slice, reported
from kfloop.components.validation.summary import Column, Summary


@dataclass(frozen=True)
class Comparison:
    """How two sets of statistics are compared.

    Attributes:
        check: Begins the checks' names: `drift` or `skew`.
        policy: What follows from a difference, see `Limits`.
        limits: What is tolerated.
        false_alarms: Accepted probability of a false alarm in one column.
        alike, moved: What is said of a column that is as it was, and of one that is not.
    """

    check: str
    policy: str
    limits: Limits
    false_alarms: float
    alike: str
    moved: str


def baseline_checks(
    now: Summary, before: Summary, anomalies: Any, limits: Limits
) -> Iterable[Reason]:
    """Compares with a baseline: all rows, and the slices that both have.

    Columns that the schema checks have named in all rows are not named again.
    """
    if not before.rows:
        yield failed("baseline", "rows", 0, "the baseline has no rows to compare with")
        return
    shared = [name for name in now.slices if name in before.slices]
    comparison = Comparison(
        "drift",
        limits.drift,
        limits,
        distances.FALSE_ALARMS / (len(now.columns) * (1 + len(shared))),
        "is distributed as in the baseline",
        "drifted",
    )
    named = set(anomalies.anomaly_info)
    yield from _against_baseline(now, before, named, comparison)
    for name in shared:
        against = _against_baseline(now.slices[name], before.slices[name], named, comparison)
        yield from (of_slice(reason, name) for reason in against)
    for name in sorted(before.slices.keys() - now.slices.keys()) if now.slices else ():
        why = f"slice {name} of the baseline has no rows now, or too few to be measured"
        yield reported("slice", name, None, why)


def _against_baseline(
    now: Summary, before: Summary, named: set[str], comparison: Comparison
) -> Iterable[Reason]:
    for name in now.columns:
        if name not in before.columns:
            continue  # the schema checks name it
        current, baseline = now.columns[name], before.columns[name]
        if name not in named:
            yield from _missing_check(current, baseline, now.rows, before.rows, comparison.limits)
        if comparison.policy != OFF:
            yield from _distance_check(current, baseline, comparison)


def skew_checks(
    training: Summary, serving: Summary, only_in_training: set[str], limits: Limits
) -> Iterable[Reason]:
    """Compares what a model is trained on with what it is served.

    Args:
        training: The data to judge.
        serving: What the service received.
        only_in_training: Columns that serving need not have, such as the label.
        limits: What is tolerated.
    """
    if limits.skew == OFF:
        return
    if not serving.rows:
        yield failed("skew", "rows", 0, "the serving data has no rows to compare with")
        return
    names = [name for name in training.columns if name not in only_in_training]
    comparison = Comparison(
        "skew",
        limits.skew,
        limits,
        distances.FALSE_ALARMS / max(len(names), 1),
        "is served as it is trained on",
        "is served differently from training",
    )
    for name in names:
        trained, served = training.columns[name], serving.columns.get(name)
        if served is None:
            why = f"column {name!r} is trained on and not served"
            yield found(limits.skew, "skew column", name, None, why, None)
            continue
        noise = distances.missing_noise(trained.missing, training.rows, serving.rows)
        allowed = round(limits.missing_slack + noise, 4)
        if abs(served.missing - trained.missing) > allowed:
            why = (
                f"column {name!r} is missing in {served.missing:.1%} of the rows that are served, "
                f"in {trained.missing:.1%} of those trained on"
            )
            yield found(limits.skew, "skew missing", name, served.missing, why, allowed)
        yield from _distance_check(served, trained, comparison)


def _missing_check(
    current: Column, baseline: Column, rows: int, baseline_rows: int, limits: Limits
) -> list[Reason]:
    noise = distances.missing_noise(baseline.missing, rows, baseline_rows)
    allowed = min(baseline.missing + limits.missing_slack + noise, 1.0)
    if current.missing <= allowed:
        return []
    why = (
        f"column {current.name!r} is missing in {current.missing:.1%} of the rows, in "
        f"{baseline.missing:.1%} of the baseline's"
    )
    return [failed("missing", current.name, current.missing, why, round(allowed, 4))]


def _distance_check(current: Column, baseline: Column, comparison: Comparison) -> list[Reason]:
    """Compares two distributions; time moves on and identifiers change, so neither is judged."""
    if current.is_time or not current.count or not baseline.count:
        return []
    name, limits = current.name, comparison.limits
    if current.is_number and baseline.is_number:
        value, bins = distances.population_stability_index(current, baseline)
        noise = distances.psi_noise(current.count, baseline.count, bins, comparison.false_alarms)
        threshold = max(limits.maximum_psi, noise)
        measure, detail = "psi", f"mean {_short(baseline.mean)} → {_short(current.mean)}"
    elif current.values and baseline.values:
        value, mover = distances.l_infinity(current, baseline)
        values = max(len(current.values), len(baseline.values))
        noise = distances.l_infinity_noise(
            current.count, baseline.count, values, comparison.false_alarms
        )
        threshold = max(limits.maximum_l_infinity, noise)
        measure, detail = "l_infinity", f"most at {mover!r}"
    else:
        return []
    check, threshold = f"{comparison.check} {measure}", round(threshold, 4)
    if value <= threshold:
        why = f"column {name!r} {comparison.alike}"
        return [Reason(check, name, value, threshold, True, why)]
    why = (
        f"column {name!r} {comparison.moved} ({measure} {value:.3g}, limit {threshold:g}, {detail})"
    )
    return [found(comparison.policy, check, name, value, why, threshold)]


def _short(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"
