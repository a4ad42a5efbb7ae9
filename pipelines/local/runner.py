# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled pipeline on this machine, the way the cluster would.

The runner walks the very YAML that is uploaded to a cluster. It is not built on `kfp.local`, whose
interfaces are private and which differs from the cluster in ways that hide failures; the tests in
`tests/local/test_runner.py` name those differences one by one.
"""

import secrets
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local.conditions import holds
from kfloop.pipelines.local.dataflow import (
    Artifacts,
    Outputs,
    Parameters,
    Scope,
    dag_outputs,
    iteration_inputs,
    loop_items,
    loop_outputs,
    task_inputs,
)
from kfloop.pipelines.local.executors import (
    Executors,
    ImageEnvironment,
    Listener,
    Quiet,
    function_name,
    run_names,
)
from kfloop.pipelines.local.pipeline_spec import Document, PipelineSpec, resolve_arguments
from kfloop.pipelines.local.record import (
    FAILED,
    SKIPPED,
    SUCCEEDED,
    RunRecord,
    TaskRecord,
    now,
)
from kfloop.pipelines.local.task import TaskFailed


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
    listener = listener or Quiet()
    executors = Executors(record, state / "cache", environments, listener, parallel, caching)
    run = _Run(pipeline, record, listener, executors)
    try:
        outputs = run.dag(pipeline.root, values, {}, "")
    except KeyboardInterrupt:
        record.finish(FAILED, "interrupted")
        raise
    finally:
        executors.close()
    if outputs.status == FAILED:
        record.finish(FAILED, outputs.error)
        raise PipelineFailed(outputs.error, record)
    record.finish(SUCCEEDED)
    return record


class _Run:
    """One run: walks DAGs, each task in a thread."""

    def __init__(
        self, pipeline: PipelineSpec, record: RunRecord, listener: Listener, executors: Executors
    ) -> None:
        self.pipeline = pipeline
        self.record = record
        self.listener = listener
        self.executors = executors
        self.names = run_names(record)

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
        scope = Scope(parameters, artifacts, results)
        waiting = dict(tasks)
        changed = threading.Condition()
        running: dict[str, threading.Thread] = {}

        def work(name: str) -> None:
            try:
                outputs = self.task(name, tasks[name], scope, path)
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
        return Outputs(SUCCEEDED, *dag_outputs(component, results))

    def _not_run(self, task: Document, upstream: list[str], results: dict[str, Outputs]) -> str:
        """Returns why a task is not run, or an empty string."""
        if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
            return ""
        for one in upstream:
            if results[one].status in (FAILED, SKIPPED):
                return f"{one} was {results[one].status}"
        return "another task failed" if self.executors.failed.is_set() else ""

    def _note_skipped(self, path: str, task: Document, reason: str) -> None:
        record = TaskRecord(path, function_name(task), status=SKIPPED, started=now(), error=reason)
        self.record.save(record)
        self.listener.ended(record)

    def task(self, name: str, task: Document, scope: Scope, path: str) -> Outputs:
        """Resolves a task's inputs and runs it: a container, an importer, a DAG or a loop."""
        component = self.pipeline.component(task["componentRef"]["name"])
        parameters, artifacts = task_inputs(task, component, scope, self.names)
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition and not holds(condition, parameters):
            reason = f"the condition {condition} does not hold"
            self._note_skipped(path + name, task, reason)
            return Outputs(SKIPPED, {}, {}, reason)
        if "parameterIterator" in task or "artifactIterator" in task:
            return self._loop(name, task, component, parameters, artifacts, path)
        if "dag" in component:
            return self.dag(component, parameters, artifacts, f"{path}{name}/")
        executor = self.pipeline.executors[component["executorLabel"]]
        return self.executors.run(path + name, task, executor, component, parameters, artifacts)

    def _loop(
        self,
        name: str,
        task: Document,
        component: Document,
        parameters: Parameters,
        artifacts: Artifacts,
        path: str,
    ) -> Outputs:
        items = loop_items(task, parameters, artifacts)
        places = threading.Semaphore(task.get("iteratorPolicy", {}).get("parallelismLimit") or 64)
        # What an iteration is unless it comes to its end.
        results = [
            Outputs(FAILED, {}, {}, f"{name}/{index}: the runner failed")
            for index in range(len(items))
        ]

        def iterate(index: int, item: Any) -> None:
            with places:
                try:
                    given = iteration_inputs(task, component, item, parameters, artifacts)
                    results[index] = self.dag(component, *given, f"{path}{name}/{index}/")
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
        for result in results:
            if result.status == FAILED:
                return result
        return Outputs(SUCCEEDED, *loop_outputs(component, results))
