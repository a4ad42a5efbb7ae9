# SPDX-License-Identifier: Apache-2.0
"""Runs of compiled pipelines on Kubeflow, from a notebook or from the command line.

from kfloop.pipelines.submit import submit_pipeline, run_status, wait_for_run

run_id = submit_pipeline("training", loop_file="loop.yaml", host="https://…/pipeline")
print(wait_for_run(run_id, host="https://…/pipeline").state)
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.kfp_client import api_errors, connect, pages
from kfloop.pipelines.package import Package, package_pipeline

if TYPE_CHECKING:
    from kfp import Client

EXPERIMENT = "kfloop"
FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
POLL_SECONDS = 10.0
# Unanswered questions in a row that waiting for a run outlasts.
PATIENCE = 5
# Nodes of the engine below the tasks that people wrote.
INNER_NODE = re.compile(r"root|executor(\(\d+\))?|.*-driver(\(\d+\))?")


@dataclass(frozen=True)
class TaskStatus:
    """One task of a run.

    Attributes:
        name: Its name in the pipeline.
        state: KFP's word for how it is, like `SUCCEEDED`.
        seconds: How long it took, or has been going on; None if it has not begun.
        error: What went wrong; empty when nothing is told.
    """

    name: str
    state: str
    seconds: float | None
    error: str


@dataclass(frozen=True)
class RunStatus:
    """One run.

    Attributes:
        id: Its id.
        name: Its display name.
        state: KFP's word for how it is.
        created: When it was submitted.
        seconds: How long it took, or has been going on.
        error: What went wrong with the run as a whole.
        tasks: In the order in which they began; empty in a list of runs.
    """

    id: str
    name: str
    state: str
    created: datetime
    seconds: float
    error: str
    tasks: tuple[TaskStatus, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether nothing of it goes on any more."""
        return self.state in FINISHED


def submit_pipeline(
    pipeline: str,
    loop_file: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    host: str = "",
    namespace: str = "",
    experiment: str = EXPERIMENT,
    run_name: str = "",
    caching: bool = True,
    service_account: str = "",
    client: "Client | None" = None,
) -> str:
    """Starts a run and returns its id.

    Args:
        pipeline: Name of one of kfloop's pipelines, or a compiled YAML file.
        loop_file: Gives the parameters of kfloop's pipelines, and what their pods get.
        parameters: Parameters over those of the loop file.
        host: URL of the KFP API; see `kfp_client.connect`.
        namespace: Yours, on a multi-user Kubeflow.
        experiment: Experiment of the run; made if it is not there.
        run_name: Name of the run; the pipeline's and the time unless given.
        caching: Whether steps may be reused where they allow it.
        service_account: Kubernetes service account of its pods; empty is KFP's default.
        client: A KFP client to use instead of one for `host`.

    Raises:
        InputError: If the loop file or a parameter is wrong, or the API refuses or does not answer.
    """
    package = package_pipeline(
        pipeline, Path(loop_file) if loop_file else None, parameters, caching
    )
    client = client or connect(host)
    return _start(client, package, namespace, experiment, run_name, service_account)


def _start(
    client: "Client",
    package: Package,
    namespace: str,
    experiment: str,
    run_name: str,
    service_account: str,
) -> str:
    with api_errors(f"The experiment {experiment!r} cannot be made"):
        made = client.create_experiment(experiment, namespace=namespace or None)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    with tempfile.TemporaryDirectory() as directory, api_errors(f"{package.name}: it cannot start"):
        path = Path(directory) / "pipeline.yaml"
        path.write_text(yaml.safe_dump_all(package.documents), encoding="utf-8")
        # The client's create_run_from_… would make the experiment in its own way again.
        run = client.run_pipeline(
            experiment_id=made.experiment_id,
            job_name=run_name or f"{package.name} {now}",
            pipeline_package_path=str(path),
            params=package.arguments,
            service_account=service_account or None,
        )
    return str(run.run_id)


def run_status(run_id: str, *, host: str = "", client: "Client | None" = None) -> RunStatus:
    """Returns how a run and its tasks are.

    Raises:
        InputError: If there is no such run, or the API refuses or does not answer.
    """
    client = client or connect(host)
    with api_errors(f"The run {run_id} cannot be read"):
        return _status(client.get_run(run_id), with_tasks=True)


def last_runs(
    limit: int = 10,
    *,
    host: str = "",
    namespace: str = "",
    experiment: str = "",
    client: "Client | None" = None,
) -> list[RunStatus]:
    """Returns the newest runs, newest first.

    Args:
        limit: How many.
        host: As for `submit_pipeline`.
        namespace: Yours, on a multi-user Kubeflow.
        experiment: Only runs of this experiment; empty: of all.
        client: As for `submit_pipeline`.

    Raises:
        InputError: If the API refuses or does not answer, or there is no such experiment.
    """
    client = client or connect(host)
    chosen: dict[str, Any] = {"namespace": namespace or None}
    if experiment:
        with api_errors(f"The experiment {experiment!r} cannot be read"):
            try:
                found = client.get_experiment(experiment_name=experiment, **chosen)
            except ValueError as error:  # what the client says when there is none
                raise InputError(f"There is no experiment {experiment!r}.") from error
        chosen["experiment_id"] = found.experiment_id
    with api_errors("The runs cannot be listed"):
        runs = pages(client.list_runs, "runs", sort_by="created_at desc", **chosen)
        return [_status(run, with_tasks=False) for run in islice(runs, limit)]


def wait_for_run(
    run_id: str,
    *,
    host: str = "",
    client: "Client | None" = None,
    changed: Callable[[RunStatus], None] = lambda status: None,
    poll_seconds: float = POLL_SECONDS,
) -> RunStatus:
    """Waits until a run has ended; one that was canceled has, too.

    Args:
        run_id: The run.
        host: As for `submit_pipeline`.
        client: As for `submit_pipeline`.
        changed: Told whenever the state of the run or of a task is another.
        poll_seconds: Time between two questions.

    Raises:
        InputError: If it did not succeed, naming the tasks that failed; or if the API refuses.
    """
    client = client or connect(host)
    told: list[tuple[str, str]] = []
    status, unanswered = run_status(run_id, client=client), 0
    while True:
        states = [(status.name, status.state), *((task.name, task.state) for task in status.tasks)]
        if states != told:
            changed(status)
            told = states
        if status.finished:
            break
        time.sleep(poll_seconds)
        try:
            status, unanswered = run_status(run_id, client=client), 0
        except InputError:
            unanswered += 1
            if unanswered > PATIENCE:
                raise
    if status.state != "SUCCEEDED":
        raise InputError(failure(status))
    return status


def failure(status: RunStatus) -> str:
    """Returns one sentence for a run that did not succeed."""
    failed = [
        f"{task.name} failed{f' ({task.error})' if task.error else ''}"
        for task in status.tasks
        if task.state == "FAILED"
    ]
    why = ", ".join(failed) or status.error or "no task of it is told to have failed"
    return f"The run {status.name!r} ended {status.state}: {why}."


def _status(run: Any, with_tasks: bool) -> RunStatus:
    details = run.run_details.task_details if with_tasks and run.run_details else None
    tasks = [task for task in details or [] if _told(task)]
    tasks.sort(key=lambda task: (task.start_time is None, task.start_time, task.display_name))
    return RunStatus(
        id=run.run_id,
        name=run.display_name,
        state=run.state or "PENDING",
        created=run.created_at,
        seconds=_seconds(run.created_at, run.finished_at) or 0.0,
        error=_message(run),
        tasks=tuple(
            TaskStatus(
                task.display_name,
                task.state or "PENDING",
                _seconds(task.start_time, task.end_time),
                _message(task),
            )
            for task in tasks
        ),
    )


def _told(task: Any) -> bool:
    """Leaves out the engine's own nodes, unless a driver failed: then its task never began."""
    driver_failed = task.state == "FAILED" and "-driver" in task.display_name
    return bool(driver_failed or not INNER_NODE.fullmatch(task.display_name))


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or start.year == 1970:
        return None
    # The API says 1970 for what has not ended.
    ended = end if end and end > start else datetime.now(UTC)
    return (ended - start).total_seconds()


def _message(item: Any) -> str:
    history = [status.error for status in item.state_history or [] if status.error]
    error = item.error or (history[-1] if history else None)
    return str(error.message or "").strip() if error else ""
