# SPDX-License-Identifier: Apache-2.0
"""Sends the model server's requests and answers to a payload logger, as batches of CloudEvents.

KServe's own logger knows no batches, failed requests or candidates of Standard mode, and its agent
holds what a slow logger does not take without a bound. Here requests go into a bounded queue that a
thread sends from; a full one drops and counts, and no answer waits. A logger that does not answer
is tried again with the same batch, which is harmless: it takes each id once.
"""

import atexit
import base64
import json
import logging
import os
import queue
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kfloop.serving.payload_events import BATCH, MAX_ID, PREFIX, REQUEST, RESPONSE
from kfloop.serving.payloads import FEATURES_HEADER

MAX_QUEUED = 2000
MAX_QUEUED_BYTES = 64 * 2**20
MAX_BODY = 4 * 2**20
BATCH_REQUESTS = 100
BATCH_BYTES = 4 * 2**20
TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 5.0
SENT = Counter(
    "kfloop_payload_sent_requests",
    "Requests by what became of their events: sent, dropped, refused, too_large, lost.",
    ("outcome",),
)
_log = logging.getLogger("kfloop.event_sender")


@dataclass(frozen=True)
class Answered:
    """A request and its answer, as the payload logger shall see them."""

    request_id: str
    version: str
    status: int
    received_at: datetime
    seconds: float
    content_type: str
    request: bytes
    response: bytes

    @property
    def size(self) -> int:
        """Bytes it holds while it waits."""
        return len(self.request) + len(self.response)


class EventSender:
    """Takes answered requests and sends them in the background; see the module's docstring."""

    def __init__(
        self,
        url: str,
        service: str,
        namespace: str = "default",
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._url = url
        self._service = service
        self._namespace = namespace
        self._max_queued = max_queued
        self._queue: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = self._held_bytes = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-sender", daemon=True)
        self._thread.start()

    def offer(self, answered: Answered) -> None:
        """Queues a request and its answer, never waits."""
        if max(len(answered.request), len(answered.response)) > MAX_BODY:
            SENT.labels("too_large").inc()
            return
        with self._lock:
            full = self._held >= self._max_queued
            if full or self._held_bytes + answered.size > MAX_QUEUED_BYTES:
                SENT.labels("dropped").inc()
                return
            self._held += 1
            self._held_bytes += answered.size
        self._queue.put(answered)

    def close(self) -> None:
        """Sends what is queued, for `CLOSE_SECONDS` at the longest; what is left is lost."""
        self._queue.put(None)
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        # No proxies: the logger is a service of the cluster.
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            while batch := self._next():
                outcome = self._send(client, batch)
                SENT.labels(outcome).inc(len(batch))
                with self._lock:
                    self._held -= len(batch)
                    self._held_bytes -= sum(answered.size for answered in batch)

    def _next(self) -> list[Answered]:
        """Waits for a request and returns it with those behind it; none at the end."""
        batch: list[Answered] = []
        size = 0
        while len(batch) < BATCH_REQUESTS and size < BATCH_BYTES:
            try:
                answered = self._queue.get(block=not batch)
            except queue.Empty:
                break
            if answered is None:
                if batch:
                    self._queue.put(None)  # for the next call
                break
            batch.append(answered)
            size += answered.size
        return batch

    def _send(self, client: httpx.Client, batch: list[Answered]) -> str:
        """Posts a batch until it is taken or refused, or this ends."""
        content = json.dumps([event for answered in batch for event in self._events(answered)])
        told = False
        while True:
            try:
                answer = client.post(self._url, content=content, headers={"content-type": BATCH})
                if answer.is_success:
                    return "sent"
                why = f"{answer.status_code}: {answer.text[:500]}"
                if answer.is_client_error:
                    _log.warning("The payload logger refuses events: %s", why)
                    return "refused"
            except httpx.HTTPError as error:
                why = repr(error)
            if not told:
                _log.warning("The payload logger %s does not take events: %s", self._url, why)
                told = True
            if self._closing.wait(RETRY_SECONDS):
                return "lost"

    def _events(self, answered: Answered) -> list[dict[str, Any]]:
        common = {
            "specversion": "1.0",
            "id": answered.request_id[:MAX_ID],
            "source": socket.gethostname(),
            "datacontenttype": answered.content_type,
            "inferenceservicename": self._service,
            "namespace": self._namespace,
            "component": "predictor",
            "modelversion": answered.version,
        }
        ended = answered.received_at + timedelta(seconds=answered.seconds)
        request = {
            "type": PREFIX + REQUEST,
            "time": answered.received_at.isoformat(),
            "data_base64": base64.b64encode(answered.request).decode(),
        }
        response = {
            "type": PREFIX + RESPONSE,
            "time": ended.isoformat(),
            "status": answered.status,
            "latencyms": f"{answered.seconds * 1000:.3f}",
            "data_base64": base64.b64encode(answered.response).decode(),
        }
        return [common | request, common | response]


class Events:
    """Middleware around the whole server that copies inference requests and answers to a sender."""

    def __init__(self, app: ASGIApp, sender: EventSender) -> None:
        self._app = app
        self._sender = sender

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or not scope["path"].endswith((":predict", "/infer")):
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        headers[FEATURES_HEADER] = "1"
        received_at, started = datetime.now(UTC), time.perf_counter()
        asked: list[bytes] = []
        told: list[bytes] = []
        answer = Headers()
        status = 500

        async def receive_copied() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                asked.append(message.get("body", b""))
            return message

        async def send_copied(message: Message) -> None:
            nonlocal answer, status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = Headers(raw=list(message["headers"]))
            elif message["type"] == "http.response.body":
                told.append(message.get("body", b""))
            await send(message)

        await self._app(scope, receive_copied, send_copied)
        if "x-request-id" in answer:
            self._sender.offer(
                Answered(
                    request_id=answer["x-request-id"],
                    version=answer.get("x-model-version", ""),
                    status=status,
                    received_at=received_at,
                    seconds=time.perf_counter() - started,
                    content_type=headers.get("content-type", "application/json"),
                    request=b"".join(asked),
                    response=b"".join(told),
                )
            )


def install(app: Starlette, service: str, url: str) -> None:
    """Sends the requests and answers of an application to the payload logger at `url`.

    Args:
        app: The model server's application.
        service: The InferenceService, whose log they belong to; `POD_NAMESPACE` is its namespace.
        url: The payload logger.
    """
    sender = EventSender(url, service, os.environ.get("POD_NAMESPACE") or "default")
    atexit.register(sender.close)
    app.add_middleware(Events, sender=sender)
