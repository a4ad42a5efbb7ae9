# SPDX-License-Identifier: Apache-2.0
"""The model server alone, as a process: look-ups, bad input, traces, logs, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from serving_helpers import CODE, manifest

from feature_repo import NOW, SQLITE, Locked, with_features, write_repo
from kfloop.components.contracts.inference_log import log_files
from kfloop.serving import local_state

TRACE = "0af7651916cd43dd8448eb211c80319c"
PREDICT, INFER = "/v1/models/toy:predict", "/v2/models/toy/infer"
AT = NOW.isoformat()
KEYS = {"plane": "N1", "route": 7, "day": 6, "carrier": "AA", "at": AT}
FULL = {"seats": 150, "distance": 1120.0, "weekend": True, "carrier": "AA"}
LATE = {"at": (NOW + timedelta(hours=2)).isoformat()}
# So many rows keep the server busy for a while.
MANY = json.dumps({"instances": [FULL] * 30_000}).encode()


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    grpc_port: int
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")


def start(
    name: str, directory: Path, package: Path, *arguments: str, path: str = str(CODE)
) -> Running:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    log = directory / f"{name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kfloop.serving.model_server", "--model_name", "toy"),
                *("--model_dir", str(package), "--http_port", str(ports[0])),
                *("--grpc_port", str(ports[1]), *arguments),
            ],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    return Running(process, f"http://127.0.0.1:{ports[0]}", ports[1], log)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "repo"
    write_repo(path, SQLITE)
    return path


@pytest.fixture(scope="module")
def servers(packages: Any, repo: Path, tmp_path_factory: Any) -> Iterator[dict[str, Running]]:
    """One that looks features up and one that will be ended, which load at the same time."""
    directory = tmp_path_factory.mktemp("servers")
    package = with_features(packages["v1"], directory / "package")
    found = {
        "features": start("features", directory, package, "--feature_repo", str(repo)),
        "drain": start("drain", directory, package, "--drain_seconds", "1.5"),
    }
    try:
        for running in found.values():
            assert running.process.stdout is not None
            line = running.process.stdout.readline()
            assert "Serving toy version 1" in line, running.log.read_text()
            with running.channel() as channel:
                grpc.channel_ready_future(channel).result(30)
        yield found
    finally:
        for running in found.values():
            running.process.kill()
            running.process.wait()


@pytest.fixture(scope="module")
def client(servers: dict[str, Running]) -> Iterator[httpx.Client]:
    with servers["features"].client() as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(servers: dict[str, Running]) -> Iterator[GRPCInferenceServiceStub]:
    with servers["features"].channel() as channel:
        yield GRPCInferenceServiceStub(channel)


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    types = {str: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}
    return [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": types[type(rows[0][name])],
            "data": [row[name] for row in rows],
        }
        for name in rows[0]
    ]


def message(rows: list[dict[str, Any]]) -> pb.ModelInferRequest:
    inputs = []
    for tensor in tensors(rows):
        infer_input = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        is_text = tensor["datatype"] == "BYTES"
        infer_input.set_data_from_numpy(np.array(tensor["data"], object if is_text else None))
        inputs.append(infer_input)
    return InferRequest("toy", inputs).to_grpc()


def test_keys_alone_are_answered_as_their_features_are(client: Any, stub: Any) -> None:
    sent = client.post(PREDICT, json={"instances": [FULL]}).json()
    looked_up = client.post(PREDICT, json={"instances": [KEYS]}).json()
    assert looked_up == sent and "metadata" not in sent
    (score,) = sent["predictions"][0].values()
    two = client.post(INFER, json={"inputs": tensors([KEYS])}).json()
    assert two["outputs"][0]["data"] == [score]
    three = InferResponse.from_grpc(stub.ModelInfer(message([KEYS])))
    assert three.outputs[0].as_numpy().tolist() == [pytest.approx(score, abs=1e-7)]


def test_what_a_row_carries_is_not_looked_up(client: Any) -> None:
    rows = [KEYS, FULL, KEYS | {"seats": 9}, KEYS | {"seats": None}]
    answer = client.post(PREDICT, json={"instances": rows}, headers={"x-return-features": "1"})
    told = answer.json()["metadata"]
    assert [row["seats"] for row in told["features"]] == [150, 150, 9, None]
    assert [row["distance"] for row in told["features"]] == [1120.0] * 4
    assert "missing_features" not in told


def test_what_was_not_found_is_told_and_counted(client: Any) -> None:
    rows = [KEYS, KEYS | {"plane": "N404"}, KEYS | {"plane": None} | LATE]
    expected = [
        {"row": 1, "view": "planes", "why": "absent"},
        {"row": 2, "view": "planes", "why": "no key"},
        {"row": 2, "view": "routes", "why": "expired"},
    ]
    one = client.post(PREDICT, json={"instances": rows}).json()
    assert one["metadata"]["missing_features"] == expected
    body = {"inputs": tensors([row | {"plane": row["plane"] or ""} for row in rows[:2]])}
    two = client.post(INFER, json=body).json()
    assert json.loads(two["parameters"]["missing_features"]) == expected[:1]
    metrics = client.get("/metrics").text
    for view, outcome in (("planes", "absent"), ("planes", "no key"), ("routes", "expired")):
        labels = f'model="toy",outcome="{outcome}",version="1",view="{view}"'
        assert f"kfloop_feature_rows_total{{{labels}}}" in metrics


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"plane": ...}, "row 0 lacks 'plane' to look features up with"),
        ({"carrier": ...}, "row 0 lacks 'carrier'"),
        ({"route": "seven"}, "row 0: 'route' must be a whole number or null"),
        ({"route": 2**63}, "row 0: 'route' must be a 64-bit whole number or null"),
        ({"day": 1.5}, "row 0: 'day' must be"),
        ({"pilot": 1}, "row 0 has the unknown key 'pilot'"),
    ],
)
def test_rows_that_cannot_be_looked_up_are_refused(client: Any, change: Any, told: str) -> None:
    row = {name: value for name, value in (KEYS | change).items() if value is not ...}
    answer = client.post(PREDICT, json={"instances": [row]})
    assert answer.status_code == 400
    assert told.lower() in answer.json()["error"].lower()


def test_a_store_that_is_down_is_503_for_those_who_need_it_and_recovers(
    client: Any, stub: Any, repo: Path, servers: dict[str, Running]
) -> None:
    with Locked(repo):
        statuses = set()
        for _ in range(7):
            answer = client.post(PREDICT, json={"instances": [KEYS]})
            statuses.add(answer.status_code)
        assert statuses == {503}
        assert "left alone" in answer.json()["error"]
        with pytest.raises(grpc.RpcError) as failed:
            stub.ModelInfer(message([KEYS]))
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert client.post(PREDICT, json={"instances": [FULL]}).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert 'left_alone{model="toy",version="1"} 1.0' in client.get("/metrics").text
    deadline = time.monotonic() + 30
    while client.post(PREDICT, json={"instances": [KEYS]}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert 'left_alone{model="toy",version="1"} 0.0' in client.get("/metrics").text
    lines = [
        json.loads(line)
        for line in servers["features"].log.read_text().splitlines()
        if line.startswith("{")
    ]
    failed_lines = [line for line in lines if line.get("status") == 503]
    assert failed_lines[0]["level"] == "ERROR" and failed_lines[0]["version"] == "1"


def test_a_trace_is_continued_into_answer_id_and_log(client: Any, servers: Any) -> None:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-log-request": "1"}
    answer = client.post(PREDICT, json={"instances": [FULL]}, headers=headers)
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
    request_id = answer.headers["x-request-id"]
    assert request_id.startswith(f"{TRACE}-")
    again = client.post(PREDICT, json={"instances": [FULL]}, headers=headers)
    assert again.headers["x-request-id"] != request_id
    lines = [
        json.loads(line)
        for line in servers["features"].log.read_text().splitlines()
        if line.startswith("{")
    ]
    (line,) = [line for line in lines if line.get("request_id") == request_id]
    assert (line["trace_id"], line["status"], line["level"]) == (TRACE, 200, "INFO")
    assert {"time", "model", "version", "protocol", "path", "seconds"} <= line.keys()


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01"])
def test_a_broken_trace_is_ignored(client: Any, given: str) -> None:
    answer = client.post(PREDICT, json={"instances": [FULL]}, headers={"traceparent": given})
    assert answer.status_code == 200
    assert "traceparent" not in answer.headers and "-" not in answer.headers["x-request-id"]


def test_answered_requests_leave_no_line(client: Any, servers: dict[str, Running]) -> None:
    before = servers["features"].log.read_text()
    for body in ({"instances": [FULL]}, {"instances": []}, {}):
        client.post(PREDICT, json=body)
    client.post("/v1/models/other:predict", json={})
    assert servers["features"].log.read_text() == before


def test_predictions_are_a_histogram(client: Any) -> None:
    def total() -> float:
        prefix = 'kfloop_prediction_bucket{le="+Inf",model="toy",version="1"} '
        text = client.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(prefix))

    before = total()
    client.post(PREDICT, json={"instances": [FULL] * 7})
    assert total() == before + 7


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.sampled_from([*KEYS, *FULL, "request", "other"])
V1 = st.fixed_dictionaries(
    {"instances": st.lists(st.dictionaries(NAMES, VALUES | JSON, max_size=9) | JSON, max_size=3)}
)
DATATYPES = st.sampled_from(["BYTES", "FP32", "FP64", "INT64", "BOOL", "UINT8", "FP16", "X", ""])
TENSOR = st.fixed_dictionaries(
    {
        "name": NAMES | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=2) | JSON,
        "datatype": DATATYPES | JSON,
        "data": st.lists(VALUES, max_size=3) | JSON,
    },
    optional={"parameters": st.dictionaries(st.just("binary_data_size"), VALUES) | JSON},
)
V2 = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=9) | JSON},
    optional={"id": JSON, "parameters": JSON, "outputs": JSON},
)
FUZZ = settings(max_examples=120, deadline=None)


def require_no_server_error(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert isinstance(answer.json()["error"], str)


@given(V1 | JSON)
@FUZZ
def test_no_v1_body_is_a_server_error(client: Any, body: Any) -> None:
    headers = {"content-type": "application/json"}
    require_no_server_error(client.post(PREDICT, content=json.dumps(body), headers=headers))


@given(V2 | JSON)
@FUZZ
def test_no_v2_body_is_a_server_error(client: Any, body: Any) -> None:
    headers = {"content-type": "application/json"}
    require_no_server_error(client.post(INFER, content=json.dumps(body), headers=headers))


@given(V2, st.binary(max_size=40), st.integers(-3, 3) | st.sampled_from(["", "x", "-5", "9" * 30]))
@FUZZ
def test_no_binary_v2_body_is_a_server_error(client: Any, body: Any, rest: bytes, off: Any) -> None:
    head = json.dumps(body).encode()
    length = str(len(head) + off) if isinstance(off, int) else off
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": length,
    }
    require_no_server_error(client.post(INFER, content=head + rest, headers=headers))


@given(st.binary(max_size=60), st.sampled_from(["application/json", "text/plain", "a/b"]))
@FUZZ
def test_no_bytes_are_a_server_error(client: Any, body: bytes, kind: str) -> None:
    for path in (PREDICT, INFER):
        require_no_server_error(client.post(path, content=body, headers={"content-type": kind}))


TEXT = st.text(max_size=4)
MESSAGE_TENSOR = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAMES | TEXT,
    datatype=DATATYPES,
    shape=st.lists(st.integers(-(2**40), 3), max_size=2),
    contents=st.builds(
        pb.InferTensorContents,
        fp32_contents=st.lists(st.floats(width=32), max_size=3),
        int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        bytes_contents=st.lists(st.binary(max_size=4), max_size=3),
    )
    | st.none(),
)


@given(
    st.builds(
        pb.ModelInferRequest,
        model_name=st.just("toy"),
        inputs=st.lists(MESSAGE_TENSOR, max_size=6),
        raw_input_contents=st.lists(st.binary(max_size=12), max_size=6),
    )
)
@FUZZ
def test_no_message_is_a_server_error(stub: Any, request_message: Any) -> None:
    try:
        stub.ModelInfer(request_message, timeout=30)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error.details()


def test_an_unknown_model_is_not_found_over_grpc(stub: Any) -> None:
    request = message([FULL])
    request.model_name = "other"
    with pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(request)
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_local_service_looks_features_up_and_logs_them(
    tmp_path: Path, repo: Path, packages: Any, start_service: Any
) -> None:
    package = with_features(packages["v1"], tmp_path / "package")
    document = manifest("toy", package, log=tmp_path / "log")
    document["spec"]["predictor"]["model"]["args"] = [f"--feature_repo={repo}"]
    status = start_service(tmp_path / "toy", document)
    with httpx.Client(base_url=status["url"], timeout=60) as client:
        rows = [KEYS, KEYS | {"plane": "N2", "seats": None}]
        traced = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        one = client.post(PREDICT, json={"instances": rows}, headers=traced)
        two = client.post(INFER, json={"inputs": tensors([KEYS])})
        assert (one.status_code, two.status_code) == (200, 200), one.text
        # The log has asked for the features; the clients have not.
        assert one.json().keys() == {"predictions"}
        assert not two.json().get("parameters")
        asked = {"x-return-features": "1"}
        three = client.post(PREDICT, json={"instances": [KEYS]}, headers=asked).json()
        assert three["metadata"]["features"][0]["seats"] == 150
    local_state.wait_logged(tmp_path / "toy")
    (file,) = [path for _, path in log_files(tmp_path / "log")]
    logged = pq.read_table(file).to_pylist()
    assert [row["seats"] for row in logged] == [150, None, 150, 150]
    assert [row["distance"] for row in logged] == [1120.0] * 4
    assert logged[0]["request_id"].startswith(f"{TRACE}-")
    assert [row["plane"] for row in logged] == ["N1", "N2", "N1", "N1"]


def test_sigterm_loses_no_request(servers: dict[str, Running]) -> None:
    """Under load: not ready at once, every request that was sent is answered, then it ends.

    Clients do what a load balancer does: they send until an answer closes the connection or the
    server says that it is not ready.
    """
    running = servers["drain"]
    told, answers, ready_when_told = threading.Event(), [], []

    def send(body: bytes) -> None:
        with running.client() as client:
            while True:
                answer = client.post(PREDICT, content=body)
                answers.append((answer.status_code, len(answer.json()["predictions"])))
                if answer.headers.get("connection") == "close":
                    return

    def send_grpc() -> None:
        with running.channel() as channel:
            stub = GRPCInferenceServiceStub(channel)
            while stub.ServerReady(pb.ServerReadyRequest()).ready:
                answer = stub.ModelInfer(message([FULL] * 3))
                answers.append((200, answer.outputs[0].shape[0]))

    def watch() -> None:
        with running.client() as client:
            told.wait()
            ready_when_told.append(client.get("/v2/health/ready").status_code)
            late = client.post(PREDICT, json={"instances": [FULL]})
            ready_when_told.append(late.status_code)
            assert client.get("/v2/health/live").status_code == 200

    with ThreadPoolExecutor(8) as pool:
        one = json.dumps({"instances": [FULL]}).encode()
        senders = [pool.submit(send, body) for body in (one, one, one, MANY, MANY)]
        senders += [pool.submit(send_grpc), pool.submit(watch)]
        while len(answers) < 100:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        told.set()
        for sender in senders:
            sender.result()
    assert ready_when_told == [503, 200]
    assert {status for status, _ in answers} == {200}
    assert {rows for _, rows in answers} == {1, 3, 30_000}
    assert running.process.wait(30) == 0
    with pytest.raises(httpx.ConnectError), running.client() as client:
        client.get("/v2/health/live")
