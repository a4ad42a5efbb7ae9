# SPDX-License-Identifier: Apache-2.0
"""The payload logger's manifests, against the program that they start."""

from pathlib import Path
from typing import Any

import yaml

from kfloop.components.images import image
from kfloop.serving.payload_logger import KEY_VARIABLE, PayloadLogger, argument_parser

MANIFESTS = Path(__file__).parents[2] / "serving/manifests/payload-logger"


def load(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())
    return document


def test_the_kustomization_names_every_file_that_is_there() -> None:
    resources = load("kustomization")["resources"]
    files = {file.name for file in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(resources) == sorted(files)


def test_the_container_runs_this_release_with_arguments_it_knows() -> None:
    pod = load("deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == image("serving")
    assert container["command"] == ["python", "-m", "kfloop.serving.payload_logger"]
    options = argument_parser().parse_args(container["args"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(options.directory) in mounts
    assert "/tmp" in mounts
    assert KEY_VARIABLE in {variable["name"] for variable in container["env"]}
    (port,) = container["ports"]
    assert port["containerPort"] == options.port
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    claim = volumes["log"]["persistentVolumeClaim"]["claimName"]
    assert claim == load("volume")["metadata"]["name"]


def test_probes_ask_paths_that_the_program_answers() -> None:
    (container,) = load("deployment")["spec"]["template"]["spec"]["containers"]
    paths = {route.path for route in PayloadLogger(None).application().routes}  # type: ignore[arg-type]  # asked nothing
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths


def test_the_pod_has_few_rights() -> None:
    pod = load("deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False


def test_one_process_at_a_time_holds_the_log() -> None:
    spec = load("deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


def test_service_and_policy_select_the_pod() -> None:
    labels = load("deployment")["spec"]["template"]["metadata"]["labels"]
    selector = load("service")["spec"]["selector"]
    policy = load("network-policy")["spec"]
    assert selector.items() <= labels.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    assert set(peer) == {"podSelector"}  # of this namespace only
    assert policy["egress"] == []
