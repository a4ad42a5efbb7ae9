# SPDX-License-Identifier: Apache-2.0
"""A circuit breaker: what fails again and again is left alone for a while."""

import threading
import time
from collections.abc import Callable

FAILURES = 5
REST_SECONDS = 5.0


class Breaker:
    """Closed: calls go through. Open, after failures in a row: none do. Half open: one tries.

    Safe to use from several threads. Whoever was allowed must report how it went.
    """

    def __init__(
        self,
        failures: int = FAILURES,
        rest_seconds: float = REST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a closed one.

        Args:
            failures: How many in a row open it.
            rest_seconds: How long it stays open before one call may try.
            clock: Seconds that only grow.
        """
        self._limit = failures
        self._rest = rest_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._closed = True
        self._try_at = 0.0

    @property
    def open(self) -> bool:
        """Whether calls are held back."""
        return not self._closed

    def allow(self) -> bool:
        """Returns whether a call may go through now."""
        if self._closed:
            return True
        with self._lock:
            if self._clock() < self._try_at:
                return False
            # Whoever tries has as long as a rest takes; if it never reports, another one tries.
            self._try_at = self._clock() + self._rest
            return True

    def succeeded(self) -> None:
        """Reports a call that went well, which closes it."""
        if self._failures:
            with self._lock:
                self._failures, self._closed = 0, True

    def failed(self) -> None:
        """Reports a call that failed."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                self._closed = False
                self._try_at = self._clock() + self._rest
