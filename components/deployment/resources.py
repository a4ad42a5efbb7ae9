# SPDX-License-Identifier: Apache-2.0
"""What a predictor gets from the cluster: resources, autoscaling, nodes, account, runtime.

`predictor_options` checks the settings of `serving` in the loop file. The limits are those of
KServe's own webhook (0.21), so that a mistake is told before anything is written. Pure functions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.autoscaling import (
    Autoscaling,
    autoscaling_of,
    class_annotations,
    scaling_fields,
)
from kfloop.components.deployment.settings import known, mapping, name_of, whole

KFLOOP, TENSORFLOW = "kfloop", "tensorflow"
# KServe's own is of 2021 and cannot load what Keras 3 exports; see serving/manifests/runtimes.
TENSORFLOW_RUNTIME = "kfloop-tensorflow"
GPU = "nvidia.com/gpu"
SECRET_ANNOTATION = "serving.kserve.io/storageSecretName"  # the name of a Secret, not one
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


@dataclass(frozen=True)
class PredictorOptions:
    """The checked settings of a predictor; the defaults leave everything to KServe.

    Attributes:
        runtime: `kfloop`, `tensorflow` (TensorFlow Serving, V1 only), or a ServingRuntime's name.
        runtime_version: Tag of the runtime's image; empty takes the runtime's own.
        requests: Resource requests, `cpu` and `memory`.
        limits: Resource limits.
        gpu: Number of GPUs.
        autoscaling: The number of replicas, or None.
        node_selector: Labels that a node must have.
        tolerations: Taints that are tolerated, as in a Pod.
        service_account: Name of the service account, or empty.
        storage_secret: Name of the Secret with the credentials of the storage, or empty.
        timeout_seconds: Longest time for one request; 0 leaves it to KServe.
    """

    runtime: str = KFLOOP
    runtime_version: str = ""
    requests: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    gpu: int = 0
    autoscaling: Autoscaling | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    service_account: str = ""
    storage_secret: str = ""
    timeout_seconds: int = 0


def predictor_options(document: Mapping[str, Any]) -> PredictorOptions:
    """Checks the settings of a predictor.

    Args:
        document: `runtime`, `runtime_version`, `resources` (`requests`, `limits`, `gpu`),
            `autoscaling` (`class`, `min_replicas`, `max_replicas`, `metric`, `target`, `query`,
            `server`), `node_selector`, `tolerations`, `service_account`, `storage_secret` and
            `timeout_seconds`; each may be left out.

    Raises:
        InputError: If a setting is unknown or cannot be.
    """
    known(
        document,
        "",
        "runtime runtime_version resources autoscaling node_selector tolerations "
        "service_account storage_secret timeout_seconds",
    )
    resources = mapping(document, "resources")
    known(resources, "resources.", "requests limits gpu")
    requests, limits = (_quantities(resources, side) for side in ("requests", "limits"))
    for name in sorted(requests.keys() & limits.keys()):
        if quantity(requests[name]) > quantity(limits[name]):
            raise InputError(
                f"resources.requests.{name} is {requests[name]}, more than its limit "
                f"{limits[name]}; lower it or raise the limit."
            )
    return PredictorOptions(
        name_of(document, "runtime") or KFLOOP,
        str(document.get("runtime_version") or ""),
        requests,
        limits,
        whole(resources, "resources.", "gpu"),
        autoscaling_of(mapping(document, "autoscaling")),
        {key: str(value) for key, value in mapping(document, "node_selector").items()},
        [_toleration(entry) for entry in document.get("tolerations") or []],
        name_of(document, "service_account"),
        name_of(document, "storage_secret"),
        whole(document, "", "timeout_seconds"),
    )


def predictor_fields(options: PredictorOptions) -> dict[str, Any]:
    """Returns what the options add to a predictor spec beside its model."""
    fields: dict[str, Any] = {
        "nodeSelector": dict(options.node_selector),
        "tolerations": [dict(entry) for entry in options.tolerations],
        "serviceAccountName": options.service_account,
        "timeout": options.timeout_seconds,
    }
    return {key: value for key, value in fields.items() if value} | scaling_fields(
        options.autoscaling
    )


def model_fields(options: PredictorOptions) -> dict[str, Any]:
    """Returns a predictor's `model` without its storageUri."""
    tensorflow = options.runtime == TENSORFLOW
    runtime = TENSORFLOW_RUNTIME if tensorflow else options.runtime
    fields: dict[str, Any] = {
        "modelFormat": {"name": TENSORFLOW if tensorflow else KFLOOP},
        "runtime": "" if runtime == KFLOOP else runtime,
        "runtimeVersion": options.runtime_version,
        "resources": _resources(options),
    }
    return {key: value for key, value in fields.items() if value}


def service_annotations(options: PredictorOptions, mode: str) -> dict[str, str]:
    """Returns the annotations that a service has while a predictor with these options is live.

    Args:
        options: The options.
        mode: Deployment mode of the service, `Standard` or `Knative`.
    """
    return {**secret_annotation(options), **class_annotations(options.autoscaling, mode)}


def secret_annotation(options: PredictorOptions) -> dict[str, str]:
    """Returns the annotation that names the Secret of the storage."""
    return {SECRET_ANNOTATION: options.storage_secret} if options.storage_secret else {}


def quantity(text: str) -> float:
    """Returns a Kubernetes quantity as a number, for example 0.25 for `250m`.

    Raises:
        InputError: If it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti|)", text)
    if not found:
        raise InputError(f"{text!r} is no quantity; write it like 500m, 2 or 4Gi.")
    return float(found[1]) * _UNITS[found[2]]


def _resources(options: PredictorOptions) -> dict[str, Any]:
    gpus = {GPU: str(options.gpu)} if options.gpu else {}
    sides = {"requests": {**options.requests, **gpus}, "limits": {**options.limits, **gpus}}
    return {side: values for side, values in sides.items() if values}


def _quantities(resources: Mapping[str, Any], side: str) -> dict[str, str]:
    found = {name: str(value) for name, value in mapping(resources, side).items()}
    for name, text in found.items():
        if name not in ("cpu", "memory", "ephemeral-storage"):
            raise InputError(
                f"resources.{side}.{name} is not known; there is cpu, memory and "
                "ephemeral-storage, and for GPUs resources.gpu."
            )
        try:
            quantity(text)
        except InputError as error:
            raise InputError(f"resources.{side}.{name}: {error}") from error
    return found


def _toleration(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise InputError(f"tolerations holds {entry!r}; give key, operator, value and effect.")
    known(entry, "tolerations.", "key operator value effect tolerationSeconds")
    operator, effect = entry.get("operator", "Equal"), entry.get("effect", "")
    if operator not in ("Equal", "Exists"):
        raise InputError(f"tolerations.operator is {operator!r}; there is Equal and Exists.")
    if effect not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise InputError(
            f"tolerations.effect is {effect!r}; there is NoSchedule, PreferNoSchedule and "
            "NoExecute."
        )
    if not entry.get("key") and operator != "Exists":
        raise InputError("A toleration without a key tolerates all taints: its operator is Exists.")
    return {
        key: whole(entry, "tolerations.", key) if key == "tolerationSeconds" else str(value)
        for key, value in entry.items()
    }
