# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on purpose, and what only the double has: tokens, compaction, direct access."""

import json
import threading
from pathlib import Path

import pytest
import urllib3
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

from doubles import ApiServer, Resource
from doubles.tests.conftest import Cluster, G, isvc


def test_the_next_requests_fail_as_asked(double: Cluster) -> None:
    double.create()
    double.double.faults.next(429, verb="patch", retry_after=3, times=2)
    for _ in range(2):
        with pytest.raises(ApiException) as raised:
            double.patch({"metadata": {"labels": {"a": "b"}}})
        assert raised.value.status == 429
        assert raised.value.headers["Retry-After"] == "3"
    assert double.get()
    assert double.patch({"metadata": {"labels": {"a": "b"}}})


def test_a_lost_answer_was_executed_and_a_lost_request_was_not(double: Cluster) -> None:
    double.create()
    double.api.configuration.retries = False
    quiet = Cluster(client.ApiClient(double.api.configuration), "ml", double.double)
    double.double.faults.next("drop", verb="patch")
    with pytest.raises(urllib3.exceptions.HTTPError):
        quiet.patch({"metadata": {"labels": {"a": "1"}}})
    assert "labels" not in double.get()["metadata"]
    double.double.faults.next("drop_after", verb="patch")
    with pytest.raises(urllib3.exceptions.HTTPError):
        quiet.patch({"metadata": {"labels": {"a": "1"}}})
    assert double.get()["metadata"]["labels"] == {"a": "1"}
    codes = [request.code for request in double.double.requests if request.verb == "patch"]
    assert codes == [0, 0]


def test_somebody_elses_write_makes_a_real_conflict(double: Cluster) -> None:
    made = double.create()
    double.double.faults.next("conflict_write", verb="update")
    with pytest.raises(ApiException) as raised:
        double.custom.replace_namespaced_custom_object(*double.where, "m", made)
    assert raised.value.status == 409
    again = double.get()
    assert "doubles/disturbed-at" in again["metadata"]["annotations"]
    double.custom.replace_namespaced_custom_object(*double.where, "m", again)


def test_a_storm_is_the_same_for_a_seed(double: Cluster) -> None:
    def codes(seed: int) -> list[int]:
        double.double.faults.clear()
        double.double.faults.storm(0.5, [500, 409], seed=seed, verb="get")
        return [double.request("GET", "/api/v1/namespaces/ml")[0] for _ in range(30)]

    first = codes(1)
    assert set(first) == {200, 409, 500}
    assert codes(1) == first
    assert codes(2) != first
    with pytest.raises(ValueError, match="is no fault"):
        double.double.faults.next("rain")


def test_a_slow_answer_runs_into_the_clients_timeout(double: Cluster) -> None:
    # The client asks again by itself, three times; it ignores a timeout that is a plain float.
    double.double.faults.next("hang", seconds=0.3, verb="list", times=4)
    with pytest.raises(urllib3.exceptions.HTTPError):
        double.core.list_namespaced_pod("ml", _request_timeout=(1, 0.05))
    assert double.core.list_namespaced_pod("ml", _request_timeout=5).items == []


def test_a_watch_from_a_forgotten_version_is_gone(double: Cluster) -> None:
    version = double.create()["metadata"]["resourceVersion"]
    double.double.compact()
    events = watch.Watch().stream(
        double.custom.list_namespaced_custom_object,
        *double.where,
        resource_version=version,
        timeout_seconds=2,
    )
    with pytest.raises(ApiException) as raised:
        list(events)
    assert raised.value.status == 410


def test_a_page_from_a_forgotten_version_is_gone(double: Cluster) -> None:
    for index in range(3):
        double.core.create_namespaced_config_map("ml", {"metadata": {"name": f"c{index}"}})
    first = double.core.list_namespaced_config_map("ml", limit=1)
    double.double.compact()
    with pytest.raises(ApiException) as raised:
        double.core.list_namespaced_config_map("ml", _continue=first.metadata._continue)
    assert raised.value.status == 410


def test_bookmarks_carry_the_version_on(double: Cluster) -> None:
    double.create()
    path = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices"
    query = "?watch=true&allowWatchBookmarks=true&timeoutSeconds=1&resourceVersion=0"
    answer = double.api.rest_client.pool_manager.request(
        "GET", double.api.configuration.host + path + query
    )
    events = [json.loads(line) for line in answer.data.splitlines()]
    assert events[0]["type"] == "ADDED"
    assert events[-1]["type"] == "BOOKMARK"
    version = events[-1]["object"]["metadata"]["resourceVersion"]
    assert int(version) == double.double.store.version


def test_a_watch_can_be_cut(double: Cluster) -> None:
    timer = threading.Timer(0.2, double.double.faults.drop_watches)
    timer.start()
    url = f"{double.api.configuration.host}/api/v1/namespaces/ml/pods?watch=true&timeoutSeconds=30"
    answer = double.api.rest_client.pool_manager.request("GET", url, preload_content=False)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        answer.read()
    timer.join()


def test_an_object_that_leaves_the_selection_is_deleted_for_the_watcher(double: Cluster) -> None:
    made = double.core.create_namespaced_config_map(
        "ml", {"metadata": {"name": "c", "labels": {"a": "b"}}}
    )
    double.double.patch("configmaps", "c", "ml", {"metadata": {"labels": {"a": "x"}}})
    events = watch.Watch().stream(
        double.core.list_namespaced_config_map,
        "ml",
        label_selector="a=b",
        resource_version=made.metadata.resource_version,
        timeout_seconds=1,
    )
    assert [event["type"] for event in events] == ["DELETED"]


def test_tokens_and_rules(double: Cluster, tmp_path: Path) -> None:
    rules = [
        {
            "apiGroups": ["serving.kserve.io"],
            "resources": ["inferenceservices"],
            "verbs": ["get", "create"],
        }
    ]
    double.double.allow("secret", "system:serviceaccount:ml:runner", rules, namespaces=["ml"])
    with pytest.raises(ApiException) as raised:
        double.create()
    assert raised.value.status == 401
    path = double.double.kubeconfig(tmp_path / "with-token", "ml", token="secret")
    allowed = Cluster(config.new_client_from_config(str(path)), "ml", double.double)
    allowed.create()
    with pytest.raises(ApiException) as raised:
        allowed.patch({"metadata": {"labels": {"a": "b"}}})
    assert raised.value.status == 403
    message = json.loads(raised.value.body)["message"]
    assert message == (
        'inferenceservices.serving.kserve.io "m" is forbidden: User '
        '"system:serviceaccount:ml:runner" cannot patch resource "inferenceservices" in API group '
        '"serving.kserve.io" in the namespace "ml"'
    )

    def may(verb: str) -> bool:
        asked = {"verb": verb, "group": G[0], "resource": "inferenceservices", "namespace": "ml"}
        review = client.AuthorizationV1Api(allowed.api).create_self_subject_access_review(
            {"spec": {"resourceAttributes": asked}}
        )
        return bool(review.status.allowed)

    assert may("create")
    assert not may("delete")


def test_kinds_come_and_go(double: Cluster) -> None:
    double.double.unregister("inferenceservices.serving.kserve.io")
    with pytest.raises(ApiException) as raised:
        double.create()
    assert raised.value.status == 404
    double.double.register(Resource("example.org", "v1", "widgets", "Widget"))
    widget = {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": "w"}}
    where = ("example.org", "v1", "ml", "widgets")
    double.custom.create_namespaced_custom_object(*where, widget)
    assert double.double.get("widgets", "w", "ml")["metadata"]["generation"] == 1


def test_a_definition_that_a_client_creates_is_served_and_checked(double: Cluster) -> None:
    fields = {
        "replicas": {"type": "integer", "minimum": 1},
        "mode": {"enum": ["a"], "type": "string"},
    }
    spec = {"type": "object", "required": ["replicas"], "properties": fields}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
    }
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    definition = {
        "metadata": {"name": "widgets.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Namespaced",
            "names": names,
            "versions": [version],
        },
    }
    client.ApiextensionsV1Api(double.api).create_custom_resource_definition(definition)
    where = ("example.org", "v1", "ml", "widgets")
    widget = {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": "w"}}
    for wrong in ({"replicas": 0}, {"replicas": "1"}, {"mode": "a"}, {"replicas": 1, "mode": "b"}):
        with pytest.raises(ApiException) as raised:
            double.custom.create_namespaced_custom_object(*where, {**widget, "spec": wrong})
        assert raised.value.status == 422
    double.custom.create_namespaced_custom_object(*where, {**widget, "spec": {"replicas": 1}})


def test_what_an_owner_owned_goes_with_it(api: ApiServer) -> None:
    api.create(isvc())
    owner = api.get("inferenceservices", "m", "ml")
    reference = {key: owner[key] for key in ("apiVersion", "kind")}
    reference.update(name="m", uid=owner["metadata"]["uid"])
    for name, owners in (("mine", [reference]), ("free", [])):
        metadata = {"name": name, "namespace": "ml", "ownerReferences": owners}
        api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    api.delete("inferenceservices", "m", "ml", policy="Foreground")
    assert [item["metadata"]["name"] for item in api.list("configmaps", "ml")] == ["free"]
    assert api.get("inferenceservices", "m", "ml") is None


def test_pod_logs_and_quota(double: Cluster) -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x"}]}}
    double.core.create_namespaced_pod("ml", pod)
    double.double.logs["ml", "p"] = "one\ntwo\n"
    assert double.core.read_namespaced_pod_log("p", "ml", tail_lines=1) == "two\n"
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {"limits.cpu": "4"}}}
    double.core.create_namespaced_resource_quota("ml", quota)
    assert double.core.list_namespaced_resource_quota("ml").items[0].spec.hard == {
        "limits.cpu": "4"
    }


def test_a_train_job_is_checked(double: Cluster) -> None:
    where = ("trainer.kubeflow.org", "v1alpha1", "ml", "trainjobs")
    about = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
    spec = {"runtimeRef": {"name": "torch"}, "trainer": {"numNodes": 2}}
    job = {**about, "metadata": {"name": "j"}, "spec": spec}
    made = double.custom.create_namespaced_custom_object(*where, job)
    assert made["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"
    with pytest.raises(ApiException) as raised:
        patch = {"spec": {"trainer": {"numNodes": 3}}}
        double.custom.patch_namespaced_custom_object(*where, "j", patch)
    assert raised.value.status == 422
    assert "field is immutable" in raised.value.body
    with pytest.raises(ApiException) as raised:
        typo = {**job, "metadata": {"name": "k"}, "spec": {**spec, "trainer": {"nodes": 2}}}
        double.custom.create_namespaced_custom_object(*where, typo)
    told = json.loads(raised.value.body)["message"]
    assert told.endswith('strict decoding error: unknown field "spec.trainer.nodes"')
    complete = {"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": ""}
    double.double.set_status("trainjobs", "j", "ml", {"conditions": [complete]})
    found = double.custom.get_namespaced_custom_object(*where, "j")
    assert found["status"]["conditions"][0]["type"] == "Complete"
