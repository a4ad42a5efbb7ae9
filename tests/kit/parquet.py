# SPDX-License-Identifier: Apache-2.0
"""Writes rows as Parquet, here or in the environment of the data family.

The driver's environment has no pyarrow, on purpose; where a test's own has it, nothing is started.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError

Rows = Sequence[Mapping[str, Any]]
# JSON has no times; a mapping with this one key is no column's value.
TIME, DAY = "$time", "$date"


def write(path: Path, rows: Rows, timestamp: str = "") -> dict[str, Any]:
    """Writes rows as a dataset.

    Args:
        path: The dataset's directory; an existing one is replaced.
        rows: See `kfloop.testing.dataset`.
        timestamp: Column whose range goes into the metadata.

    Returns:
        The dataset's metadata.

    Raises:
        InputError: If there are no rows, or they cannot be a table.
    """
    return _perform({"what": "dataset", "path": path, "rows": rows, "timestamp": timestamp})


def write_log(path: Path, rows: Rows, model_version: str) -> dict[str, Any]:
    """Writes rows as an inference log and returns how many there are.

    Raises:
        InputError: If there are no rows, or they cannot be a table.
    """
    return _perform({"what": "log", "path": path, "rows": rows, "version": model_version})


def _perform(request: dict[str, Any]) -> dict[str, Any]:
    path = request["path"]
    if not request["rows"]:
        raise InputError(f"There are no rows for {path}; a column's type comes from its values.")
    request = {**request, "path": str(Path(path).absolute()), "rows": list(request["rows"])}
    if find_spec("pyarrow"):
        return _write(request)
    from kfloop.pipelines.local.run import run_module  # needs what only the driver has

    told = run_module("data", "kfloop.testing.parquet", stdin=json.dumps(request, default=_to_json))
    answer: dict[str, Any] = json.loads(told)
    return answer


def _write(request: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    try:
        return _write_log(request) if request["what"] == "log" else _write_dataset(request)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"The rows for {request['path']} cannot be a table: {error}.") from error


def _write_dataset(request: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    from kfloop.components.contracts.dataset import write_dataset

    table = pa.table(_columns(request["rows"]))
    return write_dataset(table, request["path"], request["timestamp"])


def _write_log(request: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kfloop.components.contracts import inference_log as log

    moment = pa.timestamp("us", "UTC")
    types = {
        log.REQUEST_ID: pa.string(),
        log.ROW: pa.int32(),
        log.EVENT_TIME: moment,
        log.RECEIVED_AT: moment,
        log.PREDICTOR: pa.string(),
        log.STATUS: pa.int32(),
        log.LATENCY_MS: pa.float64(),
        log.ERROR: pa.string(),
    }
    days: dict[date, list[dict[str, Any]]] = {}
    for index, row in enumerate(request["rows"]):
        when = row[log.EVENT_TIME]
        when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
        usual = {
            log.REQUEST_ID: f"request-{index}",
            log.ROW: 0,
            log.RECEIVED_AT: when,
            log.PREDICTOR: "default",
            log.STATUS: 200,
            log.LATENCY_MS: 1.0,
            log.ERROR: None,
        }
        days.setdefault(when.date(), []).append({**usual, **row, log.EVENT_TIME: when})
    for day, rows in days.items():
        columns = {
            name: pa.array(values, types.get(name)) for name, values in _columns(rows).items()
        }
        folder = log.partition(request["path"], day, request["version"])
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / "rows.parquet")
    return {"rows": len(request["rows"]), "days": len(days)}


def _columns(rows: Rows) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _to_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return {TIME: value.isoformat()}
    if isinstance(value, date):
        return {DAY: value.isoformat()}
    if isinstance(value, Mapping):
        return dict(value)
    raise InputError(
        f"A row holds {value!r}, a {type(value).__name__}, which is no column's value."
    )


def _from_json(value: dict[str, Any]) -> Any:
    if value.keys() == {TIME}:
        return datetime.fromisoformat(value[TIME])
    return date.fromisoformat(value[DAY]) if value.keys() == {DAY} else value


def main() -> int:
    """Writes what standard input asks for; what it says of it goes to standard output."""
    try:
        print(json.dumps(_write(json.load(sys.stdin, object_hook=_from_json))))
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
