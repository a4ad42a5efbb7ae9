# SPDX-License-Identifier: Apache-2.0
"""The inference log: one row per instance that was asked for, partitioned by day and version.

Layout::

    <log>/date=2013-07-01/model_version=2/<unique>.parquet

Columns: `request_id` (string), `row` (int32, position in the request), `event_time` (timestamp[us,
UTC]: the instance's own timestamp if it carried one, else when it arrived), `received_at`
(timestamp[us, UTC]), `predictor` (string), `status` (int32, HTTP), `latency_ms` (float64),
`error` (string or null), the entity keys and features under their own names, and `prediction`
(float64, or string for multiclass; null when the request failed). The day is that of `event_time`,
in UTC. Features have the type that `model.json` gives them (float64, int64, bool, string); what was
sent with another type is null, and `error` says so.

A failed request leaves rows too: `status` 400 and more, `error` a sentence. Under
`model_version=none` are those for which nothing was ready. Of a request without an answer, or the
reverse, which a payload logger may be left with, `status` is null and `error` says so.

Files become visible whole (written beside, then renamed). A reader ignores names that start with
a dot.
"""

from datetime import date
from pathlib import Path

from kfloop.components.contracts.model_package import PREDICTION

REQUEST_ID = "request_id"
ROW = "row"
EVENT_TIME = "event_time"
RECEIVED_AT = "received_at"
PREDICTOR = "predictor"
STATUS = "status"
LATENCY_MS = "latency_ms"
ERROR = "error"
MODEL_VERSION = "model_version"
COLUMNS = (REQUEST_ID, ROW, EVENT_TIME, RECEIVED_AT, PREDICTOR, STATUS, LATENCY_MS, ERROR)
# A feature or entity key of such a name cannot be logged under its own name.
RESERVED = frozenset({*COLUMNS, PREDICTION, MODEL_VERSION, "date"})

NO_VERSION = "none"
# How the ids begin of requests that a canary analysis sent again: copies, not traffic.
REPLAYED_PREFIX = "replay-"
# Copies of live requests that a candidate answered for nobody: below this folder of the log, in the
# same layout and under the live requests' ids, so that no reader of the log takes them for traffic.
SHADOW = "shadow"


def version_label(version: str) -> str:
    """Returns how a model version is told in answers, metrics and the log."""
    return version or "unversioned"


def shadow_log(log: str | Path) -> Path:
    """Returns where the answers to copied requests are logged."""
    return Path(log) / SHADOW


def partition(log: str | Path, day: date, model_version: str) -> Path:
    """Returns the directory of one day and version."""
    return Path(log) / f"date={day.isoformat()}" / f"model_version={model_version}"


def log_files(
    log: str | Path,
    since: date | None = None,
    until: date | None = None,
    model_version: str = "",
) -> list[tuple[str, Path]]:
    """Returns `(model_version, file)` for the days in `since` <= day <= `until`, in order."""
    found = []
    for directory in sorted(Path(log).glob("date=*/model_version=*")):
        day = date.fromisoformat(directory.parent.name.removeprefix("date="))
        version = directory.name.removeprefix("model_version=")
        if (since and day < since) or (until and day > until):
            continue
        if model_version and version != model_version:
            continue
        found += [(version, file) for file in sorted(directory.glob("[!.]*.parquet"))]
    return found
