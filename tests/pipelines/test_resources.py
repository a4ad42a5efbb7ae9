# SPDX-License-Identifier: Apache-2.0
"""What a task gets on a cluster: the table, a loop file over it, and what a laptop makes of it."""

import copy

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.catalogue import PIPELINES, compiled_path
from kfloop.pipelines.local.pipeline_spec import load_documents, pipeline_spec
from kfloop.pipelines.loop import load_loop
from kfloop.pipelines.resources import (
    RESOURCES,
    TaskResources,
    apply_resources,
    cores,
    with_overrides,
    without_retries,
)

GOOD = """\
name: bikes
task: regression
sources: {trips: {uri: gs://bikes/trips.csv}}
examples: {query: SELECT 1, label: minutes, timestamp: at}
"""


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "loop.yaml"
        path.write_text(GOOD + text)
        return load_loop(path)[0]

    return load


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train_modle: {cpu: 2}", "line 6: resources.train_modle: there is no such component"),
        ("train_model: {cpus: 2}", "line 6: resources.train_model.cpus: there is no such key"),
        ("train_model: {cpu: two}", "line 6: resources.train_model.cpu: .*not 'two'"),
        ("train_model: {memory: 2 GB}", "line 6: resources.train_model.memory: .*not '2 GB'"),
        ("train_model: {cpu: 4, cpu_limit: 2}", "line 6: .*cpu is 4, more than its cpu_limit 2"),
        ("train_model: {retries: 11}", "line 6: resources.train_model.retries: .*equal to 10"),
        ("roll_out_model: {cache: true}", "line 6: .*cache: true is not possible"),
        ("detect_drift: {cache: true}", "line 6: .*its effect or answer lies outside the run"),
    ],
)
def test_a_mistake_is_named_by_key_and_line(load, text, sentence):
    with pytest.raises(InputError, match=sentence):
        load(f"resources:\n  {text}\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("WAREHOUSE: {secret: warehouse}", "line 6: secrets.WAREHOUSE.key: is missing"),
        ("A-B: {secret: warehouse, key: url}", "line 6: secrets.A-B"),
        ("A: {secret: Ware House, key: url}", "line 6: secrets.A.secret"),
        ("A: {secret: s, key: k, components: [ingest]}", "line 6: .*there is no component ingest"),
    ],
)
def test_a_mistake_of_a_secret_is_named_too(load, text, sentence):
    with pytest.raises(InputError, match=sentence):
        load(f"secrets:\n  {text}\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("state: {path: state}", "line 6: volumes.state.path: .*not 'state'"),
        ("state: {path: /state, components: [train]}", "line 6: .*there is no component train"),
    ],
)
def test_a_mistake_of_a_volume_is_named_too(load, text, sentence):
    with pytest.raises(InputError, match=sentence):
        load(f"volumes:\n  {text}\n")


def test_what_a_loop_file_gives_goes_over_the_table(load):
    loop = load("resources: {train_model: {cpu: 12, retries: 0}, gate_model: {cpu_limit: 250m}}\n")
    changed = with_overrides(loop.resources)
    own = RESOURCES["train_model"]
    assert changed["train_model"] == own.changed(cpu="12", cpu_limit="12", retries=0)
    assert changed["gate_model"].cpu == changed["gate_model"].cpu_limit == "250m"


def test_only_named_components_change_and_twice_is_once():
    documents = load_documents(compiled_path("training"))
    before = copy.deepcopy(documents)
    apply_resources(documents, {})
    assert documents == before
    apply_resources(documents, RESOURCES)
    assert documents == before
    table = {"gate_model": TaskResources(timeout_minutes=0, retries=0, gpu=2)}
    apply_resources(documents, table)
    once = copy.deepcopy(documents)
    apply_resources(documents, table)
    assert documents == once != before
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert "activeDeadlineSeconds" not in executors["exec-gate-model"]
    assert executors["exec-train-model"]["activeDeadlineSeconds"] == "86400"


def test_the_gpu_of_a_pipeline_parameter_stays_unless_the_table_has_one():
    documents = load_documents(compiled_path("training"))
    executors = documents[0]["deploymentSpec"]["executors"]
    asked = executors["exec-train-model"]["container"]["resources"]["accelerator"]
    assert "accelerator_count" in asked["resourceCount"]


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_a_laptop_runs_the_same_tasks_once(pipeline):
    spec = pipeline_spec(load_documents(compiled_path(pipeline))[0])
    once = without_retries(spec)
    assert "retryPolicy" in str(spec.components) + str(spec.root)
    assert "retryPolicy" not in str(once.components) + str(once.root)
    assert once.executors == spec.executors
    assert once.root["dag"]["tasks"].keys() == spec.root["dag"]["tasks"].keys()


def test_every_row_of_the_table_is_a_pod_that_can_be_scheduled():
    for name, row in RESOURCES.items():
        assert 0 < cores(row.cpu) <= cores(row.cpu_limit) <= 8, name
        # A checked copy: `changed` does not check.
        assert TaskResources(**row.model_dump()) == row
