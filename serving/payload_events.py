# SPDX-License-Identifier: Apache-2.0
"""The events a payload logger takes: CloudEvents 1.0 over HTTP, as KServe and our server send them.

KServe's logger posts one event at a time in binary mode: attributes in `ce-` headers, the raw V1 or
V2 payload as the body. Structured mode and the batches of the model server are read too. Attributes
beside CloudEvents' own: `inferenceservicename`, `namespace`, `component`, `endpoint`, `annotations`
(JSON) of KServe; `modelversion`, `predictor`, `status`, `latencyms` of the model server.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from kfloop.components.contracts.errors import InputError
from kfloop.serving.payloads import parse_event_time

PREFIX = "org.kubeflow.serving.inference."
REQUEST, RESPONSE = "request", "response"
VERSION_ANNOTATION = "kfloop.org/model-version"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PREDICTOR_COMPONENT = "predictor"
MAX_ID = 256
# They become names of directories: of Kubernetes objects, and of model versions.
OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


@dataclass(frozen=True)
class Event:
    """A request or an answer.

    Attributes:
        kind: `REQUEST` or `RESPONSE`.
        id: The same for a request and its answer, and for no other.
        namespace: Namespace of the service.
        service: The InferenceService.
        component: `predictor`, `transformer` or `explainer`.
        source: Who sent it.
        time: When the request came in, or the answer was there.
        body: The payload, V1 or V2.
        version: Model version, or empty when the event does not tell.
        predictor: Which predictor of the service, or empty.
        status: HTTP status of an answer.
        latency_ms: Milliseconds until an answer was there; None when only the times tell.
    """

    kind: str
    id: str
    namespace: str
    service: str
    component: str
    source: str
    time: datetime
    body: bytes
    version: str = ""
    predictor: str = ""
    status: int = 200
    latency_ms: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What a request and its answer have in common."""
        return (self.namespace, self.service, self.id)

    @property
    def size(self) -> int:
        """Bytes it holds while it waits."""
        return len(self.body)


def events_of(headers: Mapping[str, str], body: bytes) -> list[Event]:
    """Reads the events of a POST.

    Args:
        headers: Its headers, names in lower case.
        body: Its body.

    Raises:
        InputError: If one of them cannot be read; then none of them counts.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == BATCH:
        entries = _json(body, list, "The batch")
        return [_structured(entry) for entry in entries]
    if content_type == STRUCTURED:
        return [_structured(_json(body, dict, "The event"))]
    attributes = {
        name.removeprefix("ce-"): value for name, value in headers.items() if name[:3] == "ce-"
    }
    return [_event(attributes, body)]


def _structured(entry: Any) -> Event:
    if not isinstance(entry, dict):
        raise InputError("An event of the batch is not a JSON object; send CloudEvents.")
    attributes = {name: value for name, value in entry.items() if isinstance(value, str | int)}
    data = attributes.pop("data_base64", None)
    if data is None:
        return _event(attributes, json.dumps(entry.get("data")).encode())
    try:
        return _event(attributes, base64.b64decode(str(data), validate=True))
    except binascii.Error as error:
        raise InputError(f"An event's data_base64 is not base64: {error}.") from error


def _event(attributes: Mapping[str, Any], body: bytes) -> Event:
    def text(name: str) -> str:
        return str(attributes.get(name, ""))

    kind = text("type").removeprefix(PREFIX)
    if kind not in (REQUEST, RESPONSE) or not text("type").startswith(PREFIX):
        raise InputError(
            f"The event's type is {text('type')!r:.80}; this logger takes CloudEvents of the types "
            f"{PREFIX}{REQUEST} and {PREFIX}{RESPONSE}."
        )
    identifier = text("id")
    if not 0 < len(identifier) <= MAX_ID or _broken(identifier):
        raise InputError(f"The event's id must be a text of 1 to {MAX_ID} characters.")
    latency = attributes.get("latencyms")
    return Event(
        kind=kind,
        id=identifier,
        namespace=_name(text("namespace") or "default", "namespace", OBJECT_NAME),
        service=_name(text("inferenceservicename"), "inferenceservicename", OBJECT_NAME),
        component=text("component") or PREDICTOR_COMPONENT,
        source=text("source"),
        time=_time(text("recordedtime") or text("time")),
        body=body,
        version=_version(attributes),
        predictor=_printable(text("predictor") or text("endpoint")),
        status=_number(attributes.get("status", 200), "status", 100, 599),
        latency_ms=None if latency is None else _number(latency, "latencyms", 0, 10**9, float),
    )


def _version(attributes: Mapping[str, Any]) -> str:
    """Returns the version that an event tells: in our own attribute, or in KServe's annotations."""
    version = str(attributes.get("modelversion", ""))
    annotations = str(attributes.get("annotations", ""))
    if not version and annotations:
        if not annotations.lstrip().startswith("{"):
            annotations = unquote(annotations)  # CloudEvents' encoding of header values
        told = _json(annotations, dict, "The event's attribute annotations")
        version = str(told.get(VERSION_ANNOTATION, ""))
    return _name(version, "model version", VERSION) if version else ""


def _time(text: str) -> datetime:
    """Returns an event's time, or now when it tells none."""
    try:
        return parse_event_time(text or None) or datetime.now(UTC)
    except InputError as error:
        raise InputError(f"The event's time {error}.") from error


def _name(text: str, what: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise InputError(
            f"The event's {what} is {text!r:.80}; it must match {pattern.pattern}, "
            "as it names a directory of the log."
        )
    return text


def _number(value: Any, what: str, least: int, most: int, kind: type = int) -> Any:
    try:
        number = kind(value)
        if least <= number <= most:  # not so for NaN
            return number
    except (ValueError, OverflowError):
        pass
    raise InputError(f"The event's {what} is {value!r:.80}, not a number from {least} to {most}.")


def _json(text: str | bytes, kind: type, what: str) -> Any:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON: {error}.") from error
    if not isinstance(document, kind):
        raise InputError(f"{what} must be a JSON {'array' if kind is list else 'object'}.")
    return document


def _broken(text: str) -> bool:
    """Whether a text holds lone surrogates, which JSON can carry and Parquet cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _printable(text: str) -> str:
    return text[:MAX_ID].encode("utf-8", "replace").decode()
