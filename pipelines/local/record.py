# SPDX-License-Identifier: Apache-2.0
"""The run record: what a run did, kept as one JSON file that is always whole."""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kfloop.components.contracts.files import read_json, write_json

RUNNING, SUCCEEDED, CACHED, SKIPPED, FAILED = "running", "succeeded", "cached", "skipped", "failed"


def now() -> str:
    """Returns the current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class TaskRecord:
    """One task of a run.

    Attributes:
        task: Path of task names, for example `roll-out/deploy-model`.
        component: Function name of the component.
        image: Image whose environment it ran in; empty for importers.
        status: `running`, `succeeded`, `cached`, `skipped` or `failed`.
        started: ISO 8601, UTC.
        seconds: How long it took.
        parameters: Input parameters.
        inputs: Input artifacts: name to a list of `{"uri", "digest", "producer"}`.
        outputs: Output artifacts: name to a list of `{"type", "uri", "metadata", "digest"}`.
        returned: Output parameters.
        log: Path of its log.
        error: One sentence when it failed; why when it was skipped.
    """

    task: str
    component: str = ""
    image: str = ""
    status: str = RUNNING
    started: str = ""
    seconds: float = 0.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    outputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    returned: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    error: str = ""


@dataclass
class RunRecord:
    """One run of a pipeline, saved to `<directory>/run.json` at every change.

    Attributes:
        run_id: Unique id, also the name of the directory.
        pipeline: Pipeline name.
        directory: Where the run keeps its files.
        arguments: Pipeline parameters.
        status: `running`, `succeeded` or `failed`.
        started: ISO 8601, UTC.
        ended: ISO 8601, UTC; empty while it runs.
        error: One sentence when it failed.
        tasks: In the order they started.
    """

    run_id: str
    pipeline: str
    directory: str
    arguments: Mapping[str, Any]
    status: str = RUNNING
    started: str = field(default_factory=now)
    ended: str = ""
    error: str = ""
    tasks: list[TaskRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The record's file."""
        return Path(self.directory) / "run.json"

    def save(self, task: TaskRecord | None = None) -> None:
        """Writes the record, adding `task` if it is new to it."""
        with self._lock:
            if task is not None and task not in self.tasks:
                self.tasks.append(task)
            write_json(self.path, asdict(self))

    def finish(self, status: str, error: str = "") -> None:
        """Notes how the run ended."""
        self.status, self.error, self.ended = status, error, now()
        self.save()

    def task(self, name: str) -> TaskRecord | None:
        """Returns the last task with this name (the end of its path), or None."""
        matches = [task for task in self.tasks if task.task.split("/")[-1] == name]
        return matches[-1] if matches else None

    def decisions(self) -> list[dict[str, str]]:
        """Returns what the gates of the run decided: `gate`, `decision`, `summary` and `task`."""
        return [
            {**{key: str(value) for key, value in artifact["metadata"].items()}, "task": task.task}
            for task in self.tasks
            for artifacts in task.outputs.values()
            for artifact in artifacts
            if {"gate", "decision", "summary"} <= set(artifact["metadata"])
        ]


def read_run(directory: str | Path) -> RunRecord:
    """Reads a run's record back."""
    document = read_json(Path(directory) / "run.json")
    tasks = [TaskRecord(**task) for task in document.pop("tasks")]
    return RunRecord(tasks=tasks, **document)


def list_runs(state: str | Path) -> list[RunRecord]:
    """Returns all runs under `<state>/runs`, oldest first."""
    files = sorted((Path(state) / "runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    return [read_run(file.parent) for file in files]
