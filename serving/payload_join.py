# SPDX-License-Identifier: Apache-2.0
"""Joins requests and answers by their id, within bounds of memory and age.

Each id gives one pair at most, however its events are ordered, repeated or lost: what is done is
remembered. An event that nobody joins in time is an orphan, and a pair of its own. Two different
requests (or answers) under one id cannot be told apart: neither is logged.
"""

from collections import OrderedDict
from dataclasses import dataclass

from kfloop.serving.payload_events import REQUEST, Event

Key = tuple[str, str, str]
JOINED, WAITING, DUPLICATE, CONFLICT = "joined", "waiting", "duplicate", "conflict"


@dataclass(frozen=True)
class Pair:
    """A request and its answer; one of them is None in an orphan."""

    request: Event | None
    response: Event | None

    @property
    def whole(self) -> bool:
        """Whether both are there."""
        return self.request is not None and self.response is not None


class Joiner:
    """Holds events until their other half comes; for one thread.

    Attributes:
        waiting_bytes: Bytes of the payloads that wait.
    """

    def __init__(
        self, max_seconds: float, max_waiting: int, max_bytes: int, remembered: int
    ) -> None:
        """Sets the bounds.

        Args:
            max_seconds: How long an event waits for its other half.
            max_waiting: How many events wait; beyond it the oldest becomes an orphan.
            max_bytes: How many bytes of payload wait; the same.
            remembered: Of how many ids it is known that they are done.
        """
        self.waiting_bytes = 0
        self._max_seconds = max_seconds
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._remembered = remembered
        self._waiting: OrderedDict[Key, tuple[float, Event]] = OrderedDict()
        self._done: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: Event, now: float) -> tuple[str, Pair | None]:
        """Takes an event; returns what became of it, and the pair if it made one whole.

        Args:
            event: The event.
            now: Seconds on the clock that `orphans` is asked with.
        """
        key = event.key
        if hash(key) in self._done:
            return DUPLICATE, None
        if key not in self._waiting:
            self._waiting[key] = (now, event)
            self.waiting_bytes += event.size
            return WAITING, None
        _, other = self._waiting[key]
        if other.kind == event.kind:
            if other.body == event.body:
                return DUPLICATE, None
            self._finish(key)
            return CONFLICT, None
        self._finish(key)
        pair = Pair(event, other) if event.kind == REQUEST else Pair(other, event)
        return JOINED, pair

    def orphans(self, now: float) -> list[Pair]:
        """Takes out what has waited too long, and the oldest of what is too much."""
        found = []
        while self._waiting:
            key, (since, event) = next(iter(self._waiting.items()))
            full = len(self._waiting) > self._max_waiting or self.waiting_bytes > self._max_bytes
            if not full and now - since < self._max_seconds:
                break
            self._finish(key)
            found.append(Pair(event, None) if event.kind == REQUEST else Pair(None, event))
        return found

    def _finish(self, key: Key) -> None:
        _, event = self._waiting.pop(key)
        self.waiting_bytes -= event.size
        self._done[hash(key)] = None  # 8 bytes for an id of any length
        if len(self._done) > self._remembered:
            self._done.popitem(last=False)
