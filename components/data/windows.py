# SPDX-License-Identifier: Apache-2.0
"""Which windows a monitoring run looks at and would train on."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import parse_time
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import EVENT_TIME, log_files


class Windows(NamedTuple):
    """Bounds of windows, ISO 8601; each window is since <= time < until.

    Attributes:
        window_since: Start of the requests that are judged.
        until: Their end.
        data_since: Start of the examples whose labels are joined to them.
        data_until: End of the examples, also of those to train and evaluate on.
        train_since: Start of the examples to train on.
        split_at: End of them, and start of those to evaluate on.
    """

    window_since: str
    until: str
    data_since: str
    data_until: str
    train_since: str
    split_at: str


def plan_windows(
    log_uri: str,
    model_version: str,
    until: str,
    window_days: int,
    train_days: int,
    evaluation_days: int,
    timestamp: str = "",
) -> Windows:
    """Plans the windows of a monitoring run.

    Args:
        log_uri: Inference log.
        model_version: Version whose requests count; empty for all.
        until: End of all windows; empty means the end of the newest day in the log.
        window_days: Length of the judged window.
        train_days: Length of the training window before the evaluation window.
        evaluation_days: Length of the newest window, kept for evaluation.
        timestamp: Time column of the examples. Without one they have no windows, all of them are
            used, and those bounds are empty.

    Raises:
        InputError: If `until` is empty and the log holds no request.
    """
    end = parse_time(until, "until") if until else _newest_day(log_uri, model_version)
    start = (end - timedelta(days=window_days)).isoformat()
    if not timestamp:
        return Windows(start, end.isoformat(), "", "", "", "")
    split = end - timedelta(days=evaluation_days)
    return Windows(
        window_since=start,
        until=end.isoformat(),
        data_since=start,
        data_until=end.isoformat(),
        train_since=(split - timedelta(days=train_days)).isoformat(),
        split_at=split.isoformat(),
    )


def _newest_day(log_uri: str, model_version: str) -> datetime:
    files = log_files(log_uri, model_version=model_version)
    newest = [
        moment
        for _, file in files[-8:]
        if (moment := pc.max(pq.read_table(file, columns=[EVENT_TIME])[EVENT_TIME]).as_py())
    ]
    if not newest:
        of = f" of model version {model_version}" if model_version else ""
        raise InputError(
            f"The inference log {log_uri} holds no request{of}; send some to the service first, "
            "for example with `kfloop run replay`."
        )
    day = max(newest).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day + timedelta(days=1)
