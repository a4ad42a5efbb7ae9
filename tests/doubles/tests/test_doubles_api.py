# SPDX-License-Identifier: Apache-2.0
"""The API as a client sees it; every test here also runs against a real server if one is named.

The answers are those that kube-apiserver 1.20 gave to the same questions, and for what is newer
those that its source gives. The real server needs KServe's resource definitions and best has no
KServe running, whose controller would write statuses too. Where its webhooks refuse earlier, with
another status, both are taken.
"""

import json
import os
import threading

import pytest
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

from doubles.tests.conftest import REAL, Cluster, isvc

PATH = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
# The schema's own answer is 422; a mutating webhook that cannot decode the object answers 400.
REFUSED = (400, 422)


def test_a_real_server_is_probed_too() -> None:
    if not os.environ.get(REAL):
        pytest.skip(f"{REAL} is not set: there is no real server to compare the double with")
    config.load_kube_config(os.environ[REAL])
    assert client.VersionApi().get_code().major == "1"


def test_a_created_object_gets_its_stamps(cluster: Cluster) -> None:
    metadata = cluster.create()["metadata"]
    assert metadata["generation"] == 1
    assert metadata["uid"] and metadata["creationTimestamp"] and metadata["resourceVersion"]
    with pytest.raises(ApiException) as raised:
        cluster.create()
    assert raised.value.status == 409
    assert json.loads(raised.value.body)["reason"] == "AlreadyExists"


@pytest.mark.parametrize(
    "predictor", [{"minReplicas": "three"}, {"model": {"modelFormat": "tensorflow"}}]
)
def test_a_wrong_type_is_refused(cluster: Cluster, predictor: dict) -> None:
    body = isvc(namespace=cluster.namespace)
    body["spec"]["predictor"].update(predictor)
    with pytest.raises(ApiException) as raised:
        cluster.custom.create_namespaced_custom_object(*cluster.where, body)
    assert raised.value.status in REFUSED


def test_the_share_of_a_canary_is_bounded_and_the_knative_percentage_is_not(
    cluster: Cluster,
) -> None:
    body = isvc(namespace=cluster.namespace)
    other = {"name": "v2", **isvc(uri="s3://b/v2")["spec"]["predictor"]}
    body["spec"]["canary"] = [{"trafficPercent": 150, "predictor": other}]
    with pytest.raises(ApiException) as raised:
        cluster.custom.create_namespaced_custom_object(*cluster.where, body)
    assert raised.value.status in REFUSED
    assert "trafficPercent" in raised.value.body
    body = isvc(namespace=cluster.namespace, canaryTrafficPercent=150)
    made = cluster.custom.create_namespaced_custom_object(*cluster.where, body)
    assert made["spec"]["predictor"]["canaryTrafficPercent"] == 150


def test_an_unknown_field_is_refused_when_strict_and_dropped_when_ignored(
    cluster: Cluster,
) -> None:
    body = isvc(namespace=cluster.namespace)
    body["spec"]["predictor"]["model"]["storageURI"] = "s3://typo"
    path = PATH.format(cluster.namespace)
    sent = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    status, answer = cluster.request("POST", f"{path}?fieldValidation=Strict", sent, **headers)
    assert status == 400
    assert 'unknown field "spec.predictor.model.storageURI"' in answer["message"]
    status, answer = cluster.request("POST", f"{path}?fieldValidation=Ignore", sent, **headers)
    assert status == 201
    assert "storageURI" not in answer["spec"]["predictor"]["model"]


def test_merge_patch_null_removes_a_field_and_a_list_is_replaced_whole(cluster: Cluster) -> None:
    cluster.create()
    patched = cluster.patch({"spec": {"predictor": {"canaryTrafficPercent": 10}}})
    assert patched["metadata"]["generation"] == 2
    patched = cluster.patch({"spec": {"predictor": {"canaryTrafficPercent": None}}})
    assert "canaryTrafficPercent" not in patched["spec"]["predictor"]
    cluster.patch({"spec": {"predictor": {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}}})
    patched = cluster.patch({"spec": {"predictor": {"imagePullSecrets": [{"name": "c"}]}}})
    assert patched["spec"]["predictor"]["imagePullSecrets"] == [{"name": "c"}]


def test_labels_do_not_count_as_a_generation_and_a_write_of_the_same_is_none(
    cluster: Cluster,
) -> None:
    cluster.create()
    labelled = cluster.patch({"metadata": {"labels": {"a": "b"}}})
    generation, version = (labelled["metadata"][k] for k in ("generation", "resourceVersion"))
    again = cluster.patch({"metadata": {"labels": {"a": "b"}}})
    assert (again["metadata"]["generation"], again["metadata"]["resourceVersion"]) == (
        generation,
        version,
    )


def test_status_and_spec_are_written_apart(cluster: Cluster) -> None:
    cluster.create()
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "observedGeneration": 7}
    body = {"status": ready, "spec": {"predictor": {"minReplicas": 77}}}
    written = cluster.custom.patch_namespaced_custom_object_status(*cluster.where, "m", body)
    assert written["status"]["observedGeneration"] == 7
    assert "minReplicas" not in cluster.get()["spec"]["predictor"]
    assert cluster.get()["metadata"]["generation"] == 1
    patched = cluster.patch({"status": {"observedGeneration": 99}})
    assert patched["status"]["observedGeneration"] == 7


def test_a_replacement_of_an_old_version_is_a_conflict(cluster: Cluster) -> None:
    stale = cluster.settled()
    cluster.patch({"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(ApiException) as raised:
        cluster.custom.replace_namespaced_custom_object(*cluster.where, "m", stale)
    assert raised.value.status == 409
    body = json.loads(raised.value.body)
    assert body["reason"] == "Conflict"
    assert body["message"] == (
        'Operation cannot be fulfilled on inferenceservices.serving.kserve.io "m": the object has '
        "been modified; please apply your changes to the latest version and try again"
    )
    fresh = cluster.get()
    del fresh["metadata"]["labels"]
    replaced = cluster.custom.replace_namespaced_custom_object(*cluster.where, "m", fresh)
    assert "labels" not in replaced["metadata"]


def test_a_replacement_needs_a_version_and_a_patch_may_name_one(cluster: Cluster) -> None:
    made = cluster.settled()
    blind = isvc(namespace=cluster.namespace)
    with pytest.raises(ApiException) as raised:
        cluster.custom.replace_namespaced_custom_object(*cluster.where, "m", blind)
    assert raised.value.status == 422
    assert "must be specified for an update" in raised.value.body
    version = made["metadata"]["resourceVersion"]
    cluster.patch({"metadata": {"resourceVersion": version, "labels": {"a": "b"}}})
    with pytest.raises(ApiException) as raised:
        cluster.patch({"metadata": {"resourceVersion": version, "labels": {"a": "c"}}})
    assert raised.value.status == 409


def test_json_patch(cluster: Cluster) -> None:
    cluster.create()
    path = f"{PATH.format(cluster.namespace)}/m"

    def send(*operations: dict) -> tuple[int, dict]:
        kind = {"Content-Type": "application/json-patch+json"}
        return cluster.request("PATCH", path, json.dumps(operations).encode(), **kind)

    status, answer = send({"op": "add", "path": "/spec/predictor/minReplicas", "value": 2})
    assert (status, answer["spec"]["predictor"]["minReplicas"]) == (200, 2)
    wrong = {"op": "test", "path": "/spec/predictor/minReplicas", "value": 3}
    remove = {"op": "remove", "path": "/spec/predictor/minReplicas"}
    assert send(wrong, remove)[0] == 422
    status, answer = send({**wrong, "value": 2}, remove)
    assert status == 200
    assert "minReplicas" not in answer["spec"]["predictor"]
    assert send(remove)[0] == 422


def test_strategic_merge_is_not_for_custom_kinds(cluster: Cluster) -> None:
    cluster.create()
    kind = {"Content-Type": "application/strategic-merge-patch+json"}
    status, answer = cluster.request("PATCH", f"{PATH.format(cluster.namespace)}/m", b"{}", **kind)
    assert (status, answer["reason"]) == (415, "UnsupportedMediaType")


def test_strategic_merge_joins_lists_of_core_kinds_by_name(cluster: Cluster) -> None:
    container = {"name": "a", "image": "x:1", "env": [{"name": "E", "value": "1"}]}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [container]}}
    cluster.core.create_namespaced_pod(cluster.namespace, pod)
    patch = {"spec": {"containers": [{"name": "a", "image": "x:2"}]}}
    patched = cluster.core.patch_namespaced_pod("p", cluster.namespace, patch)
    assert patched.spec.containers[0].image == "x:2"
    assert patched.spec.containers[0].env[0].name == "E"


def test_server_side_apply_creates_owns_and_drops(cluster: Cluster) -> None:
    path = f"{PATH.format(cluster.namespace)}/m"

    def apply(manager: str, replicas: dict, force: bool = False) -> tuple[int, dict]:
        body = isvc(namespace=cluster.namespace, **replicas)
        query = f"?fieldManager={manager}&force={str(force).lower()}"
        kind = {"Content-Type": "application/apply-patch+yaml"}
        return cluster.request("PATCH", path + query, json.dumps(body).encode(), **kind)

    assert apply("one", {"minReplicas": 1})[0] == 201
    assert apply("one", {"minReplicas": 2})[0] == 200
    status, answer = apply("two", {"minReplicas": 3})
    assert (status, answer["reason"]) == (409, "Conflict")
    assert 'conflict with "one"' in answer["message"]
    status, answer = apply("two", {"minReplicas": 3}, force=True)
    assert (status, answer["spec"]["predictor"]["minReplicas"]) == (200, 3)
    status, answer = apply("two", {})
    assert status == 200
    assert "minReplicas" not in answer["spec"]["predictor"]
    assert {entry["manager"] for entry in answer["metadata"]["managedFields"]} >= {"one", "two"}


def test_a_dry_run_is_checked_and_not_kept(cluster: Cluster) -> None:
    assert cluster.create(dry_run="All")["metadata"]["name"] == "m"
    with pytest.raises(ApiException) as raised:
        cluster.get()
    assert raised.value.status == 404
    body = json.loads(raised.value.body)
    assert body["message"] == 'inferenceservices.serving.kserve.io "m" not found'
    assert body["details"] == {
        "name": "m",
        "group": "serving.kserve.io",
        "kind": "inferenceservices",
    }


def test_a_watch_tells_what_happens_after_a_version(cluster: Cluster) -> None:
    cluster.settled()
    listed = cluster.custom.list_namespaced_custom_object(*cluster.where)

    def act() -> None:
        cluster.patch({"metadata": {"labels": {"a": "b"}}})
        cluster.custom.delete_namespaced_custom_object(*cluster.where, "m")

    timer = threading.Timer(0.3, act)
    timer.start()
    seen = [
        event["type"]
        for event in watch.Watch().stream(
            cluster.custom.list_namespaced_custom_object,
            *cluster.where,
            resource_version=listed["metadata"]["resourceVersion"],
            timeout_seconds=2,
        )
    ]
    timer.join()
    if cluster.double is None:  # KServe's controller takes its finalizer away
        seen = list(dict.fromkeys(seen))
    assert seen == ["MODIFIED", "DELETED"]


def test_lists_in_pages_by_selector(cluster: Cluster) -> None:
    for index in range(5):
        body = {"metadata": {"name": f"c{index}", "labels": {"odd": str(index % 2)}}}
        cluster.core.create_namespaced_config_map(cluster.namespace, body)
    query = {"label_selector": "odd in (0)", "limit": 2}
    first = cluster.core.list_namespaced_config_map(cluster.namespace, **query)
    assert [item.metadata.name for item in first.items] == ["c0", "c2"]
    rest = cluster.core.list_namespaced_config_map(
        cluster.namespace, **query, _continue=first.metadata._continue
    )
    assert [item.metadata.name for item in rest.items] == ["c4"]
    assert rest.metadata._continue is None
    found = cluster.core.list_namespaced_config_map(
        cluster.namespace, field_selector="metadata.name=c3"
    )
    assert [item.metadata.name for item in found.items] == ["c3"]


def test_lists_of_core_kinds_do_not_name_the_kind_and_core_kinds_count_no_generations(
    cluster: Cluster,
) -> None:
    cluster.create()
    cluster.core.create_namespaced_config_map(cluster.namespace, {"metadata": {"name": "c"}})
    status, listed = cluster.request("GET", f"/api/v1/namespaces/{cluster.namespace}/configmaps")
    assert (status, listed["kind"]) == (200, "ConfigMapList")
    item = next(item for item in listed["items"] if item["metadata"]["name"] == "c")
    assert "kind" not in item
    assert "generation" not in item["metadata"]
    listed = cluster.custom.list_namespaced_custom_object(*cluster.where)
    assert listed["items"][0]["kind"] == "InferenceService"


def test_finalizers_keep_an_object_until_they_are_gone(cluster: Cluster) -> None:
    body = {"metadata": {"name": "c", "finalizers": ["kfloop.org/hold"]}}
    cluster.core.create_namespaced_config_map(cluster.namespace, body)
    cluster.core.delete_namespaced_config_map("c", cluster.namespace)
    kept = cluster.core.read_namespaced_config_map("c", cluster.namespace)
    assert kept.metadata.deletion_timestamp is not None
    patch = {"metadata": {"finalizers": None}}
    cluster.core.patch_namespaced_config_map("c", cluster.namespace, patch)
    with pytest.raises(ApiException) as raised:
        cluster.core.read_namespaced_config_map("c", cluster.namespace)
    assert raised.value.status == 404


def test_a_deletion_can_be_conditional(cluster: Cluster) -> None:
    cluster.create()
    wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="other"))
    with pytest.raises(ApiException) as raised:
        cluster.custom.delete_namespaced_custom_object(*cluster.where, "m", body=wrong)
    assert raised.value.status == 409
    assert cluster.get()


def test_discovery_says_which_kinds_there_are(cluster: Cluster) -> None:
    names = {group.name for group in client.ApisApi(cluster.api).get_api_versions().groups}
    assert {"apps", "serving.kserve.io"} <= names
    found = cluster.custom.get_api_resources("serving.kserve.io", "v1beta1").resources
    assert "inferenceservices" in {resource.name for resource in found}
    assert client.VersionApi(cluster.api).get_code().major == "1"
    definitions = client.ApiextensionsV1Api(cluster.api)
    name = "inferenceservices.serving.kserve.io"
    assert definitions.read_custom_resource_definition(name).spec.names.kind == "InferenceService"
    with pytest.raises(ApiException) as raised:
        cluster.custom.list_cluster_custom_object("no.such.group", "v1", "things")
    assert raised.value.status == 404


def test_a_missing_namespace_and_a_bad_name(cluster: Cluster) -> None:
    with pytest.raises(ApiException) as raised:
        cluster.core.create_namespaced_config_map("nowhere", {"metadata": {"name": "c"}})
    assert raised.value.status == 404
    with pytest.raises(ApiException) as raised:
        cluster.core.create_namespaced_config_map(
            cluster.namespace, {"metadata": {"name": "Not_A_Name"}}
        )
    assert raised.value.status == 422
