# SPDX-License-Identifier: Apache-2.0
"""Turns joined events into rows of the inference log, with fields redacted where asked.

Columns and types are those of the model's `model.json` where it is known. Where it is not, they are
inferred: numbers are float64 (so that one day's files agree), texts and nested values string.
"""

import hashlib
import hmac
import json
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kfloop.components.contracts import inference_log as log
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import (
    PREDICTION,
    Feature,
    ModelPackage,
    read_model_json,
)
from kfloop.serving import payloads
from kfloop.serving.log_writer import Exchange, rows_of
from kfloop.serving.payload_events import VERSION
from kfloop.serving.payload_join import Pair

NO_ANSWER = "No answer was logged in time: the request failed, or the event of its answer was lost."
NO_REQUEST = "The request of this answer was not logged: its event was lost."
WITHHELD = "The sentence is withheld: it may tell a redacted field."
HASH_CHARACTERS = 32  # 128 bits
MAX_COLUMNS = 1000
LOOK_AGAIN_SECONDS = 60.0
# What reading a payload of the wrong shape raises.
UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    struct.error,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Redaction:
    """Fields that are not logged as they are.

    Attributes:
        dropped: Fields that are left out.
        hashed: Fields of which HMAC-SHA256 is logged, so that equal values stay equal.
        key: The key of the hash.
    """

    dropped: frozenset[str] = frozenset()
    hashed: frozenset[str] = frozenset()
    key: bytes = b""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: If a hash has no key, or a field is a column of the log's own.
        """
        if self.hashed and not self.key:
            raise InputError(
                f"{sorted(self.hashed)} shall be hashed, but there is no key; set "
                "KFLOOP_REDACTION_KEY, for example from a Secret."
            )
        own = sorted((self.dropped | self.hashed) & log.RESERVED)
        if own:
            raise InputError(f"{own} are the log's own columns, which cannot be redacted.")

    def __bool__(self) -> bool:
        return bool(self.dropped or self.hashed)

    def package(self, package: ModelPackage) -> ModelPackage:
        """Returns a model's description as the log sees it: hashes are texts."""
        features = [
            Feature(feature.name, "string") if feature.name in self.hashed else feature
            for feature in package.features
            if feature.name not in self.dropped
        ]
        entities = [name for name in package.entities if name not in self.dropped]
        return replace(package, features=features, entities=entities)

    def row(self, row: Row) -> Row:
        """Returns a row without what must not be logged."""
        kept = {name: value for name, value in row.items() if name not in self.dropped}
        for name in self.hashed & kept.keys():
            if kept[name] is not None:
                kept[name] = self._hash(kept[name])
        if self and kept[log.STATUS] is not None and kept[log.ERROR] is not None:
            kept[log.ERROR] = WITHHELD
        return kept

    def _hash(self, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON writes one number as 5 or 5.0
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        message = text.encode("utf-8", "replace")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:HASH_CHARACTERS]


class Models:
    """What is known of the models: `<directory>/<service>/<version>/model.json`, read when met."""

    def __init__(self, directory: Path | None, redaction: Redaction) -> None:
        self._directory = directory
        self._redaction = redaction
        self._known: dict[tuple[str, str], ModelPackage] = {}
        self._missing: dict[tuple[str, str], float] = {}

    def find(self, service: str, version: str) -> ModelPackage | None:
        """Returns the model as the log sees it; None where there is none (asked once a minute).

        Raises:
            InputError: If there is one that cannot be read.
        """
        key, now = (service, version), time.monotonic()
        if key in self._known or self._directory is None or not version:
            return self._known.get(key)
        if now - self._missing.get(key, float("-inf")) < LOOK_AGAIN_SECONDS:
            return None
        if len(self._missing) > MAX_COLUMNS:  # names come with the events
            self._missing.clear()
        self._missing[key] = now
        package = self._directory / service / version
        if not (package / "model.json").is_file():
            return None
        self._known[key] = self._redaction.package(read_model_json(package))
        return self._known[key]


def version_of(pair: Pair) -> str:
    """Returns which version answered: as the events tell, or as a V2 answer does."""
    told = [event.version for event in (pair.response, pair.request) if event and event.version]
    if told or pair.response is None or b'"model_version"' not in pair.response.body:
        return log.version_label(told[0] if told else "")
    document = _parse(pair.response.body[: json_length(pair.response.body)])
    version = document.get("model_version") if isinstance(document, dict) else None
    # It names a directory, too.
    known = isinstance(version, str) and VERSION.fullmatch(version)
    return str(version) if known else log.version_label("")


def rows_of_pair(
    pair: Pair, version: str, package: ModelPackage | None, redaction: Redaction
) -> list[Row]:
    """Returns a pair's rows, one per instance; an orphan's have no `status`.

    Raises:
        UNREADABLE: If a payload has a shape that nobody foresaw.
    """
    exchange = _exchange(pair, version, package)
    if package is None:
        exchange.package = _inferred(exchange)
    rows = rows_of(exchange)
    for row in rows:
        if not pair.whole:
            row[log.STATUS] = row[log.LATENCY_MS] = None
            row[log.ERROR] = NO_ANSWER if pair.response is None else NO_REQUEST
        elif row[log.ERROR] is not None:  # a lone surrogate cannot be written
            row[log.ERROR] = row[log.ERROR].encode("utf-8", "replace").decode()
    return [redaction.row(row) for row in rows] if redaction else rows


def _exchange(pair: Pair, version: str, package: ModelPackage | None) -> Exchange:
    first = pair.request or pair.response
    assert first is not None
    request = pair.request.body if pair.request else b""
    response = pair.response.body if pair.response else b""
    response_json = json_length(response)
    latency = pair.response.latency_ms if pair.response else None
    if latency is None and pair.request and pair.response:
        latency = max((pair.response.time - pair.request.time).total_seconds() * 1000, 0.0)
    if pair.request is None:  # so that the predictions find their rows
        classes = package.classes if package else []
        answers = payloads.response_predictions(response, classes, response_json)
        request = json.dumps({"instances": [{}] * len(answers)}).encode()
    return Exchange(
        log="",
        package=package,
        model_version=version,
        predictor=(pair.response or first).predictor,
        request_id=first.id,
        received_at=first.time,
        latency_ms=latency or 0.0,
        status=pair.response.status if pair.response else 200,
        request=request,
        response=response,
        request_json=json_length(request),
        response_json=response_json,
    )


def _inferred(exchange: Exchange) -> ModelPackage:
    """Returns a description of an unknown model that names what its rows hold."""
    rows = payloads.request_rows(exchange.request, exchange.request_json)
    rows += payloads.response_features(exchange.response, exchange.response_json)
    names = sorted({name for row in rows for name in row} - log.RESERVED)
    features = [Feature(name, "absent") for name in names[:MAX_COLUMNS]]
    return ModelPackage("", "regression", "", features)


def infer_package(rows: list[Row]) -> tuple[list[Row], ModelPackage]:
    """Returns rows of an unknown model with the same keys in each, and a description of them."""
    names = sorted({name for row in rows for name in row} - log.RESERVED)[:MAX_COLUMNS]
    kinds = {name: _kind(row.get(name) for row in rows) for name in names}
    filled = [
        {name: row.get(name) for name in (*log.COLUMNS, PREDICTION)}
        | {_sound(name): _as(row.get(name), kind) for name, kind in kinds.items()}
        for row in rows
    ]
    features = [Feature(_sound(name), kind) for name, kind in kinds.items()]
    texts = any(isinstance(row[PREDICTION], str) for row in rows)
    return filled, ModelPackage("", "multiclass" if texts else "regression", "", features)


def _kind(values: Iterable[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return "absent"
    if kinds == {bool}:
        return "bool"
    return "float" if kinds <= {bool, int, float} else "string"


def _as(value: Any, kind: str) -> Any:
    if value is None or kind in ("absent", "bool"):
        return value
    if kind == "float":
        return int(value) if isinstance(value, bool) else value
    return value if isinstance(value, str) else json.dumps(value)


def _sound(name: str) -> str:
    """Returns a name that Parquet can hold."""
    return name.encode("utf-8", "replace").decode()


def json_length(body: bytes) -> int | None:
    """Returns the length of a body's JSON part when binary tensors follow it, else None.

    KServe's events do not carry the header that tells it.
    """
    if b'"binary_data_size"' not in body:
        return None
    text = body.decode("utf-8", "surrogateescape")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    length = len(text[:end].encode("utf-8", "surrogateescape"))
    return length if body[length:].strip() else None


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
