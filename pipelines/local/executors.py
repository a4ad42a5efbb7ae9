# SPDX-License-Identifier: Apache-2.0
"""Runs the tasks that do something, containers and importers, and records them."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import cache
from kfloop.pipelines.local.dataflow import Artifacts, Outputs, Parameters
from kfloop.pipelines.local.pipeline_spec import Artifact, Document, as_text
from kfloop.pipelines.local.record import CACHED, FAILED, SUCCEEDED, RunRecord, TaskRecord, now
from kfloop.pipelines.local.task import (
    Container,
    TaskFailed,
    collect_outputs,
    executor_input,
    run_container,
)
from kfloop.pipelines.local.watchdog import Watchdog


@dataclass(frozen=True)
class ImageEnvironment:
    """What stands in for an image on this machine.

    Attributes:
        variables: Environment variables of its processes, complete.
        digest: Changes when what is installed changes.
        source: Hash of the code it runs, for the cache key.
    """

    variables: Mapping[str, str]
    digest: str
    source: str


class Listener(Protocol):
    """Is told what happens during a run, from several threads."""

    def started(self, task: TaskRecord) -> None: ...  # noqa: D102
    def printed(self, task: TaskRecord, line: str) -> None: ...  # noqa: D102
    def ended(self, task: TaskRecord) -> None: ...  # noqa: D102


class Quiet:
    """A listener that says nothing."""

    def started(self, task: TaskRecord) -> None:
        """Does nothing."""

    def printed(self, task: TaskRecord, line: str) -> None:
        """Does nothing."""

    def ended(self, task: TaskRecord) -> None:
        """Does nothing."""


class Executors:
    """The executors of one run; several threads use it.

    Attributes:
        failed: Set when a task failed: no new one begins then, but exit handlers.
    """

    def __init__(
        self,
        record: RunRecord,
        cache_directory: Path,
        environments: Callable[[str], ImageEnvironment],
        listener: Listener,
        parallel: int,
        caching: bool,
    ) -> None:
        self.failed = threading.Event()
        self._run = record
        self._cache = cache_directory
        self._environments = environments
        self._listener = listener
        self._slots = threading.Semaphore(parallel)
        self._caching = caching
        self._watchdog = Watchdog()

    def close(self) -> None:
        """Ends the watchdog, when no container runs any more."""
        self._watchdog.close()

    def run(
        self,
        path: str,
        task: Document,
        executor: Document,
        component: Document,
        parameters: Parameters,
        artifacts: Artifacts,
    ) -> Outputs:
        """Runs a task's executor, a container or an importer.

        Args:
            path: The task's name, below those of the DAGs around it.
            task: The task of the DAG.
            executor: What it runs.
            component: What that takes and gives.
            parameters: The task's parameters.
            artifacts: The task's artifacts.

        Raises:
            TaskFailed: If the container failed, for the last time.
            InputError: If what it takes or gives is not of its type, or nothing can be imported.
        """
        record = TaskRecord(
            path,
            function_name(task, executor),
            executor.get("container", {}).get("image", ""),
            started=now(),
            parameters={k: v for k, v in parameters.items() if not k.startswith("pipelinechannel")},
            inputs={key: [_lineage(one) for one in listed] for key, listed in artifacts.items()},
        )
        if "importer" in executor:
            return self._import(record, executor["importer"], parameters)
        cached = self._caching and task.get("cachingOptions", {}).get("enableCache", False)

        def attempt() -> Outputs:
            return self._container(
                record, executor["container"], component, parameters, artifacts, cached
            )

        with self._slots:
            self._run.save(record)
            self._listener.started(record)
            begun = time.monotonic()
            try:
                return self._with_retries(attempt, record, task.get("retryPolicy", {}))
            except (TaskFailed, InputError) as error:
                record.status, record.error = FAILED, str(error)
                self.failed.set()
                raise
            finally:
                record.seconds = round(time.monotonic() - begun, 3)
                self._run.save()
                self._listener.ended(record)

    def _with_retries(
        self, attempt: Callable[[], Outputs], record: TaskRecord, policy: Document
    ) -> Outputs:
        pause = float(policy.get("backoffDuration", "0s").rstrip("s"))
        factor = float(policy.get("backoffFactor", 2.0))
        for number in range(int(policy.get("maxRetryCount", 0))):
            try:
                return attempt()
            except TaskFailed as error:
                self._listener.printed(record, f"failed ({error}); trying again")
                time.sleep(pause * factor**number)
        return attempt()

    def _container(
        self,
        record: TaskRecord,
        container: Document,
        component: Document,
        parameters: Parameters,
        artifacts: Artifacts,
        cached: bool,
    ) -> Outputs:
        directory = Path(self._run.directory) / record.task
        environment = self._environments(container["image"])
        own = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
        command = [*container.get("command", []), *container.get("args", [])]
        key = cache.cache_key(
            command, environment.digest, environment.source, own, parameters, artifacts
        )
        if cached and (kept := cache.load(self._cache, key)) is not None:
            values, written = kept
            record.status = CACHED
        else:
            document = executor_input(component, parameters, artifacts, directory)
            log = directory / "log.txt"
            record.log = str(log)
            run_container(
                Container(command, {**environment.variables, **own}, self._names(record)),
                document,
                directory,
                log,
                self._watchdog,
                lambda line: self._listener.printed(record, line),
            )
            values, written = collect_outputs(component, document, record.task)
            written = {
                name: [replace(one, digest=cache.digest_path(one.uri)) for one in listed]
                for name, listed in written.items()
            }
            if cached:
                cache.store(self._cache, key, values, written)
            record.status = SUCCEEDED
        record.returned = values
        record.outputs = {name: [_kept(one) for one in listed] for name, listed in written.items()}
        return Outputs(record.status, values, written)

    def _import(self, record: TaskRecord, importer: Document, parameters: Parameters) -> Outputs:
        source = importer["artifactUri"]
        uri = parameters[source["runtimeParameter"]] if "runtimeParameter" in source else None
        uri = uri if uri is not None else source["constant"]
        artifact = Artifact(
            "artifact",
            importer["typeSchema"]["schemaTitle"],
            uri.removeprefix("file://"),
            importer.get("metadata", {}),
            cache.digest_path(uri.removeprefix("file://")),
        )
        missing = "://" not in artifact.uri and artifact.digest == "absent"
        if missing:
            record.status, record.error = FAILED, f"there is nothing at {uri}"
            self.failed.set()
        else:
            record.status, record.outputs = SUCCEEDED, {"artifact": [_kept(artifact)]}
        self._run.save(record)
        self._listener.ended(record)
        if missing:
            raise InputError(record.error)
        return Outputs(SUCCEEDED, {}, {"artifact": [artifact]})

    def _names(self, record: TaskRecord) -> dict[str, str]:
        return {
            **run_names(self._run),
            ".pipeline_task_name": record.task,
            ".pipeline_task_uuid": f"{self._run.run_id}/{record.task}",
        }


def run_names(run: RunRecord) -> dict[str, str]:
    """Returns KFP's placeholders that are the same in the whole run, with their values."""
    return {
        ".pipeline_job_name": run.run_id,
        ".pipeline_job_uuid": run.run_id,
        ".pipeline_job_resource_name": run.run_id,
        ".pipeline_job_create_time_utc": run.started,
        ".pipeline_job_schedule_time_utc": run.started,
        ".pipeline_root": run.directory,
    }


def function_name(task: Document, executor: Document | None = None) -> str:
    """Returns the component's function that a task runs; the task's name where it runs none."""
    arguments = (executor or {}).get("container", {}).get("args", [])
    if "--function_to_execute" in arguments:
        return str(arguments[arguments.index("--function_to_execute") + 1])
    return as_text(task["taskInfo"]["name"])


def _lineage(artifact: Artifact) -> dict[str, Any]:
    return {"uri": artifact.uri, "digest": artifact.digest, "producer": artifact.producer}


def _kept(artifact: Artifact) -> dict[str, Any]:
    return {
        "type": artifact.type,
        "uri": artifact.uri,
        "metadata": dict(artifact.metadata),
        "digest": artifact.digest,
    }
