# SPDX-License-Identifier: Apache-2.0
"""What a cluster must allow and say: connections, modes, rights, addresses, storage."""

import json
from pathlib import Path

import pytest
import yaml
from doubles import ApiServer, KServe
from kubernetes_bench import MODES, NAMESPACE, REAL, SERVICE, bench, write_package

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import kubernetes_failures as failures
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.connection import connection_to
from kfloop.components.deployment.kubernetes_api import connect_cluster
from kfloop.components.deployment.kubernetes_backend import KubernetesBackend
from kfloop.components.deployment.kubernetes_mode import require_storage
from kfloop.components.deployment.local_backend import LocalBackend
from kfloop.components.deployment.rollout import deploy_model
from kfloop.components.deployment.service import describe_service

pytestmark = pytest.mark.skipif(bool(REAL), reason="these need a double that can be spoiled")
MANIFESTS = Path(__file__).parents[2] / "serving" / "manifests"


def rules(*names: str) -> list[dict[str, list[str]]]:
    """The rules of Roles in role.yaml."""
    documents = yaml.safe_load_all((MANIFESTS / "rbac" / "role.yaml").read_text())
    return [
        rule
        for document in documents
        if document["kind"] == "Role" and document["metadata"]["name"] in names
        for rule in document["rules"]
    ]


def test_the_laptop_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFLOOP_STATE", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert isinstance(connect(), LocalBackend)


def test_without_anything_to_deploy_to_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"nothing to deploy to .* set KUBECONFIG"):
        connect()


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with bench("Standard", tmp_path) as cluster:
        cluster.api.kubeconfig(tmp_path / "kubeconfig", NAMESPACE)
        document = json.loads((tmp_path / "kubeconfig").read_text())
        document["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
        (tmp_path / "kubeconfig").write_text(json.dumps(document))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kfloop.components.deployment.kubernetes_api.RETRIES", 1)
            with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 does not answer"):
                connect().get(SERVICE)


def test_a_cluster_without_kserve_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path / "models" / "1", 1)
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    monkeypatch.setenv("KFLOOP_PVC_ROOT", str(tmp_path))
    with ApiServer(namespaces=[NAMESPACE]) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "config", NAMESPACE)))
        api.unregister("inferenceservices.serving.kserve.io")
        for kind in ("services", "revisions"):
            api.unregister(f"{kind}.serving.knative.dev")
        assert connect().names() == []
        with pytest.raises(InputError, match=r"does not know inferenceservices.*install KServe"):
            deploy_model("pvc://models/1", SERVICE, tmp_path / "record")


def test_a_namespace_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path / "models" / "1", 1)
    monkeypatch.delenv("KFLOOP_STATE", raising=False)
    monkeypatch.setenv("KFLOOP_PVC_ROOT", str(tmp_path))
    with ApiServer(namespaces=[NAMESPACE]) as api, KServe(api):
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "config", "elsewhere")))
        with pytest.raises(InputError, match="There is no namespace 'elsewhere'"):
            deploy_model("pvc://models/1", SERVICE, tmp_path / "record")


def test_the_role_holds_exactly_what_is_done(tmp_path: Path) -> None:
    granted = rules("kfloop-deployment", "kfloop-deployment-outside")
    used = set()
    for mode in MODES:
        work = tmp_path / mode
        work.mkdir()
        with bench(mode, work) as cluster:
            reader = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}
            cluster.api.allow("secret", "pipeline-runner", [*granted, reader])
            cluster.api.kubeconfig(work / "kubeconfig", NAMESPACE, "secret")
            cluster.deploy(1)
            cluster.deploy(2, 20)
            with pytest.raises(InputError, match=r"There is no service 'other'"):
                describe_service("other")
            cluster.promote(2)
            cluster.roll_back()
            with ServiceClient(connect().status(SERVICE).predictors["v1"].url, SERVICE) as client:
                assert client.state().ok
            cluster.kserve.fail(cluster.model(3), "unschedulable")
            with pytest.raises(InputError, match=r"fits on no node"):
                cluster.deploy(3, 20)
            connect().delete(SERVICE)
            assert {request.code for request in cluster.api.requests if request.user} & {
                401,
                403,
            } == set()
            used |= {
                (f"{one.resource}/{one.subresource}".rstrip("/"), one.verb)
                for one in cluster.api.requests
                if one.user and one.resource != "configmaps" and one.resource
            }
    allowed = {
        (resource, verb)
        for rule in granted
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used == allowed


def test_an_account_without_rights_is_told_which_role_it_needs(tmp_path: Path) -> None:
    with bench("Standard", tmp_path) as cluster:
        few = [
            rule for rule in rules("kfloop-deployment") if "deployments" not in rule["resources"]
        ]
        cluster.api.allow("secret", "pipeline-runner", few)
        cluster.api.kubeconfig(tmp_path / "kubeconfig", NAMESPACE, "secret")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KFLOOP_KSERVE_MODE", "Standard")
            with pytest.raises(InputError, match=r"deployments.*give it the Role of serving/mani"):
                cluster.deploy(1)


@pytest.mark.parametrize(
    ("spelled", "mode"),
    [("RawDeployment", "Standard"), ("Serverless", "Knative"), ("Knative", "Knative")],
)
def test_the_mode_is_the_clusters_default(tmp_path: Path, spelled: str, mode: str) -> None:
    with bench("Standard", tmp_path) as cluster:
        cluster.kserve.config("deploy", {"defaultDeploymentMode": spelled})
        assert connect().mode == mode
        cluster.deploy(1)
        stored = cluster.api.get("inferenceservices", SERVICE, NAMESPACE)
        assert stored["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == mode
        assert ("name" in stored["spec"]["predictor"]) == (mode == "Standard")
        # A service keeps its mode, whatever new ones get.
        cluster.kserve.config("deploy", {"defaultDeploymentMode": "Standard"})
        assert cluster.deploy(2, 10) == "canary"
        cluster.promote(2)
        assert cluster.live == "2"


def test_the_mode_of_a_cluster_that_does_not_tell(tmp_path: Path) -> None:
    with bench("Knative", tmp_path) as cluster, pytest.MonkeyPatch.context() as patch:
        cluster.api.allow("secret", "somebody", rules("kfloop-deployment"))
        cluster.api.kubeconfig(tmp_path / "kubeconfig", NAMESPACE, "secret")
        with pytest.raises(InputError, match=r"may not read .*; set KFLOOP_KSERVE_MODE"):
            _ = connect().mode
        patch.setenv("KFLOOP_KSERVE_MODE", "Serverless")
        assert connect().mode == "Knative"
        patch.setenv("KFLOOP_KSERVE_MODE", "Vanilla")
        with pytest.raises(InputError, match=r"KFLOOP_KSERVE_MODE asks for .*'Vanilla'"):
            _ = connect().mode
        patch.delenv("KFLOOP_KSERVE_MODE")
        for kind in ("services", "revisions"):
            cluster.api.unregister(f"{kind}.serving.knative.dev")
        assert connect().mode == "Standard"


def test_where_traffic_cannot_be_split_a_candidate_is_judged_by_its_own_address(
    tmp_path: Path,
) -> None:
    with bench("Standard", tmp_path, gateway_api=False) as cluster:
        cluster.deploy(1)
        assert not connect().splits_traffic(SERVICE)
        with pytest.raises(InputError, match=r"splits no traffic .* with traffic_percent 0"):
            cluster.deploy(2, 10)
        assert cluster.live == "1"
        assert cluster.deploy(2) == "canary"
        assert cluster.smoke_test(2) == "pass"
        assert cluster.answering() == {"1": 40}
        cluster.promote(2)
        assert cluster.answering() == {"2": 40}
        assert cluster.roll_back() == cluster.model(1)


@pytest.mark.parametrize("mode", MODES)
def test_names_that_do_not_resolve_are_reached_through_the_ingress(
    tmp_path: Path, mode: str
) -> None:
    with bench(mode, tmp_path, urls="host") as cluster, pytest.MonkeyPatch.context() as patch:
        cluster.deploy(1)
        assert "example.com" in describe_service(SERVICE).url
        patch.setenv("KFLOOP_INGRESS_URL", cluster.kserve.gateway_url)
        assert cluster.answering() == {"1": 40}


def test_only_what_needs_it_goes_through_the_ingress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFLOOP_INGRESS_URL", "https://ingress.example.com:8443/")
    public = connection_to("http://flights-ml.models.example.com/serving")
    assert public.base_url == "https://ingress.example.com:8443/serving"
    assert public.headers == {"Host": "flights-ml.models.example.com"}
    for own in (
        "http://flights-v2-predictor.ml.svc",
        "http://latest-flights-predictor.ml.svc.cluster.local",
        "http://127.0.0.1:8080",
        "http://localhost:8080",
    ):
        assert connection_to(own).base_url == own
        assert not connection_to(own).headers


@pytest.mark.parametrize(
    ("mode", "live", "candidate", "public"),
    [
        (
            "Standard",
            "http://flights-v1-predictor.ml.svc",
            "http://flights-v2-predictor.ml.svc",
            "example.com",
        ),
        (
            "Knative",
            "http://prev-flights-predictor.ml.svc.cluster.local",
            "http://latest-flights-predictor.ml.svc.cluster.local",
            "flights-predictor.ml.svc.cluster.local",
        ),
    ],
)
def test_in_the_cluster_versions_are_asked_by_their_own_names(
    tmp_path: Path, mode: str, live: str, candidate: str, public: str
) -> None:
    with bench(mode, tmp_path, urls="host") as cluster:
        cluster.deploy(1)
        cluster.deploy(2, 20)
        connected = connect_cluster()
        connected.inside = True  # as in a pod, where these names resolve
        status = KubernetesBackend(connected).status(SERVICE)
        assert status.predictors["v1"].url == live
        assert status.predictors["v2"].url == candidate
        assert public in status.url
        assert status.pending == ""
        if mode == "Standard":
            # A headless Service has no port of its own.
            cluster.kserve.paused = True
            spec = {"spec": {"clusterIP": "None"}}
            cluster.api.patch("services", "flights-v2-predictor", NAMESPACE, spec)
            status = KubernetesBackend(connected).status(SERVICE)
            assert status.predictors["v2"].url == f"{candidate}:8080"


def test_a_stopped_service_is_not_waited_for(tmp_path: Path) -> None:
    with bench("Standard", tmp_path) as cluster:
        cluster.deploy(1)
        stop = {"metadata": {"annotations": {"serving.kserve.io/stop": "true"}}}
        cluster.api.patch("inferenceservices", SERVICE, NAMESPACE, stop)
        with pytest.raises(InputError, match=r"is stopped; remove its annotation"):
            describe_service(SERVICE)


def test_another_runtime_is_proved_by_its_own_address(tmp_path: Path) -> None:
    with bench("Standard", tmp_path) as cluster:
        runtime = {"runtime": "tensorflow", "runtime_version": "2.19.1"}
        cluster.api.create(_runtime("tensorflow"))
        for version in (1, 2):
            cluster.model(version)
            cluster.kserve.models[cluster.model(version)].version = ""
        assert cluster.deploy(1, predictor=runtime) == "live"
        assert cluster.deploy(2, 20, predictor=runtime) == "canary"
        cluster.promote(2)
        assert cluster.live == "2"


def _runtime(name: str) -> dict:
    found = yaml.safe_load((MANIFESTS / "runtimes" / f"{name}.yaml").read_text())
    found["metadata"]["namespace"] = NAMESPACE
    return found


@pytest.mark.parametrize(
    "uri", ["gs://b/m/1", "s3://b/m/1", "pvc://c/m/1", "oci://r/m:1", "hf://m"]
)
def test_what_the_storage_initializer_reads_is_taken(uri: str) -> None:
    assert require_storage(uri) == uri


@pytest.mark.parametrize("uri", ["/models/flights/1", "file:///models/flights/1", "ftp://host/m"])
def test_what_it_cannot_read_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"which a cluster cannot read|KServe reads"):
        require_storage(uri)


def test_reasons_are_one_line_and_say_what_matters() -> None:
    traceback = "Traceback (most recent call last):\n  File x\nInputError: it has no model.json."
    waiting = {
        "name": "kserve-container",
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": traceback}},
    }
    pod = {"metadata": {"name": "flights-1"}, "status": {"containerStatuses": [waiting]}}
    text, patience = failures.problem_of_pods([pod])
    assert text.startswith("flights-1: the container kserve-container is in CrashLoopBackOff")
    assert "OOMKilled" in text
    assert text.endswith("InputError: it has no model.json.")
    assert "\n" not in text
    assert patience == failures.SETTLED_SECONDS

    unscheduled = {
        "metadata": {"name": "flights-2"},
        "status": {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                }
            ]
        },
    }
    assert "nvidia.com/gpu" in failures.problem_of_pods([unscheduled]).text
    # A node is on its way: that is no failure.
    assert failures.problem_of_pods([unscheduled], scaling_up=True) == failures.NONE

    late = {
        "status": {
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "ProgressDeadlineExceeded"}
            ]
        }
    }
    assert failures.problem_of_revision(late).text.startswith("ProgressDeadlineExceeded")
