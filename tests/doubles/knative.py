# SPDX-License-Identifier: Apache-2.0
"""KServe in Knative mode: one Knative Service, a revision for each template, a split by percent.

This is KServe's part, after `ksvc_reconciler.go` and `PropagateStatus`; what Knative makes of it is
in `knative_serving`.
"""

from typing import Any

from .admission import KNATIVE, storage_uri
from .cluster import (
    ISVCS,
    KSERVICES,
    REVISION_LABEL,
    ensure,
    find_condition,
    is_true,
    set_status,
    tell,
)
from .documents import copied
from .failures import Failures
from .isvc import (
    Config,
    NoRuntimeError,
    RefusedError,
    check_runtime,
    internal_error,
    is_stopped,
    new_status,
    pod_template,
    predictor_name,
    propagate_model_status,
    set_part,
    tell_readiness,
)
from .server import ApiServer
from .store import Object
from .urls import Urls

TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
NOT_INSTALLED = (
    "It is not possible to use Knative deployment mode when Knative Services are not available"
)
REFUSED = (
    'fails to reconcile predictor: admission webhook "validation.webhook.serving.knative.dev" '
    "denied the request: validation failed: must not set the field(s): "
    "spec.template.spec.nodeSelector"
)


class KnativeMode:
    """The controller of InferenceServices in Knative mode."""

    def __init__(self, api: ApiServer, failures: Failures, urls: Urls) -> None:
        self._api, self._failures, self._urls = api, failures, urls

    def tick(self, isvc: Object, config: Config) -> None:
        """Reconciles one InferenceService."""
        status = new_status(self._api, isvc)
        status["deploymentMode"] = KNATIVE
        predictor = isvc["spec"]["predictor"]
        if not self._api.registry.has(KSERVICES):
            tell(self._api, isvc, "Warning", "ServerlessModeRejected", NOT_INSTALLED)
            set_status(self._api, ISVCS, isvc, status)
            return
        try:
            check_runtime(self._api, isvc, status, predictor, self._failures)
            known = self._service(isvc, status, config)
        except NoRuntimeError as error:
            internal_error(self._api, isvc, error)
        except RefusedError as error:
            internal_error(self._api, isvc, error)
            told = {"reason": "ReconcileFailed", "message": str(error)}
            set_part(self._api, status, "PredictorReady", "False", **told)
        else:
            if known is None:
                self._stop(isvc, status)
            else:
                self._report(isvc, status, known, config)
        tell_readiness(self._api, isvc, status)
        set_status(self._api, ISVCS, isvc, status)

    def _service(self, isvc: Object, status: dict[str, Any], config: Config) -> Object | None:
        """Writes the Knative Service; returns its status of before, or None when stopped."""
        predictor = isvc["spec"]["predictor"]
        namespace = isvc["metadata"]["namespace"]
        name = predictor_name(isvc["metadata"]["name"], predictor.get("name", ""))
        if is_stopped(isvc):
            if self._api.get(KSERVICES, name, namespace):
                self._api.delete(KSERVICES, name, namespace)
            return None
        template = pod_template(self._api, isvc, predictor, config)
        if self._failures.of(storage_uri(predictor)).kind == "refused":
            raise RefusedError(REFUSED)
        scale = {"minReplicas": "min-scale", "maxReplicas": "max-scale"}
        for field, key in scale.items():
            if predictor.get(field) is not None:
                annotation = f"autoscaling.knative.dev/{key}"
                template["metadata"]["annotations"][annotation] = str(predictor[field])
        tagged = template["metadata"]["annotations"].get(TAG_ROUTING) == "true"
        last = status["components"].get("predictor", {}).get("latestRolledoutRevision", "")
        manifest = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": template["metadata"]["labels"],
            },
            "spec": {
                "template": template,
                "traffic": traffic_targets(predictor.get("canaryTrafficPercent"), last, tagged),
            },
        }
        service = ensure(self._api, KSERVICES, manifest, isvc)
        return service.get("status") or {}

    def _report(
        self, isvc: Object, status: dict[str, Any], known: dict[str, Any], config: Config
    ) -> None:
        component = status["components"].setdefault("predictor", {})
        roll_revisions(component, known)
        if is_true(known.get("conditions"), "Ready"):
            component["url"] = known["url"]
            component["address"] = known["address"]
        component["traffic"] = copied(known.get("traffic", []))
        for ours, theirs in (
            ("PredictorReady", "Ready"),
            ("PredictorRouteReady", "RoutesReady"),
            ("PredictorConfigurationReady", "ConfigurationsReady"),
            ("RoutesReady", "RoutesReady"),
            ("LatestDeploymentReady", "ConfigurationsReady"),
        ):
            found = find_condition(known.get("conditions"), theirs)
            if found:
                told = {key: found[key] for key in ("reason", "message") if key in found}
                if ours in ("RoutesReady", "LatestDeploymentReady"):
                    part = {"RoutesReady": "PredictorRouteReady"}.get(
                        ours, "PredictorConfigurationReady"
                    )
                    told = {"reason": f"{part} not ready"} if found["status"] != "True" else {}
                set_part(self._api, status, ours, found["status"], **told)
        status["observedGeneration"] = known.get("observedGeneration", 0)
        latest = component.get("latestCreatedRevision", "")
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        pods = self._api.list("pods", namespace, {REVISION_LABEL: latest}) if latest else []
        ready = find_condition(status["conditions"], "Ready")["status"] == "True"
        loaded = ready and latest == component.get("latestReadyRevision")
        failed = any(entry["status"] == "False" for entry in known.get("conditions", []))
        propagate_model_status(status, pods, loaded, failed)
        if is_true(status["conditions"], "PredictorReady"):
            set_part(self._api, status, "IngressReady", "True")
            # As without Istio (`disableIstioVirtualHost`): Knative's own name of the predictor.
            service = predictor_name(name, isvc["spec"]["predictor"].get("name", ""))
            status["url"] = self._urls.knative(service, namespace, config)
            status["address"] = {"url": f"http://{service}.{namespace}.svc.cluster.local"}
        elif not status.get("url"):
            set_part(self._api, status, "IngressReady", "Unknown")
        set_part(self._api, status, "Stopped", "False")

    def _stop(self, isvc: Object, status: dict[str, Any]) -> None:
        for field in ("url", "address", "components", "modelStatus"):
            status.pop(field, None)
        for part in ("PredictorReady", "IngressReady"):
            set_part(self._api, status, part, "False", reason="Stopped")
        set_part(self._api, status, "Stopped", "True")


def traffic_targets(percent: int | None, last: str, tagged: bool) -> list[dict[str, Any]]:
    """Returns the traffic of the Knative Service that KServe wants.

    Args:
        percent: canaryTrafficPercent; it does nothing before a revision was rolled out whole.
        last: The last revision that was.
        tagged: Whether the latest revision gets an address of its own.
    """
    split = percent is not None and last != ""
    latest: dict[str, Any] = {"latestRevision": True, "percent": percent if split else 100}
    if tagged:
        latest["tag"] = "latest"
    targets = [latest]
    if split and percent is not None and percent < 100:
        rest = {"latestRevision": False, "percent": 100 - percent}
        targets.append({"revisionName": last, "tag": "prev", **rest})
    return targets


def roll_revisions(component: dict[str, Any], known: dict[str, Any]) -> None:
    """Keeps the revisions of status.components.predictor, by the rules of `PropagateStatus`."""
    traffic = known.get("traffic", [])
    ready, created = known.get("latestReadyRevisionName"), known.get("latestCreatedRevisionName")
    shares: dict[str, int] = {}
    for target in traffic:
        name = target["revisionName"]
        shares[name] = shares.get(name, 0) + target.get("percent", 0)
    for target in traffic:
        if target["revisionName"] != ready or not target.get("latestRevision"):
            continue
        percent = target.get("percent")
        if component.get("latestRolledoutRevision") != ready:
            if percent == 100:
                previous = component.get("latestRolledoutRevision", "")
                if previous:
                    component["previousRolledoutRevision"] = previous
                component["latestRolledoutRevision"] = ready
        elif ready == created and percent is not None and percent < 100:
            # Rolled out whole and then rolled back: both shares go to the same revision now.
            previous = component.get("previousRolledoutRevision", "")
            if shares[target["revisionName"]] == 100 and previous:
                component["latestRolledoutRevision"] = previous
    for field, name in (("latestCreatedRevision", created), ("latestReadyRevision", ready)):
        if name:
            component[field] = name
