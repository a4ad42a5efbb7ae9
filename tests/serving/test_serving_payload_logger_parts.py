# SPDX-License-Identifier: Apache-2.0
"""The payload logger's parts: reading events, joining them, and turning them into rows."""

import base64
import json
import struct
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import log_files
from kfloop.components.contracts.model_package import Feature, ModelPackage
from kfloop.serving.payload_events import BATCH, PREFIX, STRUCTURED, Event, events_of
from kfloop.serving.payload_join import Joiner, Pair
from kfloop.serving.payload_logger import is_sampled
from kfloop.serving.payload_rows import Redaction, json_length, rows_of_pair, version_of
from kfloop.serving.payload_writer import PayloadWriter, Settings

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "r1",
    "ce-type": PREFIX + "request",
    "ce-source": "http://localhost:9081/",
    "ce-time": "2026-07-01T12:00:00.123456789Z",
    "ce-inferenceservicename": "flights",
    "ce-namespace": "ml",
    "ce-component": "predictor",
    "ce-endpoint": "",
    "ce-annotations": '{"kfloop.org/model-version":"3"}',
    "content-type": "application/json",
}
V1 = {"instances": [{"carrier": "AA", "seats": 5}, {"carrier": "B6", "seats": None}]}
ANSWER = {"predictions": [{"probability": 0.25}, {"probability": 0.75}]}


def event(kind: str, body: Any = None, number: str = "r1", **more: Any) -> Event:
    body = body if body is not None else (V1 if kind == "request" else ANSWER)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    time = AT + timedelta(milliseconds=20 if kind == "response" else 0)
    return Event(kind, number, "ml", "flights", "predictor", "pod", time, content, **more)


def test_an_event_of_kserve_is_read() -> None:
    (found,) = events_of(HEADERS, b"{}")
    assert (found.kind, found.id, found.namespace, found.service) == (
        "request",
        "r1",
        "ml",
        "flights",
    )
    assert found.version == "3"
    assert found.time == datetime(2026, 7, 1, 12, 0, 0, 123456, UTC)
    encoded = HEADERS | {"ce-annotations": "%7B%22kfloop.org/model-version%22:%224%22%7D"}
    assert events_of(encoded, b"{}")[0].version == "4"


def test_structured_events_and_batches_are_read() -> None:
    entry = {name[3:]: value for name, value in HEADERS.items() if name.startswith("ce-")}
    as_json = entry | {"data": {"instances": [{}]}}
    as_bytes = entry | {"id": "r2", "data_base64": base64.b64encode(b"\x00{").decode()}
    (one,) = events_of(
        {"content-type": f"{STRUCTURED}; charset=utf-8"}, json.dumps(as_json).encode()
    )
    assert json.loads(one.body) == {"instances": [{}]}
    batch = events_of({"content-type": BATCH}, json.dumps([as_json, as_bytes]).encode())
    assert [(found.id, found.version) for found in batch] == [("r1", "3"), ("r2", "3")]
    assert batch[1].body == b"\x00{"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ce-type": "dev.knative.ping"}, "event's type is 'dev.knative.ping'"),
        ({"ce-type": ""}, "event's type"),
        ({"ce-id": ""}, "1 to 256 characters"),
        ({"ce-id": "x" * 257}, "1 to 256 characters"),
        ({"ce-inferenceservicename": ""}, "inferenceservicename is ''"),
        ({"ce-inferenceservicename": "../../etc"}, "inferenceservicename is '../../etc'"),
        ({"ce-namespace": "a/b"}, "namespace is 'a/b'"),
        ({"ce-annotations": '{"kfloop.org/model-version":"../1"}'}, "model version is '../1'"),
        ({"ce-annotations": "{"}, "annotations is not JSON"),
        ({"ce-annotations": "{}", "ce-modelversion": "a/b"}, "model version is 'a/b'"),
        ({"ce-time": "yesterday"}, "event's time must be"),
        ({"ce-status": "99"}, "status is '99'"),
        ({"ce-latencyms": "nan"}, "latencyms is 'nan'"),
        ({"content-type": BATCH}, "batch must be a JSON array"),
    ],
)
def test_what_is_no_event_is_refused_with_a_sentence(changed: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        events_of(HEADERS | changed, b"{}")


def joiner(**bounds: Any) -> Joiner:
    return Joiner(
        **{"max_seconds": 60, "max_waiting": 10**6, "max_bytes": 10**9, "remembered": 10**6}
        | bounds
    )


DELIVERIES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["request", "response"]), st.floats(0, 40)),
    max_size=40,
)


@given(DELIVERIES, st.integers(1, 5))
def test_each_request_is_joined_once_and_with_its_own_answer(
    deliveries: list[tuple[int, str, float]], room: int
) -> None:
    """Whatever is lost, repeated, late or out of order, and however little may wait."""
    joining = joiner(max_waiting=room)
    pairs: list[Pair] = []
    now = 0.0
    for number, kind, later in deliveries:
        now += later
        _, pair = joining.add(event(kind, {"of": number}, str(number)), now)
        pairs += [pair] if pair else []
        pairs += joining.orphans(now)
        assert len(joining) <= room
    pairs += joining.orphans(float("inf"))
    assert len(joining) == joining.waiting_bytes == 0
    ids = []
    for pair in pairs:
        halves = [half for half in (pair.request, pair.response) if half]
        assert {json.loads(half.body)["of"] for half in halves} == {int(halves[0].id)}
        assert (pair.request is None) or pair.request.kind == "request"
        assert (pair.response is None) or pair.response.kind == "response"
        ids.append(halves[0].id)
    assert sorted(ids) == sorted({str(number) for number, _, _ in deliveries})


@given(st.permutations(["request", "response", "request", "response"]))
def test_with_all_delivered_in_time_all_are_joined(kinds: list[str]) -> None:
    joining = joiner()
    outcomes = Counter(joining.add(event(kind), 0.0)[0] for kind in kinds)
    assert outcomes["joined"] == 1
    assert outcomes["waiting"] == 1
    assert outcomes["duplicate"] == 2
    assert joining.orphans(float("inf")) == []


def test_two_requests_of_one_id_are_not_mixed() -> None:
    joining = joiner()
    assert joining.add(event("request", {"of": 1}), 0.0) == ("waiting", None)
    assert joining.add(event("request", {"of": 2}), 0.0) == ("conflict", None)
    assert joining.add(event("response"), 0.0) == ("duplicate", None)
    assert joining.orphans(float("inf")) == []


def test_ids_of_different_services_are_different() -> None:
    joining = joiner()
    other = Event("response", "r1", "ml", "trains", "predictor", "pod", AT, b"{}")
    joining.add(event("request"), 0.0)
    assert joining.add(other, 0.0)[0] == "waiting"


def test_what_waits_is_bounded_in_bytes_too() -> None:
    joining = joiner(max_bytes=250)
    for number in range(4):
        joining.add(event("request", b"x" * 100, str(number)), 0.0)
    assert [pair.request.id for pair in joining.orphans(0.0) if pair.request] == ["0", "1"]
    assert joining.waiting_bytes == 200


@given(st.text(min_size=1), st.floats(0.01, 1))
def test_a_sample_grows_with_its_share(identifier: str, share: float) -> None:
    assert is_sampled(identifier, 1.0)
    assert not is_sampled(identifier, share / 2) or is_sampled(identifier, share)


def test_a_sample_has_its_share() -> None:
    taken = sum(is_sampled(f"id-{number}", 0.2) for number in range(10_000))
    assert 1800 < taken < 2200  # the ids are fixed, so is the count


PACKAGE = ModelPackage(
    "flights", "binary", "late", [Feature("carrier", "string"), Feature("seats", "int")],
    entities=["carrier", "plane"], timestamp="at",
)  # fmt: skip


def rows_of(
    pair: Pair, package: ModelPackage | None = PACKAGE, redaction: Redaction | None = None
) -> list[dict[str, Any]]:
    return rows_of_pair(pair, "3", package, redaction or Redaction())


def test_a_pair_becomes_a_row_per_instance() -> None:
    first, second = rows_of(Pair(event("request"), event("response", predictor="v3")))
    assert (first["carrier"], first["seats"], first["prediction"]) == ("AA", 5, 0.25)
    assert (second["row"], second["seats"], second["prediction"]) == (1, None, 0.75)
    assert (first["request_id"], first["event_time"], first["predictor"]) == ("r1", AT, "v3")
    assert (first["status"], first["latency_ms"], first["error"]) == (200, 20.0, None)


def test_orphans_say_what_is_known_and_count_as_no_answered_request() -> None:
    asked = rows_of(Pair(event("request"), None))
    assert [(row["carrier"], row["prediction"]) for row in asked] == [("AA", None), ("B6", None)]
    answered = rows_of(Pair(None, event("response")))
    assert [(row["carrier"], row["prediction"]) for row in answered] == [(None, 0.25), (None, 0.75)]
    for row in asked + answered:
        assert row["status"] is row["latency_ms"] is None
    assert "No answer" in asked[0]["error"]
    assert "was not logged" in answered[0]["error"]


def test_failed_requests_keep_their_sentence() -> None:
    failed = event("response", {"error": "Row 0: seats is missing.\ud800"}, status=400)
    (row, _) = rows_of(Pair(event("request"), failed))
    assert (row["status"], row["error"]) == (400, "Row 0: seats is missing.?")


def test_binary_tensors_are_found_without_the_header_that_tells_them() -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "seats", "shape": [2], "datatype": "INT64",
                 "parameters": {"binary_data_size": 16}},
            ]
        }
    ).encode()  # fmt: skip
    body = head + struct.pack("<2q", 7, 0x7D7D7D7D7D7D7D7D)  # ends like JSON
    assert json_length(body) == len(head)
    rows = rows_of(Pair(event("request", body), event("response")))
    assert [row["seats"] for row in rows] == [7, 0x7D7D7D7D7D7D7D7D]


def test_a_tensor_of_many_columns_is_no_column() -> None:
    tensors = [
        {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [1.0, 2.0, 3.0, 4.0]},
        {"name": "seats", "shape": [2, 1], "datatype": "INT64", "data": [[5], [6]]},
    ]
    rows = rows_of(Pair(event("request", {"inputs": tensors}), event("response")), None)
    assert [row["seats"] for row in rows] == [5, 6]
    assert not any("x" in row for row in rows)


def test_a_v2_answer_tells_the_version_where_events_do_not() -> None:
    answer = {"model_name": "flights", "model_version": "9", "outputs": []}
    assert version_of(Pair(event("request"), event("response", answer))) == "9"
    assert version_of(Pair(event("request", version="4"), event("response", answer))) == "4"
    evil = answer | {"model_version": "../../9"}
    assert version_of(Pair(None, event("response", evil))) == "unversioned"
    assert version_of(Pair(event("request"), None)) == "unversioned"


def test_redacted_fields_are_nowhere_in_a_row() -> None:
    redaction = Redaction(frozenset({"plane"}), frozenset({"carrier", "seats"}), b"key")
    request = {"instances": [{"carrier": "AA", "plane": "N1", "seats": 5},
                             {"carrier": "AA", "plane": "N2", "seats": 5.0}]}  # fmt: skip
    package = redaction.package(PACKAGE)
    pair = Pair(event("request", request), event("response"))
    first, second = rows_of(pair, package, redaction)
    assert first["carrier"] == second["carrier"]
    assert first["seats"] == second["seats"]
    assert len(first["carrier"]) == 32
    failed = event("response", {"error": "carrier is 'AA' and plane is 'N1'"}, status=400)
    for found in (
        *rows_of(pair, None, redaction),
        *rows_of(Pair(pair.request, failed), package, redaction),
    ):
        assert "plane" not in found
        assert not {"AA", "N1", 5} & set(found.values())
        assert "N1" not in str(found["error"])
    other = Redaction(frozenset(), frozenset({"carrier"}), b"other key")
    assert rows_of(pair, PACKAGE, other)[0]["carrier"] != first["carrier"]


@pytest.mark.parametrize(
    ("dropped", "hashed", "key", "told"),
    [
        ((), ("plane",), b"", "KFLOOP_REDACTION_KEY"),
        (("request_id",), (), b"", "log's own columns"),
        ((), ("prediction",), b"k", "log's own columns"),
    ],
)
def test_a_redaction_that_cannot_work_is_refused(
    dropped: tuple[str, ...], hashed: tuple[str, ...], key: bytes, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        Redaction(frozenset(dropped), frozenset(hashed), key)


def read(directory: Path) -> list[dict[str, Any]]:
    files = log_files(directory / "ml" / "flights")
    return [row | {"v": v} for v, file in files for row in pq.read_table(file).to_pylist()]


def test_columns_of_an_unknown_model_are_inferred_alike_in_every_file(tmp_path: Path) -> None:
    writer = PayloadWriter(Settings(tmp_path, flush_rows=1))
    for number, value in enumerate([1, 2.5, True, "x"]):
        row = {"n": number, "value": value, "nested": {"a": [1]}, "status": "sent", "bad\ud800": 1}
        writer.offer(event("request", {"instances": [row]}, str(number)))
        writer.offer(event("response", number=str(number)))
    assert writer.close() == 0
    rows = {row["request_id"]: row for row in read(tmp_path)}
    assert [type(rows[str(number)]["n"]) for number in range(4)] == [float] * 4
    assert rows["0"]["nested"] == '{"a": [1]}'
    assert {row["status"] for row in rows.values()} == {200}
    assert rows["0"]["prediction"] == 0.25


def test_a_model_json_that_is_damaged_costs_its_types_only(tmp_path: Path) -> None:
    package = tmp_path / "models" / "flights" / "3"
    package.mkdir(parents=True)
    (package / "model.json").write_text("{")
    writer = PayloadWriter(Settings(tmp_path, models=tmp_path / "models"))
    for kind in ("request", "response"):
        writer.offer(event(kind, version="3"))
    assert writer.close() == 0
    assert [(row["v"], row["seats"]) for row in read(tmp_path)] == [("3", 5.0), ("3", None)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["instances", "inputs", "predictions", "outputs", "metadata", "parameters"])
BODIES = st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(
    st.sampled_from(["name", "data", "parameters", "datatype", "features", "probability"]), JSON
), max_size=3)).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(BODIES, BODIES), min_size=1, max_size=5))
def test_no_payload_stops_the_writer(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[tuple[bytes, bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("log")
    writer = PayloadWriter(Settings(directory))
    for number, (request, response) in enumerate(bodies):
        writer.offer(event("request", request, f"odd-{number}"))
        writer.offer(event("response", response, f"odd-{number}"))
    writer.offer(event("request"))
    writer.offer(event("response"))
    assert writer.alive
    assert writer.close() == 0
    assert len([row for row in read(directory) if row["request_id"] == "r1"]) == 2


def test_a_file_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    in_the_way = tmp_path / "ml"
    in_the_way.write_text("a file where a directory must be")
    failed, tried = threading.Event(), []

    def write(directory: Path, rows: list[dict[str, Any]], package: Any) -> Path:
        from kfloop.serving.log_writer import write_rows

        tried.append(len(rows))
        try:
            return write_rows(directory, rows, package)
        except OSError:
            failed.set()
            raise

    writer = PayloadWriter(Settings(tmp_path, flush_seconds=0.01), write)
    writer.offer(event("request"))
    writer.offer(event("response"))
    assert failed.wait(30)
    in_the_way.unlink()
    assert writer.close() == 0
    assert len(read(tmp_path)) == 2
    assert len(tried) >= 2


def test_rows_that_no_file_takes_are_bounded_and_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "ml").write_text("a file where a directory must be")
    writer = PayloadWriter(Settings(tmp_path, flush_rows=4, max_unflushed=10))
    for number in range(20):
        writer.offer(event("request", number=str(number)))
        writer.offer(event("response", number=str(number)))
    assert writer.close() == 10
