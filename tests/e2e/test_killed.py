# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at any moment, then the same command again, works."""

import subprocess
import sys
import time

import pytest

from kfloop.components.contracts.inference_log import log_files
from kfloop.pipelines.local.record import list_runs
from kfloop.serving.local_state import list_services, read_status, service_directory, stop

STATE = ".kfloop-killed"


@pytest.fixture
def state(project):
    yield project / STATE
    for service in list_services(project / STATE):
        stop(service["directory"])


def _kill_during(project, step: str) -> None:
    """Starts the loop and kills it with SIGKILL while a step runs."""
    code = "from kfloop.scripts.main import main; main()"
    before = {run.run_id for run in list_runs(project / STATE)}
    with (project / "killed.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "loop", "--state", STATE],
            cwd=project,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            tasks = [
                task
                for run in list_runs(project / STATE)
                if run.run_id not in before
                for task in run.tasks
            ]
            if any(t.task.split("/")[-1] == step and t.status == "running" for t in tasks):
                return
            time.sleep(0.02)
        pytest.fail(f"{step} never ran: {(project / 'killed.log').read_text()[-3000:]}")
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(1200)  # eight runs of the loop
def test_a_loop_killed_at_any_step_ends_well_when_it_is_run_again(kfloop, project, state):
    steps = ("transform-data", "train-model", "publish-model", "roll-out-model", "replay-requests")
    for step in steps:
        _kill_during(project, step)
    done = kfloop("loop", "--state", STATE)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("detect-drift", "roll-out-model"):
        _kill_during(project, step)
    done = kfloop("loop", "--state", STATE)
    assert done.returncode == 0, done.stdout + done.stderr
    status = read_status(service_directory(state, "weather"))
    assert [predictor["traffic"] for predictor in status["predictors"].values()] == [100]
    assert log_files(state / "inference-log" / "weather")
