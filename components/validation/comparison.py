"""Checks of statistics against those of a baseline: missing values and drift."""

import math
from typing import Any

from kfloop.components.contracts.decision import Reason
from kfloop.components.validation import distances
from kfloop.components.validation.findings import FAIL, OFF, Limits, failed, reported
from kfloop.components.validation.summary import Column, Summary


def baseline_checks(now: Summary, before: Summary, found: Any, limits: Limits) -> list[Reason]:
    """Compares the columns that both have; the schema checks name those that are missing."""
    if not before.rows:
        return [failed("baseline", "rows", 0, "the baseline has no rows to compare with")]
    shared = [name for name in now.columns if name in before.columns]
    reasons = []
    for name in shared:
        current, baseline = now.columns[name], before.columns[name]
        if name not in found.anomaly_info:
            reasons += _missing_check(current, baseline, now.rows, before.rows, limits)
        if limits.drift != OFF:
            reasons += _drift_check(current, baseline, limits, len(shared))
    return reasons


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


def _drift_check(current: Column, baseline: Column, limits: Limits, columns: int) -> list[Reason]:
    """Compares two distributions; time moves on and identifiers change, so neither is judged."""
    if current.is_time or not current.count or not baseline.count:
        return []
    name = current.name
    false_alarms = distances.FALSE_ALARMS / columns
    if current.is_number and baseline.is_number:
        value, bins = distances.population_stability_index(current, baseline)
        noise = distances.psi_noise(current.count, baseline.count, bins, false_alarms)
        threshold = max(limits.maximum_psi, noise)
        measure, detail = "psi", f"mean {_short(baseline.mean)} → {_short(current.mean)}"
    elif current.values and baseline.values:
        value, mover = distances.l_infinity(current, baseline)
        values = max(len(current.values), len(baseline.values))
        noise = distances.l_infinity_noise(current.count, baseline.count, values, false_alarms)
        threshold = max(limits.maximum_l_infinity, noise)
        measure, detail = "l_infinity", f"most at {mover!r}"
    else:
        return []
    threshold = round(threshold, 4)
    if value <= threshold:
        why = f"column {name!r} is distributed as in the baseline"
        return [Reason(f"drift {measure}", name, value, threshold, True, why)]
    why = f"column {name!r} drifted ({measure} {value:.3g}, limit {threshold:g}, {detail})"
    if limits.drift == FAIL:
        return [failed(f"drift {measure}", name, value, why, threshold)]
    return [reported(f"drift {measure}", name, value, why, threshold)]


def _short(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"
