# SPDX-License-Identifier: Apache-2.0
"""What a service in KServe's Knative mode really does: its Knative service and revisions.

A revision never changes, so it is the proof: a version is ready when the newest revision has its
storageUri and is the newest ready one too, and Knative has worked on the newest spec. The shares
are those of the route, which Knative reports.
"""

from dataclasses import dataclass
from typing import Any

from kfloop.components.deployment import knative
from kfloop.components.deployment.backend import PredictorStatus, ServiceStatus
from kfloop.components.deployment.kubernetes_api import (
    KNATIVE_SERVICES,
    PODS,
    REVISIONS,
    SERVICES,
    Cluster,
    Object,
)
from kfloop.components.deployment.kubernetes_failures import (
    NONE,
    Problem,
    condition,
    problem_of_model,
    problem_of_pods,
    problem_of_reconciling,
    problem_of_revision,
)
from kfloop.components.deployment.manifest import VERSION_ANNOTATION, Manifest, traffic_of
from kfloop.components.deployment.standard_status import URI_ANNOTATION, is_scaling_up

REVISION_LABEL = "serving.knative.dev/revision"
# The Service of a revision whose endpoints are its pods. Those of the other are the activator's as
# a rule, and the API server passes nothing on to pods of another namespace.
PRIVATE = "networking.internal.knative.dev/serviceType=Private"


def read_status(cluster: Cluster, stored: Object, manifest: Manifest) -> ServiceStatus:
    """Returns the status of a service in Knative mode.

    Args:
        cluster: Its namespace.
        stored: The InferenceService as the cluster has it.
        manifest: The same in our shape.
    """
    seen = _look(cluster, stored)
    specs = [
        manifest["spec"]["predictor"],
        *(entry["predictor"] for entry in manifest["spec"].get("canary") or []),
    ]
    known = {spec["model"]["storageUri"]: spec.get("name", "") for spec in specs}
    shares: dict[str, int] = {}
    for route in seen.routes:
        name = _predictor_of(seen.revisions.get(route.get("revisionName", ""), {}), known)
        shares[name] = shares.get(name, 0) + (route.get("percent") or 0)
    predictors = {
        spec.get("name", ""): _predictor(cluster, stored, seen, spec, spec is specs[-1], shares)
        for spec in specs
    }
    for stray in shares.keys() - predictors.keys():
        predictors[stray] = PredictorStatus(stray, "", "", "", False, "", shares[stray])
    pending = _pending(stored, seen.newest, predictors, traffic_of(manifest))
    generation = int(stored["metadata"]["generation"])
    return ServiceStatus(
        running=True,
        url=_public_url(cluster, stored),
        generation=generation,
        observed_generation=generation - 1 if pending else generation,
        predictors=predictors,
        pending=pending,
    )


@dataclass(frozen=True)
class _Seen:
    """A Knative service, where it sends requests, and the revisions that matter."""

    service: Object
    newest: str
    routes: list[Any]
    revisions: dict[str, Object]


def _look(cluster: Cluster, stored: Object) -> _Seen:
    service = cluster.get(KNATIVE_SERVICES, f"{stored['metadata']['name']}-predictor") or {}
    status = service.get("status") or {}
    newest = status.get("latestCreatedRevisionName", "")
    routes = status.get("traffic") or []
    names = {newest, *(route.get("revisionName", "") for route in routes)} - {""}
    revisions = {name: cluster.get(REVISIONS, name) or {} for name in sorted(names)}
    return _Seen(service, newest, routes, revisions)


def _predictor(
    cluster: Cluster,
    stored: Object,
    seen: _Seen,
    spec: dict[str, Any],
    is_newest: bool,
    shares: dict[str, int],
) -> PredictorStatus:
    name, uri = spec.get("name", ""), spec["model"]["storageUri"]
    if is_newest and not knative.holds(stored):
        revision = seen.newest if _uri(seen.revisions.get(seen.newest, {})) == uri else ""
        ready = bool(revision) and _newest_is_ready(seen.service, seen.revisions[revision])
    else:
        # The live version beside a candidate: the revision that the route names.
        revision = _serving(seen.routes, seen.revisions, uri)
        ready = condition(seen.revisions.get(revision, {}), "Ready").get("status") == "True"
    problem = NONE if ready else _problem(cluster, stored, seen.revisions.get(revision))
    metadata = (seen.revisions.get(revision) or {}).get("metadata") or {}
    return PredictorStatus(
        name=name,
        url=_address(cluster, stored, seen.routes, revision),
        model_version=(metadata.get("annotations") or {}).get(VERSION_ANNOTATION, ""),
        storage_uri=uri,
        ready=ready,
        error=problem.text,
        traffic=shares.get(name, 0),
        patience=problem.patience,
        workload=revision,
    )


def newest_is_ready(cluster: Cluster, stored: Object) -> bool:
    """Whether the newest revision has the predictor's model and is ready."""
    seen = _look(cluster, stored)
    revision = seen.revisions.get(seen.newest) or {}
    uri = stored["spec"]["predictor"]["model"]["storageUri"]
    return _uri(revision) == uri and _newest_is_ready(seen.service, revision)


def _newest_is_ready(found: Object, revision: Object) -> bool:
    status = found.get("status") or {}
    return (
        status.get("observedGeneration", 0) >= found["metadata"]["generation"]
        and _uri(found["spec"]["template"]) == _uri(revision)
        and status.get("latestReadyRevisionName") == revision["metadata"]["name"]
        and condition(revision, "Ready").get("status") == "True"
    )


def _pending(
    stored: Object, newest: str, predictors: dict[str, PredictorStatus], wanted: dict[str, int]
) -> str:
    if knative.holds(stored):
        return "the restored version waits for its revision to be ready"
    for name, predictor in predictors.items():
        if name in wanted and not predictor.ready:
            return f"{name} is not ready"
    shares = {name: entry.traffic for name, entry in predictors.items() if entry.traffic}
    if shares != {name: share for name, share in wanted.items() if share}:
        told = ", ".join(f"{name} {share} %" for name, share in sorted(shares.items()))
        return f"the requests are split {told or 'to nobody'}"
    if len(wanted) == 1 and knative.rolled_out(stored) != newest:
        # The next split would give its share to another revision.
        return f"KServe has not noted that {newest} is rolled out"
    ready = condition(stored, "Ready")
    if ready.get("status") != "True":
        why = ready.get("message") or ready.get("reason") or "no reason given"
        return f"KServe does not call the service ready ({why})"
    return ""


def _problem(cluster: Cluster, stored: Object, revision: Object | None) -> Problem:
    if not revision:
        problem = problem_of_model(stored)
        return problem if problem != NONE else problem_of_reconciling(stored)
    name = revision["metadata"]["name"]
    pods = cluster.list(PODS, labelSelector=f"{REVISION_LABEL}={name}")
    problem = problem_of_pods(pods)
    if problem != NONE:
        return problem_of_pods(pods, is_scaling_up(cluster, pods))
    problem = problem_of_model(stored, name)
    return problem if problem != NONE else problem_of_revision(revision)


def _predictor_of(revision: Object, known: dict[str, str]) -> str:
    uri = _uri(revision)
    annotations = revision.get("metadata", {}).get("annotations") or {}
    return known.get(uri) or annotations.get(knative.NAME_ANNOTATION) or uri or "?"


def _serving(routes: list[Any], revisions: dict[str, Object], uri: str) -> str:
    """Returns the revision of a model that gets requests, else any of it that is routed to."""
    candidates = [
        (route.get("percent") or 0, route["revisionName"])
        for route in routes
        if route.get("revisionName") and _uri(revisions.get(route["revisionName"], {})) == uri
    ]
    return max(candidates)[1] if candidates else ""


def _uri(holder: Object) -> str:
    """Returns the storageUri of a revision or of a template."""
    annotations = (holder.get("metadata") or {}).get("annotations") or {}
    return str(annotations.get(URI_ANNOTATION, ""))


def _address(cluster: Cluster, stored: Object, routes: list[Any], revision: str) -> str:
    """Returns an address of one revision: through the API server, or its tag's inside."""
    if not revision:
        return ""
    if not cluster.inside:
        found = cluster.list(SERVICES, labelSelector=f"{PRIVATE},{REVISION_LABEL}={revision}")
        return cluster.proxied(found[0]["metadata"]["name"]) if found else ""
    tags = [route.get("tag") for route in routes if route.get("revisionName") == revision]
    host = f"{stored['metadata']['name']}-predictor"
    tag = next(filter(None, tags), "")
    if tag:
        return f"http://{tag}-{host}.{cluster.namespace}.svc.cluster.local"
    return f"http://{revision}.{cluster.namespace}.svc.cluster.local"


def _public_url(cluster: Cluster, stored: Object) -> str:
    status = stored.get("status") or {}
    inside = ((status.get("address") or {}).get("url", "")) if cluster.inside else ""
    return inside or status.get("url", "")
