# SPDX-License-Identifier: Apache-2.0
"""Why a version does not come up, from its pods and its controllers. Pure functions.

A cluster heals itself of much, so each reason comes with the time it must last before it is final.
"""

from typing import Any, NamedTuple

# Restarts and pulls are tried again by themselves; what still stands after this is what it is.
SETTLED_SECONDS = 10.0
# What a controller says without saying of which spec may be said of the spec before.
UNPROVEN_SECONDS = 30.0
# A node may be made free, or a new one be on its way.
UNSCHEDULABLE_SECONDS = 120.0
# A controller that is down is started again, or another takes over.
UNMADE_SECONDS = 120.0
MAX_CHARACTERS = 500
# https://kubernetes.io/docs/concepts/containers/images/#imagepullbackoff and the kubelet's source
WAITING = {
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}
INVALID = "InvalidSpec"
LOAD_FAILURES = ("BlockedByFailedLoad", INVALID)

Object = dict[str, Any]


class Problem(NamedTuple):
    """Why a version does not come up: one sentence, and the seconds it must last."""

    text: str = ""
    patience: float = 0.0


NONE = Problem()


def problem_of_pods(pods: list[Object], scaling_up: bool = False) -> Problem:
    """Returns what is wrong with a version's pods, the worst first.

    Args:
        pods: Its pods, and no others.
        scaling_up: Whether a node was asked for, so that a pod without one only waits.
    """
    for pod in pods:
        status = pod.get("status") or {}
        name = pod["metadata"]["name"]
        for container in [
            *(status.get("initContainerStatuses") or []),
            *(status.get("containerStatuses") or []),
        ]:
            if text := _of_container(container):
                return Problem(_short(f"{name}: {text}"), SETTLED_SECONDS)
        if status.get("phase") == "Failed":
            reason = f"{status.get('reason', 'Failed')} {status.get('message', '')}".strip()
            return Problem(_short(f"{name}: {reason}"), SETTLED_SECONDS)
    for pod in pods:
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False" and not scaling_up:
            why = scheduled.get("message") or scheduled.get("reason", "")
            text = f"{pod['metadata']['name']} fits on no node: {why}"
            return Problem(_short(text), UNSCHEDULABLE_SECONDS)
    return NONE


def _of_container(container: Object) -> str:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    waiting = state.get("waiting") or {}
    what = (
        "the storage initializer"
        if container["name"] == "storage-initializer"
        else (f"the container {container['name']}")
    )
    if waiting.get("reason") in WAITING:
        told = ended.get("message") or waiting.get("message") or ""
        return f"{what} is in {waiting['reason']}{_exit(ended)}: {_last_line(told)}".rstrip(": ")
    failed = (state.get("terminated") or {}).get("exitCode", 0)
    if failed and container.get("restartCount", 0) > 0:
        return f"{what} ended{_exit(ended)}: {_last_line(ended.get('message', ''))}".rstrip(": ")
    return ""


def _last_line(log: str) -> str:
    """The end of a container's log is why it ended; its beginning is a library's chatter."""
    return (log.strip().splitlines() or [""])[-1]


def _exit(ended: Object) -> str:
    if not ended:
        return ""
    reason = ended.get("reason", "")
    reason = "" if reason == "Error" else f", {reason}"
    return f" (exit code {ended.get('exitCode')}{reason})"


def problem_of_deployment(deployment: Object) -> Problem:
    """Returns why a Deployment makes no pods, or makes no progress."""
    refused = condition(deployment, "ReplicaFailure")
    if refused.get("status") == "True":
        return Problem(_short(f"no pod can be made: {refused.get('message')}"), SETTLED_SECONDS)
    progress = condition(deployment, "Progressing")
    if progress.get("status") == "False":
        told = f"{progress.get('reason')}: {progress.get('message', '')}"
        return Problem(_short(told), SETTLED_SECONDS)
    return NONE


def problem_of_revision(revision: Object) -> Problem:
    """Returns why a Knative revision is not ready."""
    ready = condition(revision, "Ready")
    if ready.get("status") != "False":
        return NONE
    return Problem(_short(f"{ready.get('reason')}: {ready.get('message', '')}"), SETTLED_SECONDS)


def problem_of_model(service: Object, revision: str = "") -> Problem:
    """Returns what KServe says of loading the model.

    Args:
        service: The InferenceService.
        revision: The revision in question. Without one, only a spec that KServe cannot work on
            counts: the rest may be said of the version before.
    """
    model = (service.get("status") or {}).get("modelStatus") or {}
    info = model.get("lastFailureInfo") or {}
    state = model.get("transitionStatus", "")
    told = _short(f"{info.get('reason', state)}: {info.get('message', '')}".rstrip(": "))
    if revision and state in LOAD_FAILURES and info.get("modelRevisionName") == revision:
        return Problem(told, SETTLED_SECONDS)
    return Problem(told, UNPROVEN_SECONDS) if state == INVALID else NONE


def problem_of_reconciling(service: Object) -> Problem:
    """Returns why KServe makes no Knative service of a spec: Knative refuses it, as a rule."""
    told = condition(service, "PredictorReady")
    if told.get("reason") != "ReconcileFailed":
        return NONE
    return Problem(_short(told.get("message", "")), UNPROVEN_SECONDS)


def problem_of_nothing(predictor: str) -> Problem:
    """Returns what can be said where KServe makes nothing of a predictor and gives no reason.

    The reason would be an Event, but those are dropped where KServe's controller makes many.
    """
    text = (
        f"KServe makes no Deployment of {predictor} and does not say why; does a ServingRuntime "
        "serve its model? KServe's controller logs the reason"
    )
    return Problem(text, UNMADE_SECONDS)


def problem_of_share(service: Object, candidate: str, percent: int) -> Problem:
    """Returns why a candidate that is in no route does not get its share.

    Args:
        service: The InferenceService.
        candidate: Name of the candidate.
        percent: The share that it is to have.
    """
    told = (service.get("status") or {}).get("canaryStatuses") or []
    seen = [entry.get("trafficPercent") for entry in told
            if entry["name"] == candidate and entry.get("ready")]  # fmt: skip
    if not percent or seen != [percent]:
        return NONE
    text = (
        f"KServe knows of the {percent} % of {candidate} but writes them into no route, as KServe "
        "0.20 does in Standard mode; update it to 0.21, or roll out without shares (steps [])"
    )
    return Problem(text, UNPROVEN_SECONDS)


def problem_of_events(events: list[Object], about: str) -> Problem:
    """Returns what a controller last warned of, in words that hold `about`."""
    warnings = [
        entry
        for entry in events
        if entry.get("type") == "Warning" and about in (entry.get("message") or "")
    ]
    if not warnings:
        return NONE
    newest = max(warnings, key=lambda entry: entry.get("lastTimestamp") or "")
    told = f"{newest.get('reason')}: {newest.get('message', '')}"
    return Problem(_short(told), UNPROVEN_SECONDS)


def condition(holder: Object, kind: str) -> Object:
    """Returns a condition of an object's status; empty when it has none of that type."""
    conditions = (holder.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def _short(text: str) -> str:
    # One line: a Python traceback ends with what matters, and so does a log.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = text.strip() if len(lines) < 2 else f"{lines[0]} … {lines[-1]}"
    return told if len(told) <= MAX_CHARACTERS else f"{told[:MAX_CHARACTERS]}…"
