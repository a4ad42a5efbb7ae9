# SPDX-License-Identifier: Apache-2.0
"""The committed YAML is what the pipelines compile to, and what a cluster can run as it stands."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from kfloop.components import FAMILIES
from kfloop.components.contracts.environment import holds_password
from kfloop.components.images import image
from kfloop.pipelines.catalogue import COMPILED, PIPELINES, compile_pipelines, compiled_path
from kfloop.pipelines.local.pipeline_spec import load_documents
from kfloop.pipelines.resources import RESOURCES, executor_functions
from kfloop.pipelines.schedules import differences

SECRET = re.compile(r"(?i)\b(password|secret|token|api_?key|access_?key)\b\s*[:=]\s*['\"]?\w")


@cache
def documents(pipeline: str) -> tuple[dict, dict]:
    """Returns a committed pipeline and its platform settings."""
    spec, platform = load_documents(compiled_path(pipeline))
    return spec, platform


def tasks(pipeline: str) -> list[tuple[str, dict, str]]:
    """Returns name, task and executor label of every task that runs a container."""
    spec, _ = documents(pipeline)
    components = spec["components"]
    found = []
    for component in [spec["root"], *components.values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            label = components[task["componentRef"]["name"]].get("executorLabel", "")
            if "container" in spec["deploymentSpec"]["executors"].get(label, {}):
                found.append((name, task, label))
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compiled")
    return {path.name: path for path in compile_pipelines(directory)}


def test_every_pipeline_is_committed(compiled):
    assert {path.name for path in COMPILED.glob("*.yaml")} == set(compiled)


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_committed_yaml_is_not_stale(compiled, pipeline):
    path = compiled_path(pipeline)
    if path.read_text() == compiled[path.name].read_text():
        return
    fresh = load_documents(compiled[path.name])
    told = [line for old, new in zip(documents(pipeline), fresh, strict=True)
            for line in differences(old, new)]  # fmt: skip
    pytest.fail("\n".join([f"{path.name} is stale; refresh it with `make compile`", *told]))


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_nothing_is_installed_at_run_time_and_no_secret_is_written_down(pipeline):
    text = compiled_path(pipeline).read_text()
    assert "pip install" not in text
    assert ":latest" not in text
    assert text.isascii()
    assert not SECRET.search(text)
    assert not any(holds_password(word) for word in text.split() if "://" in word)


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_every_container_runs_the_image_of_its_family(pipeline):
    spec, _ = documents(pipeline)
    family_of = {name: family for family, names in FAMILIES.items() for name in names}
    for label, function in executor_functions(spec).items():
        container = spec["deploymentSpec"]["executors"][label]["container"]
        assert container["image"] == image(family_of[function])
        told = {one["name"]: one["value"] for one in container.get("env", [])}
        assert told.get("KFLOOP_IMAGE", container["image"]) == container["image"]
        assert ("KFLOOP_IMAGE" in told) == (family_of[function] == "training")


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_every_task_has_the_resources_of_the_table(pipeline):
    spec, platform = documents(pipeline)
    functions = executor_functions(spec)
    limits = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert tasks(pipeline)
    for name, task, label in tasks(pipeline):
        wanted = RESOURCES[functions[label]]
        given = spec["deploymentSpec"]["executors"][label]["container"]["resources"]
        assert given["resourceCpuRequest"] == wanted.cpu, name
        assert given["resourceCpuLimit"] == wanted.cpu_limit, name
        assert given["resourceMemoryRequest"] == given["resourceMemoryLimit"] == wanted.memory
        retries = task.get("retryPolicy", {"maxRetryCount": 0})
        assert retries["maxRetryCount"] == wanted.retries, name
        assert wanted.retries == 0 or retries["backoffFactor"] > 1
        seconds = int(limits.get(label, {}).get("activeDeadlineSeconds", 0))
        assert seconds == wanted.timeout_minutes * 60, name


# What acts on the world, or asks it: a result of yesterday would be a lie. The rest may be reused.
NEVER_CACHED = (
    *("deploy", "publish", "promote", "roll", "register", "update_champion", "smoke", "shift"),
    *("analyse", "find_champion", "describe", "replay", "ingest", "export_data", "materialize"),
    *("collect", "plan_windows", "detect_drift", "decide", "export_metrics", "notify", "push"),
    *("retrieve_online", "submit_train_job", "tune_with_katib"),
)


def test_the_table_names_every_component_and_caches_none_that_acts():
    assert set(RESOURCES) == {name for names in FAMILIES.values() for name in names}
    for name, wanted in RESOURCES.items():
        assert wanted.cache != name.startswith(NEVER_CACHED), name


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_a_task_is_cached_exactly_when_the_table_says_so(pipeline):
    functions = executor_functions(documents(pipeline)[0])
    for name, task, label in tasks(pipeline):
        cached = task.get("cachingOptions", {}).get("enableCache", False)
        assert cached == RESOURCES[functions[label]].cache, name


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_names_and_sizes_are_within_kubeflows_limits(pipeline):
    spec, _ = documents(pipeline)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", spec["pipelineInfo"]["name"])
    for name, _, _ in tasks(pipeline):
        # They become parts of pod names and label values.
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 50
    # Argo's workflow holds the spec, and etcd takes 1.5 MiB for an object.
    assert compiled_path(pipeline).stat().st_size < 1_000_000


def test_importing_one_component_loads_no_other_family():
    code = (
        "import sys\n"
        "from kfloop.components import ingest_data\n"
        "print([m for m in sys.modules if m.startswith('kfloop.components.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kfloop.components.data.component" in done.stdout
    assert "training" not in done.stdout


def test_nothing_about_the_sample_is_in_components_or_pipelines():
    root = Path(COMPILED).parent.parent
    for folder in ("components", "pipelines", "serving"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text().lower()
            assert not any(word in text for word in ("tailnum", "arr_delay", "nycflights")), path
