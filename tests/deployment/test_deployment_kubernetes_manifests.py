# SPDX-License-Identifier: Apache-2.0
"""The manifests that a cluster is set up with, against the code that they are for."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from kfloop.components.deployment.kubernetes_mode import CONFIG_MAP
from kfloop.components.deployment.resources import TENSORFLOW
from kfloop.components.images import image

MANIFESTS = Path(__file__).parents[2] / "serving" / "manifests"
PLACEHOLDER = "{{.Name}}"


def load(path: str) -> list[dict]:
    return list(yaml.safe_load_all((MANIFESTS / path).read_text()))


@pytest.fixture(params=["kfloop", "tensorflow"])
def runtime(request: pytest.FixtureRequest) -> dict:
    return load(f"runtimes/{request.param}.yaml")[0]


def container_of(runtime: dict) -> dict:
    (container,) = runtime["spec"]["containers"]
    return container


def test_our_runtime_is_this_release_and_starts_our_server() -> None:
    (runtime,) = load("runtimes/kfloop.yaml")
    container = container_of(runtime)
    assert container["image"] == image("serving")
    assert {"v1", "v2", "grpc-v2"} <= set(runtime["spec"]["protocolVersions"])
    (supported,) = runtime["spec"]["supportedModelFormats"]
    assert (supported["name"], supported["autoSelect"]) == ("kfloop", True)


def test_the_runtimes_arguments_are_those_of_the_server(tmp_path: Path) -> None:

    python = os.environ.get("KFLOOP_SERVING_PYTHON", "")
    if not python:
        pytest.skip("KFLOOP_SERVING_PYTHON is not set: there is no model server to ask")
    container = container_of(load("runtimes/kfloop.yaml")[0])
    arguments = [
        argument.replace(PLACEHOLDER, "flights").replace("/mnt/models", str(tmp_path))
        for argument in container["args"]
    ]
    done = subprocess.run(
        [python, *container["command"][1:], *arguments], capture_output=True, text=True, check=False
    )
    assert "is not a model package" in done.stderr, done.stderr
    assert done.returncode == 2


def test_runtimes_have_few_rights_and_fixed_images(runtime: dict) -> None:
    container = container_of(runtime)
    tag = container["image"].rpartition(":")[2]
    assert tag
    assert tag != "latest"
    security = container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["readinessProbe"]["httpGet"]["port"] == 8080
    # What the server says last is what a failed deployment is told with.
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    annotations = runtime["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == "8080"
    assert annotations["prometheus.kserve.io/path"]


def test_tensorflow_serving_is_told_to_show_its_metrics() -> None:
    (runtime,) = load("runtimes/tensorflow.yaml")
    container = container_of(runtime)
    (kustomization,) = load("runtimes/kustomization.yaml")
    (generator,) = kustomization["configMapGenerator"]
    assert runtime["spec"]["supportedModelFormats"][0]["name"] == TENSORFLOW
    (volume,) = runtime["spec"]["volumes"]
    assert volume["configMap"]["name"] == generator["name"]
    (mount,) = container["volumeMounts"]
    path = next(a for a in container["args"] if "monitoring_config_file" in a).split("=")[1]
    assert path == f"{mount['mountPath']}/{generator['files'][0]}"
    config = (MANIFESTS / "runtimes" / generator["files"][0]).read_text()
    assert f'path: "{runtime["spec"]["annotations"]["prometheus.kserve.io/path"]}"' in config


@pytest.mark.parametrize("folder", ["runtimes", "rbac"])
def test_a_kustomization_names_files_that_are_there(folder: str) -> None:
    (kustomization,) = load(f"{folder}/kustomization.yaml")
    for name in kustomization["resources"]:
        assert all(document["kind"] for document in load(f"{folder}/{name}"))


def test_kserves_configuration_is_all_that_its_role_reads() -> None:
    role, binding = load("rbac/config-reader.yaml")
    (rule,) = role["rules"]
    assert (rule["resourceNames"], rule["verbs"]) == ([CONFIG_MAP], ["get"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
