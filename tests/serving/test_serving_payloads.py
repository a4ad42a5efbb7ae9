# SPDX-License-Identifier: Apache-2.0
"""Reading bodies for the log: nothing that a client sends may lose a row."""

import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_helpers import FEATURES

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.serving.log_writer import Exchange, LogWriter, rows_of, to_table
from kfloop.serving.payloads import (
    parse_event_time,
    request_rows,
    response_predictions,
    without_features,
)

PACKAGE = ModelPackage(
    "toy", "binary", "late", FEATURES, entities=["carrier", "plane"], timestamp="at", version="1"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def exchange(request: bytes, response: bytes = b"{}", status: int = 200, log: str = "") -> Exchange:
    now = datetime(2020, 1, 1, tzinfo=UTC)
    return Exchange(log, PACKAGE, "1", "v1", "id", now, 1.0, status, request, response)


@pytest.mark.parametrize(
    "value",
    ["2013-07-01T10:00:00", "2013-07-01T12:00:00+02:00", 1372672800, 1372672800.0, 1372672800000],
)
def test_iso_times_and_epochs_mean_the_same_moment(value: Any) -> None:
    assert parse_event_time(value) == datetime(2013, 7, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("value", ["monday", True, [], 10**400, float("nan"), float("inf")])
def test_other_timestamps_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="ISO 8601"):
        parse_event_time(value)


def test_v1_and_v2_requests_give_the_same_rows() -> None:
    rows = [{"distance": 1.5, "carrier": "AA"}, {"distance": None, "carrier": ""}]
    tensors = [
        {"name": "distance", "shape": [2, 1], "datatype": "FP32", "data": [[1.5], [None]]},
        {"name": "carrier", "shape": [2], "datatype": "BYTES", "data": ["AA", ""]},
    ]
    assert request_rows(json.dumps({"instances": rows}).encode()) == rows
    assert request_rows(json.dumps({"inputs": tensors}).encode()) == rows


def test_binary_tensors_are_read() -> None:
    numbers, texts = struct.pack("<2f", 1.5, 2.5), b"\x02\0\0\0AA\0\0\0\0"
    document = json.dumps(
        {
            "inputs": [
                {"name": "distance", "datatype": "FP32", "parameters": {"binary_data_size": 8}},
                {"name": "carrier", "datatype": "BYTES", "parameters": {"binary_data_size": 10}},
            ]
        }
    ).encode()
    assert request_rows(document + numbers + texts, len(document)) == [
        {"distance": 1.5, "carrier": "AA"},
        {"distance": 2.5, "carrier": ""},
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"predictions": [{"probability": 0.5}]}, [0.5]),
        ({"predictions": [{"label": "b", "probabilities": {"a": 0.1, "b": 0.9}}]}, ["b"]),
        ({"predictions": [0.25, 0.75]}, [0.25, 0.75]),
        ({"predictions": [[0.1, 0.9], [0.8, 0.2]]}, ["b", "a"]),
        ({"outputs": [{"name": "value", "data": [1.0, 2.0]}]}, [1.0, 2.0]),
        ({"outputs": [{"name": "probabilities", "data": [0.1, 0.9, 0.8, 0.2]}]}, ["b", "a"]),
    ],
)
def test_predictions_are_read_from_either_protocol(answer: Any, expected: list[Any]) -> None:
    assert response_predictions(json.dumps(answer).encode(), ["a", "b"]) == expected


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_broken_request_still_makes_one_row(body: bytes) -> None:
    assert len(rows_of(exchange(body, b"oops", 400))) >= 1


@given(
    st.lists(
        st.fixed_dictionaries(
            {name: JSON for name in ("distance", "seats", "weekend", "carrier", "plane", "at")}
        ),
        min_size=1,
        max_size=4,
    )
)
def test_values_of_any_type_can_be_logged(instances: list[dict[str, Any]]) -> None:
    body = json.dumps({"instances": instances}).encode()
    table = to_table(rows_of(exchange(body, b'{"error": "no"}', 400)), PACKAGE)
    assert table.num_rows == len(instances)
    assert [str(table.schema.field(f.name).type) for f in FEATURES] == [
        "double",
        "int64",
        "bool",
        "string",
    ]


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    writer = LogWriter(max_bytes=100)
    assert writer.add(exchange(b"x" * 60, log=str(tmp_path)))
    assert not writer.add(exchange(b"x" * 60, log=str(tmp_path)))
    writer.close()
    assert (writer.counts.written, writer.counts.dropped, writer.counts.pending) == (1, 1, 0)


def test_a_disk_that_fails_is_counted_and_the_writer_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = LogWriter()
    writer.add(exchange(b"{}", log=str(tmp_path / "file")))
    writer.add(exchange(b"{}", log=str(tmp_path / "log")))
    writer.close()
    assert (writer.counts.written, writer.counts.dropped) == (1, 1)
    assert "cannot be written" in writer.counts.error
    (file,) = (tmp_path / "log").rglob("*.parquet")
    assert pq.read_metadata(file).num_rows == 1


@given(JSON, st.binary(max_size=20))
def test_taking_features_out_leaves_everything_else(told: Any, tail: bytes) -> None:
    answer = {"predictions": [told], "metadata": {"features": [told]}}
    text = json.dumps(answer).encode()
    body, length = without_features(text + tail, len(text))
    assert body[length:] == tail
    kept = json.dumps({"predictions": [told]}).encode()
    assert json.dumps(json.loads(body[:length])) == json.dumps(json.loads(kept))


@given(st.binary())
def test_what_is_no_answer_with_features_is_left_alone(body: bytes) -> None:
    for text in (body, body + b'"features"'):
        assert without_features(text) == (text, None)
