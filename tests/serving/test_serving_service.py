# SPDX-License-Identifier: Apache-2.0
"""The local service and the model server, as processes, over HTTP."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from serving_helpers import CODE, FEATURES, manifest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import log_files
from kfloop.serving import local_state

Start = Callable[..., dict[str, Any]]
ROWS: list[dict[str, Any]] = [
    {"distance": 700.0, "seats": 150, "weekend": True, "carrier": "AA"},
    {"distance": None, "seats": None, "weekend": None, "carrier": None},
    {"distance": 2475.5, "seats": 9.0, "weekend": False, "carrier": "Ünï ✈"},
]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pid: int, timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def expected(package: Path, rows: list[dict[str, Any]]) -> Any:
    """Answers of the SavedModel itself, called with the whole batch."""
    loaded = tf.saved_model.load(str(package / "1"))
    tensors = {}
    for feature in FEATURES:
        values = [row[feature.name] for row in rows]
        if feature.type == "string":
            tensors[feature.name] = tf.constant([value or "" for value in values])
        else:
            numbers = [np.nan if value is None else value for value in values]
            tensors[feature.name] = tf.constant(numbers, tf.float32)
    (scores,) = loaded.signatures["serving_default"](**tensors).values()
    return scores.numpy()


def tensors_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    datatypes = {"float": "FP64", "int": "INT64", "bool": "BOOL", "string": "BYTES"}
    inputs = [
        {
            "name": feature.name,
            "shape": [len(rows)],
            "datatype": datatypes[feature.type],
            "data": [row[feature.name] for row in rows],
        }
        for feature in FEATURES
    ]
    return {"id": "mine", "inputs": inputs}


def read_log(log: Path) -> pa.Table:
    tables = [
        pq.read_table(file).append_column("model_version", pa.array([version] * n, pa.string()))
        for version, file in log_files(log)
        if (n := pq.read_metadata(file).num_rows)
    ]
    return pa.concat_tables(tables, promote_options="permissive")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, packages: Any, start_service: Start) -> Any:
    """A service that serves v1, with a candidate without traffic until a test removes it."""
    root = tmp_path_factory.mktemp("toy")
    directory, log = root / "services" / "toy", root / "log"
    document = manifest("toy", packages["v1"], packages["multiclass"], 0, log)
    status = start_service(directory, document)
    with httpx.Client(base_url=status["url"]) as client:
        yield {"directory": directory, "log": log, "client": client, "packages": packages}


def test_v1_v2_and_the_saved_model_agree_exactly(toy: Any) -> None:
    scores = expected(toy["packages"]["v1"], ROWS).tolist()
    one = toy["client"].post("/v1/models/toy:predict", json={"instances": ROWS})
    two = toy["client"].post("/v2/models/toy/infer", json=tensors_of(ROWS))
    assert [entry["probability"] for entry in one.json()["predictions"]] == scores
    assert two.json()["outputs"][0] | {"parameters": None} == {
        "name": "probability",
        "shape": [3],
        "datatype": "FP32",
        "data": scores,
        "parameters": None,
    }
    assert (two.json()["id"], two.json()["model_version"]) == ("mine", "1")
    for answer in (one, two):
        assert answer.headers["x-model-version"] == "1"
        assert answer.headers["x-predictor"] == "v1"


def test_a_candidate_without_traffic_is_reached_directly(toy: Any) -> None:
    status = local_state.read_status(toy["directory"])
    candidate = status["predictors"]["multiclass"]
    assert (candidate["traffic"], candidate["ready"]) == (0, True)
    scores = expected(toy["packages"]["multiclass"], ROWS)
    classes = ["early", "late", "on time"]
    one = httpx.post(f"{candidate['url']}/v1/models/toy:predict", json={"instances": ROWS})
    for entry, row in zip(one.json()["predictions"], scores.tolist(), strict=True):
        assert entry == {
            "label": classes[int(np.argmax(row))],
            "probabilities": dict(zip(classes, row, strict=True)),
        }
    two = httpx.post(f"{candidate['url']}/v2/models/toy/infer", json=tensors_of(ROWS)).json()
    outputs = {output["name"]: output for output in two["outputs"]}
    assert outputs["probabilities"]["data"] == scores.reshape(-1).tolist()
    assert outputs["probabilities"]["shape"] == [3, 3]
    assert outputs["label"]["data"] == [entry["label"] for entry in one.json()["predictions"]]


def test_curl_without_a_content_type_works(toy: Any) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    one = toy["client"].post(
        "/v1/models/toy:predict", content=json.dumps({"instances": ROWS}), headers=headers
    )
    two = toy["client"].post(
        "/v2/models/toy/infer", content=json.dumps(tensors_of(ROWS)), headers=headers
    )
    assert (one.status_code, two.status_code) == (200, 200)


def test_context_is_accepted_and_changes_nothing(toy: Any) -> None:
    context = {"plane": 12, "at": "2013-07-01T10:00:00", "request": {"channel": "web"}}
    plain = toy["client"].post("/v1/models/toy:predict", json={"instances": ROWS})
    told = toy["client"].post(
        "/v1/models/toy:predict", json={"instances": [row | context for row in ROWS]}
    )
    assert told.json() == plain.json()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"instances": [ROWS[0] | {"distanse": 1}]}, "unknown key 'distanse'"),
        ({"instances": [ROWS[0], {"distance": 1}]}, "row 1 lacks 'seats', 'weekend', 'carrier'"),
        ({"instances": [ROWS[0], ROWS[0] | {"distance": "far"}]}, "row 1: 'distance'.*'far'"),
        ({"instances": [ROWS[0] | {"seats": 1.5}]}, "whole number"),
        ({"instances": [ROWS[0] | {"weekend": 2}]}, "true or false"),
        ({"instances": [ROWS[0] | {"carrier": 5}]}, "a text"),
        ({"instances": [ROWS[0] | {"distance": 1e300}]}, "32-bit"),
        ({"instances": [ROWS[0] | {"at": "monday"}]}, "'at' must be an ISO 8601"),
        ({"instances": []}, "empty"),
        ({"instances": [5]}, "not an object"),
        ([1], "instances"),
    ],
)
def test_bad_v1_input_is_400_and_names_the_place(toy: Any, body: Any, named: str) -> None:
    answer = toy["client"].post("/v1/models/toy:predict", json=body)
    assert answer.status_code == 400
    assert re.search(named, answer.json()["error"], re.IGNORECASE)
    assert answer.headers["x-model-version"] == "1"


def change(name: str, /, **values: Any) -> dict[str, Any]:
    body = tensors_of(ROWS)
    for tensor in body["inputs"]:
        if tensor["name"] == name:
            tensor.update(values)
    return body


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (change("distance", name="distanse"), "unknown tensor 'distanse'"),
        (change("distance", shape=[3, 2]), "shape"),
        (change("distance", data=[1.0]), "holds 1 values"),
        (change("distance", datatype="BYTES", data=["a", "b", "c"]), "datatype BYTES"),
        (change("distance", datatype="X9"), "datatype X9"),
        (change("carrier", datatype="FP32", data=[1, 2, 3]), "must be BYTES"),
        (change("seats", data=[1, 10**400, 3]), "row 1: 'seats'"),
        (change("carrier", data=["a", "\ud800", "c"]), "row 1: 'carrier'"),
        ({"inputs": []}, "lacks the tensor"),
        ({"inputs": [{"name": "distance"}]}, r"inputs\.0\.shape"),
        ([1], "not a V2 request"),
    ],
)
def test_bad_v2_input_is_400_and_names_the_place(toy: Any, body: Any, named: str) -> None:
    headers = {"content-type": "application/json"}
    answer = toy["client"].post("/v2/models/toy/infer", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400
    assert re.search(named, answer.json()["error"], re.IGNORECASE)


def test_unknown_models_and_paths_are_404(toy: Any) -> None:
    assert toy["client"].post("/v1/models/other:predict", json={}).status_code == 404
    assert toy["client"].get("/v2/models/other").status_code == 404
    assert toy["client"].post("/v2/repository/models/toy/unload").status_code == 404


def test_health_and_metadata(toy: Any) -> None:
    for path in ("/healthz", "/v2/health/live", "/v2/health/ready", "/v1/models/toy"):
        assert toy["client"].get(path).status_code == 200
    inputs = toy["client"].get("/v2/models/toy").json()["inputs"]
    assert [entry["name"] for entry in inputs] == [feature.name for feature in FEATURES]


def test_metrics_are_labelled_by_version_and_status(toy: Any) -> None:
    toy["client"].post("/v1/models/toy:predict", json={"instances": ROWS})
    toy["client"].post("/v1/models/toy:predict", json={"instances": []})
    router = toy["client"].get("/metrics").text
    predictor = local_state.read_status(toy["directory"])["predictors"]["v1"]
    server = httpx.get(f"{predictor['url']}/metrics").text
    for status in ("200", "400"):
        labels = f'predictor="v1",service="toy",status="{status}",version="1"'
        assert f"kfloop_router_requests_total{{{labels}}}" in router
        labels = f'model="toy",protocol="v1",status="{status}",version="1"'
        assert f"kfloop_requests_total{{{labels}}}" in server


def test_the_log_holds_exactly_the_requests_sent(toy: Any) -> None:
    client, at = toy["client"], {"at": "2013-07-04T10:00:00", "plane": 7}
    for number in range(40):
        rows = [ROWS[0] | at | {"distance": number + row} for row in range(number % 3 + 1)]
        body = {"instances": rows} if number % 2 else tensors_of(rows)
        path = "/v1/models/toy:predict" if number % 2 else "/v2/models/toy/infer"
        answer = client.post(path, json=body, headers={"x-request-id": f"r{number}"})
        assert answer.headers["x-request-id"] == f"r{number}"
    bad = {"instances": [ROWS[0], ROWS[0] | {"seats": "many"}]}
    client.post("/v1/models/toy:predict", json=bad, headers={"x-request-id": "bad"})
    client.post("/v1/models/toy:predict", content=b"{", headers={"x-request-id": "worse"})
    status = local_state.wait_logged(toy["directory"])
    everything = read_log(toy["log"]).to_pylist()
    assert (status["log"]["written"], status["log"]["dropped"]) == (len(everything), 0)
    # Other tests of this module send to the same service, under ids made by the router.
    found = [row for row in everything if len(row["request_id"]) < 10]
    good = [row for row in found if row["status"] == 200]
    assert Counter(row["request_id"] for row in good) == {f"r{n}": n % 3 + 1 for n in range(40)}
    sent = [ROWS[0] | {"distance": row["distance"]} for row in good]
    scores = expected(toy["packages"]["v1"], sent).tolist()
    for row, score in zip(good, scores, strict=True):
        number = int(row["request_id"][1:])
        assert row["distance"] == number + row["row"]
        assert row["prediction"] == pytest.approx(score, abs=1e-6)
        assert (row["predictor"], row["model_version"]) == ("v1", "1")
        if number % 2:
            assert (row["event_time"].date().isoformat(), row["plane"]) == ("2013-07-04", 7)
    failed = sorted((row["request_id"], row["row"], row["seats"]) for row in found if row["error"])
    assert failed == [("bad", 0, 150), ("bad", 1, None), ("worse", 0, None)]


def sides(url: str) -> list[str]:
    """Which version answers each of some request ids; the refused bodies leave no prediction."""
    with httpx.Client(base_url=url) as client:
        return [
            client.post(
                "/v1/models/load:predict", json={}, headers={"x-request-id": f"again{number}"}
            ).headers["x-model-version"]
            for number in range(40)
        ]


def test_canary_promotion_and_restart_under_load(
    tmp_path: Path, packages: Any, start_service: Start
) -> None:
    """One story: live, canary at 25 %, promote, with requests all the time; then kill -9."""
    directory, log = tmp_path / "load", tmp_path / "log"
    status = start_service(directory, manifest("load", packages["v1"], log=log))
    url = status["url"]
    answers: list[tuple[str, int, str]] = []
    stop, counter = threading.Event(), iter(range(10**9))

    def send() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                request_id = f"r{next(counter)}"
                answer = client.post(
                    "/v1/models/load:predict",
                    json={"instances": [ROWS[0]]},
                    headers={"x-request-id": request_id},
                )
                answers.append((request_id, answer.status_code, answer.headers["x-model-version"]))
                time.sleep(0.005)

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(send) for _ in range(4)]
        try:
            local_state.apply_manifest(
                directory, manifest("load", packages["v1"], packages["v2"], 25, log)
            )
            canary = local_state.wait_ready(directory)
            split_from = len(answers)
            time.sleep(3)
            assert sides(url) == sides(url) and len(set(sides(url))) == 2
            split = Counter(version for _, _, version in answers[split_from:])
            local_state.apply_manifest(directory, manifest("load", packages["v2"], log=log))
            promoted = local_state.wait_ready(directory)
            time.sleep(1.5)
        finally:
            stop.set()
        for sender in senders:
            sender.result()

    assert {code for _, code, _ in answers} == {200}
    assert 0.15 < split["2"] / sum(split.values()) < 0.35
    assert answers[-1][2] == "2"
    assert promoted["predictors"]["v2"]["pid"] == canary["predictors"]["v2"]["pid"]
    assert promoted["predictors"]["v2"]["traffic"] == 100
    assert gone(canary["predictors"]["v1"]["pid"])
    local_state.wait_logged(directory)
    logged = Counter(
        (row["request_id"], row["status"], row["model_version"])
        for row in read_log(log).select(["request_id", "status", "model_version"]).to_pylist()
        if not row["request_id"].startswith("again")
    )
    assert logged == Counter(answers)

    # A crashed predictor comes back; nothing of the service is left after kill -9.
    os.kill(promoted["predictors"]["v2"]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        predictor = local_state.read_status(directory)["predictors"]["v2"]
        if predictor["restarts"] == 1 and predictor["ready"]:
            break
        time.sleep(0.1)
    assert (predictor["restarts"], predictor["ready"]) == (1, True)
    os.kill(promoted["pid"], signal.SIGKILL)
    assert gone(promoted["pid"]) and gone(predictor["pid"], 3)
    assert not local_state.read_status(directory)["running"]

    # Started again by two at once: one service, at the old URL.
    with ThreadPoolExecutor(2) as pool:
        both = list(
            pool.map(lambda _: local_state.start(directory, sys.executable, CODE), range(2))
        )
    assert both[0]["pid"] == both[1]["pid"]
    assert both[0]["url"] == url
    while not (pid := local_state.read_status(directory)["predictors"]["v2"]["pid"]):
        time.sleep(0.05)
    assert local_state.stop(directory)
    assert gone(both[0]["pid"]) and gone(pid)


def test_a_canary_that_cannot_load_says_why_and_gets_no_traffic(toy: Any, tmp_path: Path) -> None:
    newer = tmp_path / "v9"
    newer.mkdir()
    document = json.loads((toy["packages"]["v1"] / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps(document | {"contract_version": 99}))
    local_state.apply_manifest(
        toy["directory"], manifest("toy", toy["packages"]["v1"], newer, 50, toy["log"])
    )
    with pytest.raises(InputError, match=r"Predictor v9 .* contract version 99"):
        local_state.wait_ready(toy["directory"])
    conditions = {
        entry["type"]: entry for entry in local_state.read_status(toy["directory"])["conditions"]
    }
    assert conditions["Ready"]["status"] == "True"
    assert conditions["CanaryPredictorReady"]["reason"] == "FailedToLoad"
    versions = {
        toy["client"]
        .post("/v1/models/toy:predict", json={"instances": ROWS})
        .headers["x-model-version"]
        for _ in range(20)
    }
    assert versions == {"1"}


def test_a_new_version_that_fails_to_load_leaves_the_old_one_serving(
    toy: Any, tmp_path: Path
) -> None:
    damaged = tmp_path / "v8"
    damaged.mkdir()
    (damaged / "model.json").write_text((toy["packages"]["v1"] / "model.json").read_text())
    before = local_state.read_status(toy["directory"])
    local_state.apply_manifest(toy["directory"], manifest("toy", damaged, log=toy["log"]))
    with pytest.raises(InputError, match="holds no SavedModel"):
        local_state.wait_ready(toy["directory"])
    answer = toy["client"].post("/v1/models/toy:predict", json={"instances": ROWS})
    assert (answer.status_code, answer.headers["x-predictor"]) == (200, "v1")
    document = manifest("toy", toy["packages"]["v1"], log=toy["log"])
    local_state.apply_manifest(toy["directory"], document)
    after = local_state.wait_ready(toy["directory"])
    assert after["predictors"]["v1"]["pid"] == before["predictors"]["v1"]["pid"]


def test_a_service_outlives_its_starter_and_answers_503_when_nothing_is_ready(
    tmp_path: Path,
) -> None:
    directory, log = tmp_path / "empty", tmp_path / "log"
    local_state.apply_manifest(directory, manifest("empty", tmp_path / "nothing", log=log))
    # -S: the standard library alone, as in the environment of another family.
    arguments = [str(directory), sys.executable, str(CODE)]
    start = f"from kfloop.serving.local_state import start; start(*{arguments})"
    environment = {"PYTHONPATH": str(CODE), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-S", "-c", start], check=True, env=environment)
    try:
        url = local_state.read_status(directory)["url"]
        answer = httpx.post(f"{url}/v1/models/empty:predict", json={"instances": [{}]})
        assert answer.status_code == 503
        assert "not a model package" in answer.json()["error"]
        local_state.wait_logged(directory)
        (row,) = read_log(log).to_pylist()
        assert (row["status"], row["model_version"]) == (503, "none")
    finally:
        assert local_state.stop(directory)


def grpc_values(port: int, raw: bool) -> list[float]:
    columns = {
        "distance": ("FP32", np.array([700, np.nan, 2475.5], np.float32)),
        "seats": ("FP64", np.array([150, np.nan, 9])),
        "weekend": ("FP32", np.array([1, np.nan, 0], np.float32)),
        "carrier": ("BYTES", np.array(["AA", "", "Ünï ✈"], object)),
    }
    inputs = []
    for name, (datatype, values) in columns.items():
        tensor = InferInput(name, [3], datatype)
        if raw:
            tensor.set_data_from_numpy(values)
        else:
            tensor.data = [v.encode() if isinstance(v, str) else v for v in values.tolist()]
        inputs.append(tensor)
    request = InferRequest("toy", inputs, request_id="mine").to_grpc()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        answer = InferResponse.from_grpc(stub.ModelInfer(request, wait_for_ready=True, timeout=20))
    assert (answer.id, answer.model_version) == ("mine", "8")
    values = answer.outputs[0].as_numpy().tolist()
    return [float(value) for value in values]


def test_the_model_server_alone_speaks_rest_and_grpc_and_ends_on_sigterm(packages: Any) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = [one.getsockname()[1], two.getsockname()[1]]
    command = [
        *(sys.executable, "-m", "kfloop.serving.model_server", "--model_name", "toy"),
        *("--model_dir", str(packages["regression"])),
        *("--http_port", str(ports[0]), "--grpc_port", str(ports[1])),
    ]
    server = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(CODE)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert "Serving toy version 8" in server.stdout.readline()
        scores = expected(packages["regression"], ROWS).tolist()
        assert grpc_values(ports[1], raw=True) == grpc_values(ports[1], raw=False) == scores
        answer = httpx.post(
            f"http://127.0.0.1:{ports[0]}/v1/models/toy:predict", json={"instances": ROWS}
        )
        assert answer.json() == {"predictions": [{"value": score} for score in scores]}
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0


def test_an_unusable_package_ends_the_model_server_with_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kfloop.serving.model_server"),
            *("--model_name", "toy", "--model_dir", str(tmp_path)),
        ],
        env=os.environ | {"PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("InputError: ")
    assert "is not a model package" in done.stderr
