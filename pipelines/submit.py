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
# Nodes of the engine around the tasks that people wrote; those with a number are a task's attempts.
INNER_NODE = re.compile(r"root|executor|.*-driver|.*\(\d+\)")


@dataclass(frozen=True)
class TaskStatus:
    """One task of a run.

    Attributes:
        name: Its name in the pipeline.
        state: KFP's word for how it is, like `SUCCEEDED`; `UNKNOWN` when the run is over and KFP
            did not hear of the task's end.
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
    # KFP keeps no error of a task; its pods do, as long as they are there.
    look = (
        f" Its pods tell why, while they are there: kubectl get pods -l pipeline/runid={status.id} "
        "--field-selector status.phase=Failed, then kubectl logs POD -c main --tail 40"
    )
    told = status.error or any(task.error for task in status.tasks)
    return f"The run {status.name!r} ended {status.state}: {why}.{'' if told else look}"


def _status(run: Any, with_tasks: bool) -> RunStatus:
    details = run.run_details.task_details if with_tasks and run.run_details else None
    whole = _whole_run(run)
    tasks = [task for task in details or [] if _told(task) and not whole(task.display_name)]
    tasks.sort(key=lambda task: (task.start_time is None, task.start_time, task.display_name))
    return RunStatus(
        id=run.run_id,
        name=run.display_name,
        state=run.state or "PENDING",
        created=run.created_at,
        seconds=_seconds(run.created_at, run.finished_at) or 0.0,
        error=_message(run),
        tasks=tuple(_task(task, run.state in FINISHED) for task in tasks),
    )


def _task(task: Any, run_is_over: bool) -> TaskStatus:
    state = task.state or "PENDING"
    # Argo packs the tasks of a workflow over 1 MB, and KFP hears no more of them.
    if run_is_over and state not in FINISHED:
        return TaskStatus(task.display_name, "UNKNOWN", None, "")
    seconds = _seconds(task.start_time, task.end_time)
    return TaskStatus(task.display_name, state, seconds, _message(task))


def _told(task: Any) -> bool:
    """Leaves out the engine's own nodes, unless a driver failed: then its task never began."""
    if not task.display_name:  # one that the engine has only planned
        return False
    driver_failed = task.state == "FAILED" and task.display_name.endswith("-driver")
    return bool(driver_failed or not INNER_NODE.fullmatch(task.display_name))


def _whole_run(run: Any) -> Callable[[str], bool]:
    """Returns whether a node is the engine's workflow.

    It has the pipeline's name and five characters, or that of the run if a schedule started it.
    """
    spec = run.pipeline_spec or {}
    spec = spec.get("pipeline_spec", spec)
    name = spec.get("pipelineInfo", {}).get("name", "")
    pattern = re.compile(rf"{re.escape(name)}-[a-z0-9]{{5}}")
    return lambda node: node == run.display_name or bool(name and pattern.fullmatch(node))


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    # The API says 1970 or the year 1 for what has not begun or ended.
    if start is None or start.year <= 1970:
        return None
    # A step whose result KFP had already ends in the second in which it begins.
    ended = end if end and end >= start else datetime.now(UTC)
    return (ended - start).total_seconds()


def _message(item: Any) -> str:
    history = [status.error for status in item.state_history or [] if status.error]
    error = item.error or (history[-1] if history else None)
    return str(error.message or "").strip() if error else ""
