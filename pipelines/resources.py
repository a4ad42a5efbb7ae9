# SPDX-License-Identifier: Apache-2.0
"""What each task gets on a cluster: CPU, memory, GPUs, retries, a time limit, and whether its
result may be reused. `resources` in a loop file changes it per component.

A run on a laptop takes no notice of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kfloop.pipelines.local.pipeline_spec import PipelineSpec

Document = dict[str, Any]
# With retries=2: after 30 s and after 60 s, which outlasts most hiccups of a network or a node.
BACKOFF_FACTOR = 2.0
LONGEST_BACKOFF_SECONDS = 600


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Cores = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^(\d+m|\d+(\.\d+)?)$")]
Bytes = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\d+(\.\d+)?([kMGT]|[KMGT]i)?$")]


class TaskResources(BaseModel):
    """What a task gets.

    Attributes:
        cpu: Cores that are set aside for it, like `2` or `500m`.
        cpu_limit: Cores it may use when others do not.
        memory: Memory that is set aside for it; its limit too, so that no other pod can take it.
        gpu: GPUs.
        gpu_type: Kubernetes resource name of a GPU.
        retries: How often a failed pod is tried again.
        backoff_seconds: Pause before the first retry; each one after it is twice as long.
        timeout_minutes: A pod that takes longer is killed; 0 is no limit.
        cache: Whether KFP may reuse its result for equal inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: Cores = "500m"
    cpu_limit: Cores = "1"
    memory: Bytes = "1Gi"
    gpu: Annotated[int, Field(ge=0)] = 0
    gpu_type: str = "nvidia.com/gpu"
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    backoff_seconds: Annotated[int, Field(ge=1)] = 30
    timeout_minutes: Annotated[int, Field(ge=0)] = 60
    cache: bool = True

    def changed(self, **changes: Any) -> "TaskResources":
        """Returns a copy with some values changed."""
        return self.model_copy(update=changes)


_SMALL = TaskResources()
_ROWS = TaskResources(cpu="2", cpu_limit="4", memory="4Gi", timeout_minutes=120)
_TENSORFLOW = TaskResources(cpu="2", cpu_limit="4", memory="6Gi", timeout_minutes=120)
_TRAINING = TaskResources(cpu="4", cpu_limit="8", memory="16Gi", timeout_minutes=24 * 60)
# Steps whose effect or answer lies outside the run: a reused result would be a lie.
_ACT = _SMALL.changed(cache=False)
_ROWS_ANEW = _ROWS.changed(cache=False)

RESOURCES: dict[str, TaskResources] = {
    "ingest_data": _ROWS_ANEW,
    "transform_data": _ROWS,
    "build_feature_tables": _ROWS,
    "split_data": _ROWS,
    "join_labels": _ROWS,
    "collect_inference_log": _ROWS_ANEW,
    "plan_windows": _ACT,
    "load_reference": _SMALL,
    "export_data": _ROWS_ANEW,
    "compute_statistics": _ROWS,
    "infer_schema": _SMALL,
    "update_schema": _SMALL,
    "validate_data": _SMALL,
    # It fails on purpose, and would fail again.
    "require_pass": _SMALL.changed(retries=0, timeout_minutes=10),
    "apply_feature_repo": _SMALL.changed(memory="2Gi"),
    "retrieve_training_set": _ROWS,
    "materialize_features": _ROWS_ANEW,
    "push_features": _ROWS_ANEW,
    "retrieve_online": _ROWS_ANEW,
    "detect_serving_skew": _ROWS,
    "train_model": _TRAINING,
    "tune_model": _TRAINING,
    "export_onnx": _TENSORFLOW,
    # They wait for what runs elsewhere.
    "submit_train_job": _ACT.changed(timeout_minutes=24 * 60),
    "tune_with_katib": _ACT.changed(timeout_minutes=24 * 60),
    "evaluate_model": _TENSORFLOW,
    "compare_models": _TENSORFLOW,
    "gate_model": _SMALL,
    "score_data": _TENSORFLOW,
    "publish_model": _ACT,
    "deploy_model": _ACT,
    "smoke_test_model": _ACT,
    "shift_traffic": _ACT,
    # It ends by its own limits: the steps' bake times. Killed, it goes on where it was.
    "roll_out_model": _ACT.changed(timeout_minutes=0),
    "analyse_canary": _ACT,
    "promote_model": _ACT,
    "roll_back_model": _ACT,
    "register_model": _ACT,
    "update_champion": _ACT,
    "find_champion": _ACT,
    "describe_service": _ACT,
    # Twice would be twice the traffic, and two messages.
    "replay_requests": _ROWS_ANEW.changed(retries=0),
    "notify": _ACT.changed(retries=0, timeout_minutes=10),
    "detect_drift": _ROWS_ANEW,
    "score_outliers": _ROWS,
    "measure_performance": _ROWS,
    "decide_retraining": _ACT,
    "export_metrics": _ACT,
}


def with_overrides(overrides: Mapping[str, TaskResources]) -> dict[str, TaskResources]:
    """Returns what the named components get: their own values under those that were given.

    A `cpu` above the component's limit raises the limit, and a `cpu_limit` below lowers `cpu`.
    """
    return {name: _merged(RESOURCES[name], given) for name, given in overrides.items()}


def _merged(own: TaskResources, given: TaskResources) -> TaskResources:
    changes = {name: getattr(given, name) for name in given.model_fields_set}
    merged = own.changed(**changes)
    if cores(merged.cpu) > cores(merged.cpu_limit):
        same = merged.cpu if "cpu" in changes else merged.cpu_limit
        merged = merged.changed(cpu=same, cpu_limit=same)
    return merged


def problem(name: str, given: TaskResources) -> str:
    """Returns what is wrong with the overrides of a component, in words; empty when nothing is."""
    own = RESOURCES.get(name)
    if own is None:
        return f"there is no such component; there is {', '.join(sorted(RESOURCES))}"
    if given.cache and "cache" in given.model_fields_set and not own.cache:
        return "cache: true is not possible; its effect or answer lies outside the run"
    if {"cpu", "cpu_limit"} <= given.model_fields_set and cores(given.cpu) > cores(given.cpu_limit):
        return f"cpu is {given.cpu}, more than its cpu_limit {given.cpu_limit}"
    return ""


def cores(quantity: str) -> float:
    """Returns a Kubernetes CPU quantity in cores."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def apply_resources(documents: list[Document], table: Mapping[str, TaskResources]) -> None:
    """Writes resources into a compiled pipeline; tasks that the table does not name keep theirs.

    Args:
        documents: The pipeline and, where there are any, its platform settings. Changed in place;
            time limits are platform settings, so a second document may be added.
        table: By component.
    """
    spec = documents[0]
    functions = executor_functions(spec)
    for label, function in functions.items():
        if function in table:
            _write_container(spec["deploymentSpec"]["executors"][label], table[function])
    for task, label in _tasks(spec):
        if functions.get(label) in table:
            _write_task(task, table[functions[label]])
    limits = {
        label: table[function].timeout_minutes * 60
        for label, function in functions.items()
        if function in table
    }
    _write_limits(documents, limits)


def executor_functions(spec: Document) -> dict[str, str]:
    """Returns the component function of every executor that runs one, by the executor's label."""
    found = {}
    for label, executor in spec.get("deploymentSpec", {}).get("executors", {}).items():
        arguments = executor.get("container", {}).get("args", [])
        if "--function_to_execute" in arguments:
            found[label] = arguments[arguments.index("--function_to_execute") + 1]
    return found


def _tasks(spec: Document) -> Iterable[tuple[Document, str]]:
    components = spec.get("components", {})
    for component in [spec["root"], *components.values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            label = components[task["componentRef"]["name"]].get("executorLabel")
            if label:
                yield task, label


def _write_container(executor: Document, wanted: TaskResources) -> None:
    resources = executor["container"].setdefault("resources", {})
    resources |= {
        "resourceCpuRequest": wanted.cpu,
        "resourceCpuLimit": wanted.cpu_limit,
        "resourceMemoryRequest": wanted.memory,
        "resourceMemoryLimit": wanted.memory,
    }
    # 0 leaves alone what the pipeline asks for by a parameter.
    if wanted.gpu:
        resources["accelerator"] = {
            "resourceType": wanted.gpu_type,
            "resourceCount": str(wanted.gpu),
        }


def _write_task(task: Document, wanted: TaskResources) -> None:
    if not wanted.cache:
        task["cachingOptions"] = {}
    task.pop("retryPolicy", None)
    if wanted.retries:
        task["retryPolicy"] = {
            "maxRetryCount": wanted.retries,
            "backoffDuration": f"{wanted.backoff_seconds}s",
            "backoffFactor": BACKOFF_FACTOR,
            "backoffMaxDuration": f"{max(LONGEST_BACKOFF_SECONDS, wanted.backoff_seconds)}s",
        }


def _write_limits(documents: list[Document], limits: Mapping[str, int]) -> None:
    """Writes seconds per executor; 0 takes a limit away."""
    if not limits:
        return
    executors = platform_executors(documents)
    for label, seconds in limits.items():
        if seconds:
            # 64-bit numbers are text in the JSON of a protobuf.
            executors.setdefault(label, {})["activeDeadlineSeconds"] = str(seconds)
        else:
            executors.get(label, {}).pop("activeDeadlineSeconds", None)


def platform_executors(documents: list[Document]) -> Document:
    """Returns the Kubernetes settings by executor; a document is added where there is none."""
    if len(documents) == 1:
        documents.append({"platforms": {}})
    kubernetes = documents[1].setdefault("platforms", {}).setdefault("kubernetes", {})
    executors: Document = kubernetes.setdefault("deploymentSpec", {}).setdefault("executors", {})
    return executors


def without_retries(pipeline: PipelineSpec) -> PipelineSpec:
    """Returns a pipeline whose tasks fail the first time: nothing evicts a step on a laptop."""

    def once(component: Document) -> Document:
        dag = component.get("dag")
        if not dag:
            return component
        tasks = {
            name: {key: value for key, value in task.items() if key != "retryPolicy"}
            for name, task in dag["tasks"].items()
        }
        return {**component, "dag": {**dag, "tasks": tasks}}

    return replace(
        pipeline,
        root=once(pipeline.root),
        components={name: once(inner) for name, inner in pipeline.components.items()},
    )
