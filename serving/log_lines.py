# SPDX-License-Identifier: Apache-2.0
"""Logs as JSON lines: what the model server and the payload logger have in common."""

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

# What `logging` itself puts on a record: the rest came with `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (ISO 8601, UTC), level, logger, message and extras."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class AtMost(logging.Filter):
    """Lets so many records a second through; the next line says how many it held (`suppressed`)."""

    def __init__(self, per_second: int) -> None:
        super().__init__()
        self._limit = per_second
        self._second = self._lines = self._suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record passes."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > self._limit:
            self._suppressed += 1
            return False
        if self._suppressed:
            record.suppressed, self._suppressed = self._suppressed, 0
        return True
