# SPDX-License-Identifier: Apache-2.0
"""Requests to a served model, on V1 and V2 of the inference protocol."""

import json
import logging
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.deployment.connection import INGRESS, connection_to
from kfloop.components.deployment.packages import Instance
from kfloop.serving.payloads import response_error, response_predictions

# It tells every request, and a KFP component shows what is told.
logging.getLogger("httpx").setLevel(logging.WARNING)

VERSION_HEADER = "x-model-version"
REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_SECONDS = 30.0
NO_ANSWER = 0
V2_DATATYPES = {"float": "FP64", "int": "INT64", "bool": "BOOL", "string": "BYTES"}


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status, or `NO_ANSWER` when there was no answer at all.
        model_version: The version that answered, from its header.
        predictions: One per instance: numbers, or labels for multiclass.
        error: Why there are none, or empty.
        latency_ms: Milliseconds from request to answer.
    """

    status: int
    model_version: str = ""
    predictions: list[Any] = field(default_factory=list)
    error: str = ""
    latency_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the model answered with predictions."""
        return self.status == httpx.codes.OK


class ServiceClient:
    """Talks to one address; connections stay open between requests."""

    def __init__(self, url: str, model: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Args: url: address of a service or predictor; model: name on the endpoint's path."""
        self._model = model
        self._url = url
        way = connection_to(url)
        headers = {**way.options.pop("headers", {}), **way.headers}
        # trust_env: a proxy from the environment must not get requests for 127.0.0.1.
        self._http = httpx.Client(
            base_url=way.base_url,
            headers=headers,
            timeout=timeout_seconds,
            trust_env=False,
            **way.options,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def predict(
        self, instances: list[Instance], request_id: str = "", classes: list[str] | None = None
    ) -> Answer:
        """Sends instances on V1; `classes` name what a runtime answers with a number for each."""
        path = f"/v1/models/{self._model}:predict"
        return self._post(path, {"instances": instances}, request_id, classes)

    def infer(
        self, instances: list[Instance], package: ModelPackage, request_id: str = ""
    ) -> Answer:
        """Sends the same instances as tensors on V2, one per feature of the model."""
        inputs = [
            {
                "name": feature.name,
                "shape": [len(instances)],
                "datatype": V2_DATATYPES[feature.type],
                "data": [instance.get(feature.name) for instance in instances],
            }
            for feature in package.features
        ]
        path = f"/v2/models/{self._model}/infer"
        return self._post(path, {"inputs": inputs}, request_id, package.classes)

    def state(self) -> Answer:
        """Asks whether the model is loaded; `ok` when it is. Any V1 server answers this."""
        started = time.perf_counter()
        try:
            answer = self._http.get(f"/v1/models/{self._model}")
        except httpx.TransportError as error:
            return Answer(NO_ANSWER, error=self._unanswered(error))
        latency = 1000 * (time.perf_counter() - started)
        version = answer.headers.get(VERSION_HEADER, "")
        reason = "" if answer.status_code == httpx.codes.OK else response_error(answer.content)
        return Answer(answer.status_code, version, error=reason, latency_ms=latency)

    def _unanswered(self, error: httpx.TransportError) -> str:
        told = f"{type(error).__name__}: {error}"
        if not _is_unknown_host(error):
            return told
        return (
            f"{told} ({self._url} is not known here; where it is the service's public address, "
            f"name the gateway's in {INGRESS})"
        )

    def _post(
        self, path: str, body: dict[str, Any], request_id: str, classes: list[str] | None = None
    ) -> Answer:
        headers = {"content-type": "application/json"}
        if request_id:
            headers[REQUEST_ID_HEADER] = request_id
        started = time.perf_counter()
        try:
            answer = self._http.post(path, content=json.dumps(body), headers=headers)
        except httpx.TransportError as error:
            return Answer(NO_ANSWER, error=self._unanswered(error))
        latency = 1000 * (time.perf_counter() - started)
        version = answer.headers.get(VERSION_HEADER, "")
        if answer.status_code != httpx.codes.OK:
            reason = response_error(answer.content)
            return Answer(answer.status_code, version, error=reason, latency_ms=latency)
        predictions = response_predictions(answer.content, classes or [])
        return Answer(answer.status_code, version, predictions, latency_ms=latency)


def _is_unknown_host(error: BaseException | None) -> bool:
    # What the resolver said is what the errors of httpx and httpcore were raised for.
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False
