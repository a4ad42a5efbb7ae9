# SPDX-License-Identifier: Apache-2.0
"""What KServe's two modes share: configuration, pod templates, and the status of the model."""

from dataclasses import dataclass
from typing import Any

from .admission import LEGACY, MODE, STANDARD, config_document, storage_uri
from .cluster import (
    ISVC_LABEL,
    SOURCE_ANNOTATION,
    find_condition,
    is_true,
    set_condition,
    tell,
)
from .documents import copied
from .failures import Failures
from .server import ApiServer
from .store import Object

STOP = "serving.kserve.io/stop"
# KServe copies every other annotation of an InferenceService into the pod templates, so that a
# changed one restarts the pods; the list can be made longer in the configuration.
NOT_COPIED = (
    "autoscaling.knative.dev/min-scale",
    "autoscaling.knative.dev/max-scale",
    SOURCE_ANNOTATION,
    "kubectl.kubernetes.io/last-applied-configuration",
    "modelFormat",
)
RUNTIME_IMAGES = {
    "tensorflow": ("kserve-tensorflow-serving", "tensorflow/serving:2.6.2"),
    "sklearn": ("kserve-sklearnserver", "kserve/sklearnserver:v0.21.0"),
    "xgboost": ("kserve-xgbserver", "kserve/xgbserver:v0.21.0"),
    "triton": ("kserve-tritonserver", "nvcr.io/nvidia/tritonserver:23.05-py3"),
    "huggingface": ("kserve-huggingfaceserver", "kserve/huggingfaceserver:v0.21.0"),
}


class NoRuntimeError(Exception):
    """No ServingRuntime serves a model's format."""


class RefusedError(Exception):
    """A webhook refuses what KServe writes."""


@dataclass(frozen=True)
class Config:
    """The parts of the ConfigMap inferenceservice-config that the simulation reads."""

    default_mode: str
    gateway_api: bool
    domain: str
    scheme: str
    not_copied: tuple[str, ...]


def read_config(api: ApiServer) -> Config:
    """Reads kserve/inferenceservice-config."""
    document = api.get("configmaps", "inferenceservice-config", "kserve")
    ingress = config_document(document, "ingress")
    extra = config_document(document, "inferenceService").get("serviceAnnotationDisallowedList", [])
    return Config(
        config_document(document, "deploy").get("defaultDeploymentMode", STANDARD),
        bool(ingress.get("enableGatewayApi", False)),
        ingress.get("ingressDomain", "example.com"),
        ingress.get("urlScheme", "http"),
        (*NOT_COPIED, *extra),
    )


def mode_of(isvc: Object, config: Config) -> str:
    """Returns the deployment mode: what was decided before wins over annotation and default."""
    decided = (isvc.get("status") or {}).get("deploymentMode", "")
    annotated = (isvc["metadata"].get("annotations") or {}).get(MODE, "")
    mode = decided or annotated or config.default_mode
    return LEGACY.get(mode, mode)


def predictor_name(isvc: str, name: str = "") -> str:
    """Returns the name of a predictor's Deployment and Service."""
    return f"{isvc}-{name}-predictor" if name else f"{isvc}-predictor"


def is_stopped(isvc: Object) -> bool:
    """Whether the annotation asks to stop the service."""
    annotations = isvc["metadata"].get("annotations") or {}
    return bool(annotations.get(STOP, "").lower() == "true")


def new_status(api: ApiServer, isvc: Object) -> dict[str, Any]:
    """Returns the status to go on with: a copy, with the first conditions Unknown."""
    status: dict[str, Any] = copied(isvc.get("status") or {})
    conditions = status.setdefault("conditions", [])
    for name in ("IngressReady", "PredictorReady", "Ready"):
        if not find_condition(conditions, name):
            set_condition(api, conditions, name, "Unknown")
    status.setdefault("modelStatus", {"transitionStatus": "UpToDate"})
    status.setdefault("components", {})
    return status


def set_part(api: ApiServer, status: dict[str, Any], name: str, state: str, **told: str) -> None:
    """Sets a condition and with it Ready, which is PredictorReady and IngressReady together."""
    conditions = status["conditions"]
    severity = {} if name in ("PredictorReady", "IngressReady") else {"severity": "Info"}
    set_condition(api, conditions, name, state, **told, **severity)
    parts = [find_condition(conditions, part) for part in ("PredictorReady", "IngressReady")]
    worst = next((part for part in parts if part["status"] == "False"), None)
    worst = worst or next((part for part in parts if part["status"] == "Unknown"), None)
    if worst is None:
        set_condition(api, conditions, "Ready", "True")
    else:
        reasons = {key: worst[key] for key in ("reason", "message") if key in worst}
        set_condition(api, conditions, "Ready", worst["status"], **reasons)


def pod_template(api: ApiServer, isvc: Object, predictor: Object, config: Config) -> Object:
    """Returns the labels, annotations and spec of a predictor's pods.

    Raises:
        NoRuntimeError: If no runtime serves the model.
    """
    metadata = isvc["metadata"]
    copied = {
        key: value
        for key, value in (metadata.get("annotations") or {}).items()
        if key not in config.not_copied
    }
    uri = storage_uri(predictor)
    runtime = (
        _runtime(api, predictor["model"], metadata["namespace"]) if "model" in predictor else {}
    )
    annotations = {
        **(runtime.get("spec", {}).get("annotations") or {}),
        **copied,
        **predictor.get("annotations", {}),
    }
    if uri:
        annotations[SOURCE_ANNOTATION] = uri
    labels = {**(metadata.get("labels") or {}), **predictor.get("labels", {})}
    labels.update({ISVC_LABEL: metadata["name"], "component": "predictor"})
    return {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": _pod_spec(api, isvc, predictor),
    }


def _pod_spec(api: ApiServer, isvc: Object, predictor: Object) -> Object:
    model = predictor.get("model")
    if model is None:
        containers = copied(predictor["containers"])
        containers[0].setdefault("name", "kserve-container")
        spec: Object = {"containers": containers}
    else:
        image = _image(_runtime(api, model, isvc["metadata"]["namespace"]), model)
        container: Object = {"name": "kserve-container", "image": model.get("image", image)}
        for field in ("resources", "env", "args", "command"):
            if field in model:
                container[field] = copied(model[field])
        others = [c for c in predictor.get("containers", []) if c["name"] != "kserve-container"]
        spec = {"containers": [container, *copied(others)]}
    for field in ("nodeSelector", "tolerations", "serviceAccountName"):
        if field in predictor:
            spec[field] = copied(predictor[field])
    return spec


def _image(runtime: Object, model: Object) -> str:
    image = str(runtime["spec"]["containers"][0]["image"])
    version = model.get("runtimeVersion")
    return f"{image.rpartition(':')[0]}:{version}" if version else image


def _runtime(api: ApiServer, model: Object, namespace: str) -> Object:
    wanted, kind = model.get("runtime"), model["modelFormat"]["name"]
    runtimes = [*api.list("servingruntimes", namespace), *api.list("clusterservingruntimes")]
    for runtime in runtimes:
        formats = {entry["name"] for entry in runtime["spec"].get("supportedModelFormats", [])}
        if wanted in (None, runtime["metadata"]["name"]) and kind in formats:
            return runtime
    raise NoRuntimeError(f"no runtime found to support predictor with model type: {kind}")


def check_runtime(
    api: ApiServer, isvc: Object, status: dict[str, Any], predictor: Object, failures: Failures
) -> None:
    """Marks the model as one that nothing can serve.

    Raises:
        NoRuntimeError: If that is so.
    """
    named = (predictor.get("model") or {}).get("runtime")
    try:
        if failures.of(storage_uri(predictor)).kind in ("no_runtime", "no_runtime_untold"):
            raise NoRuntimeError("no runtime found to support predictor with model type: injected")
        _pod_spec(api, isvc, predictor)
    except NoRuntimeError:
        states = status["modelStatus"].setdefault("states", {"activeModelState": ""})
        states["targetModelState"] = "FailedToLoad"
        status["modelStatus"]["transitionStatus"] = "InvalidSpec"
        status["modelStatus"]["lastFailureInfo"] = {
            "reason": "RuntimeNotRecognized" if named else "NoSupportingRuntime",
            "message": "Waiting for runtime to become available"
            if named
            else "No runtime found to support specified framework/version",
        }
        raise


def internal_error(api: ApiServer, isvc: Object, error: Exception) -> None:
    """Records the Event that KServe leaves when it cannot reconcile."""
    tell(api, isvc, "Warning", "InternalError", str(error))


def tell_readiness(api: ApiServer, isvc: Object, status: dict[str, Any]) -> None:
    """Records the Events for a service that became ready, or is so no longer."""
    before = find_condition((isvc.get("status") or {}).get("conditions"), "Ready")
    after = find_condition(status["conditions"], "Ready")
    name = isvc["metadata"]["name"]
    if before.get("status") == "True" and after["status"] == "False":
        bad = [c["type"] for c in status["conditions"] if c["status"] == "False"]
        text = f"InferenceService [{name}] is no longer Ready because of: {', '.join(bad)}"
        tell(api, isvc, "Warning", "InferenceServiceNotReady", text)
    elif before.get("status") != "True" and after["status"] == "True":
        tell(api, isvc, "Normal", "InferenceServiceReady", f"InferenceService [{name}] is Ready")


def propagate_model_status(
    status: dict[str, Any], pods: list[Object], loaded: bool, failed: bool = False
) -> None:
    """Fills status.modelStatus as KServe does: it looks at the first pod only.

    Args:
        status: Of the InferenceService, changed in place.
        pods: Of the latest predictor, in the order of a list.
        loaded: Whether the service counts as ready (Knative: with the latest revision).
        failed: Whether there are no pods because of an error (Knative).
    """
    model = status["modelStatus"]
    ready = sum(
        is_true((pod.get("status") or {}).get("conditions"), "Ready")
        and pod["status"].get("phase") == "Running"
        for pod in pods
    )
    model["copies"] = {"failedCopies": 0, "totalCopies": ready}
    if not pods:
        _set_state(model, "FailedToLoad" if failed else "Pending")
        return
    first = pods[0].get("status") or {}
    for entry in first.get("initContainerStatuses", []):
        state = entry["state"]
        if "running" in state:
            _set_state(model, "Loading")
            return
        ended = _ended(entry)
        if ended:
            _set_state(model, "FailedToLoad", ended)
            return
    if loaded:
        _set_state(model, "Loaded")
        return
    for entry in first.get("containerStatuses", []):
        if entry["name"] == "kserve-container":
            ended = _ended(entry)
            _set_state(model, "FailedToLoad" if ended else "Pending", ended)


def _ended(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Returns how a container ended when it failed or is in a crash loop, or None."""
    state = entry["state"]
    if state.get("terminated", {}).get("reason") == "Error":
        return dict(state["terminated"])
    if state.get("waiting", {}).get("reason") == "CrashLoopBackOff":
        return dict(entry["lastState"]["terminated"])
    return None


def _set_state(model: dict[str, Any], target: str, ended: dict[str, Any] | None = None) -> None:
    states = model.setdefault("states", {"activeModelState": ""})
    states["targetModelState"] = target
    if target == "Loaded":
        states["activeModelState"] = "Loaded"
        model["transitionStatus"] = "UpToDate"
    else:
        failed = target == "FailedToLoad"
        model["transitionStatus"] = "BlockedByFailedLoad" if failed else "InProgress"
    if ended is not None:
        model["lastFailureInfo"] = {
            "reason": "ModelLoadFailed",
            "message": ended.get("message", ""),
            "exitCode": ended["exitCode"],
        }
