# SPDX-License-Identifier: Apache-2.0
"""What tuning may vary: a range or a list of choices per name.

A name is a hyperparameter (of `hyperparameters`, or of the user's own module) or one of
`ARGUMENTS`, the settings of a training that can be tuned::

    learning_rate: {low: 0.0001, high: 0.01, log: true}
    dropout: {low: 0, high: 0.5}
    hidden: {choices: [[64], [128, 64], [256, 128]]}

Only the standard library is imported here: the loop file is checked with it too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.hyperparameters import Hyperparameters, parse_hyperparameters

ARGUMENTS = {"learning_rate": float, "batch_size": int, "epochs": int}
# Encode the rows, or say which columns are categories: not a matter of how well a network learns.
_FIXED = ("categorical",)
_KEYS = ("low", "high", "log", "step", "type", "choices")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        name: What is varied.
        low: Smallest value.
        high: Largest value.
        whole: Whether the values are whole numbers.
        log: Whether each power of ten is as likely as the next.
        step: Distance between values counted from `low`; 0 for any value.
    """

    name: str
    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float = 0.0

    def holds(self, value: Any) -> bool:
        """Tells whether a value lies in the range, on a step of it."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return self.low <= value <= self.high and math.isclose(steps, round(steps))


@dataclass(frozen=True)
class Choice:
    """A list of values.

    Attributes:
        name: What is varied.
        options: The values as JSON texts, since optimizers take no lists as choices.
    """

    name: str
    options: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Tells whether a value is one of the options."""
        return json.dumps(value) in self.options


Dimension = Range | Choice


def parse_space(space: Mapping[str, Any], open_ended: bool) -> list[Dimension]:
    """Reads a search space.

    Args:
        space: Per name a mapping with `choices`, or with `low` and `high` and perhaps `log`,
            `step` and, for a name that only the user's module knows, `type` (int or float).
        open_ended: Whether names that the built-in network does not know are allowed.

    Raises:
        InputError: If a name or a value does not fit; the message names it.
    """
    return [parse_dimension(name, given, open_ended) for name, given in space.items()]


def parse_dimension(name: str, given: Any, open_ended: bool) -> Dimension:
    """Reads one entry of a search space; see `parse_space`."""
    known = _known_names()
    if name in _FIXED or (name not in known and not open_ended):
        raise InputError(
            f"The search space holds {name!r}, which cannot be tuned; "
            f"there is {', '.join(sorted(known))}."
        )
    if not isinstance(given, Mapping) or ("choices" in given) == ("low" in given):
        raise InputError(
            f"The search space of {name} is {given!r}; "
            "give it `choices`, or `low` and `high`, like {low: 0.1, high: 0.5}."
        )
    if unknown := [key for key in given if key not in _KEYS]:
        raise InputError(
            f"The search space of {name} has no key {', '.join(map(repr, unknown))}; "
            f"there is {', '.join(_KEYS)}."
        )
    dimension = _choice(name, given) if "choices" in given else _range(name, given, known)
    if isinstance(dimension, Range):
        for end in (dimension.low, dimension.high):
            check_value(name, end, open_ended)
    else:
        for option in dimension.options:
            check_value(name, json.loads(option), open_ended)
    return dimension


def check_value(name: str, value: Any, open_ended: bool = True) -> None:
    """Raises InputError when a training would not take a value."""
    if name not in ARGUMENTS:
        parse_hyperparameters({name: value}, open_ended)
        return
    whole = ARGUMENTS[name] is int
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not value > 0
        or (whole and value != int(value))
    ):
        wanted = "a whole number from 1 on" if whole else "above 0"
        raise InputError(f"The search space of {name} holds {value!r}; it must be {wanted}.")


def _known_names() -> dict[str, Any]:
    """Returns what the built-in network can be tuned in, with a value of its type."""
    own = {each.name: each.default for each in fields(Hyperparameters) if each.name not in _FIXED}
    return own | {name: kind(1) for name, kind in ARGUMENTS.items()}


def _choice(name: str, given: Mapping[str, Any]) -> Choice:
    choices = given["choices"]
    if extra := [key for key in given if key != "choices"]:
        raise InputError(
            f"The search space of {name} has choices and {', '.join(extra)}; keep one of them."
        )
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise InputError(f"The choices of {name} are {choices!r}; give a list of two or more.")
    options = tuple(dict.fromkeys(json.dumps(choice) for choice in choices))
    if len(options) < len(choices):
        raise InputError(f"The choices of {name} hold a value twice; keep one.")
    return Choice(name, options)


def _range(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> Range:
    low, high, step = (given.get(key, 0) for key in ("low", "high", "step"))
    log, kind = given.get("log", False), given.get("type", "")
    if "high" not in given:
        raise InputError(f"The search space of {name} has no `high`; add one.")
    for key, value in (("low", low), ("high", high), ("step", step)):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise InputError(f"The {key} of {name} is {value!r}; it must be a number.")
    if not isinstance(log, bool):
        raise InputError(f"The log of {name} is {log!r}; it must be true or false.")
    if name in known and isinstance(known[name], str | tuple):
        raise InputError(f"{name} is no number; give it `choices`.")
    if kind not in ("", "int", "float") or (kind and name in known):
        raise InputError(
            f"The type of {name} is {kind!r}; it is int or float, for names of your own module."
        )
    if not low < high:
        raise InputError(f"The low of {name} is {low} and its high {high}; low must be below high.")
    whole = kind == "int" or isinstance(known.get(name), int)
    if whole and any(value != int(value) for value in (low, high, step)):
        raise InputError(f"{name} is a whole number; its low, high and step must be too.")
    if log and (low <= 0 or step):
        raise InputError(f"{name} is on a log scale, so low must be above 0, and there is no step.")
    if step < 0 or step > high - low:
        raise InputError(f"The step of {name} is {step}; it must be from 0 to high less low.")
    if whole:
        low, high, step = int(low), int(high), int(step)
    return Range(name, low, high, whole, log, step)
