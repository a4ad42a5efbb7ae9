# SPDX-License-Identifier: Apache-2.0
"""A loop of several classes, without a time column and without a Feast repository."""

import shutil
from pathlib import Path

import pytest
from conftest import last_run, run_kfloop

from kfloop.serving.local_state import list_services, stop


@pytest.fixture
def project(tmp_path, data):
    shutil.copy(Path(__file__).parents[1] / "loops" / "planes" / "loop.yaml", tmp_path)
    shutil.copy(data / "planes.parquet", tmp_path)
    yield tmp_path
    for service in list_services(tmp_path / ".kfloop"):
        stop(service["directory"])


def test_the_loop_ends_with_a_decision_about_retraining(project):
    done = run_kfloop(project, "loop")
    assert done.returncode == 0, done.stdout + done.stderr
    monitoring = last_run(project, "monitoring")
    assert monitoring.task("decide-retraining").returned["Output"] == "keep"
    decisions = {decision["gate"]: decision["decision"] for decision in monitoring.decisions()}
    assert decisions["performance"] == "pass"
    forced = run_kfloop(project, "run", "monitoring", "-s", "force_retraining=a new data source")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    monitoring = last_run(project, "monitoring")
    gates = {decision["gate"] for decision in monitoring.decisions()}
    assert "rollout" in gates
