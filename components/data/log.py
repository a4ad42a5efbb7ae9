# SPDX-License-Identifier: Apache-2.0
"""The inference log as one dataset."""

from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from kfloop.components.contracts.dataset import parse_time, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.contracts.inference_log import (
    EVENT_TIME,
    MODEL_VERSION,
    REPLAYED_PREFIX,
    REQUEST_ID,
    log_files,
)
from kfloop.components.data import duck


def collect(
    log_uri: str,
    path: str | Path,
    model_version: str = "",
    since: str = "",
    until: str = "",
    timestamp: str = "",
) -> dict[str, Any]:
    """Writes the requests of a window, in the order of their event time.

    What a canary analysis sent again is left out: it is a copy of requests, not traffic.

    Args:
        log_uri: The inference log.
        path: The dataset to write.
        model_version: Version whose requests count; empty for all.
        since: Start of the window, ISO 8601, inclusive; empty for no start.
        until: End of the window, ISO 8601, exclusive; empty for no end.
        timestamp: Second name for `event_time`, as the model's data calls it.

    Returns:
        The dataset's metadata.

    Raises:
        InputError: If the log holds no such request.
    """
    first = parse_time(since, "since").astimezone(UTC).date() if since else None
    # The end is exclusive: at midnight its own day is not needed.
    last = parse_time(until, "until").astimezone(UTC) - timedelta(microseconds=1) if until else None
    found = log_files(
        local_path(log_uri, "log_uri"), first, last.date() if last else None, model_version
    )
    if not found:
        raise InputError(_nothing(log_uri, model_version, since, until))
    by_version: dict[str, list[Path]] = {}
    for version, file in found:
        by_version.setdefault(version, []).append(file)
    parts = " UNION ALL BY NAME ".join(
        f"SELECT *, {duck.literal(version)} AS {MODEL_VERSION} FROM {duck.scan(files)}"
        for version, files in sorted(by_version.items())
    )
    alias = f", {EVENT_TIME} AS {duck.quote(timestamp)}" if timestamp else ""
    with duck.connect() as connection, duck.explained(f"The log {log_uri} cannot be read"):
        rows = connection.sql(parts)
        replaced = timestamp and timestamp != EVENT_TIME and timestamp in rows.columns
        kept = f"* EXCLUDE ({duck.quote(timestamp)})" if replaced else "*"
        if timestamp == EVENT_TIME:
            alias = ""
        selected = (
            rows.filter(duck.window(EVENT_TIME, since, until))
            .filter(f"NOT starts_with({REQUEST_ID}, {duck.literal(REPLAYED_PREFIX)})")
            .project(kept + alias)
            .order(f"{EVENT_TIME}, {REQUEST_ID}, row")
        )
        metadata = write_dataset(duck.reader(selected), path, EVENT_TIME)
    if not metadata["rows"]:
        raise InputError(_nothing(log_uri, model_version, since, until))
    return metadata


def _nothing(log_uri: str, model_version: str, since: str, until: str) -> str:
    of = f" of model version {model_version}" if model_version else ""
    found = log_files(local_path(log_uri, "log_uri"))
    days = [file.parent.parent.name.removeprefix("date=") for _, file in found]
    versions = sorted({version for version, _ in found})
    there = (
        f"it has requests of {days[0]} to {days[-1]} and of model version {', '.join(versions)}"
        if found
        else "it is empty"
    )
    return (
        f"The inference log {log_uri} holds no request{of} between {since or 'its start'} and "
        f"{until or 'its end'}; {there}. Send some to the service, or choose another window."
    )
