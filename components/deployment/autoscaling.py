# SPDX-License-Identifier: Apache-2.0
"""How many replicas of a predictor run: KServe's autoscalers, and which mode has which.

The limits are those of KServe's own webhook (0.21).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.settings import known, whole

STANDARD, KNATIVE = "Standard", "Knative"
CLASS_ANNOTATION = "serving.kserve.io/autoscalerClass"
KNATIVE_CLASS_ANNOTATION = "autoscaling.knative.dev/class"
BOTH = (STANDARD, KNATIVE)
# The metrics that each autoscaler reads, and the modes that have it.
METRICS: dict[str, tuple[str, ...]] = {
    "hpa": ("cpu", "memory"),
    "keda": ("cpu", "memory", "prometheus"),
    "kpa": ("concurrency", "rps"),
    "external": (),
    "none": (),
}
MODES = {
    "hpa": BOTH,
    "keda": (STANDARD,),
    "kpa": (KNATIVE,),
    "external": (STANDARD,),
    "none": (STANDARD,),
}
# What a candidate must not set in Standard mode: it runs a fixed number of replicas.
SCALING_KEYS = (
    "minReplicas",
    "maxReplicas",
    "scaleMetric",
    "scaleMetricType",
    "scaleTarget",
    "autoScaling",
)


@dataclass(frozen=True)
class Autoscaling:
    """How many replicas run.

    Attributes:
        kind: `hpa`, `keda`, `external` or `none` in Standard mode, `kpa` or `hpa` in Knative mode;
            `external` and `none` leave the number alone.
        min_replicas: Fewest; 0 scales to zero, which only `kpa` can.
        max_replicas: Most; 0 leaves it to KServe.
        metric: What is watched; empty takes the first of the class.
        target: Its value per replica: percent for `cpu` and `memory`; 0 takes KServe's default.
        query: PromQL, for `prometheus`.
        server: Address of the Prometheus server, for `prometheus`.
    """

    kind: str
    min_replicas: int = 1
    max_replicas: int = 0
    metric: str = ""
    target: int = 0
    query: str = ""
    server: str = ""


def autoscaling_of(given: Mapping[str, Any]) -> Autoscaling | None:
    """Checks the settings of `autoscaling`; None when there are none.

    Raises:
        InputError: If a setting is unknown, or does not go with the class.
    """
    if not given:
        return None
    known(given, "autoscaling.", "class min_replicas max_replicas metric target query server")
    kind = str(given.get("class") or "hpa")
    if kind not in METRICS:
        raise InputError(f"autoscaling.class is {kind!r}; KServe has {', '.join(METRICS)}.")
    metrics = METRICS[kind]
    scaling = Autoscaling(
        kind,
        whole(given, "autoscaling.", "min_replicas", 1),
        whole(given, "autoscaling.", "max_replicas"),
        str(given.get("metric") or (metrics[0] if metrics else "")),
        whole(given, "autoscaling.", "target"),
        str(given.get("query") or ""),
        str(given.get("server") or ""),
    )
    _check_replicas(scaling)
    _check_metric(scaling, metrics)
    return scaling


def require_mode(scaling: Autoscaling | None, mode: str) -> None:
    """Raises InputError when a deployment mode does not have the class of autoscaling."""
    if scaling and mode not in MODES[scaling.kind]:
        offered = ", ".join(kind for kind, modes in MODES.items() if mode in modes)
        raise InputError(
            f"autoscaling.class {scaling.kind} is of {MODES[scaling.kind][0]} mode, but the "
            f"service is in {mode} mode, which has {offered}; change the class."
        )


def _check_replicas(scaling: Autoscaling) -> None:
    if scaling.min_replicas == 0 and scaling.kind != "kpa":
        raise InputError(
            f"autoscaling.min_replicas is 0, but class {scaling.kind} cannot scale to zero: "
            "nothing would hold a request until a replica is there; use 1, or class kpa in "
            "Knative mode."
        )
    if scaling.kind == "none" and scaling.max_replicas:
        raise InputError(
            "autoscaling.max_replicas needs an autoscaler, but class is none; leave it out and "
            "give min_replicas, or use hpa."
        )
    if 0 < scaling.max_replicas < scaling.min_replicas:
        raise InputError(
            f"autoscaling.max_replicas is {scaling.max_replicas}, less than min_replicas "
            f"{scaling.min_replicas}; raise it."
        )


def _check_metric(scaling: Autoscaling, metrics: tuple[str, ...]) -> None:
    if not metrics and (scaling.metric or scaling.target):
        raise InputError(
            f"autoscaling.metric and target mean nothing to class {scaling.kind}; leave them out."
        )
    if scaling.metric and scaling.metric not in metrics:
        raise InputError(
            f"autoscaling.metric is {scaling.metric!r}; class {scaling.kind} knows "
            f"{', '.join(metrics)}."
        )
    if scaling.metric in ("cpu", "memory") and scaling.target > 100:
        raise InputError(
            f"autoscaling.target is {scaling.target}; for {scaling.metric} it is a percentage of "
            "the request, 1 to 100."
        )
    asks_prometheus = scaling.metric == "prometheus"
    if asks_prometheus and not (scaling.query and scaling.server and scaling.target):
        raise InputError("autoscaling.metric prometheus needs query, server and target.")
    if not asks_prometheus and (scaling.query or scaling.server):
        raise InputError("autoscaling.query and server belong to metric prometheus alone.")


def class_annotations(scaling: Autoscaling | None, mode: str) -> dict[str, str]:
    """Returns the annotations of the service that choose its autoscaler."""
    if scaling and mode == STANDARD:
        return {CLASS_ANNOTATION: scaling.kind}
    if scaling and scaling.kind == "hpa":
        return {KNATIVE_CLASS_ANNOTATION: "hpa.autoscaling.knative.dev"}
    # `kpa` is Knative's default, and KServe's webhook refuses it as a class.
    return {}


def scaling_fields(scaling: Autoscaling | None) -> dict[str, Any]:
    """Returns what autoscaling adds to a predictor spec."""
    if scaling is None:
        return {}
    fields: dict[str, Any] = {"minReplicas": scaling.min_replicas}
    if scaling.max_replicas:
        fields["maxReplicas"] = scaling.max_replicas
    if scaling.kind == "keda":
        fields["autoScaling"] = {"metrics": [_keda_metric(scaling)]}
    elif scaling.metric:
        fields["scaleMetric"] = scaling.metric
        if scaling.target:
            fields["scaleTarget"] = scaling.target
    return fields


def _keda_metric(scaling: Autoscaling) -> dict[str, Any]:
    if scaling.metric == "prometheus":
        metric = {
            "backend": "prometheus",
            "serverAddress": scaling.server,
            "query": scaling.query,
        }
        target = {"type": "Value", "value": str(scaling.target)}
        return {"type": "External", "external": {"metric": metric, "target": target}}
    # 80 % is what KServe takes for the HPA.
    utilization = {"type": "Utilization", "averageUtilization": scaling.target or 80}
    return {"type": "Resource", "resource": {"name": scaling.metric, "target": utilization}}
