# SPDX-License-Identifier: Apache-2.0
"""robfig/cron v1.2.0's reading of an expression, which is what KFP's scheduler uses.

Written from its parser: six fields with seconds first, of which the last (day of week) may be left
out. So `0 9 * * *` is second 0, minute 9 of every hour.
"""

import re
from datetime import datetime

BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
NAMES: tuple[dict[str, int], ...] = (
    {},
    {},
    {},
    {},
    {name: number for number, name in enumerate(MONTHS, start=1)},
    {name: number for number, name in enumerate(DAYS)},
)
DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}


class Cron:
    """When an expression fires.

    Raises:
        ValueError: If robfig/cron v1 refuses the expression.
    """

    def __init__(self, expression: str) -> None:
        fields = DESCRIPTORS.get(expression, expression).split()
        if not 5 <= len(fields) <= 6:
            raise ValueError(f"Expected 5 to 6 fields, found {len(fields)}: {expression}")
        fields += ["*"] * (6 - len(fields))
        self._chosen = [_field(field, place) for place, field in enumerate(fields)]
        self._any_day = any(_is_star(fields[place]) for place in (3, 5))

    def fires(self, moment: datetime) -> bool:
        """Says whether it fires at this second."""
        second, minute, hour, day, month, weekday = self._chosen
        if not (moment.second in second and moment.minute in minute and moment.hour in hour):
            return False
        in_month = moment.day in day
        in_week = (moment.weekday() + 1) % 7 in weekday
        on_day = in_month and in_week if self._any_day else in_month or in_week
        return moment.month in month and on_day


def _is_star(field: str) -> bool:
    return any(part.partition("/")[0] in ("*", "?") for part in field.split(","))


def _field(field: str, place: int) -> set[int]:
    return set().union(*(_range(part, place) for part in field.split(",")))


def _range(part: str, place: int) -> set[int]:
    lowest, highest = BOUNDS[place]
    span, slash, step_text = part.partition("/")
    low_text, dash, high_text = span.partition("-")
    if low_text in ("*", "?"):
        low, high = lowest, highest
    else:
        low = _number(low_text, place)
        high = _number(high_text, place) if dash else low
        if slash and not dash:
            high = highest  # `N/step` is `N-max/step`
    step = int(step_text) if re.fullmatch(r"\d+", step_text) else 0
    if slash and not step:
        raise ValueError(f"Step of range should be a positive number: {part}")
    if low < lowest or high > highest or low > high:
        raise ValueError(f"Range out of bounds ({lowest}-{highest}): {part}")
    return set(range(low, high + 1, step or 1))


def _number(text: str, place: int) -> int:
    named = NAMES[place].get(text.lower())
    if named is not None:
        return named
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"Failed to parse int from {text!r}")
    return int(text)
