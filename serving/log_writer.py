# SPDX-License-Identifier: Apache-2.0
"""Writes the inference log (`contracts/inference_log.py`) off the request path.

Requests go into a bounded queue; when it is full they are dropped and counted, and the answer is
not delayed. A thread turns them into rows and writes a file per day and version every second or
every 1000 rows. `kill -9` loses at most what came in since the last write.
"""

import math
import queue
import sys
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts import inference_log as log
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import PREDICTION, ModelPackage
from kfloop.serving import payloads

FLUSH_SECONDS = 1.0
FLUSH_ROWS = 1000
MAX_QUEUED = 10_000
MAX_QUEUED_BYTES = 64 * 2**20

TYPES = {
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    # Entity keys that are not features: numbers among them become text.
    "key": pa.string(),
    "absent": pa.null(),
}
LARGEST = {"float": sys.float_info.max, "int": 2.0**63, "absent": 0.0}
TIME = pa.timestamp("us", tz="UTC")
BASE = pa.schema(
    [
        (log.REQUEST_ID, pa.string()),
        (log.ROW, pa.int32()),
        (log.EVENT_TIME, TIME),
        (log.RECEIVED_AT, TIME),
        (log.PREDICTOR, pa.string()),
        (log.STATUS, pa.int32()),
        (log.LATENCY_MS, pa.float64()),
        (log.ERROR, pa.string()),
    ]
)


@dataclass
class Exchange:
    """One request and its answer.

    Attributes:
        log: Where it is logged.
        package: The model that answered, or the one that should have; None when unknown.
        model_version: Its version, or `NO_VERSION`.
        predictor: Name of the predictor that answered, or empty.
        request_id: The request's id.
        received_at: When it came in.
        latency_ms: Milliseconds until the answer was there.
        status: HTTP status of the answer.
        request: Body of the request.
        response: Body of the answer.
        request_json: Length of the request's JSON part when binary tensors follow it.
        response_json: The same for the answer.
    """

    log: str
    package: ModelPackage | None
    model_version: str
    predictor: str
    request_id: str
    received_at: datetime
    latency_ms: float
    status: int
    request: bytes
    response: bytes
    request_json: int | None = None
    response_json: int | None = None

    @property
    def size(self) -> int:
        """Bytes it holds while it waits."""
        return len(self.request) + len(self.response)


@dataclass
class Counts:
    """What became of the exchanges: `pending` and `dropped` are requests, `written` is rows."""

    pending: int = 0
    written: int = 0
    dropped: int = 0
    error: str = ""


class LogWriter:
    """Takes exchanges and writes them in the background; see the module's docstring."""

    def __init__(self, max_queued: int = MAX_QUEUED, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.counts = Counts()
        self._queue: queue.SimpleQueue[Exchange | None] = queue.SimpleQueue()
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="inference-log", daemon=True)
        self._thread.start()

    def add(self, exchange: Exchange) -> bool:
        """Queues an exchange, never waits; False when it was dropped because the queue is full."""
        with self._lock:
            full = self.counts.pending >= self._max_queued
            if full or self._bytes + exchange.size > self._max_bytes:
                self.counts.dropped += 1
                return False
            self.counts.pending += 1
            self._bytes += exchange.size
        self._queue.put(exchange)
        return True

    def close(self) -> None:
        """Writes what is queued and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        exchanges: list[Exchange] = []
        rows: list[tuple[Exchange, dict[str, Any]]] = []
        deadline = time.monotonic() + FLUSH_SECONDS
        while True:
            try:
                # With nothing to write there is no deadline: an idle service does not wake up.
                wait = max(deadline - time.monotonic(), 0) if exchanges else None
                exchange = self._queue.get(timeout=wait)
                if exchange is not None:
                    if not exchanges:
                        deadline = time.monotonic() + FLUSH_SECONDS
                    exchanges.append(exchange)
                    rows += [(exchange, row) for row in rows_of(exchange)]
                ended = exchange is None
                due = ended or len(rows) >= FLUSH_ROWS
            except queue.Empty:
                ended, due = False, True
            if due:
                self._flush(exchanges, rows)
                exchanges, rows = [], []
            if ended:
                return

    def _flush(
        self, exchanges: list[Exchange], rows: list[tuple[Exchange, dict[str, Any]]]
    ) -> None:
        groups: dict[tuple[Path, int], list[tuple[Exchange, dict[str, Any]]]] = defaultdict(list)
        for exchange, row in rows:
            day = row[log.EVENT_TIME].date()
            directory = log.partition(exchange.log, day, exchange.model_version)
            # The package decides the columns; one version is one package.
            groups[directory, id(exchange.package)].append((exchange, row))
        lost: set[int] = set()
        for (directory, _), group in groups.items():
            try:
                write_rows(directory, [row for _, row in group], group[0][0].package)
                self.counts.written += len(group)
            except (OSError, pa.ArrowException) as error:
                lost |= {id(exchange) for exchange, _ in group}
                self.counts.error = f"{directory} cannot be written: {error}"
                print(self.counts.error, file=sys.stderr, flush=True)
        with self._lock:
            self.counts.pending -= len(exchanges)
            self.counts.dropped += len(lost)
            self._bytes -= sum(exchange.size for exchange in exchanges)


def rows_of(exchange: Exchange) -> list[dict[str, Any]]:
    """Returns the log rows of an exchange: one per instance, at least one."""
    package = exchange.package
    predictions: list[Any] = []
    looked_up: list[dict[str, Any]] = []
    error = None
    if exchange.status < 400:
        looked_up = payloads.response_features(exchange.response, exchange.response_json)
        classes = package.classes if package else []
        predictions = payloads.response_predictions(
            exchange.response, classes, exchange.response_json
        )
    else:
        error = payloads.response_error(exchange.response)
    rows = []
    for number, instance in enumerate(
        payloads.request_rows(exchange.request, exchange.request_json)
    ):
        if number < len(looked_up):
            instance = looked_up[number] | instance
        row = {
            log.REQUEST_ID: exchange.request_id,
            log.ROW: number,
            log.EVENT_TIME: _event_time(instance, package) or exchange.received_at,
            log.RECEIVED_AT: exchange.received_at,
            log.PREDICTOR: exchange.predictor,
            log.STATUS: exchange.status,
            log.LATENCY_MS: exchange.latency_ms,
            log.ERROR: error,
            PREDICTION: predictions[number] if number < len(predictions) else None,
        }
        names = [*package.feature_names, *package.entities] if package else []
        rows.append({name: instance.get(name) for name in names} | row)
    return rows


def _event_time(instance: dict[str, Any], package: ModelPackage | None) -> datetime | None:
    if package is None or not package.timestamp:
        return None
    try:
        return payloads.parse_event_time(instance.get(package.timestamp))
    except InputError:
        return None  # the server refused the request: its `error` says so


def write_rows(directory: Path, rows: list[dict[str, Any]], package: ModelPackage | None) -> Path:
    """Writes rows of one model as a new file of a partition, atomically."""
    table = to_table(rows, package)
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.parquet"
    beside = directory / f".{name}"
    try:
        pq.write_table(table, beside, compression="zstd")
        beside.replace(directory / name)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return directory / name


def to_table(rows: list[dict[str, Any]], package: ModelPackage | None) -> pa.Table:
    """Returns log rows as a table with the contract's columns and types."""
    columns = {
        field.name: pa.array([row[field.name] for row in rows], field.type) for field in BASE
    }
    if package:
        types = {feature.name: feature.type for feature in package.features}
        for name in package.entities:
            types.setdefault(name, _type_of(row[name] for row in rows))
        for name, kind in types.items():
            columns[name] = pa.array([_coerce(row[name], kind) for row in rows], TYPES[kind])
    kind = "string" if package and package.task == "multiclass" else "float"
    values = [_coerce(row[PREDICTION], kind) for row in rows]
    columns[PREDICTION] = pa.array(values, TYPES[kind])
    return pa.table(columns)


def _type_of(values: Any) -> str:
    """Returns the type of an entity key that is not a feature: integers stay integers."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return "absent"
    return "int" if kinds == {int} else "key"


def _coerce(value: Any, kind: str) -> Any:
    """Returns a value as a column of this kind holds it, or None when it is not of that kind."""
    number = type(value) is int or (type(value) is float and math.isfinite(value))
    if kind in ("string", "key"):
        if isinstance(value, str):
            # A lone surrogate can come out of JSON but not go into Parquet.
            return value.encode("utf-8", "replace").decode()
        return str(value) if kind == "key" and number else None
    if kind == "bool":
        return bool(value) if type(value) is bool or (number and value in (0, 1)) else None
    if not number or abs(value) >= LARGEST[kind]:
        return None
    if kind == "float":
        return float(value)
    return int(value) if value == int(value) else None
