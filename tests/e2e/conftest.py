# SPDX-License-Identifier: Apache-2.0
"""Runs the command line as a user does, in a directory of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kfloop.pipelines.local.record import RunRecord, list_runs, read_run
from kfloop.serving.local_state import list_services, stop

Kfloop = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-c", "from kfloop.scripts.main import main; main()"]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The sample data, made once."""
    directory = tmp_path_factory.mktemp("data")
    run_kfloop(directory, "sample-data", str(directory))
    return directory


@pytest.fixture(scope="session")
def project(tmp_path_factory, data) -> Iterator[Path]:
    """The weather loop in a directory of its own; its services are stopped at the end."""
    directory = tmp_path_factory.mktemp("project")
    source = Path(__file__).parents[1] / "loops" / "weather"
    for file in source.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            target = directory / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (directory / "weather.parquet").write_bytes((data / "weather.parquet").read_bytes())
    yield directory
    for service in list_services(directory / ".kfloop"):
        stop(service["directory"])


@pytest.fixture(scope="session")
def kfloop(project) -> Kfloop:
    """Runs `kfloop` in the project."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_kfloop(project, *arguments)

    return run


def run_kfloop(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a directory."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def kill_during(directory: Path, step: str, *arguments: str) -> None:
    """Starts the command and kills it with SIGKILL while a step of its runs is running."""
    runs = directory / ".kfloop" / "runs"
    before = {path.parent for path in runs.glob("*/run.json")}
    log = directory / "killed.log"
    with log.open("ab") as file:
        process = subprocess.Popen([*COMMAND, *arguments], cwd=directory, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and process.poll() is None:
            begun = {path.parent for path in runs.glob("*/run.json")} - before
            tasks = [task for run in begun for task in read_run(run).tasks]
            if any(t.task.split("/")[-1] == step and t.status == "running" for t in tasks):
                return
            time.sleep(0.02)
        pytest.fail(f"{step} never ran: {log.read_text()[-3000:]}")
    finally:
        process.kill()
        process.wait()


def last_run(project: Path, pipeline: str) -> RunRecord:
    """Returns the newest run of a pipeline."""
    return [run for run in list_runs(project / ".kfloop") if run.pipeline == pipeline][-1]


def metadata(run: RunRecord, task: str, output: str) -> dict:
    """Returns the metadata of a task's output."""
    found = run.task(task)
    assert found is not None
    return json.loads(json.dumps(found.outputs[output][0]["metadata"]))
