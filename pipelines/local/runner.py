# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled pipeline on this machine, the way the cluster would.

The runner walks the very YAML that is uploaded to a cluster. It is not built on `kfp.local`, whose
interfaces are private and which differs from the cluster in ways that hide failures; the tests in
`tests/local/test_runner.py` name those differences one by one.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import cache
from kfloop.pipelines.local.conditions import holds
from kfloop.pipelines.local.pipeline_spec import (
    Artifact,
    Document,
    PipelineSpec,
    as_text,
    coerce,
    resolve_arguments,
    select,
)
from kfloop.pipelines.local.placeholders import replace as replace_placeholders
from kfloop.pipelines.local.record import (
    CACHED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    RunRecord,
    TaskRecord,
    now,
)
from kfloop.pipelines.local.task import (
    Container,
    TaskFailed,
    collect_outputs,
    executor_input,
    run_container,
)
from kfloop.pipelines.local.watchdog import Watchdog

Parameters = Mapping[str, Any]
Artifacts = Mapping[str, list[Artifact]]


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


@dataclass
class Outputs:
    """What a task gave, and how it ended."""

    status: str
    parameters: Parameters
    artifacts: Artifacts
    error: str = ""


class PipelineFailed(Exception):
    """A run failed; the message is one sentence, `record` tells the rest."""

    def __init__(self, message: str, record: RunRecord) -> None:
        super().__init__(message)
        self.record = record


def run_pipeline(
    pipeline: PipelineSpec,
    arguments: Parameters,
    state: Path,
    environments: Callable[[str], ImageEnvironment],
    listener: Listener | None = None,
    parallel: int = 2,
    caching: bool = True,
) -> RunRecord:
    """Runs a compiled pipeline and returns its record.

    Args:
        pipeline: The compiled pipeline.
        arguments: Pipeline parameters; the rest take their defaults.
        state: Directory for runs and the cache, usually `.kfloop`.
        environments: Gives what stands in for an image.
        listener: Told about progress.
        parallel: How many containers run at the same time.
        caching: Whether finished steps may be reused. Steps that switched caching off at compile
            time always run.

    Raises:
        InputError: If the arguments do not fit; nothing was run.
        PipelineFailed: If a task failed. Tasks that did not depend on it and had started were
            allowed to end, exit handlers ran.
    """
    values = resolve_arguments(pipeline, arguments)
    run_id = f"{pipeline.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    directory = state / "runs" / run_id
    directory.mkdir(parents=True)
    record = RunRecord(run_id, pipeline.name, str(directory), values)
    record.save()
    run = _Run(pipeline, record, state, environments, listener or Quiet(), parallel, caching)
    try:
        outputs = run.dag(pipeline.root, values, {}, "")
    except KeyboardInterrupt:
        record.finish(FAILED, "interrupted")
        raise
    finally:
        run.watchdog.close()
    if outputs.status == FAILED:
        record.finish(FAILED, outputs.error)
        raise PipelineFailed(outputs.error, record)
    record.finish(SUCCEEDED)
    return record


class _Run:
    """One run: walks DAGs, each task in a thread, containers bounded by a semaphore."""

    def __init__(
        self,
        pipeline: PipelineSpec,
        record: RunRecord,
        state: Path,
        environments: Callable[[str], ImageEnvironment],
        listener: Listener,
        parallel: int,
        caching: bool,
    ) -> None:
        self.pipeline = pipeline
        self.record = record
        self.state = state
        self.environments = environments
        self.listener = listener
        self.slots = threading.Semaphore(parallel)
        self.caching = caching
        self.watchdog = Watchdog()
        self.failed = threading.Event()

    # DAGs

    def dag(
        self,
        component: Document,
        parameters: Parameters,
        artifacts: Artifacts,
        path: str,
    ) -> Outputs:
        """Runs the tasks of a DAG component; independent ones at the same time."""
        tasks: Document = component["dag"]["tasks"]
        results: dict[str, Outputs] = {}
        waiting = dict(tasks)
        changed = threading.Condition()
        running: dict[str, threading.Thread] = {}

        def work(name: str) -> None:
            try:
                outputs = self.task(name, tasks[name], parameters, artifacts, results, path)
            except (InputError, TaskFailed) as error:
                outputs = Outputs(FAILED, {}, {}, f"{name}: {error}")
            except BaseException as error:
                outputs = Outputs(FAILED, {}, {}, f"{name}: the runner failed: {error!r}")
                raise
            finally:
                with changed:
                    results[name] = outputs
                    del running[name]
                    changed.notify_all()

        with changed:
            while waiting or running:
                for name, task in list(waiting.items()):
                    upstream = task.get("dependentTasks", [])
                    if any(one not in results for one in upstream):
                        continue
                    del waiting[name]
                    if reason := self._not_run(task, upstream, results):
                        results[name] = Outputs(SKIPPED, {}, {}, reason)
                        self._note_skipped(path + name, task, reason)
                        changed.notify_all()
                        break
                    running[name] = threading.Thread(target=work, args=(name,), daemon=True)
                    running[name].start()
                else:
                    if running:
                        changed.wait()
                    elif waiting:
                        raise InputError(
                            f"Tasks wait for each other: {', '.join(sorted(waiting))}."
                        )
        errors = [result.error for result in results.values() if result.status == FAILED]
        if errors:
            return Outputs(FAILED, {}, {}, errors[0])
        given = component["dag"].get("outputs", {})
        return Outputs(
            SUCCEEDED,
            {
                name: value
                for name, selector in given.get("parameters", {}).items()
                if (value := _selected_parameter(selector, results)) is not None
            },
            {
                name: listed
                for name, selector in given.get("artifacts", {}).items()
                if (listed := _selected_artifacts(selector, results)) is not None
            },
        )

    def _not_run(self, task: Document, upstream: list[str], results: dict[str, Outputs]) -> str:
        """Returns why a task is not run, or an empty string."""
        if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
            return ""
        for one in upstream:
            if results[one].status in (FAILED, SKIPPED):
                return f"{one} was {results[one].status}"
        return "another task failed" if self.failed.is_set() else ""

    def _note_skipped(self, path: str, task: Document, reason: str) -> None:
        record = TaskRecord(path, _function(task), status=SKIPPED, started=now(), error=reason)
        self.record.save(record)
        self.listener.ended(record)

    # Tasks

    def task(
        self,
        name: str,
        task: Document,
        scope: Parameters,
        scope_artifacts: Artifacts,
        results: Mapping[str, Outputs],
        path: str,
    ) -> Outputs:
        """Resolves a task's inputs and runs it: a container, an importer, a DAG or a loop."""
        component = self.pipeline.component(task["componentRef"]["name"])
        parameters, artifacts = self._inputs(task, component, scope, scope_artifacts, results, name)
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition and not holds(condition, parameters):
            reason = f"the condition {condition} does not hold"
            self._note_skipped(path + name, task, reason)
            return Outputs(SKIPPED, {}, {}, reason)
        if "parameterIterator" in task or "artifactIterator" in task:
            return self._loop(name, task, component, parameters, artifacts, path)
        if "dag" in component:
            return self.dag(component, parameters, artifacts, f"{path}{name}/")
        return self._execute(name, task, component, parameters, artifacts, path)

    def _inputs(
        self,
        task: Document,
        component: Document,
        scope: Parameters,
        scope_artifacts: Artifacts,
        results: Mapping[str, Outputs],
        name: str,
    ) -> tuple[dict[str, Any], dict[str, list[Artifact]]]:
        given = task.get("inputs", {})
        definitions = component.get("inputDefinitions", {})
        declared = definitions.get("parameters", {})
        values: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        for key, source in given.get("parameters", {}).items():
            if "runtimeValue" in source:
                constants[key] = source["runtimeValue"]["constant"]
                continue
            value = self._parameter(source, scope, results)
            if value is not None:
                values[key] = value
        for key, constant in constants.items():
            # Texts like "hello {{$.inputs.parameters['pipelinechannel--x']}}" refer to the others.
            values[key] = _fill(constant, values, self._run_names())
        for key, definition in declared.items():
            if key in values:
                values[key] = coerce(values[key], definition["parameterType"], key)
            elif "defaultValue" in definition:
                values[key] = coerce(definition["defaultValue"], definition["parameterType"], key)
            elif not definition.get("isOptional") and key != _loop_item(task):
                raise InputError(f"there is no value for the input {key!r}")
        artifacts: dict[str, list[Artifact]] = {}
        for key, source in given.get("artifacts", {}).items():
            listed = _artifact(source, scope_artifacts, results)
            if listed is not None:
                artifacts[key] = listed
            elif not definitions.get("artifacts", {}).get(key, {}).get("isOptional"):
                raise InputError(f"there is no artifact for the input {key!r}")
        return values, artifacts

    def _parameter(
        self, source: Document, scope: Parameters, results: Mapping[str, Outputs]
    ) -> Any:
        if "componentInputParameter" in source:
            value = scope.get(source["componentInputParameter"])
        elif "taskOutputParameter" in source:
            output = source["taskOutputParameter"]
            value = results[output["producerTask"]].parameters.get(output["outputParameterKey"])
        else:
            producer = source["taskFinalStatus"]["producerTask"]
            value = self._final_status(producer, results[producer])
        if value is not None and "parameterExpressionSelector" in source:
            value = select(value, source["parameterExpressionSelector"])
        return value

    def _final_status(self, producer: str, outputs: Outputs) -> dict[str, Any]:
        return {
            "state": {FAILED: "FAILED", SKIPPED: "CANCELLED"}.get(outputs.status, "SUCCEEDED"),
            "pipelineJobResourceName": self.record.run_id,
            "pipelineTaskName": producer,
            "error": {"code": 1, "message": outputs.error} if outputs.error else {},
        }

    def _loop(
        self,
        name: str,
        task: Document,
        component: Document,
        parameters: dict[str, Any],
        artifacts: dict[str, list[Artifact]],
        path: str,
    ) -> Outputs:
        if "artifactIterator" in task:
            iterator = task["artifactIterator"]
            items: list[Any] = list(artifacts[iterator["items"]["inputArtifact"]])
        else:
            iterator = task["parameterIterator"]
            source = iterator["items"]
            items = coerce(
                source["raw"] if "raw" in source else parameters[source["inputParameter"]],
                "LIST",
                name,
            )
        places = threading.Semaphore(task.get("iteratorPolicy", {}).get("parallelismLimit") or 64)
        results: list[Outputs | None] = [None] * len(items)

        def iterate(index: int, item: Any) -> None:
            with places:
                key = iterator["itemInput"]
                own, own_artifacts = dict(parameters), dict(artifacts)
                if "artifactIterator" in task:
                    own_artifacts[key] = [item]
                else:
                    kind = component["inputDefinitions"]["parameters"][key]["parameterType"]
                    own[key] = coerce(item, kind, key)
                try:
                    results[index] = self.dag(
                        component, own, own_artifacts, f"{path}{name}/{index}/"
                    )
                except InputError as error:
                    results[index] = Outputs(FAILED, {}, {}, f"{name}/{index}: {error}")

        threads = [
            threading.Thread(target=iterate, args=(index, item), daemon=True)
            for index, item in enumerate(items)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = [result for result in results if result is not None]
        for result in done:
            if result.status == FAILED:
                return result
        outputs = component["dag"].get("outputs", {})
        return Outputs(
            SUCCEEDED,
            {key: [r.parameters[key] for r in done] for key in outputs.get("parameters", {})},
            {
                key: [artifact for r in done for artifact in r.artifacts[key]]
                for key in outputs.get("artifacts", {})
            },
        )

    # Executors

    def _execute(
        self,
        name: str,
        task: Document,
        component: Document,
        parameters: dict[str, Any],
        artifacts: dict[str, list[Artifact]],
        path: str,
    ) -> Outputs:
        executor = self.pipeline.executors[component["executorLabel"]]
        record = TaskRecord(
            path + name,
            _function(task, executor),
            executor.get("container", {}).get("image", ""),
            started=now(),
            parameters={k: v for k, v in parameters.items() if not k.startswith("pipelinechannel")},
            inputs={key: [_lineage(one) for one in listed] for key, listed in artifacts.items()},
        )
        if "importer" in executor:
            return self._import(record, executor["importer"], parameters)
        retries = int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
        pause = float(task.get("retryPolicy", {}).get("backoffDuration", "0s").rstrip("s"))
        factor = float(task.get("retryPolicy", {}).get("backoffFactor", 2.0))
        cached = self.caching and task.get("cachingOptions", {}).get("enableCache", False)
        with self.slots:
            self.record.save(record)
            self.listener.started(record)
            begun = time.monotonic()
            try:
                for attempt in range(retries + 1):
                    try:
                        outputs = self._container(
                            record, executor["container"], component, parameters, artifacts, cached
                        )
                        break
                    except TaskFailed as error:
                        if attempt == retries:
                            raise
                        self.listener.printed(record, f"failed ({error}); trying again")
                        time.sleep(pause * factor**attempt)
            except (TaskFailed, InputError) as error:
                record.status, record.error = FAILED, str(error)
                self.failed.set()
                raise
            finally:
                record.seconds = round(time.monotonic() - begun, 3)
                self.record.save()
                self.listener.ended(record)
        return outputs

    def _container(
        self,
        record: TaskRecord,
        container: Document,
        component: Document,
        parameters: dict[str, Any],
        artifacts: dict[str, list[Artifact]],
        cached: bool,
    ) -> Outputs:
        directory = Path(self.record.directory) / record.task
        environment = self.environments(container["image"])
        own = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
        command = [*container.get("command", []), *container.get("args", [])]
        key = cache.cache_key(
            command, environment.digest, environment.source, own, parameters, artifacts
        )
        if cached and (kept := cache.load(self.state / "cache", key)) is not None:
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
                self.watchdog,
                lambda line: self.listener.printed(record, line),
            )
            values, written = collect_outputs(component, document, record.task)
            written = {
                name: [replace(one, digest=cache.digest_path(one.uri)) for one in listed]
                for name, listed in written.items()
            }
            if cached:
                cache.store(self.state / "cache", key, values, written)
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
        if "://" not in artifact.uri and artifact.digest == "absent":
            record.status, record.error = FAILED, f"there is nothing at {uri}"
            self.record.save(record)
            self.failed.set()
            raise InputError(record.error)
        record.status = SUCCEEDED
        record.outputs = {"artifact": [_kept(artifact)]}
        self.record.save(record)
        self.listener.ended(record)
        return Outputs(SUCCEEDED, {}, {"artifact": [artifact]})

    def _run_names(self) -> dict[str, str]:
        run = self.record
        return {
            ".pipeline_job_name": run.run_id,
            ".pipeline_job_uuid": run.run_id,
            ".pipeline_job_resource_name": run.run_id,
            ".pipeline_job_create_time_utc": run.started,
            ".pipeline_job_schedule_time_utc": run.started,
            ".pipeline_root": run.directory,
        }

    def _names(self, record: TaskRecord) -> dict[str, str]:
        return {
            **self._run_names(),
            ".pipeline_task_name": record.task,
            ".pipeline_task_uuid": f"{self.record.run_id}/{record.task}",
        }


def _loop_item(task: Document) -> str:
    """Returns the input that a loop gives to each of its iterations; empty without a loop."""
    iterator = task.get("parameterIterator") or task.get("artifactIterator") or {}
    return str(iterator.get("itemInput", ""))


def _fill(constant: Any, values: Parameters, names: Mapping[str, str]) -> Any:
    if isinstance(constant, str):
        return replace_placeholders(constant, {"inputs": {"parameterValues": values}}, names)
    if isinstance(constant, dict):
        return {key: _fill(item, values, names) for key, item in constant.items()}
    if isinstance(constant, list):
        return [_fill(item, values, names) for item in constant]
    return constant


def _artifact(
    source: Document, scope: Artifacts, results: Mapping[str, Outputs]
) -> list[Artifact] | None:
    if "componentInputArtifact" in source:
        return scope.get(source["componentInputArtifact"])
    output = source["taskOutputArtifact"]
    return results[output["producerTask"]].artifacts.get(output["outputArtifactKey"])


def _selected_parameter(selector: Document, results: Mapping[str, Outputs]) -> Any:
    choices = (
        [selector["valueFromParameter"]]
        if "valueFromParameter" in selector
        else selector["valueFromOneof"]["parameterSelectors"]
    )
    for choice in choices:
        parameters = results[choice["producerSubtask"]].parameters
        if choice["outputParameterKey"] in parameters:
            return parameters[choice["outputParameterKey"]]
    return None


def _selected_artifacts(
    selector: Document, results: Mapping[str, Outputs]
) -> list[Artifact] | None:
    for choice in selector["artifactSelectors"]:
        artifacts = results[choice["producerSubtask"]].artifacts
        if choice["outputArtifactKey"] in artifacts:
            return artifacts[choice["outputArtifactKey"]]
    return None


def _function(task: Document, executor: Document | None = None) -> str:
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
