# SPDX-License-Identifier: Apache-2.0
"""What the webhooks of KServe and Trainer do to a write: defaults, and refusals in their words.

The rules and texts are those of KServe's `inference_service_validation.go` and
`inference_service_defaults.go` between 0.20 and 0.21, as far as one model per predictor goes.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from .documents import copied
from .errors import ApiError, invalid
from .store import Object

MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
STANDARD, KNATIVE = "Standard", "Knative"
LEGACY = {"RawDeployment": STANDARD, "Serverless": KNATIVE}
WEBHOOK = "inferenceservice.kserve-webhook-server.validator"
NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
FRAMEWORKS = [
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
    "model",
]
# Names of the Go fields, which the message about the implementations lists.
FIELDS = (
    "Name, SKLearn, XGBoost, Tensorflow, PyTorch, Triton, ONNX, HuggingFace, PMML, LightGBM, "
    "Paddle, Model, StorageUris, StorageContainerName, WorkerSpec, PodSpec"
)
TRAIN_JOB_FROZEN = ("runtimeRef", "initializer", "trainer", "activeDeadlineSeconds", "managedBy")


def mutate(config: Callable[[], Object | None]) -> Callable[[Object, Object | None], Object]:
    """Returns KServe's defaulter; `config` returns the ConfigMap inferenceservice-config."""

    def default(new: Object, old: Object | None) -> Object:
        new = copied(new)
        annotations = new["metadata"].setdefault("annotations", {})
        mode = annotations.get(MODE)
        if mode in LEGACY:
            annotations[MODE] = LEGACY[mode]
        elif mode is None:
            deploy = config_document(config(), "deploy")
            # The cluster's default becomes an annotation only when it has the new spelling.
            if deploy.get("defaultDeploymentMode") == STANDARD:
                annotations[MODE] = STANDARD
        predictor = new["spec"]["predictor"]
        for framework in FRAMEWORKS[:-1]:
            if framework in predictor:
                predictor["model"] = {
                    "modelFormat": {"name": framework},
                    **predictor.pop(framework),
                }
        model = predictor.get("model")
        if model:
            kind = model["modelFormat"]["name"]
            if kind in ("triton", "vllm"):
                model.setdefault("protocolVersion", "v2")
            annotations.setdefault("modelFormat", kind)
            _default_resources(model)
        if not annotations:
            del new["metadata"]["annotations"]
        return new

    return default


def config_document(config: Object | None, key: str) -> dict[str, Any]:
    """Returns one JSON document of the ConfigMap inferenceservice-config; empty without it."""
    text = ((config or {}).get("data") or {}).get(key)
    return json.loads(text) if text else {}


def _default_resources(model: dict[str, Any]) -> None:
    resources = model.setdefault("resources", {})
    for entry in ("requests", "limits"):
        sizes = resources.setdefault(entry, {})
        sizes.setdefault("cpu", "1")
        sizes.setdefault("memory", "2Gi")


def validate(new: Object, old: Object | None) -> None:
    """KServe's validator.

    Raises:
        ApiError: 403 with the webhook's words.
    """
    if new["metadata"].get("deletionTimestamp"):
        return
    if old is not None:
        _validate_change(new, old)
    name, annotations = new["metadata"]["name"], new["metadata"].get("annotations") or {}
    if not re.fullmatch(NAME, name):
        _deny(
            f'the InferenceService "{name}" is invalid: a InferenceService name must consist of '
            "lower case alphanumeric characters or '-', and must start with alphabetical "
            "character. (e.g. "
            f'"my-name" or "abc-123", regex used for validation is \'{NAME}\')'
        )
    scaler = annotations.get(AUTOSCALER)
    if scaler is not None and scaler not in ("hpa", "kpa", "keda", "external", "none"):
        _deny(f"[{scaler}] is not a supported autoscaler class type")
    predictor = new["spec"]["predictor"]
    if any((predictor.get(framework) or {}).get("name") for framework in FRAMEWORKS):
        _deny("the 'name' field is not allowed in standard predictor")
    if predictor.get("storageUris") and storage_uri(predictor):
        _deny("Setting both StorageURI and StorageURIs is not supported.")
    for part in ("predictor", "transformer", "explainer"):
        if part in new["spec"]:
            component = new["spec"][part]
            problem = _component(component, "PredictorSpec" if part == "predictor" else "")
            _deny(problem or _scaling(component, annotations))
    _validate_canary(new["spec"], annotations)


def _validate_change(new: Object, old: Object) -> None:
    mode = (old.get("status") or {}).get("deploymentMode", "")
    if mode:
        mode = LEGACY.get(mode, mode)
        wanted = (new["metadata"].get("annotations") or {}).get(MODE)
        if wanted is not None and wanted != mode:
            _deny(f"update rejected: deploymentMode cannot be changed from '{mode}' to '{wanted}'")
    before, after = old["spec"]["predictor"], new["spec"]["predictor"]
    renamed = before.get("name", "") != after.get("name", "")
    if renamed and storage_uri(before) == storage_uri(after):
        _deny("predictor.name change requires a model change (e.g. storageUri)")


def _component(component: dict[str, Any], go_name: str) -> str:
    """What is wrong with a predictor, transformer or explainer alone, or ''."""
    if go_name:
        given = [framework for framework in FRAMEWORKS if component.get(framework) is not None]
        custom = bool(component.get("containers")) and not given
        if len(given) + custom != 1:
            return f"exactly one of [{FIELDS}] must be specified in {go_name}"
    low, high = component.get("minReplicas"), component.get("maxReplicas", 0)
    if low is not None and low < 0:
        return "'MinReplicas' cannot be less than 0"
    if high < 0:
        return "'MaxReplicas' cannot be less than 0"
    if low is not None and high and low > high:
        return "'MinReplicas' cannot be greater than MaxReplicas"
    if component.get("containerConcurrency", 0) < 0:
        return "parallelism cannot be less than 0"
    logger = component.get("logger")
    if logger and logger.get("mode", "") not in ("all", "request", "response"):
        return "invalid logger type"
    return ""


def _scaling(component: dict[str, Any], annotations: dict[str, str]) -> str:
    mode, metric = annotations.get(MODE), component.get("scaleMetric")
    target = component.get("scaleTarget")
    if mode == STANDARD:
        if annotations.get(AUTOSCALER) == "hpa":
            if metric not in (None, "cpu", "memory"):
                return f"[{metric}] is not a supported metric"
            if target is not None and metric in (None, "cpu") and not 1 <= target <= 100:
                return "the target utilization percentage should be a [1-100] integer"
        if annotations.get(AUTOSCALER) == "keda" and metric is not None:
            return "ScaleMetric is not supported for KEDA"
        return ""
    if component.get("deploymentStrategy") is not None:
        return "customizing deploymentStrategy is only supported for raw deployment mode"
    if metric not in (None, "concurrency", "rps"):
        return f"[{metric}] is not a supported metric"
    if metric == "rps" and target is not None and target < 1:
        return "the target for rps should be greater than 1"
    return ""


def _validate_canary(spec: dict[str, Any], annotations: dict[str, str]) -> None:
    canaries, stable = spec.get("canary") or [], spec["predictor"]
    if not canaries:
        return
    if annotations.get(MODE) != STANDARD:
        _deny("canary is only supported in Standard deployment mode")
    if not storage_uri(stable) and not stable.get("model"):
        _deny(
            "canary requires a stable predictor with a model (multi-model serving is not supported "
            "with canary)"
        )
    names: set[str] = set()
    for index, canary in enumerate(canaries):
        name = canary["predictor"].get("name", "")
        if not name:
            _deny(f"canary[{index}] predictor.name is required")
        if name in names:
            _deny(f'canary predictor.name "{name}" is duplicated')
        names.add(name)
        if name == stable.get("name", ""):
            _deny(f'canary predictor.name "{name}" conflicts with stable predictor name')
        _deny(_canary_problem(canary, stable, name))
    total = sum(canary["trafficPercent"] for canary in canaries)
    if total > 100:
        _deny(f"sum of canary trafficPercent values ({total}) must be <= 100")


def _canary_problem(canary: dict[str, Any], stable: dict[str, Any], name: str) -> str:
    percent, predictor = canary["trafficPercent"], canary["predictor"]
    if not 0 <= percent <= 100:
        return f'canary "{name}" trafficPercent must be between 0 and 100, got {percent}'
    problem = _component(predictor, "PredictorSpec")
    if problem:
        return f'canary "{name}" predictor: {problem}'
    if predictor.get("workerSpec"):
        return (
            f'canary "{name}" must not set workerSpec (multi-node is not yet supported for canary)'
        )
    if predictor.get("maxReplicas", 0) > 0:
        return f'canary "{name}" must not set maxReplicas (canary uses fixed replicas)'
    for field in ("scaleTarget", "scaleMetric", "autoScaling"):
        if predictor.get(field) is not None:
            return f'canary "{name}" must not set {field} (canary uses fixed replicas)'
    wanted, most = predictor.get("minReplicas"), stable.get("minReplicas", 1)
    if wanted is not None and wanted > most:
        return (
            f'canary "{name}" minReplicas ({wanted}) must not exceed stable predictor minReplicas '
            f"({most})"
        )
    return ""


def storage_uri(predictor: dict[str, Any]) -> str:
    """Returns where a predictor's model is, or ''."""
    for framework in FRAMEWORKS:
        found = (predictor.get(framework) or {}).get("storageUri")
        if found:
            return str(found)
    return ""


def _deny(problem: str) -> None:
    if problem:
        raise ApiError(403, f'admission webhook "{WEBHOOK}" denied the request: {problem}')


def default_train_job(new: Object, old: Object | None) -> Object:
    """Sets what the definition of a TrainJob gives by default."""
    new = copied(new)
    reference = new["spec"]["runtimeRef"]
    reference.setdefault("apiGroup", "trainer.kubeflow.org")
    reference.setdefault("kind", "ClusterTrainingRuntime")
    new["spec"].setdefault("suspend", False)
    new["spec"].setdefault("managedBy", "trainer.kubeflow.org/trainjob-controller")
    return new


def validate_train_job(new: Object, old: Object | None) -> None:
    """Checks the rules of a TrainJob's definition that are more than types.

    Raises:
        ApiError: 422.
    """
    name, problems = new["metadata"]["name"], []
    if not re.fullmatch(NAME, name):
        wrong = f'Invalid value: "{name}": metadata.name must match RFC 1035 DNS label format'
        problems.append(("metadata.name", wrong))
    elif len(name) > 63:
        wrong = f'Invalid value: "{name}": metadata.name must be no more than 63 characters'
        problems.append(("metadata.name", wrong))
    if old is not None:
        problems += [
            (f"spec.{field}", 'Invalid value: "object": field is immutable')
            for field in TRAIN_JOB_FROZEN
            if old["spec"].get(field) != new["spec"].get(field)
        ]
    for part, rule in (("numNodes", 0), ("numProcPerNode", 1)):
        value = (new["spec"].get("trainer") or {}).get(part)
        if value is not None and value < rule:
            wrong = f"Invalid value: {value}: {part} must be greater than or equal to {rule}"
            problems.append((f"spec.trainer.{part}", wrong))
    if problems:
        raise invalid("TrainJob", "trainer.kubeflow.org", name, problems)
