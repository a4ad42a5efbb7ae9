# SPDX-License-Identifier: Apache-2.0
"""The gate after validation. Imports nothing heavy, so that the step costs no time."""

from pathlib import Path

from kfloop.components.contracts.decision import NO_DATA, PASS, read_decision
from kfloop.components.contracts.errors import InputError


def require_pass(decision: str | Path) -> None:
    """Returns when a decision is `pass`.

    Raises:
        InputError: If it is anything else, with every reason that did not hold.
    """
    found = read_decision(decision)
    if found.decision == PASS:
        return
    outcome = "found no data" if found.decision == NO_DATA else "failed"
    reasons = [reason.why for reason in found.reasons if not reason.passed]
    told = "; ".join(reasons) or f"its decision is {found.decision}"
    raise InputError(f"{found.gate[:1].upper()}{found.gate[1:]} {outcome}: {told}.")
