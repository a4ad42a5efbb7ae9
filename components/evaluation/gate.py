# SPDX-License-Identifier: Apache-2.0
"""The gate after evaluation: is the model good enough to be published?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import (
    FAIL,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json
from kfloop.components.contracts.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER
from kfloop.components.evaluation.gate_checks import (
    GateRules,
    against_champion,
    fairness_reasons,
    latency_reasons,
    number_of,
    read_comparison,
    too_small,
)

# {"minimum": 0.7} and/or {"maximum": 2.0}
Limits = dict[str, float]


def gate(
    evaluation: str | Path,
    decision: str | Path,
    page: str | Path,
    rules: GateRules,
    comparison: str | Path | None = None,
) -> Decision:
    """Decides whether an evaluated model may be published.

    Args:
        evaluation: File that `evaluate` wrote.
        decision: Decision file to write: `pass`, `fail`, or `no_data` when no check failed but a
            metric that is needed is undefined.
        page: HTML page of the decision to write.
        rules: What the model must reach.
        comparison: File that `compare_models` wrote, when there is one.

    Raises:
        InputError: If a rule names an unknown metric or is not a number, or is about slices,
            groups or a champion that the evaluation or the comparison does not have.
    """
    document = read_json(evaluation)
    if not isinstance(document, dict) or "metrics" not in document or "slices" not in document:
        raise InputError(f"{evaluation} is not an evaluation; give the output of evaluate_model.")
    compared = read_comparison(comparison) if comparison else None
    reasons = [
        *_absolute(document, rules),
        *against_champion(compared, rules),
        *fairness_reasons(document, rules.fairness),
        *latency_reasons(document, rules.latency_ms),
    ]
    outcome = _outcome(reasons)
    forced = rules.force if rules.force and outcome != PASS else None
    champion = compared["champion"] if compared else None
    baseline = f"version {champion['version']} at {champion['model_uri']}" if champion else None
    result = Decision(
        "evaluation", PASS if forced else outcome, reasons, baseline=baseline, forced=forced
    )
    write_decision(result, decision, page)
    print(result.summary, flush=True)
    return result


def _absolute(document: dict[str, Any], rules: GateRules) -> list[Reason]:
    """Checks the model's own metrics, on all rows and in the slices."""
    limits = _limits(rules.thresholds, "thresholds", document)
    slice_limits = _limits(rules.slice_thresholds, "slice_thresholds", document)
    if slice_limits and not document["slices"]:
        raise InputError(
            "There are slice_thresholds, but the evaluation has no slices; "
            "name columns in the `slices` of evaluate_model."
        )
    if limits:
        reasons = _judge(limits, document["metrics"], rules.confident, "")
    else:
        reasons = [_beats_trivial(document)]
    for part in document["slices"] if slice_limits else []:
        if part["metrics"]:
            reasons += _judge(slice_limits, part["metrics"], rules.confident, part["slice"])
        else:
            reasons.append(too_small(part))
    return reasons


def _limits(given: Mapping[str, Any], setting: str, document: dict[str, Any]) -> dict[str, Limits]:
    known = list(document["metrics"])
    limits = {}
    for metric, value in given.items():
        if metric not in known:
            raise InputError(
                f"{setting} names {metric!r}, which is not a metric of the task "
                f"{document['task']}; those are {', '.join(known)}."
            )
        limits[metric] = _limit(metric, value, setting)
    return limits


def _limit(metric: str, value: Any, setting: str) -> Limits:
    if not isinstance(value, Mapping):
        if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            raise InputError(
                f"{setting}.{metric} needs a minimum and a maximum, since it is best in between; "
                'write {"minimum": -1, "maximum": 1}.'
            )
        value = {"minimum" if metric in HIGHER_IS_BETTER else "maximum": value}
    wrong = [key for key in value if key not in ("minimum", "maximum")]
    if wrong or not value:
        raise InputError(
            f"{setting}.{metric} is {dict(value)!r}; it takes `minimum` and `maximum`."
        )
    for key, number in value.items():
        number_of(number, f"{setting}.{metric}.{key}")
    return {key: float(number) for key, number in value.items()}


def _judge(
    limits: dict[str, Limits], metrics: dict[str, Any], confident: bool, part: str
) -> list[Reason]:
    return [
        _check(metric, metrics[metric], check, threshold, confident, part)
        for metric, bounds in limits.items()
        for check, threshold in bounds.items()
    ]


def _check(
    metric: str, entry: dict[str, Any], check: str, threshold: float, confident: bool, part: str
) -> Reason:
    where = f" in {part}" if part else ""
    name = f"confident {check}" if confident else check
    value = entry[("low" if check == "minimum" else "high") if confident else "value"]
    if value is None:
        why = entry.get("why", "it has no interval")
        return Reason(
            name, metric, None, threshold, False, f"{metric}{where} is unknown: {why}", part
        )
    passed = value >= threshold if check == "minimum" else value <= threshold
    measured = f"{metric}{where} is {entry['value']:.4g}"
    if confident:
        measured += f" (95 % interval {entry['low']:.4g} to {entry['high']:.4g})"
    relation = {
        ("minimum", True): "at least", ("minimum", False): "below",
        ("maximum", True): "at most", ("maximum", False): "above",
    }[check, passed]  # fmt: skip
    why = f"{measured}, {relation} the {check} {threshold:g}"
    return Reason(name, metric, value, threshold, passed, why, part)


def _beats_trivial(document: dict[str, Any]) -> Reason:
    """Checks the model against one that knows nothing: the gate of a loop without thresholds."""
    if not document["trivial"]:
        why = f"there is nothing to judge: {document['rows']} rows"
        return Reason("beats a trivial model", "rows", None, None, False, why)
    ((metric, bar),) = document["trivial"].items()
    entry = document["metrics"][metric]
    higher = metric in HIGHER_IS_BETTER
    bound = entry["low" if higher else "high"]
    name = "beats a trivial model"
    if bound is None:
        why = f"{metric} is unknown: {entry.get('why', 'it has no interval')}"
        return Reason(name, metric, None, bar, False, why)
    passed = bound > bar if higher else bound < bar
    why = (
        f"{metric} is {entry['value']:.4g} (95 % interval {entry['low']:.4g} to "
        f"{entry['high']:.4g}), {'better' if passed else 'not surely better'} than the {bar:.4g} "
        "of a model without any feature; no thresholds were set"
    )
    return Reason(name, metric, entry["value"], bar, passed, why)


def _outcome(reasons: list[Reason]) -> str:
    """What is known to be wrong weighs more than what is unknown, which has no value."""
    wrong = [reason for reason in reasons if not reason.passed]
    if any(reason.value is not None for reason in wrong):
        return FAIL
    return NO_DATA if wrong else PASS
