# SPDX-License-Identifier: Apache-2.0
"""serving/manifests builds, names what is there, and fits Kubernetes' own models."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles import ApiServer, KServe, Resource
from kubernetes import client

from kfloop.pipelines.schedule_file import load_schedules

MANIFESTS = Path(__file__).parents[2] / "serving" / "manifests"
FOLDERS = ("accounts", "monitoring", "network", "payload-logger", "rbac", "runtimes")
# Applied by whoever administers KServe or uses Trainer or Katib, and files of other tools.
APART = {"config-reader.yaml", "training.yaml"}

REAL = os.environ.get("KFLOOP_TEST_KUBECONFIG", "")
REAL_NAMESPACE = os.environ.get("KFLOOP_TEST_NAMESPACE", "")

# The Prometheus operator's.
OPERATOR = (
    Resource("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
    Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
)


def documents(path: Path) -> list[dict]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def built(folder: Path) -> list[dict]:
    """Returns what a kustomization here is made of; it uses resources and ConfigMaps only."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions"}
    assert set(kustomization) <= known
    found = []
    for name in kustomization["resources"]:
        path = folder / name
        found += built(path) if path.is_dir() else documents(path)
    for generator in kustomization.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in generator["files"]}
        metadata = {"name": generator["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return found


ALL = [*built(MANIFESTS), *built(MANIFESTS / "monitoring")]
ALL += [one for name in sorted(APART) for one in documents(MANIFESTS / "rbac" / name)]


def test_every_file_is_applied_by_a_kustomization_or_by_hand():
    for folder in FOLDERS:
        (kustomization,) = documents(MANIFESTS / folder / "kustomization.yaml")
        there = {path.name for path in (MANIFESTS / folder).glob("*.yaml")}
        assert there - {"kustomization.yaml"} - APART == set(kustomization["resources"]), folder


def unknown_fields(value: Any, kind: str, place: str) -> list[str]:
    """Returns fields that a model of the Kubernetes client does not have."""
    listed = re.fullmatch(r"list\[(.+)\]", kind)
    mapped = re.fullmatch(r"dict\(str, (.+)\)", kind)
    if listed:
        return [told for i, one in enumerate(value)
                for told in unknown_fields(one, listed[1], f"{place}.{i}")]  # fmt: skip
    if mapped:
        return [told for key, one in value.items()
                for told in unknown_fields(one, mapped[1], f"{place}.{key}")]  # fmt: skip
    model = getattr(client, kind, None)
    if model is None or not isinstance(value, dict):
        return []
    types = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    told = [f"{place}.{key}" for key in value if key not in types]
    for key in set(value) & set(types):
        told += unknown_fields(value[key], types[key], f"{place}.{key}")
    return told


BUILT_IN = [one for one in ALL if hasattr(client, f"V1{one['kind']}")]


@pytest.mark.parametrize(
    "one", BUILT_IN, ids=lambda one: f"{one['kind']} {one['metadata']['name']}"
)
def test_what_kubernetes_knows_has_only_fields_that_it_knows(one):
    kind = f"V1{one['kind']}"
    assert not unknown_fields(one, kind, one["kind"])
    # A required field that is missing, or a wrong type, fails here.
    answer = type("Answer", (), {"data": json.dumps(one)})
    assert client.ApiClient().deserialize(answer, kind)


def test_the_check_of_fields_finds_typing_errors():
    spec = {"containers": [{"name": "a", "resource": {}}], "serviceAcountName": "a"}
    assert unknown_fields(spec, "V1PodSpec", "pod") == [
        "pod.serviceAcountName",
        "pod.containers.0.resource",
    ]


def test_everything_can_be_created_beside_each_other():
    with ApiServer(namespaces=["ml"]) as api, KServe(api, mode="Standard"):
        for kind in OPERATOR:
            api.register(kind)
        for one in ALL:
            api.create({**one, "metadata": {"namespace": "ml", **one["metadata"]}})


def test_roles_name_each_right_and_bindings_roles_and_accounts_that_are_there():
    names = {kind: {one["metadata"]["name"] for one in ALL if one["kind"] == kind}
             for kind in ("Role", "ServiceAccount")}  # fmt: skip
    foreign = {"default-editor", "pipeline-runner"}
    for one in ALL:
        if one["kind"] == "Role":
            assert "*" not in str(one["rules"]), one["metadata"]["name"]
        if one["kind"] == "RoleBinding":
            assert one["roleRef"]["name"] in names["Role"]
            for subject in one["subjects"]:
                if subject["kind"] == "ServiceAccount":
                    assert subject["name"] in names["ServiceAccount"] | foreign
    assert not any(one["kind"].startswith("ClusterRole") for one in ALL)


def test_what_prometheus_asks_is_there_to_be_asked():
    """The names by which a PodMonitor finds pods, ports and annotations are those of the pods."""
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in ALL}
    template = by_name["Deployment", "kfloop-payload-logger"]["spec"]["template"]
    logger = by_name["PodMonitor", "kfloop-payload-logger"]["spec"]
    wanted = logger["selector"]["matchLabels"]
    assert wanted.items() <= template["metadata"]["labels"].items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {each["port"] for each in logger["podMetricsEndpoints"]} <= ports

    predictors = by_name["PodMonitor", "kfloop-predictors"]["spec"]
    (endpoint,) = predictors["podMetricsEndpoints"]
    labels = {label for one in endpoint["relabelings"] for label in one["sourceLabels"]}
    for (kind, name), runtime in by_name.items():
        if kind == "ServingRuntime":
            for key in runtime["spec"]["annotations"]:
                mangled = re.sub(r"[^a-zA-Z0-9]", "_", key)
                assert f"__meta_kubernetes_pod_annotation_{mangled}" in labels, name
            assert runtime["spec"]["containers"][0]["name"] == endpoint["relabelings"][0]["regex"]


def test_no_secret_is_among_them():
    assert not any(one["kind"] == "Secret" for one in ALL)


def test_the_sample_schedules_can_be_applied():
    _, jobs = load_schedules(MANIFESTS / "schedules" / "schedules.yaml")
    assert {job.schedule.pipeline for job in jobs} == {"monitoring", "training", "batch-scoring"}
    accounts = {one["metadata"]["name"] for one in ALL if one["kind"] == "ServiceAccount"}
    assert {job.schedule.service_account for job in jobs} <= accounts
    for job in jobs:
        platform = job.documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert platform["exec-ingest-data"]["secretAsEnv"][0]["secretName"] == "warehouse"


kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl here")


@kubectl
@pytest.mark.parametrize(
    "folder", [MANIFESTS, MANIFESTS / "monitoring"], ids=lambda path: path.name
)
def test_kustomize_builds_the_same_and_a_dry_run_takes_it(folder, tmp_path):
    def run(*arguments: str) -> str:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    made = [(one["kind"], one["metadata"]["name"])
            for one in yaml.safe_load_all(run("kustomize", str(folder)))]  # fmt: skip
    assert sorted(made) == sorted((one["kind"], one["metadata"]["name"]) for one in built(folder))
    with ApiServer(namespaces=["ml"]) as api, KServe(api, mode="Standard"):
        for kind in OPERATOR:
            api.register(kind)
        config = f"--kubeconfig={api.kubeconfig(tmp_path / 'kubeconfig', 'ml')}"
        told = run(config, "apply", "--dry-run=client", "--validate=false", "-k", str(folder))
    assert told.count("created (dry run)") == len(made)


@pytest.mark.skipif(not REAL, reason="KFLOOP_TEST_KUBECONFIG is not set: there is no cluster here")
@pytest.mark.parametrize("folder", [*FOLDERS, *sorted(APART)])
def test_a_real_cluster_takes_each_manifest(folder):
    """Its own checks, those of KServe's webhooks, and of the operator's definitions."""
    path = MANIFESTS / ("rbac" if folder in APART else "") / folder
    # What names its namespace itself cannot be given another.
    place = [] if folder == "config-reader.yaml" else ["-n", REAL_NAMESPACE]
    command = ["kubectl", f"--kubeconfig={REAL}", "apply", "--dry-run=server", *place]
    command += ["-k" if path.is_dir() else "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if folder == "monitoring" and "monitoring.coreos.com" in done.stderr:
        pytest.skip("the Prometheus operator is not installed there")
    assert done.returncode == 0, done.stderr
    wanted = built(path) if path.is_dir() else documents(path)
    assert done.stdout.count("(server dry run)") == len(wanted), done.stdout
