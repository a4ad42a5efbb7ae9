# SPDX-License-Identifier: Apache-2.0
"""Shadow traffic: the candidate answers copies of live requests, for the log alone.

A copy is sent once the live answer is ready, and nobody waits for it: whatever becomes of it, the
live answer is the same and as quick. Copies that would pile up are dropped and counted.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from prometheus_client import Counter
from starlette.responses import Response

from kfloop.components.contracts.inference_log import shadow_log
from kfloop.serving.log_writer import Exchange, LogWriter
from kfloop.serving.predictors import Predictor

# A candidate that answers more slowly than requests come in holds so many copies at most.
MAX_IN_FLIGHT = 64
COPIES = Counter(
    "kfloop_router_shadow_requests",
    "Copies of live requests, by who answered them for nobody.",
    ("service", "version", "status"),
)
DROPPED = Counter(
    "kfloop_router_shadow_dropped_requests", "Copies that were not sent.", ("service",)
)


@dataclass
class ShadowCounts:
    """What became of the copies: `sent`, `failed` among them, and `dropped` unsent."""

    sent: int = 0
    failed: int = 0
    dropped: int = 0


class Shadow:
    """Copies requests to a candidate."""

    def __init__(self, service: str, log: LogWriter) -> None:
        self.counts = ShadowCounts()
        self._service = service
        self._log = log
        self._copies: set[asyncio.Task[None]] = set()

    def copy(
        self,
        predictor: Predictor,
        live: Exchange,
        ask: Callable[[], Awaitable[Response]],
    ) -> None:
        """Sends a copy and returns at once.

        Args:
            predictor: The candidate.
            live: The live request and its answer, as they are logged.
            ask: Sends the request to the candidate.
        """
        if len(self._copies) >= MAX_IN_FLIGHT:
            self.counts.dropped += 1
            DROPPED.labels(self._service).inc()
            return
        task = asyncio.create_task(self._send(predictor, live, ask))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _send(
        self, predictor: Predictor, live: Exchange, ask: Callable[[], Awaitable[Response]]
    ) -> None:
        received_at, started = datetime.now(UTC), time.perf_counter()
        # Counted with the requests in flight, so that the candidate is not ended in the middle.
        predictor.in_flight += 1
        try:
            answer = await ask()
        finally:
            predictor.in_flight -= 1
        self.counts.sent += 1
        self.counts.failed += answer.status_code >= 400
        COPIES.labels(self._service, predictor.version, str(answer.status_code)).inc()
        if live.log:
            length = answer.headers.get("inference-header-content-length", "")
            self._log.add(
                replace(
                    live,
                    log=str(shadow_log(live.log)),
                    package=predictor.package,
                    model_version=predictor.version,
                    predictor=predictor.name,
                    received_at=received_at,
                    latency_ms=1000 * (time.perf_counter() - started),
                    status=answer.status_code,
                    response=bytes(answer.body),
                    response_json=int(length) if length.isdecimal() else None,
                )
            )


def is_copied(request_id: str, percent: int) -> bool:
    """Whether a request is among the share that is copied; the same id always is or is not."""
    # Not the hash of the traffic split: with that, a candidate would see copies of one side only.
    digest = hashlib.sha256(f"shadow {request_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % 100 < percent
