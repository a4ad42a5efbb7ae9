# SPDX-License-Identifier: Apache-2.0
"""docs/gitops.md, followed to the letter: its files and commands make what Argo CD applies."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from doubles import ApiServer, KServe, Resource
from doubles.kfp_api import KfpApi

from kfloop.pipelines.catalogue import PIPELINES
from kfloop.scripts.schedule import schedule

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gitops.md").read_text()
REGISTRY = "registry.example.com/kfloop"
# What a cluster takes as annotations of one object.
MOST_ANNOTATIONS = 256 * 1024
KINDS = (
    Resource("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
    Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Resource("pipelines.kubeflow.org", "v2beta1", "pipelines", "Pipeline"),
    Resource("pipelines.kubeflow.org", "v2beta1", "pipelineversions", "PipelineVersion"),
)

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl here")


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """The page's folder, made by its own files and commands."""
    place = tmp_path_factory.mktemp("repository")
    for path, text in re.findall(r"^```yaml\n# (kfloop/\S+)\n(.*?)^```", PAGE, re.M | re.S):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    (commands,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S)
    # The last one only shows what is built, which is the next fixture.
    lines = [line.removeprefix("$ ") for line in commands.splitlines()][:-1]
    script = "set -e\n" + "\n".join(lines).replace("CHECKOUT", str(ROOT))
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", "-c", script], cwd=place, env={**os.environ, "PATH": search}, check=True
    )
    return place


@pytest.fixture(scope="module")
def built(repository) -> Path:
    done = subprocess.run(
        ["kubectl", "kustomize", "kfloop"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    path = repository / "built.yaml"
    path.write_text(done.stdout)
    return path


@pytest.fixture(scope="module")
def objects(built) -> list[dict]:
    return list(yaml.load_all(built.read_text(), yaml.CSafeLoader))


def images(value: Any) -> Iterator[str]:
    """Yields what every `image` below a value is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "image" and isinstance(inner, str):
                yield inner
            yield from images(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from images(inner)


def test_the_overlay_is_whole_in_one_namespace_and_names_one_registry(objects, repository):
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))
    count = {kind: [each for each, _ in names].count(kind) for kind, _ in names}
    assert count["Pipeline"] == count["PipelineVersion"] == len(PIPELINES)
    assert set(count) - {"Pipeline", "PipelineVersion"} == {
        *("ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ServingRuntime", "ConfigMap"),
        *("Deployment", "Service", "PersistentVolumeClaim", "Job", "PrometheusRule"),
        "PodMonitor",
    }
    assert {one["metadata"]["namespace"] for one in objects} == {"ml"}
    ours = [image for one in objects for image in images(one) if "kfloop" in image]
    assert len(ours) > 3 and all(image.startswith(f"{REGISTRY}/") for image in ours)
    overlay = yaml.safe_load((repository / "kfloop" / "kustomization.yaml").read_text())
    folders = (ROOT / "serving" / "manifests").glob("*/kustomization.yaml")
    assert {f"manifests/{path.parent.name}" for path in folders} <= set(overlay["resources"])


def test_what_the_loop_file_mounts_is_claimed(objects, repository):
    loop = yaml.safe_load((repository / "kfloop" / "schedules" / "loop.yaml").read_text())
    claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
    assert set(loop["volumes"]) == claims
    assert loop["serving"]["namespace"] == "ml"
    accounts = {one["metadata"]["name"] for one in objects if one["kind"] == "ServiceAccount"}
    assert loop["serving"]["service_account"] in accounts


def test_a_cluster_takes_it_all_and_takes_it_again(built, objects, tmp_path):
    with ApiServer(namespaces=["ml"]) as api, KServe(api, mode="Standard"):
        for kind in KINDS:
            api.register(kind)
        config = f"--kubeconfig={api.kubeconfig(tmp_path / 'kubeconfig', 'ml')}"
        command = ["kubectl", config, "apply", "--validate=false", "-f", str(built)]
        first, again = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for _ in range(2)
        )
    assert first.count(" created") == len(objects)
    assert again.count(" unchanged") == len(objects)


def test_what_is_too_long_for_an_annotation_is_applied_by_the_server(objects):
    for one in objects:
        options = one["metadata"].get("annotations", {}).get("argocd.argoproj.io/sync-options", "")
        if len(yaml.dump(one, Dumper=yaml.CSafeDumper)) > MOST_ANNOTATIONS / 2:
            assert "ServerSideApply=true" in options, one["metadata"]["name"]
        if one["kind"] in ("PersistentVolumeClaim", "PipelineVersion"):
            assert "Prune=false" in options, one["metadata"]["name"]


def test_the_job_applies_the_schedules_from_a_mounted_config_map(objects, tmp_path, monkeypatch):
    (job,) = [one for one in objects if one["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = next(one["configMap"]["name"] for one in pod["volumes"] if one["name"] == "schedules")
    (files,) = [one["data"] for one in objects if one["metadata"]["name"] == name]
    # As the kubelet mounts one: links to a folder that is replaced as a whole.
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..data").symlink_to("..2026")
    for file, text in files.items():
        (tmp_path / "..2026" / file).write_text(text)
        (tmp_path / file).symlink_to(f"..data/{file}")
    (tmp_path / "token").write_text("of the pod")
    variables = {each["name"]: each["value"] for each in container["env"]}
    variables["KF_PIPELINES_SA_TOKEN_PATH"] = str(tmp_path / "token")
    for key in ("HOME", "KFLOOP_IMAGE_PREFIX", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.setenv(key, variables.pop(key))
    assert not variables
    with KfpApi(token="of the pod") as api:
        given = " ".join(container["args"][1:]).replace("/schedules/", f"{tmp_path}/")
        arguments = given.replace("http://ml-pipeline.kubeflow:8888", api.url).split()
        done = CliRunner().invoke(schedule, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        runs = api.recurring_runs()
    assert len(runs) == 3
    named = {image for run in runs for image in images(run["pipeline_spec"])}
    assert named and all(image.startswith(f"{REGISTRY}/") for image in named)
