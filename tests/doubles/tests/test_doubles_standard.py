# SPDX-License-Identifier: Apache-2.0
"""KServe in Standard mode: what its status and its requests do during a rollout."""

import json
from typing import Any

import pytest
import urllib3

from doubles import ApiServer, KServe, Model
from doubles.tests.conftest import isvc

HTTP = urllib3.PoolManager(retries=False)
MODE = "serving.kserve.io/deploymentMode"


@pytest.fixture
def mode() -> str:
    return "Standard"


def service(uri: str = "s3://b/v1", name: str = "v1", **predictor: Any) -> dict[str, Any]:
    manifest = isvc(uri=uri)
    manifest["spec"]["predictor"].update(name=name, **predictor)
    manifest["metadata"]["annotations"] = {MODE: "Standard"}
    return manifest


def candidate(percent: int = 20, version: str = "v2", **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "tensorflow"}, "storageUri": f"s3://b/{version}"}
    return {"trafficPercent": percent, "predictor": {"name": version, "model": model, **predictor}}


def canary_status(name: str, ready: bool, percent: int) -> dict[str, Any]:
    """What KServe says of a canary: how its model is, it never says."""
    status = {"transitionStatus": ""}
    return {"name": name, "ready": ready, "trafficPercent": percent, "modelStatus": status}


def edit(api: ApiServer, spec: dict[str, Any]) -> None:
    api.patch("inferenceservices", "m", "ml", {"spec": spec})


def status(api: ApiServer) -> dict[str, Any]:
    found = api.get("inferenceservices", "m", "ml")
    assert found is not None
    return dict(found.get("status") or {})


def condition(api: ApiServer, name: str) -> str:
    found = [c["status"] for c in status(api).get("conditions", []) if c["type"] == name]
    return found[0] if found else ""


def ask(url: str, **headers: str) -> tuple[int, str]:
    body = json.dumps({"instances": [{"x": 1}]}).encode()
    answer = HTTP.request("POST", f"{url}/v1/models/m:predict", body=body, headers=headers)
    return answer.status, answer.headers.get("x-model-version", "")


def proxied(api: ApiServer, name: str) -> tuple[int, str]:
    return ask(f"{api.url}/api/v1/namespaces/ml/services/http:{name}:80/proxy")


def names(api: ApiServer, kind: str) -> list[str]:
    return [item["metadata"]["name"] for item in api.list(kind, "ml")]


def test_a_first_version_comes_up_in_order(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    assert status(api) == {}
    seen: list[tuple[str, str, str]] = []
    while not seen or kserve.step():
        kserve.step(0)
        states = status(api).get("modelStatus", {}).get("states", {})
        target = states.get("targetModelState", "")
        now = (condition(api, "PredictorReady"), condition(api, "Ready"), target)
        if not seen or seen[-1] != now:
            seen.append(now)
    assert seen == [
        ("", "", ""),
        ("False", "False", "Pending"),
        ("False", "False", "Loading"),
        ("False", "False", "Pending"),
        ("True", "False", "Pending"),
        ("True", "True", "Pending"),
        ("True", "True", "Loaded"),
    ]
    assert status(api)["deploymentMode"] == "Standard"
    assert status(api)["address"]["url"] == "http://m-v1-predictor.ml.svc.cluster.local"
    assert ask(status(api)["url"]) == (200, "1")


def test_ready_stays_true_while_the_model_is_exchanged(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    edit(api, {"predictor": {"model": {"storageUri": "s3://b/v2"}}})
    versions = []
    for _ in range(20):
        kserve.step()
        assert condition(api, "Ready") == "True"
        versions.append(ask(status(api)["url"])[1])
    assert (versions[0], versions[-1]) == ("1", "2")
    assert status(api)["observedGeneration"] == 2


def test_the_observed_generation_is_that_of_the_deployment(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    for timeout in (10, 20, 30):
        # Nothing of a pod changes, so the Deployment never hears of it.
        edit(api, {"predictor": {"timeout": timeout}})
        kserve.settle()
    found = api.get("inferenceservices", "m", "ml")
    assert (found["metadata"]["generation"], found["status"]["observedGeneration"]) == (4, 1)


def test_an_annotation_of_the_service_restarts_its_pods(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    before = names(api, "pods")
    api.patch("inferenceservices", "m", "ml", {"metadata": {"annotations": {"note": "1"}}})
    kserve.settle()
    after = names(api, "pods")
    assert before != after
    kserve.config("inferenceService", {"serviceAnnotationDisallowedList": ["note"]})
    kserve.settle()
    settled = names(api, "pods")
    api.patch("inferenceservices", "m", "ml", {"metadata": {"annotations": {"note": "2"}}})
    kserve.settle()
    assert names(api, "pods") == settled


def test_a_canary_gets_its_share_once_it_is_ready(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    edit(api, {"canary": [candidate(20)]})
    kserve.step()
    assert status(api)["canaryStatuses"] == [canary_status("v2", False, 20)]
    assert (condition(api, "Ready"), condition(api, "CanaryPredictorReady")) == ("True", "False")
    assert ask(status(api)["url"]) == (200, "1")
    kserve.settle()
    assert condition(api, "CanaryPredictorReady") == "True"
    kserve.answered.clear()
    for _ in range(300):
        ask(status(api)["url"])
    assert 30 <= kserve.answered["2"] <= 90
    assert proxied(api, "m-v2-predictor") == (200, "2")
    assert proxied(api, "m-v1-predictor") == (200, "1")


def test_without_the_gateway_api_a_canary_gets_nothing_and_says_otherwise(
    api: ApiServer,
) -> None:
    with KServe(api, gateway_api=False) as kserve:
        api.create(service())
        edit(api, {"canary": [candidate(50)]})
        kserve.settle()
        assert status(api)["canaryStatuses"] == [canary_status("v2", True, 50)]
        for _ in range(50):
            ask(status(api)["url"])
        assert kserve.answered == {"1": 50}
        assert proxied(api, "m-v2-predictor") == (200, "2")


def test_no_percent_no_replicas_unless_asked_for(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    edit(api, {"canary": [candidate(0)]})
    kserve.settle()
    assert status(api)["canaryStatuses"][0]["ready"] is False
    assert proxied(api, "m-v2-predictor")[0] == 503
    edit(api, {"canary": [candidate(0, minReplicas=1)]})
    kserve.settle()
    assert status(api)["canaryStatuses"][0]["ready"] is True
    assert proxied(api, "m-v2-predictor") == (200, "2")
    for _ in range(30):
        assert ask(status(api)["url"]) == (200, "1")


def test_ready_canaries_take_replicas_from_the_stable_predictor(
    api: ApiServer, kserve: KServe
) -> None:
    api.create(service(minReplicas=4))
    edit(api, {"canary": [candidate(30)]})
    kserve.settle()
    replicas = {d["metadata"]["name"]: d["spec"]["replicas"] for d in api.list("deployments", "ml")}
    assert replicas == {"m-v1-predictor": 2, "m-v2-predictor": 2}


def test_promotion_adopts_the_running_canary(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    edit(api, {"canary": [candidate(20)]})
    kserve.settle()
    pod = next(name for name in names(api, "pods") if "v2" in name)
    edit(api, {"canary": None, "predictor": candidate()["predictor"]})
    for _ in range(10):
        kserve.step()
        assert proxied(api, "m-v2-predictor") == (200, "2")
    kserve.settle()
    assert names(api, "pods") == [pod]
    assert names(api, "deployments") == names(api, "services") == ["m-v2-predictor"]
    assert "canaryStatuses" not in status(api)
    assert ask(status(api)["url"]) == (200, "2")
    assert status(api)["address"]["url"] == "http://m-v2-predictor.ml.svc.cluster.local"


def test_an_empty_list_takes_the_canary_away(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    edit(api, {"canary": [candidate(50)]})
    kserve.settle()
    edit(api, {"canary": []})
    kserve.settle()
    assert names(api, "deployments") == ["m-v1-predictor"]
    kserve.answered.clear()
    for _ in range(20):
        ask(status(api)["url"])
    assert kserve.answered == {"1": 20}


def test_a_gateway_that_lags_sends_requests_into_nowhere_for_a_moment(api: ApiServer) -> None:
    with KServe(api, gateway_lag=2) as kserve:
        api.create(service())
        edit(api, {"canary": [candidate(100)]})
        kserve.settle()
        edit(api, {"canary": []})
        codes = []
        for _ in range(8):
            kserve.step()
            codes.append(ask(status(api)["url"])[0])
    assert set(codes) == {200, 500}
    assert codes[-1] == 200


@pytest.mark.parametrize(
    "failure, reason",
    [
        ("image_pull", "MinimumReplicasUnavailable"),
        ("crash_loop", "MinimumReplicasUnavailable"),
        ("failed_to_load", "MinimumReplicasUnavailable"),
        ("unschedulable", "MinimumReplicasUnavailable"),
        ("never_ready", "MinimumReplicasUnavailable"),
        ("deadline", "MinimumReplicasUnavailable"),
        ("quota", "FailedCreate"),
        ("no_runtime", ""),
    ],
)
def test_a_first_version_that_fails(
    api: ApiServer, kserve: KServe, failure: str, reason: str
) -> None:
    kserve.fail("s3://b/v1", failure)
    api.create(service())
    kserve.settle()
    assert condition(api, "Ready") != "True"
    found = next(c for c in status(api)["conditions"] if c["type"] == "PredictorReady")
    assert found.get("reason", "") == reason
    model = status(api)["modelStatus"]
    if failure in ("crash_loop", "failed_to_load"):
        assert model["transitionStatus"] == "BlockedByFailedLoad"
        assert model["states"]["targetModelState"] == "FailedToLoad"
        assert model["lastFailureInfo"]["reason"] == "ModelLoadFailed"
        assert model["lastFailureInfo"]["exitCode"] == 1
    if failure == "no_runtime":
        assert model["transitionStatus"] == "InvalidSpec"
        assert model["lastFailureInfo"]["reason"] == "NoSupportingRuntime"
    if failure == "deadline":
        progressing = api.list("deployments", "ml")[0]["status"]["conditions"][1]
        assert progressing["reason"] == "ProgressDeadlineExceeded"
    kserve.heal("s3://b/v1")
    if failure != "deadline":
        kserve.settle()
        assert condition(api, "Ready") == "True"


@pytest.mark.parametrize(
    "failure", ["image_pull", "crash_loop", "failed_to_load", "unschedulable", "quota", "deadline"]
)
def test_a_canary_that_fails_tells_nothing_in_the_status(
    api: ApiServer, kserve: KServe, failure: str
) -> None:
    api.create(service())
    kserve.settle()
    kserve.fail("s3://b/v2", failure)
    edit(api, {"canary": [candidate(50)]})
    kserve.settle()
    assert status(api)["canaryStatuses"] == [canary_status("v2", False, 50)]
    assert condition(api, "Ready") == "True"
    assert status(api)["modelStatus"]["transitionStatus"] == "UpToDate"
    assert ask(status(api)["url"]) == (200, "1")
    references = api.list("httproutes", "ml")[0]["spec"]["rules"][0]["backendRefs"]
    assert [(entry["name"], entry["weight"]) for entry in references] == [("m-v1-predictor", 100)]
    shown = json.dumps([api.list(kind, "ml") for kind in ("pods", "deployments", "events")])
    told = {
        "image_pull": "ImagePullBackOff",
        "crash_loop": "CrashLoopBackOff",
        "failed_to_load": "Failed to fetch model",
        "unschedulable": "Insufficient nvidia.com/gpu",
        "quota": "exceeded quota",
        "deadline": "ProgressDeadlineExceeded",
    }
    assert told[failure] in shown


def test_a_canary_without_a_runtime_stops_everything_with_only_an_event(
    api: ApiServer, kserve: KServe
) -> None:
    api.create(service())
    kserve.settle()
    unknown = candidate(50)
    unknown["predictor"]["model"]["modelFormat"]["name"] = "mystery"
    edit(api, {"canary": [unknown]})
    kserve.settle()
    assert "canaryStatuses" not in status(api)
    assert condition(api, "Ready") == "True"
    messages = [event["message"] for event in api.list("events", "ml")]
    assert any("no runtime found to support" in message for message in messages)


def test_a_canary_that_crashes_later_loses_its_share(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    kserve.fail("s3://b/v2", "ready_then_crash", ticks=5)
    edit(api, {"canary": [candidate(100)]})
    ready = []
    for _ in range(20):
        kserve.step()
        ready.append(status(api).get("canaryStatuses", [{"ready": False}])[0]["ready"])
    assert True in ready
    assert ready[-1] is False
    assert ask(status(api)["url"]) == (200, "1")


def test_a_controller_that_is_down_does_nothing(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    kserve.paused = True
    edit(api, {"canary": [candidate(20)]})
    kserve.settle()
    assert names(api, "deployments") == ["m-v1-predictor"]
    api.delete("inferenceservices", "m", "ml")
    assert api.get("inferenceservices", "m", "ml")["metadata"]["deletionTimestamp"]
    kserve.paused = False
    kserve.settle()
    assert api.get("inferenceservices", "m", "ml") is None
    assert names(api, "pods") == names(api, "services") == names(api, "deployments") == []
    assert HTTP.request("GET", f"{kserve.gateway_url}/serving/ml/m/").status == 404


def test_a_controller_that_lags_acts_later(api: ApiServer, kserve: KServe) -> None:
    kserve.lag = 9
    api.create(service())
    kserve.step(9)
    assert status(api) == {}
    kserve.settle()
    assert condition(api, "Ready") == "True"
    assert kserve.ticks > 20


def test_a_stopped_service_comes_back(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    stop = {"metadata": {"annotations": {"serving.kserve.io/stop": "true"}}}
    api.patch("inferenceservices", "m", "ml", stop)
    kserve.settle()
    assert (condition(api, "Ready"), condition(api, "Stopped")) == ("False", "True")
    assert names(api, "pods") == []
    stop["metadata"]["annotations"]["serving.kserve.io/stop"] = None
    api.patch("inferenceservices", "m", "ml", stop)
    kserve.settle()
    assert condition(api, "Ready") == "True"


def test_models_fail_lag_and_lie(api: ApiServer, kserve: KServe) -> None:
    model = kserve.serve("s3://b/v1", Model("7", lambda rows: [0.25 for _ in rows]))
    api.create(service())
    kserve.settle()
    url = f"{status(api)['url']}/v1/models/m:predict"
    body = b'{"instances": [{"x": 1}]}'
    answer = HTTP.request("POST", url, body=body, headers={"x-request-id": "r1"})
    assert answer.json() == {"predictions": [0.25]}
    assert (answer.headers["x-model-version"], answer.headers["x-request-id"]) == ("7", "r1")
    model.wrong = True
    assert HTTP.request("POST", url, body=body).json() == {"predictions": [0.75]}
    model.error_rate = 0.5
    codes = {HTTP.request("POST", url, body=body).status for _ in range(40)}
    assert codes == {200, 500}


def test_v2_and_health(api: ApiServer, kserve: KServe) -> None:
    kserve.serve("s3://b/v1", Model("1", lambda rows: [row["a"] + row["b"] for row in rows]))
    api.create(service())
    kserve.settle()
    url = status(api)["url"]
    tensors = [
        {"name": name, "shape": [2], "datatype": "FP64", "data": data}
        for name, data in (("a", [1.0, 2.0]), ("b", [10.0, 20.0]))
    ]
    body = json.dumps({"inputs": tensors}).encode()
    answer = HTTP.request("POST", f"{url}/v2/models/m/infer", body=body).json()
    assert answer["outputs"][0]["data"] == [11.0, 22.0]
    for path in ("/v1/models/m", "/v2/health/ready", "/v2/models/m/ready"):
        assert HTTP.request("GET", url + path).status == 200
    assert HTTP.request("GET", f"{url}/nowhere").status == 404


def test_hosts_as_at_a_real_gateway(api: ApiServer) -> None:
    with KServe(api, urls="host", domain="models.example") as kserve:
        api.create(service())
        kserve.settle()
        assert status(api)["url"] == "http://m-ml.models.example"
        assert ask(kserve.gateway_url, Host="m-ml.models.example") == (200, "1")
        assert ask(kserve.gateway_url, Host="nobody.models.example")[0] == 404


@pytest.mark.parametrize("seed", range(5))
def test_every_order_of_events_ends_the_same(api: ApiServer, seed: int) -> None:
    with KServe(api, seed=seed, skip=0.5) as kserve:
        api.create(service())
        kserve.step(3)
        edit(api, {"canary": [candidate(40)]})
        kserve.step(seed)
        edit(api, {"canary": None, "predictor": candidate()["predictor"]})
        kserve.settle()
        assert names(api, "deployments") == ["m-v2-predictor"]
        assert ask(status(api)["url"]) == (200, "2")


def test_a_thread_can_turn_the_clock(api: ApiServer, kserve: KServe) -> None:
    with kserve.running(interval=0.001):
        api.create(service())
        for _ in range(2000):
            if condition(api, "Ready") == "True":
                break
            HTTP.request("GET", f"{api.url}/healthz")
    assert condition(api, "Ready") == "True"
