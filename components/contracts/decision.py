# SPDX-License-Identifier: Apache-2.0
"""The Decision contract: what a gate decided, and why.

The file is JSON::

    {"gate": str, "decision": "pass" | "fail" | "no_baseline" | "no_data",
     "action": str | null, "summary": str,
     "reasons": [{"check", "metric", "value", "threshold", "slice", "passed", "why"}],
     "baseline": str | null, "forced": null | reason}
"""

import html
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json, write_text

PASS, FAIL, NO_BASELINE, NO_DATA = "pass", "fail", "no_baseline", "no_data"
# A summary is one sentence; the page has every reason.
TOLD_REASONS = 3
# A page with more checks than these folds the ones that hold.
SHOWN_CHECKS = 12
OUTCOMES = (PASS, FAIL, NO_BASELINE, NO_DATA)


@dataclass
class Reason:
    """One check of a gate.

    Attributes:
        check: What was checked, for example `minimum` or `psi`.
        metric: What was measured, for example `auc` or a column's name.
        value: The measured value, or None when there was nothing to measure.
        threshold: What it was held against.
        passed: Whether the check holds.
        why: One sentence a person reads.
        slice: The part of the data it is about; empty for all of it.
    """

    check: str
    metric: str
    value: float | str | None
    threshold: float | str | None
    passed: bool
    why: str
    slice: str = ""


@dataclass
class Decision:
    """What a gate decided.

    Attributes:
        gate: Which gate, for example `evaluation` or `canary`.
        decision: One of `OUTCOMES`.
        reasons: Every check that was made, passed or not.
        action: What follows from it where that is not plain, for example `retrain`.
        baseline: What it was compared with.
        forced: Why a person overruled it, or None.
    """

    gate: str
    decision: str
    reasons: list[Reason] = field(default_factory=list)
    action: str | None = None
    baseline: str | None = None
    forced: str | None = None

    def __post_init__(self) -> None:
        if self.decision not in OUTCOMES:
            raise ValueError(f"A decision is one of {', '.join(OUTCOMES)}, not {self.decision!r}.")

    @property
    def summary(self) -> str:
        """One sentence: the outcome and the first reasons that led to it."""
        failed = [reason.why for reason in self.reasons if not reason.passed]
        reasons = failed or [reason.why for reason in self.reasons]
        told = "; ".join(reasons[:TOLD_REASONS])
        if failed and len(failed) > TOLD_REASONS:
            told += f"; {len(failed) - TOLD_REASONS} more"
        outcome = f"{self.decision} → {self.action}" if self.action else self.decision
        text = f"{self.gate}: {outcome}" + (f" ({told})" if told else "")
        return f"{text}; forced: {self.forced}" if self.forced else text


def outcome_of(reasons: list[Reason]) -> str:
    """Returns `pass` when every check holds, `no_data` when there was no check, else `fail`."""
    if not reasons:
        return NO_DATA
    return PASS if all(reason.passed for reason in reasons) else FAIL


def write_decision(decision: Decision, path: str | Path, page: str | Path | None = None) -> None:
    """Writes the decision as JSON and, when `page` is given, as an HTML page.

    NaN and infinite values become text, since JSON cannot carry them.
    """
    document = asdict(decision) | {"summary": decision.summary}
    document["reasons"] = [
        {key: _plain(value) for key, value in reason.items()} for reason in document["reasons"]
    ]
    write_json(path, document)
    if page is not None:
        write_text(page, render(decision))


def read_decision(path: str | Path) -> Decision:
    """Reads a decision file.

    Raises:
        InputError: If the file is not a decision.
    """
    document = read_json(path)
    try:
        reasons = [Reason(**reason) for reason in document["reasons"]]
        return Decision(
            document["gate"],
            document["decision"],
            reasons,
            document.get("action"),
            document.get("baseline"),
            document.get("forced"),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a decision file: {error}.") from error


def decision_metadata(decision: Decision) -> dict[str, str]:
    """Returns what a component writes into its decision artifact's metadata."""
    return {"gate": decision.gate, "decision": decision.decision, "summary": decision.summary}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def reasons_table(decision: Decision) -> str:
    """Returns every reason as an HTML table, those that do not hold first."""
    return _table(sorted(decision.reasons, key=lambda reason: reason.passed))


def render(decision: Decision, extra: str = "") -> str:
    """Returns the decision as a self-contained HTML page; `extra` is HTML put below the table."""
    outcome = html.escape(
        f"{decision.decision} → {decision.action}" if decision.action else decision.decision
    )
    baseline = f"<p>Compared with {_cell(decision.baseline)}.</p>" if decision.baseline else ""
    forced = f"<p>Forced: {_cell(decision.forced)}</p>" if decision.forced else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>{html.escape(decision.gate)}: {outcome}</title>{STYLE}
<h1>{html.escape(decision.gate)}: <span class="{decision.decision}">{outcome}</span></h1>
{baseline}{forced}
{_checks(decision)}
{extra}</html>
"""


def _checks(decision: Decision) -> str:
    if len(decision.reasons) <= SHOWN_CHECKS:
        return reasons_table(decision)
    failed = [reason for reason in decision.reasons if not reason.passed]
    passed = [reason for reason in decision.reasons if reason.passed]
    # What holds is there to be looked up, not to be scrolled past.
    folded = f"<details><summary>{len(passed)} checks hold</summary>{_table(passed)}</details>"
    return (_table(failed) if failed else "") + (folded if passed else "")


def _table(reasons: list[Reason]) -> str:
    rows = "".join(
        f"<tr class={'ok' if reason.passed else 'bad'}><td>{'✓' if reason.passed else '✗'}"
        f"<td>{_cell(reason.check)}<td>{_cell(reason.metric)}<td>{_cell(reason.slice)}"
        f"<td>{_cell(reason.value)}<td>{_cell(reason.threshold)}<td>{_cell(reason.why)}</tr>"
        for reason in reasons
    )
    head = "<tr><th><th>check<th>metric<th>slice<th>value<th>threshold<th>why</tr>"
    return f"<table>{head}{rows}</table>"


STYLE = """<style>
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#1c2330;max-width:72rem}
h1{font-size:1.25rem} h2{font-size:1.05rem;margin-top:1.6rem}
table{border-collapse:collapse;margin:.6rem 0}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #e3e6ec;vertical-align:top}
th{font-weight:600;color:#5b6474} td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.pass,.ok td:first-child{color:#0a7d3c} .fail,.bad td:first-child{color:#b3261e}
.no_data,.no_baseline{color:#8a5a00}
svg{max-width:100%;height:auto}
</style>"""
