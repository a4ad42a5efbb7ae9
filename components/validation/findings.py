# SPDX-License-Identifier: Apache-2.0
"""What a check found, and what validation tolerates."""

from dataclasses import dataclass, replace

from kfloop.components.contracts.decision import Reason
from kfloop.components.contracts.errors import InputError

REPORT, FAIL, OFF = "report", "fail", "off"
REPORTED = " (reported)"  # ends the name of a check that did not hold and does not count


@dataclass(frozen=True)
class Limits:
    """What validation tolerates.

    Attributes:
        minimum_rows: Fewer rows than this fail.
        missing_slack: How much the share of missing values may grow, 0 to 1.
        drift: `report`, `fail` or `off`: what follows from drift from the baseline.
        skew: The same for a difference between training and serving data.
        maximum_psi: PSI of a numeric column above this is drift; 0.2 lies between "some" and
            "much" change of Siddiqi's scale.
        maximum_l_infinity: A change of one value's share above this is drift of a string column.
    """

    minimum_rows: int = 1
    missing_slack: float = 0.1
    drift: str = REPORT
    maximum_psi: float = 0.2
    maximum_l_infinity: float = 0.1
    skew: str = REPORT

    def __post_init__(self) -> None:
        for name in ("drift", "skew"):
            if getattr(self, name) not in (REPORT, FAIL, OFF):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; it is one of 'report', 'fail' and 'off'."
                )
        if self.minimum_rows < 1:
            raise InputError(f"minimum_rows is {self.minimum_rows}; it is at least 1.")
        for name in ("missing_slack", "maximum_psi", "maximum_l_infinity"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it is not negative.")


def found(
    policy: str, check: str, metric: str, value: float | None, why: str, limit: float | None
) -> Reason:
    """Returns a finding that fails the validation or is only told, as the policy says."""
    return (failed if policy == FAIL else reported)(check, metric, value, why, limit)


def of_slice(reason: Reason, name: str) -> Reason:
    """Returns the finding as one about a slice; an empty name leaves it as it is."""
    if not name:
        return reason
    return replace(reason, slice=name, why=f"{reason.why}, in slice {name}")


def failed(
    check: str, metric: str, value: float | str | None, why: str, limit: float | str | None = None
) -> Reason:
    """Returns a finding that fails the validation."""
    return Reason(check, metric, value, limit, False, why)


def reported(
    check: str, metric: str, value: float | str | None, why: str, limit: float | str | None = None
) -> Reason:
    """Returns a finding that is told and does not fail the validation."""
    return Reason(check + REPORTED, metric, value, limit, True, why)
