# SPDX-License-Identifier: Apache-2.0
"""`kfloop doctor` against doubles of the KFP API and of a cluster with KServe."""

import base64
import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from doubles import ApiServer, KServe, Resource
from doubles.kfp_api import KfpApi

from kfloop.scripts.doctor import doctor

MANIFESTS = Path(__file__).parents[2] / "serving" / "manifests"
BIKES = """\
name: bikes
task: regression
sources: {trips: {uri: "gs://${BUCKET}/trips.csv"}}
examples: {query: SELECT * FROM trips, label: minutes, timestamp: at}
serving:
  model_repository: gs://bikes/models
  inference_log: http://kfloop-payload-logger.ml
  canary: {source: metrics}
monitoring: {inference_log: "gs://bikes/log"}
resources: {train_model: {gpu: 2}}
secrets: {BUCKET: {secret: bikes, key: bucket}}
"""


def manifest(api: ApiServer, file: str, namespace: str = "ml") -> None:
    """Creates what a file of the manifests holds."""
    for one in yaml.safe_load_all((MANIFESTS / file).read_text()):
        one["metadata"].setdefault("namespace", namespace)
        for subject in one.get("subjects", []):
            if subject["kind"] == "ServiceAccount":
                subject["namespace"] = namespace
        api.create(one)


def core(kind: str, name: str, **content: object) -> dict:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "ml", **content.pop("metadata", {})},
        **content,
    }


GATEWAY = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "kserve-ingress-gateway", "namespace": "kserve"},
}


def programmed(api: ApiServer, status: str) -> None:
    condition = {"type": "Programmed", "status": status, "message": "why"}
    api.set_status("gateways", "kserve-ingress-gateway", "kserve", {"conditions": [condition]})


def controller(api: ApiServer, tag: str) -> None:
    """KServe's own Deployment, as its manifests make it."""
    container = {"name": "manager", "image": f"kserve/kserve-controller:{tag}"}
    labels = {"control-plane": "kserve-controller-manager"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    api.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "kserve-controller-manager", "namespace": "kserve"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
    )


def gpus(api: ApiServer, count: int) -> None:
    api.set_status("nodes", "gpu", "", {"allocatable": {"nvidia.com/gpu": str(count)}})


@pytest.fixture
def kfp():
    with KfpApi() as kfp:
        yield kfp


@pytest.fixture
def api(tmp_path, monkeypatch):
    """A cluster that lacks nothing."""
    with (
        ApiServer(namespaces=["ml"]) as api,
        KServe(api, mode="Standard", gateway_api=True) as kserve,
    ):
        kserve.config("ingress", {"disableIstioVirtualHost": True})
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig", "ml")))
        api.register(Resource("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"))
        identity = {"iam.gke.io/gcp-service-account": "ml@bikes.iam.gserviceaccount.com"}
        for name in ("pipeline-runner", "default"):
            api.create(core("ServiceAccount", name, metadata={"annotations": identity}))
        api.create(GATEWAY)
        programmed(api, "True")
        for file in ("rbac/role.yaml", "runtimes/kfloop.yaml", "monitoring/rules.yaml"):
            manifest(api, file)
        secret = {"bucket": base64.b64encode(b"bikes").decode()}
        api.create(core("Secret", "bikes", data=secret))
        api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu"}})
        gpus(api, 4)
        yield api


@pytest.fixture
def told(kfp, tmp_path):
    """Runs the doctor and returns its lines, and whether something is to be fixed."""

    def told(text: str = BIKES, *arguments: str) -> tuple[list[str], bool]:
        loop = tmp_path / "loop.yaml"
        loop.write_text(text)
        done = CliRunner().invoke(doctor, ["--host", kfp.url, "-c", str(loop), *arguments])
        assert isinstance(done.exception, SystemExit | None), done.exception
        return done.output.splitlines(), done.exit_code == 1

    return told


def only(lines: list[str], state: str) -> str:
    """Returns the one line of a state."""
    (line,) = [line for line in lines if line.startswith(state)]
    return line


def test_a_cluster_that_lacks_nothing_is_all_ok(api, told):
    lines, broken = told()
    text = "\n".join(lines)
    assert {line.split()[0] for line in lines} == {"ok"}, text
    assert not broken
    for check in (
        "KFP API: 2.17.0",
        "KServe mode: Standard with the Gateway API",
        "role: pipeline-runner",
        "storage: gs://bikes/models",
        "inference log: http://kfloop-payload-logger.ml",
        "secret: BUCKET",
        "GPU nodes: a node has 4",
    ):
        assert check in text


def remove(resource: str, name: str, namespace: str = "ml"):
    return lambda api, kfp: api.delete(resource, name, namespace)


def patch(resource: str, name: str, change: dict, namespace: str = "ml"):
    return lambda api, kfp: api.patch(resource, name, namespace, change)


def ingress(**values: object):
    def change(api, kfp):
        config = api.get("configmaps", "inferenceservice-config", "kserve")
        document = json.loads(config["data"]["ingress"]) | values
        api.patch("configmaps", "inferenceservice-config", "kserve",
                  {"data": {"ingress": json.dumps(document)}})  # fmt: skip

    return change


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda api, kfp: setattr(kfp, "token", "x"), "KFP API: .*KFLOOP_KFP_TOKEN"),
        (lambda api, kfp: setattr(kfp, "tag", "2.4.1"), "KFP version: 2.4.1 ignores"),
        (lambda api, kfp: setattr(kfp, "multi_user", True), "KFP namespace: .*--namespace"),
        (lambda api, kfp: kfp.fault(403, path="/runs"), "KFP API: .*you are not allowed to"),
        (ingress(enableGatewayApi=False), "KServe mode: .*set enableGatewayApi: true"),
        (ingress(kserveIngressGateway="a/b"), "Gateway: .*names a/b, which is not there"),
        (lambda api, kfp: programmed(api, "False"), "Gateway: .*is not programmed: why"),
        (lambda api, kfp: controller(api, "v0.20.1"), "KServe mode: KServe 0.20 gives a canary no"),
        (lambda api, kfp: api.faults.storm(1.0, [500], verb="create", resource="inferenceservices"),
         "KServe: it takes no InferenceService; does its controller run"),
        (remove("servingruntimes", "kfloop"), "ServingRuntime: .*apply -n ml -k .*runtimes"),
        (remove("rolebindings", "kfloop-deployment"), "role: pipeline-runner has not the Role"),
        (remove("prometheusrules", "kfloop"), "Prometheus: .*manifests/monitoring"),
        (remove("secrets", "bikes"), "secret: BUCKET: .*create secret generic bikes --from-lit"),
        (patch("secrets", "bikes", {"data": {"bucket": None}}), "secret: BUCKET: .*has no key bu"),
        (lambda api, kfp: gpus(api, 1),
         "GPU nodes: .*asks for 2 of nvidia.com/gpu and no node has more than 1"),
    ],
)  # fmt: skip
def test_each_thing_that_is_missing_is_one_line_with_its_remedy(api, kfp, told, harm, line):
    harm(api, kfp)
    lines, broken = told()
    assert broken
    assert re.match(f"fix  {line}", only(lines, "fix")), "\n".join(lines)


def test_events_that_will_be_dropped_are_noted(api, kfp, told):
    ingress(disableIstioVirtualHost=False)(api, kfp)
    lines, broken = told()
    assert not broken and "set disableIstioVirtualHost: true" in only(lines, "note")


def test_a_log_that_kserve_does_not_write_is_noted(api, told):
    lines, broken = told(BIKES.replace("http://kfloop-payload-logger.ml", "/log/ml/bikes"))
    assert not broken and "KServe writes nothing to /log/ml/bikes" in only(lines, "note")
    lines, _ = told(BIKES.replace("  inference_log: http://kfloop-payload-logger.ml\n", ""))
    assert "serving.inference_log names no payload logger" in only(lines, "note")


def test_no_kserve_is_told_once(api, told):
    api.unregister("inferenceservices.serving.kserve.io")
    lines, broken = told()
    assert broken and "fix  KServe: there are no InferenceServices" in "\n".join(lines)
    assert not any("KServe mode" in line for line in lines)


def test_no_account_of_the_pipelines_is_told(api, told):
    api.delete("serviceaccounts", "pipeline-runner", "ml")
    lines, broken = told()
    assert broken and "no kfloop-pipeline or pipeline-runner or default" in only(lines, "fix")
    lines, _ = told(BIKES, "--service-account", "default")
    assert "fix  role: default has not the Role kfloop-deployment" in "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BIKES.replace("BUCKET: {secret", "OTHER: {secret"), "${BUCKET} is used, but neither"),
        (BIKES.replace("gs://bikes/models", "models"), "'models' is a path of this machine"),
        (f"{BIKES}volumes: {{state: {{path: /state}}}}", "no PersistentVolumeClaim state for /st"),
        (BIKES.replace("task: regression", "task: ranking"), "line 2: task: "),
    ],
)
def test_what_is_wrong_with_the_loop_is_told(api, told, text, line):
    lines, broken = told(text)
    assert broken and line in only(lines, "fix")


def test_a_volume_is_storage_too(api, told):
    text = BIKES.replace("gs://bikes/models", "pvc://models/a")
    api.create(core("PersistentVolumeClaim", "models"))
    api.set_status("persistentvolumeclaims", "models", "ml", {"phase": "Bound"})
    lines, _ = told(text)
    assert "the tasks need models too; add it to `volumes`" in only(lines, "fix")
    mounted = f"{text}volumes: {{models: {{path: /models}}}}\n"
    lines, broken = told(mounted)
    assert not broken and "ok   storage: /models on the claim models (Bound)" in lines
    api.set_status("persistentvolumeclaims", "models", "ml", {"phase": "Lost"})
    lines, _ = told(mounted)
    assert "the claim models is lost" in only(lines, "fix")


def test_sources_at_s3_need_credentials(api, told):
    text = BIKES.replace("gs://${BUCKET}", "s3://trips")
    (line,) = [line for line in told(text)[0] if "s3:// access" in line]
    assert line.startswith("note") and "pipeline-runner no annotation eks.amazonaws.com" in line
    half = f"{text}  AWS_ACCESS_KEY_ID: {{secret: bikes, key: bucket}}\n"
    half = half.replace("secrets: {BUCKET: {secret: bikes, key: bucket}}", "secrets:")
    lines, broken = told(half)
    assert broken and "has AWS_ACCESS_KEY_ID but not AWS_SECRET_ACCESS_KEY" in only(lines, "fix")
    whole = f"{half}  AWS_SECRET_ACCESS_KEY: {{secret: bikes, key: bucket}}\n"
    lines, broken = told(whole)
    assert not broken and {line.split()[0] for line in lines} == {"ok"}
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/trips"}
    api.patch("serviceaccounts", "pipeline-runner", "ml", {"metadata": {"annotations": role}})
    assert "ok   s3:// access: pipeline-runner is arn:aws:iam::1:role/trips" in told(text)[0]


def test_what_an_account_may_not_look_at_is_a_note_and_no_fault(api, told, tmp_path, monkeypatch):
    readable = ["gateways", "servingruntimes", "serviceaccounts", "rolebindings"]
    readable += ["prometheusrules", "inferenceservices", "configmaps"]
    rule = {"apiGroups": ["*"], "resources": readable, "verbs": ["get", "list"]}
    api.allow("secret", "reader", [rule])
    config = api.kubeconfig(tmp_path / "reader", "ml", token="secret")
    monkeypatch.setenv("KUBECONFIG", str(config))
    lines, broken = told()
    assert not broken, "\n".join(lines)
    text = "\n".join(lines)
    assert "note secret: this account may not look" in text
    assert "note GPU nodes: this account may not look" in text
    assert "note your rights: you may not create inferenceservices" in text


def test_knative_needs_no_gateway_of_ours(api, told):
    api.patch("configmaps", "inferenceservice-config", "kserve",
              {"data": {"deploy": '{"defaultDeploymentMode": "Knative"}'}})  # fmt: skip
    api.delete("gateways", "kserve-ingress-gateway", "kserve")
    lines, broken = told()
    assert not broken and "ok   KServe mode: Knative; canaries split the traffic" in lines


def test_no_cluster_is_told_and_nothing_below_it(kfp, told, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    lines, broken = told()
    assert broken and lines[-1].startswith("fix  Kubernetes: ")


def test_without_any_address_the_kfp_api_is_one_line_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    # kfp's client looked at the variable when it was imported.
    default = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(default, str(tmp_path / "absent"))
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    lines = CliRunner().invoke(doctor, []).output.splitlines()
    assert all(line.startswith(("ok   ", "fix  ", "note ")) for line in lines), lines
    (told,) = [line for line in lines if line.startswith("fix  KFP API: ")]
    assert told.endswith("by --host or KF_PIPELINES_ENDPOINT, or a kubeconfig by KUBECONFIG.")
