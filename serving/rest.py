# SPDX-License-Identifier: Apache-2.0
"""KServe's REST server, as the model server needs it: observed, strict and ready to drain."""

import time
from typing import Any

import kserve
from cloudevents.exceptions import GenericException
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from opentelemetry.trace import SpanKind
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kfloop.serving import tracing
from kfloop.serving.json_logs import log_request
from kfloop.serving.metrics import observe_request
from kfloop.serving.package_model import PackageModel

LOG_HEADER = "x-log-request"


class Draining:
    """Whether the server is about to end.

    Attributes:
        begun: True from the moment it was told to.
    """

    def __init__(self) -> None:
        self.begun = False


class Observed:
    """Middleware around inference requests: id, version and trace on answers, metrics, log."""

    def __init__(
        self,
        app: ASGIApp,
        model: PackageModel,
        plane: DataPlane,
        draining: Draining,
        slow_seconds: float,
    ) -> None:
        self._app = app
        self._predict = _endpoint(model, plane)
        self._path = f"/v1/models/{model.name}:predict"
        self._model = model
        self._draining = draining
        self._slow = slow_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection; only inference requests are observed."""
        if scope["type"] != "http" or not scope["path"].endswith((":predict", "/infer")):
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        if "x-request-id" not in headers:
            headers["x-request-id"] = tracing.request_id(headers)
        if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            # What `curl -d` says of any body.
            binary = "inference-header-content-length" in headers
            headers["content-type"] = f"application/{'octet-stream' if binary else 'json'}"
        context = tracing.context_of(headers)
        if context is None:
            del headers[tracing.TRACEPARENT]  # nobody can continue a broken one
            await self._serve(scope, receive, send, headers)
            return
        with tracing.TRACER.start_as_current_span("predict", context, SpanKind.SERVER):
            headers[tracing.TRACEPARENT] = tracing.traceparent(tracing.current())
            await self._serve(scope, receive, send, headers)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, headers: MutableHeaders
    ) -> None:
        status = 500
        started = time.perf_counter()

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-model-version"] = self._model.version
                answer["x-request-id"] = headers["x-request-id"]
                if tracing.TRACEPARENT in headers:
                    answer[tracing.TRACEPARENT] = headers[tracing.TRACEPARENT]
                if self._draining.begun:  # so that clients go elsewhere with their next request
                    answer["connection"] = "close"
            await send(message)

        direct = scope["path"] == self._path and scope["method"] == "POST"
        try:
            await (self._predict if direct else self._app)(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - started
            protocol = "v1" if scope["path"].endswith(":predict") else "v2"
            observe_request(self._model.labels, protocol, status, seconds)
            if status >= 500 or seconds > self._slow or headers.get(LOG_HEADER) == "1":
                log_request(
                    status,
                    model=self._model.name,
                    version=self._model.version,
                    protocol=protocol,
                    path=scope["path"],
                    seconds=round(seconds, 6),
                    request_id=headers["x-request-id"],
                    trace_id=tracing.trace_id(tracing.context_of(headers)),
                )


class Plane(DataPlane):
    """KServe's data plane: 400 instead of 500 for a malformed body, not ready while it drains."""

    def __init__(self, models: Any, draining: Draining) -> None:
        super().__init__(model_registry=models)
        self._draining = draining

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decodes a body; see KServe."""
        try:
            return super().decode(*args, **kwargs)
        except InvalidInput:
            raise
        except (
            ArithmeticError,
            AttributeError,
            GenericException,
            InferenceError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise InvalidInput(f"The body is not a request that can be read: {error!r}.") from error

    async def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self._draining.begun and await super().ready()

    async def model_ready(
        self, model_name: str, disable_predictor_health_check: bool = False
    ) -> bool:
        """Whether requests for a model should be sent here.

        KServe asks this, with the health check disabled, before it answers a request too: those
        that still come while the server drains are answered.
        """
        asked_by_request = disable_predictor_health_check
        if self._draining.begun and not asked_by_request:
            return False
        ready: bool = await super().model_ready(model_name, disable_predictor_health_check)
        return ready


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    """Answers a V2 body of the wrong shape with one sentence."""
    assert isinstance(error, RequestValidationError)
    told = "; ".join(
        f"{'.'.join(map(str, entry['loc'][2:])) or 'body'}: {entry['msg']}"
        for entry in error.errors()
        if entry["loc"][1:] != ("bytes",)  # KServe's other way to read a body: binary tensors
    )
    return JSONResponse({"error": f"The body is not a V2 request: {told}."}, 400)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """Answers unknown paths and unreadable bodies in the form of every other error."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


def _endpoint(model: PackageModel, plane: DataPlane) -> ASGIApp:
    """Returns KServe's V1 endpoint without FastAPI's routing, which takes longer than the model."""
    endpoints = V1Endpoints(plane)

    async def predict(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoints.predict(model.name, Request(scope, receive))
        await response(scope, receive, send)

    # The middleware is built with the first request, when KServe's handlers are all there.
    return ExceptionMiddleware(predict, kserve.model_server.app.exception_handlers)


def prepare(model: PackageModel, plane: Plane, draining: Draining, slow_seconds: float) -> None:
    """Adds what is ours to KServe's application."""
    app = kserve.model_server.app
    app.add_middleware(
        Observed, model=model, plane=plane, draining=draining, slow_seconds=slow_seconds
    )
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused)
