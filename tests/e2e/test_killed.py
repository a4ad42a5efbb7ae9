# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at any moment, then the same command again, works.

It is done to a loop of several classes, without a time column and without a Feast repository.
"""

import shutil
from pathlib import Path

import pytest
from conftest import kill_during, last_run, run_kfloop

from kfloop.components.contracts.inference_log import log_files
from kfloop.pipelines.local.record import list_runs
from kfloop.serving.local_state import list_services, read_status, service_directory, stop

# The first roll-out is of the only version, the second one of a canary beside it.
STEPS = (
    *("transform-data", "train-model", "publish-model", "roll-out-model", "replay-requests"),
    *("roll-out-model", "detect-drift"),
)


@pytest.fixture(scope="module")
def planes(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("planes")
    shutil.copy(Path(__file__).parents[1] / "loops" / "planes" / "loop.yaml", directory)
    shutil.copy(data / "planes.parquet", directory)
    yield directory
    for service in list_services(directory / ".kfloop"):
        stop(service["directory"])


@pytest.fixture(scope="module")
def survived(planes):
    """The loop, killed with SIGKILL in each of the steps and then run to its end."""
    for step in STEPS:
        kill_during(planes, step, "loop")
    done = run_kfloop(planes, "loop")
    assert done.returncode == 0, done.stdout + done.stderr
    return planes


@pytest.mark.timeout(1200)  # eight runs of the loop
def test_a_loop_killed_at_any_step_ends_well_when_it_is_run_again(survived):
    state = survived / ".kfloop"
    unfinished = [run for run in list_runs(state) if run.status == "running"]
    assert len(unfinished) == len(STEPS)
    status = read_status(service_directory(state, "planes"))
    assert [predictor["traffic"] for predictor in status["predictors"].values()] == [100]
    assert log_files(state / "inference-log" / "planes")


def test_the_loop_ends_with_a_decision_about_retraining(survived):
    monitoring = last_run(survived, "monitoring")
    assert monitoring.task("decide-retraining").returned["Output"] == "keep"
    decisions = {decision["gate"]: decision["decision"] for decision in monitoring.decisions()}
    assert decisions["performance"] == "pass"


def test_a_retraining_can_be_forced(survived):
    forced = run_kfloop(survived, "run", "monitoring", "-s", "force_retraining=a new data source")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    gates = {decision["gate"] for decision in last_run(survived, "monitoring").decisions()}
    assert "rollout" in gates
