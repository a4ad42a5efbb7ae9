# SPDX-License-Identifier: Apache-2.0
"""What a check found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        check: What was looked at.
        state: `ok`; `fix`, something is missing and `told` is the remedy; or `note`, something
            that not everybody needs, or that could not be looked at.
        told: In words.
    """

    check: str
    state: Literal["ok", "fix", "note"]
    told: str


def ok(check: str, told: str) -> Finding:
    """Returns a finding that all is well."""
    return Finding(check, "ok", told)


def fix(check: str, told: str) -> Finding:
    """Returns a finding with its remedy."""
    return Finding(check, "fix", told)


def note(check: str, told: str) -> Finding:
    """Returns a finding that may be fine."""
    return Finding(check, "note", told)
