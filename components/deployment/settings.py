# SPDX-License-Identifier: Apache-2.0
"""Checks of settings that come as plain names and values. Standard library only."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kfloop.components.contracts.errors import InputError

ALL = 100
MOST_STEPS = 20
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")


def known(given: Mapping[str, Any], prefix: str, names: str) -> None:
    """Raises InputError when `given` has a setting that is not among `names`."""
    unknown = sorted(set(given) - set(names.split()))
    if unknown:
        raise InputError(
            f"There is no predictor setting {prefix}{unknown[0]}; there is "
            f"{', '.join(names.split())}."
        )


def mapping(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a group of settings; empty when it is not given."""
    value = given.get(name) or {}
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {value!r}; give names with their values.")
    return value


def whole(given: Mapping[str, Any], prefix: str, name: str, default: int = 0) -> int:
    """Returns a whole number, 0 or more."""
    value = given.get(name, default)
    # A pipeline's parameters carry 3 as 3.0.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not float(value).is_integer() or value < 0:
        raise InputError(f"{prefix}{name} is {value!r}; give a whole number, 0 or more.")
    return int(value)


def name_of(given: Mapping[str, Any], key: str) -> str:
    """Returns the name of a Kubernetes object; empty when it is not given."""
    value = str(given.get(key) or "")
    if value and not _NAME.fullmatch(value):
        raise InputError(f"{key} is {value!r}; it names a Kubernetes object.")
    return value


def percents_of(steps: Sequence[float]) -> tuple[int, ...]:
    """Checks the steps of a rollout and returns those below 100.

    100 is the promotion, which comes after the last step whether it is named or not: nothing gets
    all requests before it has passed.

    Raises:
        InputError: If they are no rising percentages.
    """
    # A pipeline's parameters carry 20 as 20.0.
    percents = [int(step) if float(step).is_integer() else -1 for step in steps]
    rising = all(first < second for first, second in itertools.pairwise(percents))
    if not rising or not all(1 <= percent <= ALL for percent in percents):
        raise InputError(
            f"steps is {list(steps)}; give rising whole percentages from 1 to 100, for example "
            "[5, 25, 50, 100]."
        )
    if len(percents) > MOST_STEPS:
        raise InputError(f"There are {len(percents)} steps; give at most {MOST_STEPS}.")
    return tuple(percent for percent in percents if percent < ALL)
