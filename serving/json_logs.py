# SPDX-License-Identifier: Apache-2.0
"""The model server's log: one JSON object per line on standard error, for what needs attention.

No line per request. A request is logged when it failed in the server (status 500 and above), was
slow, or asked for it (`x-log-request: 1`); what was wrong with a 4xx is in its answer and its
number in the metrics. Keys: `time` (ISO 8601, UTC), `level`, `logger`, `message`; for a request
also `model`, `version`, `protocol`, `path`, `status`, `seconds`, `request_id`, `trace_id`; after an
exception `exception`, its traceback. Beyond ten lines a second requests are counted instead; the
next line says how many (`suppressed`).
"""

import logging
import warnings
from typing import Any

from fastapi.exceptions import FastAPIDeprecationWarning
from kserve.errors import InvalidInput, ModelNotFound
from kserve.logging import configure_logging

from kfloop.serving.log_lines import AtMost, JsonFormatter

EXPECTED = (InvalidInput, ModelNotFound, NotImplementedError)  # the caller's mistakes
LINES_PER_SECOND = 10
REQUESTS = logging.getLogger("kfloop.requests")


class _Expected(logging.Filter):
    """Drops what KServe logs, with a traceback, for requests whose answer says what was wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, EXPECTED) or getattr(error, "expected", False))


def set_up() -> None:
    """Sends every logger's warnings to standard error as JSON, and `kfloop.requests` from INFO."""
    configure_logging(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {REQUESTS.name: {"level": "INFO"}},
        }
    )
    logging.getLogger("kserve").addFilter(_Expected())
    REQUESTS.addFilter(AtMost(LINES_PER_SECOND))
    # KServe's use of a deprecated response class: nothing that whoever runs the server can change.
    warnings.filterwarnings("ignore", category=FastAPIDeprecationWarning)


def log_request(status: int, **told: Any) -> None:
    """Logs one request, if there were not too many in this second; `told` becomes its keys."""
    level = logging.ERROR if status >= 500 else logging.INFO
    REQUESTS.log(level, "request", extra={"status": status} | told)
