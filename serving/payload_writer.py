# SPDX-License-Identifier: Apache-2.0
"""The payload logger's thread: joins events and writes their rows as files of the inference log.

Nothing here is waited for by who sends events: what the thread cannot keep up with is dropped and
counted. A file that cannot be written is tried again at the next flush, until too many rows wait.
"""

import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from kfloop.components.contracts import inference_log as log
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.serving import payload_metrics as metrics
from kfloop.serving.log_writer import write_rows
from kfloop.serving.payload_events import Event
from kfloop.serving.payload_join import JOINED, WAITING, Joiner, Pair
from kfloop.serving.payload_rows import (
    UNREADABLE,
    Models,
    Redaction,
    Row,
    infer_package,
    rows_of_pair,
    version_of,
)

TICK_SECONDS = 0.2
# The directory of a service's log, the day and version below it, and the model if it is known.
Group = tuple[str, Path, int]
Write = Callable[[Path, list[Row], ModelPackage | None], Path]
_log = logging.getLogger("kfloop.payload_logger")


@dataclass(frozen=True)
class Settings:
    """How the log is written; each bound is a bound of memory, and of what `kill -9` loses.

    Attributes:
        directory: Log of service s in namespace n is `<directory>/n/s`.
        models: Where `<service>/<version>/model.json` may lie, or None.
        redaction: Fields that are not logged as they are.
        join_seconds: How long an event waits for its other half.
        flush_seconds: How old a row becomes before it is in a file.
        flush_rows: How many rows are enough for a flush.
        max_queued: Events that wait for the thread.
        max_queued_bytes: Bytes of their payloads.
        max_waiting: Events that wait for their other half.
        max_waiting_bytes: Bytes of their payloads.
        max_unflushed: Rows that wait while files cannot be written.
        remembered: Of how many ids it is known that they were logged.
    """

    directory: Path
    models: Path | None = None
    redaction: Redaction = field(default_factory=Redaction)
    join_seconds: float = 60.0
    flush_seconds: float = 10.0
    flush_rows: int = 10_000
    max_queued: int = 10_000
    max_queued_bytes: int = 64 * 2**20
    max_waiting: int = 20_000
    max_waiting_bytes: int = 128 * 2**20
    max_unflushed: int = 50_000
    remembered: int = 100_000


class PayloadWriter:
    """Takes events and writes them in the background; see the module's docstring.

    Attributes:
        complete: Whether the thread ended by itself, after it took all there was.
    """

    def __init__(self, settings: Settings, write: Write = write_rows) -> None:
        self.complete = False
        self._settings = settings
        self._write = write
        self._models = Models(settings.models, settings.redaction)
        self._joiner = Joiner(
            settings.join_seconds,
            settings.max_waiting,
            settings.max_waiting_bytes,
            settings.remembered,
        )
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued = self._queued_bytes = 0
        self._rows: dict[Group, list[Row]] = defaultdict(list)
        self._packages: dict[int, ModelPackage] = {}
        self._unflushed = 0
        self._deadline = 0.0
        self._failing = False
        for what in ("queued", "waiting", "unflushed"):
            unit = "rows" if what == "unflushed" else "events"
            metrics.LIMITS.labels(f"{what}_{unit}").set(getattr(settings, f"max_{what}"))
        self._thread = threading.Thread(target=self._run, name="payload-writer", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def offer(self, event: Event) -> bool:
        """Queues an event, never waits; False when it was dropped because the queue is full."""
        with self._lock:
            full = self._queued >= self._settings.max_queued
            if full or self._queued_bytes + event.size > self._settings.max_queued_bytes:
                metrics.EVENTS.labels(event.kind, "dropped").inc()
                return False
            self._count(1, event.size)
        self._queue.put(event)
        return True

    def close(self) -> int:
        """Writes all there is, orphans too, and ends; returns how many rows no file took."""
        self._queue.put(None)
        self._thread.join()
        return self._unflushed

    def _count(self, events: int, size: int) -> None:
        self._queued += events
        self._queued_bytes += size
        metrics.QUEUED.set(self._queued)
        metrics.QUEUED_BYTES.set(self._queued_bytes)

    def _run(self) -> None:
        ended = False
        while not ended:
            try:
                busy = len(self._joiner) > 0 or self._unflushed > 0
                event = self._queue.get(timeout=TICK_SECONDS if busy else None)
                ended = event is None
                if event is not None:
                    self._take(event)
            except queue.Empty:
                pass
            for orphan in self._joiner.orphans(float("inf") if ended else time.monotonic()):
                self._add(orphan)
            metrics.WAITING.set(len(self._joiner))
            # With many rows at once, but a disk that fails is asked once per deadline.
            many = self._unflushed >= self._settings.flush_rows and not self._failing
            if self._unflushed and (ended or many or time.monotonic() >= self._deadline):
                self._flush()
        self.complete = True

    def _take(self, event: Event) -> None:
        with self._lock:
            self._count(-1, -event.size)
        outcome, pair = self._joiner.add(event, time.monotonic())
        if pair is not None:
            self._add(pair)
        elif outcome != WAITING:
            # Of two that are in conflict the first is not logged either.
            count = 2 if outcome == "conflict" else 1
            metrics.EVENTS.labels(event.kind, outcome).inc(count)

    def _add(self, pair: Pair) -> None:
        """Turns a pair into rows that wait for the next flush."""
        event = pair.response or pair.request
        assert event is not None
        outcome = JOINED if pair.whole else "orphan"
        try:
            version = version_of(pair)
            package = self._find(event.service, version)
            rows = rows_of_pair(pair, version, package, self._settings.redaction)
        except UNREADABLE as error:
            outcome, rows, package, version = "unreadable", [], None, ""
            told = {"service": event.service, "request_id": event.id}
            # The error's own text may quote what is redacted.
            _log.warning("A payload cannot be read: %s", type(error).__name__, extra=told)
        for half in (pair.request, pair.response):
            if half is not None:
                metrics.EVENTS.labels(half.kind, outcome).inc()
        room = self._settings.max_unflushed - self._unflushed
        if len(rows) > room:
            metrics.DROPPED_ROWS.labels("full").inc(len(rows) - room)
            rows = rows[:room]
        if rows and not self._unflushed:
            self._deadline = time.monotonic() + self._settings.flush_seconds
        if package is not None:
            self._packages[id(package)] = package
        directory = self._settings.directory / event.namespace / event.service
        for row in rows:
            place = log.partition(directory, row[log.EVENT_TIME].date(), version)
            self._rows[event.service, place, id(package) if package else 0].append(row)
        self._unflushed += len(rows)
        metrics.UNFLUSHED.set(self._unflushed)

    def _find(self, service: str, version: str) -> ModelPackage | None:
        try:
            return self._models.find(service, version)
        except (OSError, ValueError) as error:  # InputError is one
            _log.warning("Columns are inferred: %s", error, extra={"service": service})
            return None

    def _flush(self) -> None:
        self._failing = False
        for group in list(self._rows):
            service, directory, model = group
            rows, started = self._rows[group], time.perf_counter()
            result = "ok"
            try:
                self._write(directory, *self._described(rows, model))
                metrics.ROWS.labels(service, directory.name.partition("=")[2]).inc(len(rows))
            except OSError as error:  # the disk: it may be better the next time
                result, self._failing = "failed", True
                _log.error("%s cannot be written: %s", directory, error, extra={"rows": len(rows)})
            except (pa.ArrowException, *UNREADABLE) as error:  # the rows: they stay what they are
                result = "failed"
                metrics.DROPPED_ROWS.labels("unwritable").inc(len(rows))
                why = type(error).__name__
                _log.error("Rows of %s are lost: %s", directory, why, extra={"rows": len(rows)})
                del self._rows[group]
            metrics.FLUSH.labels(result).observe(time.perf_counter() - started)
            if result == "ok":
                del self._rows[group]
        self._unflushed = sum(len(rows) for rows in self._rows.values())
        metrics.UNFLUSHED.set(self._unflushed)
        self._deadline = time.monotonic() + self._settings.flush_seconds

    def _described(self, rows: list[Row], model: int) -> tuple[list[Row], Any]:
        return (rows, self._packages[model]) if model else infer_package(rows)
