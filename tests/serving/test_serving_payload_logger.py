# SPDX-License-Identifier: Apache-2.0
"""The payload logger as a process: KServe's events in, the inference log out, and every bad end."""

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from serving_helpers import CODE
from starlette.responses import Response

from kfloop.components.contracts.inference_log import log_files
from kfloop.serving import event_sender
from kfloop.serving.event_sender import Answered, Events, EventSender
from kfloop.serving.log_writer import write_rows
from kfloop.serving.payload_events import PREFIX, Event
from kfloop.serving.payload_logger import PayloadLogger
from kfloop.serving.payload_writer import PayloadWriter, Settings

FULL = {"seats": 150, "distance": 1120.0, "weekend": True, "carrier": "AA"}
# KServe, once imported, has every child of this process keep its metrics in files.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"
} | {"PYTHONPATH": str(CODE)}
CLIENT = httpx.Client(trust_env=False, timeout=60)
NEVER = ("--flush_seconds", "1000", "--join_seconds", "1000")


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)
    return found


@dataclass
class Logger:
    process: subprocess.Popen[str]
    url: str
    directory: Path

    def post(self, kind: str, number: str, body: Any, **headers: str) -> httpx.Response:
        """Posts an event as KServe's agent does."""
        attributes = {
            "ce-specversion": "1.0",
            "ce-id": number,
            "ce-type": PREFIX + kind,
            "ce-source": "http://localhost:9081/",
            "ce-time": "2026-07-01T12:00:00.000000001Z",
            "ce-inferenceservicename": "toy",
            "ce-namespace": "ml",
            "ce-component": "predictor",
            "ce-endpoint": "",
            "ce-metadata": "{}",
            "ce-annotations": '{"kfloop.org/model-version":"2"}',
            "content-type": "application/json",
        }
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return CLIENT.post(self.url, content=content, headers=attributes | headers)

    def ask(self, number: str, rows: int = 1) -> None:
        """Posts a request and its answer."""
        answers = [{"probability": 0.25}] * rows
        assert self.post("request", number, {"instances": [FULL] * rows}).status_code == 202
        assert self.post("response", number, {"predictions": answers}).status_code == 202

    def metric(self, name: str, **labels: str) -> float:
        text = CLIENT.get(f"{self.url}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def rows(self) -> list[dict[str, Any]]:
        files = log_files(self.directory / "ml" / "toy")
        return [row | {"v": v} for v, file in files for row in pq.read_table(file).to_pylist()]

    def stop(self) -> list[dict[str, Any]]:
        """Asks it to end, and returns the lines of its log."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return [json.loads(line) for line in errors.splitlines()]


def command(directory: Path, *arguments: str) -> list[str]:
    module = "kfloop.serving.payload_logger"
    return [sys.executable, "-m", module, "--directory", str(directory), *arguments]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Logger]]:
    started = []

    def start_logger(*arguments: str, port: int = 0, **environment: str) -> Logger:
        process = subprocess.Popen(
            command(tmp_path / "log", "--port", str(port), *arguments),
            env=ENVIRONMENT | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        assert line["message"] == "listening"
        return Logger(process, line["url"], tmp_path / "log")

    yield start_logger
    for process in started:
        process.kill()
        process.communicate()


def test_kserves_events_become_the_inference_log(start: Callable[..., Logger]) -> None:
    logger = start(*NEVER)
    logger.post("response", "b", {"predictions": [{"probability": 0.75}]})  # overtook its request
    logger.ask("a", rows=2)
    logger.post("request", "b", {"instances": [FULL]})
    logger.post("request", "b", {"instances": [FULL]})  # came twice
    logger.post("request", "t", {}, **{"ce-component": "transformer"})
    assert logger.post("request", "x", {}, **{"ce-type": "other"}).status_code == 400
    assert CLIENT.get(f"{logger.url}/healthz").status_code == 200
    until(lambda: logger.metric("kfloop_payload_unflushed_rows") == 3)
    outcomes = {
        (kind, outcome): logger.metric("kfloop_payload_events_total", type=kind, outcome=outcome)
        for kind, outcome in (
            *(("request", "joined"), ("response", "joined"), ("request", "duplicate")),
            *(("request", "ignored"), ("unknown", "refused")),
        )
    }
    assert list(outcomes.values()) == [2, 2, 1, 1, 1]
    lines = logger.stop()
    assert logger.process.returncode == 0
    assert [line["message"] for line in lines if line["level"] == "INFO"] == [
        "stopped; all is written"
    ]
    rows = logger.rows()
    assert [(row["request_id"], row["row"], row["prediction"]) for row in rows] == [
        ("a", 0, 0.25),
        ("a", 1, 0.25),
        ("b", 0, 0.75),
    ] or [row["request_id"] for row in rows] == ["b", "a", "a"]
    for row in rows:
        assert (row["v"], row["status"], row["carrier"], row["seats"]) == ("2", 200, "AA", 150.0)
        assert row["event_time"] == datetime(2026, 7, 1, 12, tzinfo=UTC)
    ((_, file),) = log_files(logger.directory / "ml" / "toy")
    assert file.parent == logger.directory / "ml/toy/date=2026-07-01/model_version=2"


def test_kill_9_loses_what_was_unflushed_and_nothing_else(start: Callable[..., Logger]) -> None:
    logger = start(*NEVER, "--flush_rows", "2")
    logger.ask("kept", rows=2)
    until(lambda: logger.metric("kfloop_payload_rows_total", service="toy", version="2") == 2)
    logger.ask("unflushed")
    logger.post("request", "unjoined", {"instances": [FULL]})
    until(lambda: logger.metric("kfloop_payload_waiting_events") == 1)
    assert logger.metric("kfloop_payload_unflushed_rows") == 1
    assert logger.metric("kfloop_payload_limit", what="unflushed_rows") > 0
    logger.process.kill()
    logger.process.wait()
    again = start(*NEVER)
    again.ask("later")
    again.stop()
    assert [row["request_id"] for row in again.rows()] == ["kept", "kept", "later"]


def test_an_answer_that_never_comes_is_told_and_a_late_one_ignored(
    start: Callable[..., Logger],
) -> None:
    logger = start("--join_seconds", "0.1", "--flush_seconds", "0.1")
    logger.post("request", "a", {"instances": [FULL]})
    until(lambda: logger.metric("kfloop_payload_events_total", outcome="orphan") == 1)
    logger.post("response", "a", {"predictions": [0.5]})
    until(lambda: logger.metric("kfloop_payload_events_total", outcome="duplicate") == 1)
    until(lambda: logger.metric("kfloop_payload_rows_total") == 1)
    logger.stop()
    (row,) = logger.rows()
    assert (row["status"], row["prediction"], row["carrier"]) == (None, None, "AA")
    assert "No answer" in row["error"]


def test_a_sample_without_what_is_private(start: Callable[..., Logger], packages: Any) -> None:
    package = packages["v2"]
    models = package.parent / "models"
    shutil.copytree(package, models / "toy" / "2", ignore=shutil.ignore_patterns("1"))
    logger = start(
        *("--sample", "0.5", "--drop", "plane", "--hash", "carrier", "--models", str(models)),
        **{"KFLOOP_REDACTION_KEY": "secret"},
    )
    for number in range(40):
        request = {"instances": [FULL | {"plane": "N1", "carrier": "AA"}]}
        logger.post("request", f"id-{number}", request)
        logger.post("response", f"id-{number}", {"predictions": [{"probability": 0.25}]})
    logger.stop()
    rows = logger.rows()
    assert 5 < len(rows) < 35
    assert {row["prediction"] for row in rows} == {0.25}
    assert not any("plane" in row for row in rows)
    (hashed,) = {row["carrier"] for row in rows}
    assert hashed != "AA"
    assert len(hashed) == 32
    _, file = log_files(logger.directory / "ml" / "toy")[0]
    assert pq.read_schema(file).field("seats").type == pa.int64()  # as model.json says
    assert b"N1" not in b"".join(file.read_bytes() for file in logger.directory.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--hash", "plane"), "KFLOOP_REDACTION_KEY"),
        (("--models", "/nowhere"), "no directory"),
        (("--sample", "0"), "above 0"),
        (("--flush_rows", "0"), "above 0"),
    ],
)
def test_settings_that_cannot_work_end_it_with_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = subprocess.run(
        command(tmp_path, *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_cannot_be_made_ends_it_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        command(tmp_path / "file" / "log"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be used" in done.stderr


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux lets a test limit a process")
def test_a_full_disk_costs_nothing_once_there_is_room(start: Callable[..., Logger]) -> None:
    logger = start("--flush_seconds", "0.1")
    pid = logger.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, unlimited[1]))  # every file is too large
    logger.ask("a")
    until(lambda: logger.metric("kfloop_payload_flush_seconds_count", result="failed") >= 2)
    logger.ask("b")
    assert logger.rows() == []
    assert list(logger.directory.rglob(".*.parquet")) == []
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    until(lambda: logger.metric("kfloop_payload_rows_total") == 2)
    lines = logger.stop()
    assert any("cannot be written" in line["message"] for line in lines)
    assert sorted(row["request_id"] for row in logger.rows()) == ["a", "b"]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux lets a test limit a process")
def test_rows_that_cannot_be_written_in_the_end_are_told(start: Callable[..., Logger]) -> None:
    logger = start(*NEVER)
    hard = resource.prlimit(logger.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(logger.process.pid, resource.RLIMIT_FSIZE, (100, hard))
    logger.ask("a")
    last = logger.stop()[-1]
    assert logger.process.returncode == 3
    assert (last["level"], last["rows"]) == ("ERROR", 1)


def test_events_are_answered_while_the_disk_hangs(tmp_path: Path) -> None:
    hangs, released = threading.Event(), threading.Event()

    def write(*arguments: Any) -> Path:
        hangs.set()
        released.wait()
        return write_rows(*arguments)

    def dropped() -> float:
        labels = {"type": "response", "outcome": "dropped"}
        return REGISTRY.get_sample_value("kfloop_payload_events_total", labels) or 0.0

    writer = PayloadWriter(Settings(tmp_path, flush_rows=1, max_queued=10), write)
    logger = Logger(None, "http://logger", tmp_path)  # type: ignore[arg-type]  # in this process

    async def post(client: httpx.AsyncClient, kind: str, number: int) -> int:
        headers = {
            "ce-id": str(number),
            "ce-type": PREFIX + kind,
            "ce-inferenceservicename": "toy",
            "ce-namespace": "ml",
        }
        return (await client.post("/", content=b'{"instances": [{}]}', headers=headers)).status_code

    async def send() -> None:
        transport = httpx.ASGITransport(PayloadLogger(writer).application())
        async with httpx.AsyncClient(transport=transport, base_url="http://logger") as client:
            for kind in ("request", "response"):
                assert await post(client, kind, 0) == 202
            assert await asyncio.to_thread(hangs.wait, 60)
            before = dropped()
            for number in range(1, 31):
                for kind in ("request", "response"):
                    assert await post(client, kind, number) == 202
            # All of these were answered although the write has not returned yet.
            assert not released.is_set()
            assert dropped() - before == 25
            assert (await client.get("/healthz")).status_code == 200

    try:
        asyncio.run(send())
    finally:
        released.set()
    assert writer.close() == 0
    assert {row["request_id"] for row in logger.rows()} == {str(number) for number in range(6)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_has_died_is_not_well_and_not_done(tmp_path: Path) -> None:
    def write(*_: Any) -> Path:
        raise MemoryError

    writer = PayloadWriter(Settings(tmp_path, flush_rows=1), write)
    now = datetime.now(UTC)
    for kind in ("request", "response"):
        writer.offer(Event(kind, "a", "ml", "toy", "predictor", "pod", now, b"{}"))
    until(lambda: not writer.alive)

    async def health() -> int:
        transport = httpx.ASGITransport(PayloadLogger(writer).application())
        async with httpx.AsyncClient(transport=transport, base_url="http://logger") as client:
            return (await client.get("/healthz")).status_code

    assert asyncio.run(health()) == 503
    writer.close()
    assert not writer.complete


def test_a_body_that_is_too_large_is_refused(start: Callable[..., Logger]) -> None:
    answer = start().post("request", "a", b"x" * (16 * 2**20 + 1))
    assert answer.status_code == 400
    assert "larger than 16 MiB" in answer.json()["error"]


def answered(number: str) -> Answered:
    body = json.dumps({"instances": [FULL]}).encode()
    now = datetime.now(UTC)
    return Answered(number, "5", 200, now, 0.5, "application/json", body, b'{"predictions": [1]}')


def sent(outcome: str) -> float:
    labels = {"outcome": outcome}
    return REGISTRY.get_sample_value("kfloop_payload_sent_requests_total", labels) or 0.0


def test_a_sender_drops_what_does_not_fit_and_waits_for_its_logger(
    start: Callable[..., Logger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_sender, "RETRY_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = sent("dropped"), sent("sent")
    sender = EventSender(f"http://127.0.0.1:{port}/", "toy", "ml", max_queued=3)
    for number in range(5):
        sender.offer(answered(f"{number}"))
    assert sent("dropped") - before[0] == 2
    logger = start(port=port)
    until(lambda: sent("sent") - before[1] == 3)
    sender.close()
    logger.stop()
    rows = logger.rows()
    assert sorted(row["request_id"] for row in rows) == ["0", "1", "2"]
    assert {(row["v"], row["latency_ms"], row["prediction"]) for row in rows} == {("5", 500.0, 1.0)}


def test_a_sender_ends_although_its_logger_is_gone() -> None:
    before = sent("lost")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    sender = EventSender(url, "toy")
    sender.offer(answered("a"))
    sender.close()
    assert sent("lost") - before == 1


def test_no_answer_waits_for_a_logger_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "TIMEOUT_SECONDS", 0.5)
    before = sent("sent"), sent("dropped")

    async def model(scope: Any, receive: Any, send: Any) -> None:
        assert dict(scope["headers"])[b"x-return-features"] == b"1"
        response = Response((await receive())["body"], headers={"x-request-id": "a"})
        await response(scope, receive, send)

    async def ask(app: Events) -> list[bytes]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answers = [await client.post("/v1/models/toy:predict", content=b"x") for _ in range(20)]
        return [answer.content for answer in answers]

    with socket.create_server(("127.0.0.1", 0)) as hangs:  # connects, and says nothing
        url = f"http://127.0.0.1:{hangs.getsockname()[1]}/"
        sender = EventSender(url, "toy", max_queued=5)
        assert asyncio.run(ask(Events(model, sender))) == [b"x"] * 20
        assert (sent("sent") - before[0], sent("dropped") - before[1]) == (0, 15)
        sender.close()


def test_the_model_server_sends_what_it_answers(
    start: Callable[..., Logger], packages: Any, tmp_path: Path
) -> None:
    logger = start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "server.log").open("w") as errors:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "kfloop.serving.model_server", "--model_name", "toy"),
                *("--model_dir", str(packages["v1"]), "--http_port", str(port)),
                *("--payload_logger", logger.url),
            ],
            env=ENVIRONMENT | {"POD_NAMESPACE": "ml"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        url = f"http://127.0.0.1:{port}"
        client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        good = until_answers(client, "/v1/models/toy:predict", {"instances": [FULL, FULL]}, "good")
        bad = client.post(
            "/v1/models/toy:predict", json={"instances": [{}]}, headers={"x-request-id": "bad"}
        )
        assert bad.status_code == 400
        client.get("/v2/health/ready")
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        server.kill()
        server.communicate()
    logger.stop()
    rows = {(row["request_id"], row["row"]): row for row in logger.rows()}
    assert sorted(rows) == [("bad", 0), ("good", 0), ("good", 1)]
    predictions = [entry["probability"] for entry in good.json()["predictions"]]
    assert [rows["good", row]["prediction"] for row in (0, 1)] == predictions
    assert (rows["good", 0]["v"], rows["good", 0]["carrier"]) == ("1", "AA")
    assert rows["good", 0]["latency_ms"] > 0
    assert rows["bad", 0]["status"] == 400
    assert rows["bad", 0]["error"] == bad.json()["error"]


def until_answers(client: httpx.Client, path: str, body: Any, number: str) -> httpx.Response:
    def ask() -> httpx.Response | None:
        try:
            return client.post(path, json=body, headers={"x-request-id": number})
        except httpx.ConnectError:
            return None

    answer: httpx.Response = until(ask)
    assert answer.status_code == 200, answer.text
    return answer
