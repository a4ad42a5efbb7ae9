# SPDX-License-Identifier: Apache-2.0
"""Deployments, Services and routes: what Kubernetes and a gateway do with what KServe writes."""

import math
from typing import Any

from .cluster import (
    DEPLOYMENTS,
    ISVC_LABEL,
    REVISION_LABEL,
    ROUTES,
    SERVICE_TYPE_LABEL,
    SOURCE_ANNOTATION,
    find_condition,
    fingerprint,
    is_true,
    owner_of,
    set_condition,
    set_status,
    tell,
)
from .data_plane import Backend, DataPlane
from .documents import copied
from .failures import Failures
from .models import Factory, Model
from .server import ApiServer
from .store import Object

DEADLINE_TICKS = 3


class Deployments:
    """The Deployment controller: rolling updates, one step for each tick."""

    def __init__(self, api: ApiServer, failures: Failures) -> None:
        self._api, self._failures = api, failures
        self._stuck: dict[tuple[str, str], int] = {}
        self._made = 0
        self.busy = False

    def tick(self, deployment: Object) -> None:
        """Takes one Deployment a step towards its template and replicas."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = spec["template"]
        revision = fingerprint(template)
        pods = self._pods(deployment)
        new = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == revision]
        old = [pod for pod in pods if pod not in new]
        wanted = spec.get("replicas", 1)
        surge, spare = math.ceil(wanted * 0.25), math.floor(wanted * 0.25)
        uri = (template["metadata"].get("annotations") or {}).get(SOURCE_ANNOTATION, "")
        failure = self._failures.of(uri)
        refused = ""
        if failure.kind == "quota" and len(new) < wanted:
            refused = (
                f'pods "{metadata["name"]}-{revision}-" is forbidden: exceeded quota: '
                "compute-quota, requested: limits.cpu=1, used: limits.cpu=8, limited: limits.cpu=8"
            )
            tell(self._api, deployment, "Warning", "FailedCreate", f"Error creating: {refused}")
        elif len(new) < wanted and len(pods) < wanted + max(surge, 1 - len(pods)):
            for _ in range(min(wanted - len(new), wanted + surge - len(pods))):
                new.append(self._create(deployment, template, revision))
        for pod in new[wanted:]:
            self._delete(pod)
        ready = sum(_ready(pod) for pod in pods)
        for pod in sorted(old, key=_ready):
            if _ready(pod) and ready <= wanted - spare:
                break
            ready -= _ready(pod)
            self._delete(pod)
        self._report(deployment, revision, refused, wanted, spare, failure.kind == "deadline")

    def _pods(self, deployment: Object) -> list[Object]:
        uid, namespace = deployment["metadata"]["uid"], deployment["metadata"]["namespace"]
        return [
            pod
            for pod in self._api.list("pods", namespace)
            if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", []))
        ]

    def _create(self, deployment: Object, template: Object, revision: str) -> Object:
        self._made += 1
        suffix = fingerprint([self._made, deployment["metadata"]["name"]])[:5]
        metadata = copied(template["metadata"])
        return self._api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{deployment['metadata']['name']}-{revision}-{suffix}",
                    "namespace": deployment["metadata"]["namespace"],
                    "labels": {**metadata.get("labels", {}), "pod-template-hash": revision},
                    "annotations": metadata.get("annotations", {}),
                    "ownerReferences": owner_of(deployment),
                },
                "spec": copied(template["spec"]),
            }
        )

    def _delete(self, pod: Object) -> None:
        self._api.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def _report(
        self,
        deployment: Object,
        revision: str,
        refused: str,
        wanted: int,
        spare: int,
        deadline: bool,
    ) -> None:
        pods = self._pods(deployment)
        updated = [p for p in pods if p["metadata"]["labels"]["pod-template-hash"] == revision]
        ready, fresh = sum(map(_ready, pods)), sum(map(_ready, updated))
        conditions = copied((deployment.get("status") or {}).get("conditions", []))
        self._available(conditions, ready >= wanted - spare)
        name = f"{deployment['metadata']['name']}-{revision}"
        complete = len(pods) == len(updated) == wanted == fresh
        key = (deployment["metadata"]["uid"], revision)
        self._stuck[key] = 0 if complete else self._stuck.get(key, 0) + 1
        late = deadline and self._stuck[key] > DEADLINE_TICKS
        self.busy = self.busy or (deadline and not late and not complete)
        if late:
            told = ("False", "ProgressDeadlineExceeded", "has timed out progressing.")
        elif complete:
            told = ("True", "NewReplicaSetAvailable", "has successfully progressed.")
        else:
            told = ("True", "ReplicaSetUpdated", "is progressing.")
        state, reason, message = told
        text = f'ReplicaSet "{name}" {message}'
        set_condition(self._api, conditions, "Progressing", state, reason=reason, message=text)
        if refused:
            told_refused = {"reason": "FailedCreate", "message": refused}
            set_condition(self._api, conditions, "ReplicaFailure", "True", **told_refused)
        else:
            conditions = [entry for entry in conditions if entry["type"] != "ReplicaFailure"]
        counts = {
            "replicas": len(pods),
            "updatedReplicas": len(updated),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(wanted, len(pods)) - ready,
        }
        status: dict[str, Any] = {key: count for key, count in counts.items() if count}
        status["observedGeneration"] = deployment["metadata"]["generation"]
        set_status(self._api, DEPLOYMENTS, deployment, {**status, "conditions": conditions})

    def _available(self, conditions: list[dict[str, Any]], enough: bool) -> None:
        reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
        message = (
            "Deployment has minimum availability."
            if enough
            else "Deployment does not have minimum availability."
        )
        state = "True" if enough else "False"
        set_condition(self._api, conditions, "Available", state, reason=reason, message=message)


def _ready(pod: Object) -> bool:
    return is_true((pod.get("status") or {}).get("conditions"), "Ready")


class Gateway:
    """Accepts routes a tick after they were written, and sends requests by them.

    Attributes:
        busy: Whether it still has to follow a route.
    """

    def __init__(self, api: ApiServer, plane: DataPlane, lag: int = 0) -> None:
        self._api, self._plane, self._lag = api, plane, lag
        self._seen: dict[tuple[str, int], int] = {}
        self.busy = False

    def tick_route(self, route: Object) -> None:
        """Accepts one HTTPRoute and routes by it."""
        metadata, spec = route["metadata"], route["spec"]
        backends = [
            Backend(reference["name"], reference.get("weight", 1))
            for reference in spec["rules"][0]["backendRefs"]
        ]
        version = (metadata["uid"], metadata["generation"])
        seen = self._seen[version] = self._seen.get(version, 0) + 1
        if seen > self._lag:
            self.publish(metadata["namespace"], metadata["name"], spec["hostnames"], backends)
        else:
            self.busy = True
        parents = (route.get("status") or {}).get("parents") or [{"conditions": []}]
        conditions = copied(parents[0]["conditions"])
        for name in ("Accepted", "ResolvedRefs"):
            set_condition(self._api, conditions, name, "True", reason=name)
            find_condition(conditions, name)["observedGeneration"] = metadata["generation"]
        parent = {
            "parentRef": spec["parentRefs"][0],
            "controllerName": "gateway.envoyproxy.io/gatewayclass-controller",
            "conditions": conditions,
        }
        set_status(self._api, ROUTES, route, {"parents": [parent]})

    def publish(self, namespace: str, name: str, hosts: list[str], backends: list[Backend]) -> None:
        """Routes the requests for a site from now on."""
        self._plane.sites[namespace, name] = backends
        for host in hosts:
            self._plane.hosts[host] = (namespace, name)

    def withdraw(self, alive: set[tuple[str, str]]) -> None:
        """Drops the sites that no route has any more."""
        for site in set(self._plane.sites) - alive:
            del self._plane.sites[site]


class Endpoints:
    """Which models are behind which Service."""

    def __init__(
        self, api: ApiServer, plane: DataPlane, models: dict[str, Model], factory: Factory
    ) -> None:
        self._api, self._plane, self._models, self._factory = api, plane, models, factory

    def tick(self) -> None:
        """Looks for the ready pods of every Service."""
        found: dict[tuple[str, str], list[Model]] = {}
        activated = set()
        pods = self._api.list("pods")
        for service in self._api.list("services"):
            metadata = service["metadata"]
            selector = service["spec"].get("selector") or {}
            if metadata.get("labels", {}).get(SERVICE_TYPE_LABEL) == "Public":
                # The endpoints are the activator's, as long as there are few pods.
                activated.add((metadata["namespace"], metadata["name"]))
                selector = {REVISION_LABEL: metadata["labels"][REVISION_LABEL]}
            found[metadata["namespace"], metadata["name"]] = [
                self.model_of(pod)
                for pod in pods
                if selector
                and pod["metadata"]["namespace"] == metadata["namespace"]
                and selector.items() <= pod["metadata"].get("labels", {}).items()
                and _ready(pod)
            ]
        self._plane.endpoints, self._plane.activated = found, activated

    def model_of(self, pod: Object) -> Model:
        """Returns the model that a pod serves."""
        annotations = pod["metadata"].get("annotations") or {}
        uri = annotations.get(SOURCE_ANNOTATION, "")
        if uri not in self._models:
            self._models[uri] = self._factory(uri, annotations)
        return self._models[uri]


def service_manifest(name: str, namespace: str, isvc: str, selector: dict[str, str]) -> Object:
    """Returns a Service that listens on port 80 for the model servers' 8080."""
    labels = {ISVC_LABEL: isvc, "component": "predictor"}
    if REVISION_LABEL in selector:
        labels[REVISION_LABEL] = selector[REVISION_LABEL]
    port = {"name": name, "port": 80, "targetPort": 8080, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"type": "ClusterIP", "selector": selector, "ports": [port]},
    }
