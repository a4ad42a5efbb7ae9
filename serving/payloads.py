# SPDX-License-Identifier: Apache-2.0
"""What V1 and V2 bodies hold, read without TensorFlow: the router's side of the inference log."""

import json
import math
import struct
from datetime import UTC, datetime
from typing import Any

from kfloop.components.contracts.errors import InputError

# An instance may carry request context under this key; nothing reads it.
CONTEXT_KEY = "request"
# Looked-up features are in no request; with this header the answer tells them.
FEATURES_HEADER = "x-return-features"
MAX_ERROR_CHARACTERS = 500
# Epochs are told apart by size: below 1e11 seconds (year 5138), then milli-, micro-, nanoseconds.
EPOCH_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (math.inf, 1e9))
# V2 datatypes as `struct` formats.
FORMATS = {"BOOL": "?", "FP16": "e", "FP32": "f", "FP64": "d"} | {
    f"{sign}INT{bits}": code if sign == "" else code.upper()
    for bits, code in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))
    for sign in ("", "U")
}

Row = dict[str, Any]


def parse_event_time(value: Any) -> datetime | None:
    """Parses an instance's timestamp: ISO 8601 (UTC without a zone) or an epoch; null is None.

    Raises:
        InputError: If it is neither; the message continues a sentence that names the column.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if type(value) in (int, float):
            scale = next(scale for limit, scale in EPOCH_UNITS if abs(value) < limit)
            return datetime.fromtimestamp(value / scale, UTC)
    except (ValueError, OverflowError, OSError, StopIteration):
        pass
    raise InputError(f"must be an ISO 8601 time, an epoch or null, not {value!r:.60}")


def flatten(data: Any) -> list[Any]:
    """Returns tensor data of shape [n] or [n, 1], nested or flat, as a flat list."""
    if not isinstance(data, list):
        return []
    return [item for entry in data for item in (entry if isinstance(entry, list) else [entry])]


def request_rows(body: bytes, json_length: int | None = None) -> list[Row]:
    """Returns the instances of a V1 or V2 request, as sent.

    Args:
        body: The request body.
        json_length: Length of the JSON part when binary tensors follow it.

    Returns:
        One dict per instance; a single empty one when the body says nothing that can be read, so
        that a broken request still makes one row.
    """
    document = _document(body, json_length, "inputs")
    rows: list[Row] = []
    if isinstance(document.get("instances"), list):
        rows = [entry if isinstance(entry, dict) else {} for entry in document["instances"]]
    elif isinstance(document.get("inputs"), list):
        tensors = [tensor for tensor in document["inputs"] if _is_column(tensor)]
        columns = {str(tensor.get("name")): flatten(tensor.get("data")) for tensor in tensors}
        rows = [
            {name: values[row] for name, values in columns.items() if row < len(values)}
            for row in range(max(map(len, columns.values()), default=0))
        ]
    return rows or [{}]


def without_features(body: bytes, json_length: int | None = None) -> tuple[bytes, int | None]:
    """Takes the looked-up features out of a V1 or V2 answer.

    Args:
        body: The body of the answer.
        json_length: Length of its JSON part when binary tensors follow it.

    Returns:
        The body and the length of its JSON part; as they were where there is nothing to take out.
    """
    if b'"features"' not in body:
        return body, json_length
    end = len(body) if json_length is None else json_length
    try:
        document = json.loads(body[:end])
    except ValueError:
        return body, json_length
    for part in ("metadata", "parameters"):  # V1, V2
        told = document.get(part) if isinstance(document, dict) else None
        if isinstance(told, dict) and "features" in told:
            del told["features"]
            if not told:
                del document[part]
            text = json.dumps(document, separators=(",", ":")).encode()
            return text + body[end:], None if json_length is None else len(text)
    return body, json_length


def _is_column(tensor: Any) -> bool:
    """Whether a tensor is one value per row: shape [n] or [n, 1], or none told."""
    if not isinstance(tensor, dict):
        return False
    shape = tensor.get("shape")
    return not isinstance(shape, list) or all(size == 1 for size in shape[1:])


def response_predictions(
    body: bytes, classes: list[str], json_length: int | None = None
) -> list[Any]:
    """Returns the predictions of a V1 or V2 answer, in order: numbers, or labels for multiclass."""
    document = _document(body, json_length, "outputs")
    if isinstance(document.get("predictions"), list):
        return [_prediction(entry, classes) for entry in document["predictions"]]
    outputs = {output["name"]: output.get("data") for output in document.get("outputs") or []}
    for name in ("label", "probability", "value"):
        if name in outputs:
            return flatten(outputs[name])
    if "probabilities" in outputs:
        scores = flatten(outputs["probabilities"])
        size = len(classes)
        starts = range(0, len(scores), size)
        return [classes[_argmax(scores[start : start + size])] for start in starts]
    return []


def response_features(body: bytes, json_length: int | None = None) -> list[Row]:
    """Returns the features that an answer tells, row by row: those of a request with look-ups."""
    document = _parse(body[:json_length])
    for told, is_text in ((document.get("metadata"), False), (document.get("parameters"), True)):
        found = told.get("features") if isinstance(told, dict) else None
        if is_text and isinstance(found, str):
            found = _parse(f'{{"features": {found}}}'.encode()).get("features")
        if isinstance(found, list):
            return [row if isinstance(row, dict) else {} for row in found]
    return []


def _argmax(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def response_error(body: bytes) -> str:
    """Returns the sentence of a failed answer."""
    error = _parse(body).get("error")
    text = error if isinstance(error, str) else body.decode("utf-8", "replace")
    return text[:MAX_ERROR_CHARACTERS]


def _parse(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _document(body: bytes, json_length: int | None, tensors: str) -> dict[str, Any]:
    """Parses a body; the tensors of V2's binary extension get their `data` from behind the JSON."""
    document = _parse(body[:json_length])
    if json_length is None:
        return document
    start = json_length
    for tensor in document.get(tensors) or []:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if type(size) is int:
            tensor["data"] = _unpack(body[start : start + size], str(tensor.get("datatype")))
            start += size
    return document


def _unpack(data: bytes, datatype: str) -> list[Any]:
    if datatype != "BYTES":
        code = FORMATS.get(datatype, "")
        whole = len(data) - len(data) % struct.calcsize(f"<{code}") if code else 0
        return [value for (value,) in struct.iter_unpack(f"<{code}", data[:whole])] if code else []
    values, start = [], 0
    while start + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, start)
        values.append(data[start + 4 : start + 4 + size].decode("utf-8", "replace"))
        start += 4 + size
    return values


def _prediction(entry: Any, classes: list[str]) -> Any:
    # TensorFlow Serving answers with the bare output: a number, or one for each class.
    if isinstance(entry, list) and classes and len(entry) == len(classes):
        return classes[_argmax(entry)]
    if isinstance(entry, int | float):
        return entry
    for name in ("label", "probability", "value"):
        if isinstance(entry, dict) and name in entry:
            return entry[name]
    return None
