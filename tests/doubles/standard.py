# SPDX-License-Identifier: Apache-2.0
"""KServe in Standard mode: Deployments and Services per predictor, canaries beside the stable one.

The order of the steps, and what each looks at, follow KServe's `components/predictor.go` and
`ingress/httproute_reconciler.go`: canaries first, then the stable predictor, the ingress, the
status. What an update changed is seen in the status only at a later tick.
"""

import math
from typing import Any

from .admission import STANDARD
from .cluster import DEPLOYMENTS, ISVC_LABEL, ISVCS, ROUTES, ensure, find_condition, set_status
from .documents import copied
from .failures import Failures
from .isvc import (
    Config,
    NoRuntimeError,
    check_runtime,
    internal_error,
    is_stopped,
    new_status,
    pod_template,
    predictor_name,
    propagate_model_status,
    set_part,
    storage_uri,
    tell_readiness,
)
from .patches import merge
from .server import ApiServer
from .store import Object
from .urls import Urls
from .workloads import service_manifest

SCALING = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


class Standard:
    """The controller of InferenceServices in Standard mode."""

    def __init__(self, api: ApiServer, failures: Failures, urls: Urls, splits: bool) -> None:
        self._api, self._failures, self._urls, self._splits = api, failures, urls, splits

    def tick(self, isvc: Object, config: Config) -> None:
        """Reconciles one InferenceService."""
        status = new_status(self._api, isvc)
        try:
            self._canaries(isvc, status, config)
            self._stable(isvc, status, config)
        except NoRuntimeError as error:
            # Nothing after this is done: neither the stable predictor nor the ingress.
            if not self._is_untold(isvc):
                internal_error(self._api, isvc, error)
            self._finish(isvc, status)
            return
        if is_stopped(isvc):
            self._stop(isvc, status)
        else:
            self._ingress(isvc, status, config)
        self._finish(isvc, status)

    def _is_untold(self, isvc: Object) -> bool:
        canaries = [canary["predictor"] for canary in isvc["spec"].get("canary") or []]
        uris = [storage_uri(one) for one in (isvc["spec"]["predictor"], *canaries)]
        return any(self._failures.of(uri).kind == "no_runtime_untold" for uri in uris)

    def _finish(self, isvc: Object, status: dict[str, Any]) -> None:
        status["deploymentMode"] = STANDARD
        tell_readiness(self._api, isvc, status)
        set_status(self._api, ISVCS, isvc, status)

    def _canaries(self, isvc: Object, status: dict[str, Any], config: Config) -> None:
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        stable, canaries = isvc["spec"]["predictor"], isvc["spec"].get("canary") or []
        expected = {predictor_name(name, stable.get("name", ""))}
        for canary in canaries:
            replicas = canary_replicas(isvc, canary)
            predictor = canary_predictor(stable, canary["predictor"])
            # A failure here is seen in an Event only: KServe notes it on a copy of the status.
            try:
                check_runtime(self._api, isvc, copied(status), predictor, self._failures)
            except NoRuntimeError as error:
                raise NoRuntimeError(
                    "fails to reconcile canary deployments: fails to build resources for canary "
                    f"{predictor['name']}: {error}"
                ) from error
            self._workload(isvc, predictor, replicas, config)
            expected.add(predictor_name(name, predictor["name"]))
        told = []
        for canary in canaries:
            variant = canary["predictor"]["name"]
            deployment = self._api.get(DEPLOYMENTS, predictor_name(name, variant), namespace)
            available = ((deployment or {}).get("status") or {}).get("availableReplicas", 0)
            percent = canary["trafficPercent"]
            told.append(
                {
                    "name": variant,
                    "ready": available > 0,
                    "trafficPercent": percent,
                    # It never tells more of a canary.
                    "modelStatus": {"transitionStatus": ""},
                }
            )
        if told:
            status["canaryStatuses"] = told
            ready = all(entry["ready"] for entry in told) and not is_stopped(isvc)
            reason = "AllCanariesReady" if ready else "CanariesNotReady"
            reason = "Stopped" if is_stopped(isvc) else reason
            state = "True" if ready else "False"
            set_part(self._api, status, "CanaryPredictorReady", state, reason=reason)
        else:
            status.pop("canaryStatuses", None)
            status["conditions"] = [
                entry for entry in status["conditions"] if entry["type"] != "CanaryPredictorReady"
            ]
        self._remove_orphans(namespace, name, expected)

    def _remove_orphans(self, namespace: str, name: str, expected: set[str]) -> None:
        labels = {ISVC_LABEL: name, "component": "predictor"}
        for kind in (DEPLOYMENTS, "services"):
            for item in self._api.list(kind, namespace, labels):
                if item["metadata"]["name"] not in expected:
                    self._api.delete(kind, item["metadata"]["name"], namespace)

    def _workload(
        self, isvc: Object, predictor: Object, replicas: int, config: Config
    ) -> Object | None:
        """Writes a predictor's Deployment and Service; returns the Deployment of before."""
        namespace = isvc["metadata"]["namespace"]
        name = predictor_name(isvc["metadata"]["name"], predictor.get("name", ""))
        if is_stopped(isvc):
            for kind in (DEPLOYMENTS, "services"):
                if self._api.get(kind, name, namespace):
                    self._api.delete(kind, name, namespace)
            return None
        template = pod_template(self._api, isvc, predictor, config)
        template["metadata"]["labels"]["app"] = f"isvc.{name}"
        selector = {"app": f"isvc.{name}"}
        metadata = {"name": name, "namespace": namespace, **copied(template["metadata"])}
        manifest = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": selector},
                "template": template,
                "progressDeadlineSeconds": 600,
            },
        }
        deployment = ensure(self._api, DEPLOYMENTS, manifest, isvc)
        service = service_manifest(name, namespace, isvc["metadata"]["name"], selector)
        ensure(self._api, "services", service, isvc)
        return deployment

    def _stable(self, isvc: Object, status: dict[str, Any], config: Config) -> None:
        predictor = isvc["spec"]["predictor"]
        check_runtime(self._api, isvc, status, predictor, self._failures)
        deployment = self._workload(isvc, predictor, stable_replicas(isvc, status), config)
        if deployment is None:
            return
        state, told = deployment_readiness(deployment)
        component = status["components"].setdefault("predictor", {})
        if state == "True":
            name = predictor_name(isvc["metadata"]["name"])
            component["url"] = self._urls.public(name, isvc["metadata"]["namespace"], config)
        set_part(self._api, status, "PredictorReady", state, **told)
        observed = (deployment.get("status") or {}).get("observedGeneration", 0)
        # KServe copies the counter of the Deployment; it says nothing about this object's own.
        status["observedGeneration"] = observed
        app = f"isvc.{predictor_name(isvc['metadata']['name'], predictor.get('name', ''))}"
        pods = self._api.list("pods", isvc["metadata"]["namespace"], {"app": app})
        ready = find_condition(status["conditions"], "Ready")["status"] == "True"
        propagate_model_status(status, pods, loaded=ready)

    def _ingress(self, isvc: Object, status: dict[str, Any], config: Config) -> None:
        if config.gateway_api:
            if not self._routes(isvc, status, config):
                return
        else:
            self._plain_ingress(isvc, config)
            set_part(self._api, status, "IngressReady", "True")
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        service = predictor_name(name, isvc["spec"]["predictor"].get("name", ""))
        status["url"] = self._urls.public(name, namespace, config)
        status["address"] = {"url": f"http://{service}.{namespace}.svc.cluster.local"}
        set_part(self._api, status, "Stopped", "False")

    def _plain_ingress(self, isvc: Object, config: Config) -> None:
        """Without the Gateway API all requests go to the stable predictor, whatever the percent."""
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        service = predictor_name(name, isvc["spec"]["predictor"].get("name", ""))
        backend = {"service": {"name": service, "port": {"number": 80}}}
        path = {"path": "/", "pathType": "Prefix", "backend": backend}
        hosts = (self._urls.host(name, namespace, config), f"{service}.{namespace}")
        rules = [{"host": host, "http": {"paths": [path]}} for host in hosts]
        manifest = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ingressClassName": "istio", "rules": rules},
        }
        ensure(self._api, "ingresses", manifest, isvc)

    def _routes(self, isvc: Object, status: dict[str, Any], config: Config) -> bool:
        """Writes the HTTPRoutes; returns whether the gateway has accepted them."""
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        parts = (("Predictor", predictor_name(name)), ("InferenceService", name))
        if find_condition(status["conditions"], "PredictorReady")["status"] == "True":
            for _, route in parts:
                ensure(self._api, ROUTES, self._route(isvc, status, config, route), isvc)
        else:
            told = {"reason": "Predictor ingress not created"}
            set_part(self._api, status, "IngressReady", "False", **told)
        for part, route_name in parts:
            route = self._api.get(ROUTES, route_name, namespace)
            if route is None:
                told = {
                    "reason": f"{part} Deployment NotReady",
                    "message": f"{part} HTTPRoute not created",
                }
                set_part(self._api, status, "IngressReady", "False", **told)
                return False
            if not (route.get("status") or {}).get("parents"):
                told = {
                    "reason": "ParentStatusNotAvailable",
                    "message": f"{part} HttpRouteNotReady",
                }
                set_part(self._api, status, "IngressReady", "False", **told)
                return False
        set_part(self._api, status, "IngressReady", "True")
        return True

    def _route(self, isvc: Object, status: dict[str, Any], config: Config, name: str) -> Object:
        namespace = isvc["metadata"]["namespace"]
        rule = {
            "matches": [{"path": {"type": "RegularExpression", "value": "^/.*$"}}],
            "backendRefs": self._weights(isvc, status),
            "filters": [_headers(isvc["metadata"]["name"], namespace)],
            "timeouts": {"request": "60s"},
        }
        parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "hostnames": [self._urls.host(name, namespace, config)],
                "parentRefs": [{**parent, "name": "kserve-ingress-gateway", "namespace": "kserve"}],
                "rules": [rule],
            },
        }

    def _weights(self, isvc: Object, status: dict[str, Any]) -> list[dict[str, Any]]:
        """Canaries that are ready get their percent; the stable predictor gets the rest."""
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        ready = {entry["name"] for entry in status.get("canaryStatuses", []) if entry["ready"]}
        about = {"group": "", "kind": "Service", "namespace": namespace, "port": 80}
        stable = predictor_name(name, isvc["spec"]["predictor"].get("name", ""))
        canaries = isvc["spec"].get("canary") or []
        if not canaries or not self._splits:
            return [{**about, "name": stable, "weight": 1}]
        shares = [
            (predictor_name(name, canary["predictor"]["name"]), canary["trafficPercent"])
            for canary in canaries
            if canary["predictor"]["name"] in ready
        ]
        rest = 100 - sum(percent for _, percent in shares)
        return [{**about, "name": n, "weight": w} for n, w in [(stable, rest), *shares]]

    def _stop(self, isvc: Object, status: dict[str, Any]) -> None:
        """Takes everything away that serves, for the annotation `serving.kserve.io/stop`."""
        name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
        for kind, names in (("ingresses", [name]), (ROUTES, [name, predictor_name(name)])):
            for each in names:
                if self._api.get(kind, each, namespace):
                    self._api.delete(kind, each, namespace)
        for field in ("url", "address", "components", "canaryStatuses", "modelStatus"):
            status.pop(field, None)
        for part in ("PredictorReady", "IngressReady"):
            set_part(self._api, status, part, "False", reason="Stopped")
        set_part(self._api, status, "Stopped", "True")


def _headers(name: str, namespace: str) -> Object:
    """Tells the model server's own proxy, where there is one, whose request it is."""
    told = {"KServe-Isvc-Name": name, "KServe-Isvc-Namespace": namespace}
    headers = [{"name": key, "value": value} for key, value in told.items()]
    return {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": headers}}


def canary_replicas(isvc: Object, canary: Object) -> int:
    """Returns a canary's fixed replicas: its own minReplicas, else its share of the stable ones."""
    own = canary["predictor"].get("minReplicas")
    if own is not None:
        return int(own)
    stable = isvc["spec"]["predictor"].get("minReplicas", 1)
    return math.ceil(stable * canary["trafficPercent"] / 100)


def stable_replicas(isvc: Object, status: dict[str, Any]) -> int:
    """Returns the stable predictor's replicas: fewer while ready canaries serve beside it."""
    wanted = isvc["spec"]["predictor"].get("minReplicas")
    if wanted is None:
        return 1
    ready = {entry["name"] for entry in status.get("canaryStatuses", []) if entry["ready"]}
    canaries = [c for c in isvc["spec"].get("canary") or [] if c["predictor"]["name"] in ready]
    beside = sum(canary_replicas(isvc, canary) for canary in canaries)
    # The autoscaler of this mode keeps at least one, whatever minReplicas says.
    return max(int(wanted) - beside, 1)


def canary_predictor(stable: Object, canary: Object) -> Object:
    """Returns the stable predictor overridden by the canary's fields: lists whole, maps joined."""
    joined: Object = merge(stable, canary)
    return {key: value for key, value in joined.items() if key not in SCALING}


def deployment_readiness(deployment: Object) -> tuple[str, dict[str, str]]:
    """Returns what KServe makes of a Deployment's conditions: a state, its reason and message.

    The rules are those of `PropagateRawStatus`: a Deployment in the middle of a rolling update
    counts as ready for as long as old pods are available.
    """
    conditions = (deployment.get("status") or {}).get("conditions") or []
    available = find_condition(conditions, "Available")
    progressing = find_condition(conditions, "Progressing")
    refused = find_condition(conditions, "ReplicaFailure")
    state, about = "False", {}
    if available.get("status") == "True":
        state, about = "True", available
    if progressing.get("status") == "False":
        state, about = "False", progressing
    elif progressing.get("reason") == "NewReplicaSetAvailable":
        state, about = "True", progressing
    elif progressing and available.get("status") != "True":
        state, about = "Unknown", progressing
    if available.get("status") == "False":
        state, about = "False", available
    if refused.get("status") == "True":
        state, about = "False", refused
    return state, {key: about[key] for key in ("reason", "message") if key in about}
