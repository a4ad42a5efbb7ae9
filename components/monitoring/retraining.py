# SPDX-License-Identifier: Apache-2.0
"""Retrain or keep? Evidence calls for retraining; data, cooldown and history may hold it back.

The decision says whether the model is still fit: `pass` when nothing calls for retraining, `fail`
when something does, `no_data` when the evidence cannot be trusted or there is none. The action says
what is done about it now: a `fail` is kept when it comes too soon or with too little new data.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from kfloop.components.contracts.dataset import isoformat, parse_time, row_count
from kfloop.components.contracts.decision import (
    FAIL,
    NO_BASELINE,
    NO_DATA,
    PASS,
    Decision,
    Reason,
    decision_metadata,
    read_decision,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.monitoring.history import Entry, open_history

GATE = "retraining"
RETRAIN, KEEP = "retrain", "keep"


@dataclass(frozen=True)
class Policy:
    """The rules of retraining.

    Attributes:
        minimum_new_rows: New labelled rows that a retraining needs.
        cooldown_days: Days after a training in which there is no other.
        consecutive_windows: How many windows in a row must call for retraining.
        budget: Most retrainings in `budget_days`; 0 is no limit.
        budget_days: Days of data time that the budget is for.
        on_drift: Whether drift calls for retraining.
        on_performance: Whether worse performance does.
        force: A person's reason to retrain whatever the rules say; empty is none.
    """

    minimum_new_rows: int = 1000
    cooldown_days: float = 7.0
    consecutive_windows: int = 1
    budget: int = 0
    budget_days: float = 365.0
    on_drift: bool = True
    on_performance: bool = True
    force: str = ""

    def __post_init__(self) -> None:
        if min(self.minimum_new_rows, self.cooldown_days, self.budget) < 0:
            raise InputError("minimum_new_rows, cooldown_days and budget are at least 0.")
        if self.consecutive_windows < 1 or self.budget_days <= 0:
            raise InputError("consecutive_windows is at least 1, budget_days is more than 0.")

    @property
    def needs_history(self) -> str:
        """The rule that looks at windows before this one, or empty."""
        if self.consecutive_windows > 1:
            return f"consecutive_windows is {self.consecutive_windows}"
        return f"budget is {self.budget}" if self.budget else ""


@dataclass(frozen=True)
class Evidence:
    """What is known about the window."""

    data_quality: Decision
    drift: Decision
    performance: Decision
    rows_labelled: int
    last_trained: datetime
    now: datetime | None


def decide_retraining(
    data_quality: str | Path,
    drift: str | Path,
    performance: str | Path,
    joined: str | Path,
    decision: str | Path,
    page: str | Path,
    model_uri: str = "",
    last_trained: str = "",
    now: str = "",
    history_uri: str = "",
    run: str = "",
    **policy: Any,
) -> tuple[str, dict[str, str]]:
    """Decides whether the live model is retrained.

    Args:
        data_quality: Decision file of the window's validation.
        drift: Decision file of `detect_drift`.
        performance: Decision file of `measure_performance`.
        joined: Dataset of the rows that got a label since the last training.
        decision: Where the decision is written; its action is `retrain` or `keep`.
        page: Where the HTML page is written.
        model_uri: The live model's published package.
        last_trained: End of its training data, ISO 8601; empty reads it from `model_uri`.
        now: Newest time of the window's data, ISO 8601; empty is unknown, which keeps the model.
        history_uri: File (path or file:// URI) that remembers decisions between runs; empty is
            none: then the cooldown counts from `last_trained` alone.
        run: Name of the pipeline run; a retry under the same name replaces its entry.
        **policy: See `Policy`.

    Returns:
        `retrain` or `keep`, and the decision artifact's metadata.

    Raises:
        InputError: If an input cannot be used, or a rule needs the history and there is none.
    """
    rules = Policy(**policy)
    if rules.needs_history and not history_uri:
        raise InputError(
            f"{rules.needs_history}, which needs history_uri to remember the windows before this "
            "one."
        )
    evidence = Evidence(
        read_decision(data_quality),
        read_decision(drift),
        read_decision(performance),
        row_count(joined),
        _last_trained(last_trained, model_uri),
        parse_time(now, "now") if now else None,
    )
    with open_history(history_uri) as history:
        made, triggered = decide(evidence, rules, history.others(run))
        write_decision(made, decision, page)
        if evidence.now is not None:
            moment = isoformat(evidence.now)
            history.add(Entry(moment, triggered, made.action or KEEP, run, model_uri, made.summary))
    print(made.summary, flush=True)
    action = made.action or KEEP
    return action, decision_metadata(made) | {"action": action}


def decide(evidence: Evidence, policy: Policy, past: list[Entry]) -> tuple[Decision, bool]:
    """Returns the decision, and whether this window calls for retraining.

    Args:
        evidence: What is known about the window.
        policy: The rules.
        past: Entries of earlier windows, oldest first.
    """
    quality = _quality(evidence.data_quality)
    signals = [
        _signal("drift", evidence.drift, policy.on_drift),
        _signal("performance", evidence.performance, policy.on_performance),
    ]
    triggered = quality.passed and any(not signal.passed for signal in signals)
    holds = [
        _enough_rows(evidence.rows_labelled, policy.minimum_new_rows),
        _cooldown(evidence, policy.cooldown_days, past),
        _consecutive(evidence, policy.consecutive_windows, past),
    ]
    if policy.budget:
        holds.append(_budget(evidence, policy, past))
    reasons = [quality, *signals]
    if triggered:
        reasons += holds
    act = triggered and all(hold.passed for hold in holds)
    measured = any(d.decision in (PASS, FAIL) for d in (evidence.drift, evidence.performance))
    outcome = FAIL if triggered else PASS if quality.passed and measured else NO_DATA
    action = RETRAIN if act or policy.force else KEEP
    baseline = f"the model trained on data until {isoformat(evidence.last_trained)}"
    decision = Decision(GATE, outcome, reasons, action, baseline, policy.force or None)
    return decision, triggered


def _last_trained(last_trained: str, model_uri: str) -> datetime:
    if last_trained:
        return parse_time(last_trained, "last_trained")
    if not model_uri:
        raise InputError("Neither last_trained nor model_uri is given; give one of them.")
    package = read_package(model_uri)
    # Data without a time column: its requests are logged when they arrive, so this is their clock.
    until = package.training_window.get("until", "") or package.trained_at
    if not until:
        raise InputError(
            f"The model {model_uri} does not tell the end of its training window; "
            "give last_trained."
        )
    return parse_time(str(until), f"training_window.until of {model_uri}")


def _quality(decision: Decision) -> Reason:
    usable = decision.decision in (PASS, NO_BASELINE)
    why = (
        "data quality is good"
        if usable
        else f"data quality is {decision.decision}: no training on data that is broken or missing"
        f" ({_because(decision)})"
    )
    return Reason("data_quality", "data", decision.decision, PASS, usable, why)


def _signal(name: str, decision: Decision, counts: bool) -> Reason:
    outcome = decision.decision
    if not counts:
        why = f"{name} is {outcome}, which does not count here (on_{name} is off)"
        return Reason(f"on_{name}", name, outcome, None, True, why)
    why = f"{name} is {outcome}" + ("" if outcome == PASS else f" ({_because(decision)})")
    return Reason(f"on_{name}", name, outcome, PASS, outcome != FAIL, why)


def _because(decision: Decision) -> str:
    failed = [reason.why for reason in decision.reasons if not reason.passed]
    return "; ".join(failed[:2]) + (f"; {len(failed) - 2} more" if len(failed) > 2 else "")


def _enough_rows(rows: int, minimum: int) -> Reason:
    why = f"{rows} new labelled rows, {minimum} are needed"
    return Reason("minimum_new_rows", "rows", rows, minimum, rows >= minimum, why)


def _cooldown(evidence: Evidence, days: float, past: list[Entry]) -> Reason:
    """The days since the last training, or since the last decision to train if that is later.

    A retraining whose model was not promoted leaves the live model old; without the history it
    would be tried again with every window.
    """
    if evidence.now is None:
        why = "the window does not tell its newest time, so that the cooldown cannot be checked"
        return Reason("cooldown", "days", None, days, False, why)
    trainings = [entry.moment for entry in past if entry.action == RETRAIN]
    last = max([evidence.last_trained, *trainings])
    elapsed = (evidence.now - last) / timedelta(days=1)
    why = f"{elapsed:.1f} days since the last training, the cooldown is {days:g}"
    return Reason("cooldown", "days", elapsed, days, elapsed >= days and elapsed > 0, why)


def _consecutive(evidence: Evidence, needed: int, past: list[Entry]) -> Reason:
    """How many windows in a row call for retraining since the last one, this one included."""
    # A window that was looked at twice counts once, as it was seen last.
    windows = {e.moment: e for e in past if evidence.now is not None and e.moment < evidence.now}
    count = 1
    for moment in sorted(windows, reverse=True):
        if not windows[moment].triggered or windows[moment].action == RETRAIN:
            break
        count += 1
    why = f"{count} windows in a row call for retraining, {needed} are needed"
    return Reason("consecutive_windows", "windows", count, needed, count >= needed, why)


def _budget(evidence: Evidence, policy: Policy, past: list[Entry]) -> Reason:
    """How many retrainings there were in the days before this window."""
    # A window without a time is held back by the cooldown already.
    since = evidence.now - timedelta(days=policy.budget_days) if evidence.now else None
    spent = sum(entry.action == RETRAIN and (not since or entry.moment > since) for entry in past)
    why = f"{spent} of {policy.budget} retrainings in {policy.budget_days:g} days are spent"
    return Reason("budget", "retrainings", spent, policy.budget, spent < policy.budget, why)
