# SPDX-License-Identifier: Apache-2.0
"""What a service in KServe's Standard mode really does: its Deployments, Services and its route.

KServe's own words are no proof: `Ready` stays True during a rollout and says nothing of a canary,
and `observedGeneration` is that of a Deployment. So a version is ready when its own Deployment has
this version's template and nothing but pods of it, and a manifest is in effect when its route has
these shares and nothing else is left.
"""

from dataclasses import replace
from typing import Any

from kfloop.components.deployment.backend import PredictorStatus, ServiceStatus
from kfloop.components.deployment.kubernetes_api import (
    DEPLOYMENTS,
    EVENTS,
    HTTP_ROUTES,
    PODS,
    SERVICES,
    Cluster,
    Object,
)
from kfloop.components.deployment.kubernetes_failures import (
    NONE,
    Problem,
    condition,
    problem_of_deployment,
    problem_of_events,
    problem_of_model,
    problem_of_nothing,
    problem_of_pods,
    problem_of_share,
)
from kfloop.components.deployment.manifest import VERSION_ANNOTATION, Manifest, traffic_of

# KServe's pkg/constants: the template of every predictor with a storageUri has it.
URI_ANNOTATION = "internal.serving.kserve.io/storage-initializer-sourceuri"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
PREDICTORS = "component=predictor"
SCALE_UP = "TriggeredScaleUp"


def read_status(cluster: Cluster, stored: Object, manifest: Manifest) -> ServiceStatus:
    """Returns the status of a service in Standard mode.

    Args:
        cluster: Its namespace.
        stored: The InferenceService as the cluster has it.
        manifest: The same in our shape.
    """
    service = stored["metadata"]["name"]
    selector = f"{SERVICE_LABEL}={service},{PREDICTORS}"
    deployments = _by_name(cluster.list(DEPLOYMENTS, labelSelector=selector))
    services = _by_name(cluster.list(SERVICES, labelSelector=selector))
    route = cluster.get(HTTP_ROUTES, service)
    wanted = traffic_of(manifest)
    specs = [
        manifest["spec"]["predictor"],
        *(entry["predictor"] for entry in manifest["spec"].get("canary") or []),
    ]
    shares = _shares(service, route, specs[0].get("name", ""))
    predictors = {
        spec.get("name", ""): _predictor(
            cluster, stored, spec, deployments, services, shares.get(spec.get("name", ""), 0)
        )
        for spec in specs
    }
    for name, share in wanted.items():
        if not shares.get(name) and (problem := problem_of_share(stored, name, share)) != NONE:
            predictors[name] = replace(
                predictors[name], error=problem.text, patience=problem.patience
            )
    for stray in shares.keys() - predictors.keys():
        predictors[stray] = PredictorStatus(stray, "", "", "", False, "", shares[stray])
    expected = {workload_name(service, spec.get("name", "")) for spec in specs}
    left = {*deployments, *services} - expected
    routed = _is_taken_over(route)
    pending = _pending(stored, predictors, wanted, left, routed)
    generation = int(stored["metadata"]["generation"])
    return ServiceStatus(
        running=True,
        url=(stored.get("status") or {}).get("url", ""),
        generation=generation,
        observed_generation=generation - 1 if pending else generation,
        predictors=predictors,
        pending=pending,
        routed=routed,
    )


def workload_name(service: str, predictor: str) -> str:
    """Returns the name of a predictor's Deployment and Service."""
    return f"{service}-{predictor}-predictor" if predictor else f"{service}-predictor"


def _pending(
    stored: Object,
    predictors: dict[str, PredictorStatus],
    wanted: dict[str, int],
    left: set[str],
    routed: bool,
) -> str:
    for name, predictor in predictors.items():
        if name in wanted and not predictor.ready:
            return f"{name} is not ready"
    shares = {name: entry.traffic for name, entry in predictors.items() if entry.traffic}
    if shares != {name: share for name, share in wanted.items() if share}:
        return f"the requests are split {_told(shares)}, not {_told(wanted)}"
    if not routed:
        return "the gateway has not taken over the new route yet"
    if left:
        return f"{', '.join(sorted(left))} is still there"
    ready = condition(stored, "Ready")
    if ready.get("status") != "True":
        why = ready.get("message") or ready.get("reason") or "no reason given"
        return f"KServe does not call the service ready ({why})"
    return ""


def _told(shares: dict[str, int]) -> str:
    return ", ".join(f"{name} {share} %" for name, share in sorted(shares.items())) or "to nobody"


def _predictor(
    cluster: Cluster,
    stored: Object,
    spec: dict[str, Any],
    deployments: dict[str, Object],
    services: dict[str, Object],
    traffic: int,
) -> PredictorStatus:
    service, name = stored["metadata"]["name"], spec.get("name", "")
    workload = workload_name(service, name)
    uri = spec["model"]["storageUri"]
    deployment = deployments.get(workload)
    of_this = deployment is not None and _template(deployment).get(URI_ANNOTATION) == uri
    complete = deployment is not None and of_this and _is_complete(deployment)
    problem = NONE
    if deployment is None or not of_this:
        # Nothing says yet which spec KServe worked on, so only what lasts counts.
        problem = _of_controller(cluster, stored, name)
        if problem == NONE and deployment is None:
            problem = problem_of_nothing(name)
    elif not complete:
        problem = _of_workload(cluster, deployment, uri)
    return PredictorStatus(
        name=name,
        url=_address(cluster, services.get(workload)),
        model_version=_template(deployment).get(VERSION_ANNOTATION, "") if deployment else "",
        storage_uri=uri,
        ready=complete and workload in services,
        error=problem.text,
        traffic=traffic,
        patience=problem.patience,
        workload=workload,
    )


def _is_complete(deployment: Object) -> bool:
    """Whether all pods are of the newest template; the rule of `kubectl rollout status`."""
    status = deployment.get("status") or {}
    wanted = deployment["spec"].get("replicas", 1)
    return (
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and wanted > 0
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("replicas", 0) <= status.get("updatedReplicas", 0)
        and status.get("availableReplicas", 0) >= status.get("updatedReplicas", 0)
    )


def _of_workload(cluster: Cluster, deployment: Object, uri: str) -> Problem:
    name = deployment["metadata"]["name"]
    pods = [
        pod
        for pod in cluster.list(PODS, labelSelector=f"app=isvc.{name}")
        if (pod["metadata"].get("annotations") or {}).get(URI_ANNOTATION) == uri
    ]
    problem = problem_of_pods(pods)
    if problem == NONE:
        return problem_of_deployment(deployment)
    return problem_of_pods(pods, is_scaling_up(cluster, pods))


def is_scaling_up(cluster: Cluster, pods: list[Object]) -> bool:
    """Whether the cluster's autoscaler makes a node for one of the pods."""
    return any(
        entry.get("reason") == SCALE_UP
        for pod in pods
        for entry in events_of(cluster, pod["metadata"]["name"])
    )


def events_of(cluster: Cluster, name: str) -> list[Object]:
    """Returns the events of an object."""
    return cluster.list(EVENTS, fieldSelector=f"involvedObject.name={name}")


def _of_controller(cluster: Cluster, stored: Object, predictor: str) -> Problem:
    """Returns why KServe makes no Deployment of a predictor."""
    problem = problem_of_model(stored)
    if problem != NONE:
        return problem
    # Events outlive what they were about. A candidate's name is in its own; a new service has no
    # older ones.
    canaries = stored["spec"].get("canary") or []
    is_candidate = any(entry["predictor"].get("name") == predictor for entry in canaries)
    if not is_candidate and stored["metadata"]["generation"] > 1:
        return NONE
    about = f"canary {predictor}" if is_candidate else ""
    uid = stored["metadata"].get("uid")
    events = events_of(cluster, stored["metadata"]["name"])
    own = [entry for entry in events if (entry.get("involvedObject") or {}).get("uid") == uid]
    return problem_of_events(own, about)


def _shares(service: str, route: Object | None, live: str) -> dict[str, int]:
    """Returns each predictor's percentage by the route; without a route all is the live one's."""
    rules = (route or {}).get("spec", {}).get("rules") or []
    backends = rules[-1].get("backendRefs") or [] if rules else []
    weights: dict[str, int] = {}
    for backend in backends:
        predictor = backend["name"].removeprefix(f"{service}-").removesuffix("predictor")
        name = predictor.removesuffix("-")
        weights[name] = weights.get(name, 0) + backend.get("weight", 1)
    total = sum(weights.values())
    if not total:
        return {live: 100}
    return {name: round(100 * weight / total) for name, weight in weights.items()}


def _is_taken_over(route: Object | None) -> bool:
    """Whether the gateway works by the newest route, as far as it tells."""
    if route is None:
        return True
    parents = (route.get("status") or {}).get("parents") or []
    seen = [
        entry["observedGeneration"]
        for parent in parents
        for entry in parent.get("conditions") or []
        if "observedGeneration" in entry
    ]
    return not seen or min(seen) >= route["metadata"]["generation"]


def _address(cluster: Cluster, service: Object | None) -> str:
    if service is None:
        return ""
    name = service["metadata"]["name"]
    ports = service["spec"].get("ports") or [{}]
    port = ports[0].get("port", 80)
    if not cluster.inside:
        return cluster.proxied(name, port)
    host = f"http://{name}.{cluster.namespace}.svc"
    if service["spec"].get("clusterIP") == "None":
        # A headless Service leads to the pods, on the port that they listen on.
        port = ports[0].get("targetPort", port)
    return host if port == 80 else f"{host}:{port}"


def _template(deployment: Object) -> dict[str, str]:
    return deployment["spec"]["template"]["metadata"].get("annotations") or {}


def _by_name(objects: list[Object]) -> dict[str, Object]:
    return {entry["metadata"]["name"]: entry for entry in objects}
