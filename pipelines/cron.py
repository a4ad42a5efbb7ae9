# SPDX-License-Identifier: Apache-2.0
"""Five-field cron, as everybody writes it, and what KFP makes of a cron expression.

KFP parses with robfig/cron v1, whose first field is seconds: `0 9 * * *` is accepted there and
fires every hour, `*/15 * * * *` every 15 seconds. Its day of week ends at 6, so Sunday is only 0.
"""

import re
from collections.abc import Iterator
from datetime import datetime

from cronsim import CronSim, CronSimError

from kfloop.components.contracts.errors import InputError

FIVE = "minute hour day-of-month month day-of-week"
# What cronsim knows and robfig/cron v1 does not.
ONLY_IN_CRONSIM = re.compile(r"[L#]|(?i:LW)")
# A span of one value with a step: cronsim takes it to the end, robfig/cron v1 does not.
AMBIGUOUS = re.compile(r"\b(\w+)-\1/")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


def to_kfp(expression: str, with_seconds: bool = False) -> str:
    """Returns the six-field expression that KFP understands.

    Args:
        expression: Five fields; six, seconds first, when `with_seconds` is set.
        with_seconds: Whether it may fire more often than once a minute.

    Raises:
        InputError: If it is not such an expression.
    """
    fields = expression.split()
    if with_seconds and len(fields) == 6:
        seconds, *fields = fields
    elif len(fields) == 6:
        raise InputError(
            f"the cron {expression!r} has six fields and could fire every second; write five "
            f"({FIVE}), or say `with_seconds: true`"
        )
    else:
        seconds = "0"
    if len(fields) != 5 or ONLY_IN_CRONSIM.search(" ".join((fields[2], fields[4]))):
        raise InputError(f"the cron {expression!r} is not five fields: {FIVE}")
    five = " ".join(fields)
    if span := AMBIGUOUS.search(five):
        raise InputError(
            f"the cron {expression!r} has a step in a span of one value; write {span[1]} alone"
        )
    try:
        CronSim(five, datetime(2000, 1, 1))
        CronSim(f"{seconds} 0 * * *", datetime(2000, 1, 1))
    except CronSimError as error:
        raise InputError(f"the cron {expression!r} is wrong: {error}") from error
    return " ".join([seconds, *fields[:4], _days(fields[4])])


def _days(field: str) -> str:
    """Spells out days of the week that robfig/cron v1 would refuse: 7, and ranges over Sunday."""
    if field.startswith("*"):
        return field
    chosen = {day.weekday() for day in _matching_days(field)}
    return ",".join(str(day) for day in sorted((weekday + 1) % 7 for weekday in chosen))


def _matching_days(field: str) -> Iterator[datetime]:
    found = CronSim(f"0 0 * * {field}", datetime(2000, 1, 1))
    # In any four weeks from the first match every chosen day comes up.
    first = next(found)
    yield first
    for day in found:
        if (day - first).days >= 28:
            return
        yield day


def next_times(expression: str, after: datetime, count: int = 3) -> list[datetime]:
    """Returns the next times a five-field expression fires, in the zone of `after`."""
    found = CronSim(expression, after)
    return [next(found) for _ in range(count)]
