# SPDX-License-Identifier: Apache-2.0
"""The router of the local inference service: KServe's routes, the traffic split, the log."""

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from yarl import URL

from kfloop.components.contracts.inference_log import NO_VERSION
from kfloop.serving import tracing
from kfloop.serving.log_writer import Exchange, LogWriter
from kfloop.serving.payloads import FEATURES_HEADER, request_rows, without_features
from kfloop.serving.predictors import Predictor
from kfloop.serving.shadow import Shadow, is_copied
from kfloop.serving.traffic import HEADER, StickyKey

ANSWER_SECONDS = 60.0
JSON_LENGTH = "inference-header-content-length"
FORWARDED = ("content-type", "accept", JSON_LENGTH, "traceparent", "tracestate", "authorization")
LABELS = ("service", "version", "predictor", "status")
REQUESTS = Counter("kfloop_router_requests", "Inference requests, by who answered.", LABELS)
SECONDS = Histogram(
    "kfloop_router_request_seconds",
    "Time from request to answer, in the router.",
    LABELS,
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
DROPPED = Counter("kfloop_log_dropped_requests", "Requests missing from the log.", ("service",))


@dataclass
class Routes:
    """Who gets which share of the traffic.

    Attributes:
        name: The service, which is also the model's name in URLs.
        log: Directory of the inference log; empty logs nothing.
        requests: Inference requests so far.
        sticky: What decides who answers; None for each request's own id.
        shadow: Who gets copies of live requests; None for nobody.
        shadow_percent: Share of the requests that is copied.
    """

    name: str
    log: str = ""
    requests: int = 0
    sticky: StickyKey | None = None
    shadow: Predictor | None = None
    shadow_percent: int = 0
    _main: Predictor | None = None
    _shares: list[tuple[int, Predictor]] = field(default_factory=list)

    def set(self, main: Predictor | None, shares: list[tuple[int, Predictor]]) -> None:
        """Gives each predictor of `shares` its percent, and `main` the rest."""
        self._main, self._shares = main, shares

    def remove(self, predictor: Predictor) -> None:
        """Takes a predictor out, so that it gets no new request."""
        self._shares = [share for share in self._shares if share[1] is not predictor]
        self.shadow = None if self.shadow is predictor else self.shadow
        self._main = None if self._main is predictor else self._main

    def traffic(self) -> dict[Predictor, int]:
        """Returns the percentages as they are now."""
        found = {predictor: percent for percent, predictor in self._shares}
        if self._main is not None and self._main.ready:
            found[self._main] = 100 - sum(found.values())
        return found

    @property
    def main(self) -> Predictor | None:
        """The predictor that stands for the service, when it is ready."""
        return self._main if self._main is not None and self._main.ready else None

    @property
    def expected(self) -> Predictor | None:
        """The predictor that should stand for the service, ready or not."""
        return self._main

    def choose(self, key: str) -> Predictor | None:
        """Returns who answers a request; the same key goes to the same side.

        A canary keeps its keys as its share grows: the shares fill the hash's range from below.
        """
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        bucket = int.from_bytes(digest[:8]) % 100
        for percent, predictor in self._shares:
            if bucket < percent:
                return predictor if predictor.ready else self.main
            bucket -= percent
        return self.main

    def copied_to(self, request_id: str, answered: Predictor) -> Predictor | None:
        """Returns who gets a copy of a request that somebody answered."""
        shadow = self.shadow
        if shadow is None or not shadow.ready or shadow is answered:
            return None
        return shadow if is_copied(request_id, self.shadow_percent) else None


class Router:
    """Answers the requests of one service."""

    def __init__(
        self, routes: Routes, log: LogWriter, shadow: Shadow, status: Callable[[], dict[str, Any]]
    ) -> None:
        self._routes = routes
        self._log = log
        self._shadow = shadow
        self._status = status
        self._client: aiohttp.ClientSession | None = None

    async def infer(self, request: Request) -> Response:
        """Sends an inference request to a predictor, and logs what came of it."""
        name = request.path_params["model"]
        if name != self._routes.name:
            return self._unknown(name)
        received_at, started = datetime.now(UTC), time.perf_counter()
        request_id = tracing.request_id(request.headers)
        body = await request.body()
        self._routes.requests += 1
        predictor = self._routes.choose(self._key(request, body) or request_id)
        if predictor is None:
            response = self._not_ready()
        else:
            predictor.in_flight += 1
            try:
                response = await self._forward(predictor, request, body, request_id)
            finally:
                predictor.in_flight -= 1
                predictor.requests += 1
        seconds = time.perf_counter() - started
        version = predictor.version if predictor else NO_VERSION
        predictor_name = predictor.name if predictor else ""
        response.headers["x-request-id"] = request_id
        response.headers["x-model-version"] = version
        response.headers["x-predictor"] = predictor_name
        labels = (name, version, predictor_name, str(response.status_code))
        REQUESTS.labels(*labels).inc()
        SECONDS.labels(*labels).observe(seconds)
        asked = predictor or self._routes.expected
        exchange = Exchange(
            log=self._routes.log,
            package=asked.package if asked else None,
            model_version=version,
            predictor=predictor_name,
            request_id=request_id,
            received_at=received_at,
            latency_ms=seconds * 1000,
            status=response.status_code,
            request=body,
            response=bytes(response.body),
            request_json=_length(request.headers.get(JSON_LENGTH)),
            response_json=_length(response.headers.get(JSON_LENGTH)),
        )
        if exchange.log and not self._log.add(exchange):
            DROPPED.labels(name).inc()
        if exchange.log and request.headers.get(FEATURES_HEADER) != "1":
            _trim(response, exchange.response_json)
        if predictor and (shadow := self._routes.copied_to(request_id, predictor)):
            self._shadow.copy(
                shadow, exchange, lambda: self._forward(shadow, request, body, request_id)
            )
        return response

    def _key(self, request: Request, body: bytes) -> str:
        """Returns the request's sticky key, or '' where it has none."""
        sticky = self._routes.sticky
        if sticky is None:
            return ""
        if sticky.kind == HEADER:
            return request.headers.get(sticky.name, "")
        value = request_rows(body, _length(request.headers.get(JSON_LENGTH)))[0].get(sticky.name)
        return "" if value is None else str(value)

    async def _forward(
        self, predictor: Predictor, request: Request, body: bytes, request_id: str
    ) -> Response:
        headers = {key: request.headers[key] for key in FORWARDED if key in request.headers}
        headers["x-request-id"] = request_id
        # Logged, since what the model server looks up is in no request.
        if self._routes.log or request.headers.get(FEATURES_HEADER) == "1":
            headers[FEATURES_HEADER] = "1"
        url = URL(predictor.url + request.url.path, encoded=True)
        try:
            async with self._session().request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except TimeoutError:
            return _error(
                504, f"Predictor {predictor.name} did not answer within {ANSWER_SECONDS:.0f} s."
            )
        except aiohttp.ClientError as error:
            return _error(
                503,
                f"Predictor {predictor.name} ended while it answered ({type(error).__name__}); "
                "try again.",
            )
        kept = {key: answer.headers[key] for key in (JSON_LENGTH,) if key in answer.headers}
        return Response(content, answer.status, kept, answer.headers.get("content-type"))

    def _session(self) -> aiohttp.ClientSession:
        """Returns the client; it belongs to the running event loop, so the first request makes it.

        aiohttp, since httpx takes three times as long as the rest of a forwarded request.
        """
        if self._client is None:
            self._client = aiohttp.ClientSession(
                # No limit on connections: a burst waits in the predictors, not here.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(ANSWER_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept-encoding"),
            )
        return self._client

    async def metadata(self, request: Request) -> Response:
        """Passes a question about the model on to the predictor that stands for the service."""
        name = request.path_params["model"]
        if name != self._routes.name:
            return self._unknown(name)
        if self._routes.main is None:
            return self._not_ready()
        return await self._forward(self._routes.main, request, b"", uuid.uuid4().hex)

    async def model_ready(self, request: Request) -> Response:
        """V1's and V2's readiness of the model."""
        name = request.path_params["model"]
        if name != self._routes.name:
            return self._unknown(name)
        if self._routes.main is None:
            return self._not_ready()
        return JSONResponse({"name": name, "ready": True})

    async def service_ready(self, request: Request) -> Response:
        """V2's readiness of the server."""
        return JSONResponse({"ready": True}) if self._routes.main else self._not_ready()

    async def live(self, request: Request) -> Response:
        """Liveness of this process."""
        return JSONResponse({"live": True, "status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"models": [self._routes.name]})

    async def server_metadata(self, request: Request) -> Response:
        """V2's metadata of the server."""
        return JSONResponse(
            {"name": "kfloop", "version": "1", "extensions": ["binary_tensor_data"]}
        )

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics of the router."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def status(self, request: Request) -> Response:
        """The service's status, for a person or `local_state.wait_logged`."""
        text = json.dumps(self._status(), indent=2) + "\n"
        return Response(text, media_type="application/json")

    def _not_ready(self) -> Response:
        expected = self._routes.expected
        why = f" {expected.name} is {expected.state}." if expected else ""
        detail = f" {expected.error}" if expected and expected.error else ""
        message = f"No predictor of {self._routes.name} is ready.{why}{detail}"
        return _error(503, message, {"retry-after": "1"})

    def _unknown(self, name: str) -> Response:
        return _error(404, f"There is no model {name!r} here; this serves {self._routes.name!r}.")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def _trim(response: Response, json_length: int | None) -> None:
    """Takes out of an answer the features that were asked for the log's sake."""
    content, length = without_features(bytes(response.body), json_length)
    if len(content) == len(response.body):
        return
    response.body = content
    response.headers["content-length"] = str(len(content))
    if length is not None:
        response.headers[JSON_LENGTH] = str(length)


def _length(header: str | None) -> int | None:
    return int(header) if header and header.isdecimal() else None


async def _no_route(request: Request, error: Exception) -> Response:
    return _error(
        getattr(error, "status_code", 404),
        f"{request.method} {request.url.path} is not served here; "
        "try /v1/models/NAME:predict or /v2/models/NAME/infer.",
    )


def application(
    routes: Routes, log: LogWriter, shadow: Shadow, status: Callable[[], dict[str, Any]]
) -> Starlette:
    """Returns the router as an ASGI application."""
    router = Router(routes, log, shadow, status)
    return Starlette(
        routes=[
            Route("/", router.status),
            Route("/healthz", router.live),
            Route("/metrics", router.metrics),
            Route("/v1/models", router.models),
            Route("/v1/models/{model}:predict", router.infer, methods=["POST"]),
            Route("/v1/models/{model}", router.model_ready),
            Route("/v2", router.server_metadata),
            Route("/v2/health/live", router.live),
            Route("/v2/health/ready", router.service_ready),
            Route("/v2/models", router.models),
            Route("/v2/models/{model}/infer", router.infer, methods=["POST"]),
            Route("/v2/models/{model}/ready", router.model_ready),
            Route("/v2/models/{model}", router.metadata),
        ],
        exception_handlers={404: _no_route, 405: _no_route},
    )
