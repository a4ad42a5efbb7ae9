# SPDX-License-Identifier: Apache-2.0
"""Knative Serving: revisions, their pods, and the route of a Knative Service."""

from typing import Any

from .cluster import (
    KSERVICES,
    REVISION_LABEL,
    REVISIONS,
    SERVICE_TYPE_LABEL,
    SOURCE_ANNOTATION,
    ensure,
    find_condition,
    is_true,
    owner_of,
    set_condition,
    set_status,
)
from .data_plane import Backend
from .documents import copied
from .failures import Failures
from .isvc import Config
from .server import ApiServer
from .store import Object
from .urls import Urls
from .workloads import Gateway, service_manifest

DEADLINE_TICKS = 6
CONFIGURATION, SERVICE = "serving.knative.dev/configuration", "serving.knative.dev/service"


class KnativeServing:
    """Knative's own controllers, and the route of a Knative Service at the gateway."""

    def __init__(self, api: ApiServer, failures: Failures, urls: Urls, gateway: Gateway) -> None:
        self._api, self._failures, self._urls, self._gateway = api, failures, urls, gateway
        self._made = 0
        self._waited: dict[str, int] = {}
        self.busy = False

    def tick(self, service: Object, config: Config) -> None:
        """Takes one Knative Service a step further."""
        revisions = self._revisions(service)
        template = service["spec"]["template"]
        status = copied(service.get("status") or {"conditions": []})
        changed = not revisions or revisions[-1]["spec"] != template
        # The route is quicker than the configuration: a new split is there before its revision.
        unseen = status.get("observedGeneration", 0) < service["metadata"]["generation"]
        late = bool(changed and revisions and unseen)
        if changed and not late:
            revisions.append(self._create(service, len(revisions) + 1, template))
        status["observedGeneration"] = service["metadata"]["generation"]
        status["latestCreatedRevisionName"] = revisions[-1]["metadata"]["name"]
        ready = [revision for revision in revisions if _ready(revision)]
        if ready:
            status["latestReadyRevisionName"] = ready[-1]["metadata"]["name"]
        self._conditions(service, status, revisions, config, late)
        routed = {target["revisionName"] for target in status.get("traffic", [])}
        for revision in revisions:
            newest = revision is revisions[-1]
            self._tick_revision(revision, newest or revision["metadata"]["name"] in routed)
        set_status(self._api, KSERVICES, service, status)

    def _revisions(self, service: Object) -> list[Object]:
        metadata = service["metadata"]
        labels = {SERVICE: metadata["name"]}
        found = self._api.list(REVISIONS, metadata["namespace"], labels)
        return sorted(found, key=lambda revision: str(revision["metadata"]["name"]))

    def _create(self, service: Object, number: int, template: Object) -> Object:
        metadata = service["metadata"]
        name = f"{metadata['name']}-{number:05d}"
        labels = {SERVICE: metadata["name"], CONFIGURATION: metadata["name"]}
        revision = self._api.create(
            {
                "apiVersion": "serving.knative.dev/v1",
                "kind": "Revision",
                "metadata": {
                    "name": name,
                    "namespace": metadata["namespace"],
                    "labels": labels,
                    "annotations": dict(template["metadata"].get("annotations") or {}),
                    "ownerReferences": owner_of(service),
                },
                "spec": copied(template),
            }
        )
        isvc = metadata["name"].removesuffix("-predictor")
        for kind, suffix in (("Public", ""), ("Private", "-private")):
            manifest = service_manifest(
                f"{name}{suffix}", metadata["namespace"], isvc, {REVISION_LABEL: name}
            )
            manifest["metadata"]["labels"][SERVICE_TYPE_LABEL] = kind
            if kind == "Public":
                # Knative writes its endpoints itself: the activator's, or the pods'.
                del manifest["spec"]["selector"]
            ensure(self._api, "services", manifest, revision)
        return revision

    def _tick_revision(self, revision: Object, wanted: bool) -> None:
        """Keeps one pod of a revision that requests can reach, and none of another."""
        metadata, template = revision["metadata"], revision["spec"]
        labels = {REVISION_LABEL: metadata["name"]}
        pods = self._api.list("pods", metadata["namespace"], labels)
        conditions = copied((revision.get("status") or {}).get("conditions", []))
        failure = self._failures.of(_source(template)).kind
        quota = failure == "quota"
        if wanted and not pods and not quota:
            self._made += 1
            self._api.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{metadata['name']}-deployment-{self._made:05d}",
                        "namespace": metadata["namespace"],
                        "labels": {**template["metadata"]["labels"], **labels},
                        "annotations": dict(template["metadata"]["annotations"]),
                        "ownerReferences": owner_of(revision),
                    },
                    "spec": copied(template["spec"]),
                }
            )
        if not wanted and is_true(conditions, "Ready"):
            for pod in pods:
                self._api.delete("pods", pod["metadata"]["name"], metadata["namespace"])
            pods = []
        if wanted:
            state, reason, message = _revision_state(metadata["name"], pods, quota)
            if state == "Unknown" and failure == "deadline":
                state, reason, message = self._late(metadata["uid"])
            for name in ("ContainerHealthy", "ResourcesAvailable", "Ready"):
                set_condition(self._api, conditions, name, state, reason=reason, message=message)
        active = {"reason": "" if pods else "NoTraffic"}
        set_condition(self._api, conditions, "Active", "True" if pods else "False", **active)
        status = {"observedGeneration": metadata["generation"], "conditions": conditions}
        set_status(self._api, REVISIONS, revision, status)

    def _late(self, uid: str) -> tuple[str, str, str]:
        """Counts how long a revision has been deploying; one day its time is up."""
        self._waited[uid] = self._waited.get(uid, 0) + 1
        if self._waited[uid] > DEADLINE_TICKS:
            return "False", "ProgressDeadlineExceeded", "Initial scale was never achieved"
        self.busy = True
        return "Unknown", "Deploying", ""

    def _conditions(
        self,
        service: Object,
        status: dict[str, Any],
        revisions: list[Object],
        config: Config,
        late: bool,
    ) -> None:
        conditions = status["conditions"]
        latest = revisions[-1]
        mine = find_condition((latest.get("status") or {}).get("conditions"), "Ready")
        if mine.get("status") == "False" and not late:
            name, why = latest["metadata"]["name"], mine.get("message", "")
            text = f'Revision "{name}" failed with message: {why}.'
            told = {"reason": "RevisionFailed", "message": text}
        else:
            told = {"reason": "OutOfDate"} if late else {}
        state = "Unknown" if late else mine.get("status", "Unknown")
        set_condition(self._api, conditions, "ConfigurationsReady", state, **told)
        routed, problem = self._route(service, status, revisions, config)
        told_route = {"reason": "RevisionMissing", "message": problem} if problem else {}
        reached = "False" if problem else ("True" if routed else "Unknown")
        if not problem and not routed and state == "False":
            reached, told_route = "False", {"reason": "RevisionMissing"}
        set_condition(self._api, conditions, "RoutesReady", reached, **told_route)
        both = {state, reached}
        overall = "False" if "False" in both else ("Unknown" if "Unknown" in both else "True")
        worst = told if state != "True" else told_route
        set_condition(self._api, conditions, "Ready", overall, **worst)

    def _route(
        self, service: Object, status: dict[str, Any], revisions: list[Object], config: Config
    ) -> tuple[bool, str]:
        """Sends requests by the spec's traffic; it stays as it was when that cannot be."""
        metadata = service["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        known = {revision["metadata"]["name"] for revision in revisions}
        traffic, backends = [], []
        for target in service["spec"]["traffic"]:
            latest = target.get("latestRevision", False)
            wanted = status.get("latestReadyRevisionName") if latest else target["revisionName"]
            if wanted is None:
                return False, ""
            if wanted not in known:
                return False, f'Revision "{wanted}" referenced in traffic not found.'
            entry = {"revisionName": wanted, "latestRevision": latest, "percent": target["percent"]}
            if target.get("tag"):
                entry["tag"] = target["tag"]
                tagged = f"{target['tag']}-{name}"
                entry["url"] = self._urls.knative(tagged, namespace, config)
                host = self._urls.knative_host(tagged, namespace, config)
                self._gateway.publish(namespace, tagged, [host], [Backend(wanted)])
            traffic.append(entry)
            backends.append(Backend(wanted, target["percent"]))
        status["traffic"] = traffic
        status["url"] = self._urls.knative(name, namespace, config)
        status["address"] = {"url": f"http://{name}.{namespace}.svc.cluster.local"}
        hosts = [self._urls.knative_host(name, namespace, config)]
        self._gateway.publish(namespace, name, hosts, backends)
        return True, ""

    def sites(self, service: Object) -> set[tuple[str, str]]:
        """Returns what the gateway serves for a Knative Service."""
        metadata = service["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        tags = [t["tag"] for t in (service.get("status") or {}).get("traffic", []) if "tag" in t]
        names = [name, *(f"{tag}-{name}" for tag in tags)]
        return {(namespace, each) for each in names}


def _ready(revision: Object) -> bool:
    return is_true((revision.get("status") or {}).get("conditions"), "Ready")


def _source(template: Object) -> str:
    return str((template["metadata"].get("annotations") or {}).get(SOURCE_ANNOTATION, ""))


def _revision_state(name: str, pods: list[Object], quota: bool) -> tuple[str, str, str]:
    """Returns a revision's state, reason and message, from its pods."""
    if quota:
        text = f'pods "{name}-deployment-" is forbidden: exceeded quota: compute-quota'
        return "False", "FailedCreate", text
    for pod in pods:
        status = pod.get("status") or {}
        if is_true(status.get("conditions"), "Ready"):
            return "True", "", ""
        scheduled = find_condition(status.get("conditions"), "PodScheduled")
        if scheduled.get("status") == "False":
            return "False", "Unschedulable", scheduled["message"]
        both = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        for entry in both:
            waiting = entry["state"].get("waiting", {})
            if waiting.get("reason") in ("ImagePullBackOff", "ErrImagePull"):
                return "False", waiting["reason"], waiting["message"]
            if waiting.get("reason") == "CrashLoopBackOff":
                ended = entry["lastState"]["terminated"]
                code = ended["exitCode"]
                text = f"Container failed with: {ended['message']}"
                return "False", f"ExitCode{code}", text
    return "Unknown", "Deploying", ""
