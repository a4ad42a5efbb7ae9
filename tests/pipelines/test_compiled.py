"""The committed YAML is what the pipelines compile to."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kfloop.pipelines.catalogue import COMPILED, PIPELINES, compile_pipelines, compiled_path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compiled")
    return {path.name: path for path in compile_pipelines(directory)}


def test_every_pipeline_is_committed(compiled):
    assert {path.name for path in COMPILED.glob("*.yaml")} == set(compiled)


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_committed_yaml_is_not_stale(compiled, pipeline):
    path = compiled_path(pipeline)
    fresh = compiled[path.name].read_text()
    assert path.read_text() == fresh, f"{path.name} is stale; refresh it with `make compile`"


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_nothing_is_installed_at_run_time(pipeline):
    text = compiled_path(pipeline).read_text()
    assert "pip install" not in text
    assert ":latest" not in text
    assert text.isascii()


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_every_step_that_changes_the_world_always_runs(pipeline):
    spec = yaml.safe_load(compiled_path(pipeline).read_text())
    effects = ("deploy", "publish", "promote", "roll-back", "register", "smoke", "analyse")
    effects += ("ingest", "describe", "collect", "plan", "decide", "replay-requests", "export-data")
    effects += ("update-champion", "roll-out-model", "export-metrics", "notify", "detect-drift")
    dags = [c["dag"] for c in [spec["root"], *spec["components"].values()] if "dag" in c]
    for name, task in ((name, task) for dag in dags for name, task in dag["tasks"].items()):
        if name.startswith(effects) and "cachingOptions" in task:
            assert not task["cachingOptions"].get("enableCache"), name


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
