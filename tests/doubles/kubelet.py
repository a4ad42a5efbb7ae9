# SPDX-License-Identifier: Apache-2.0
"""Pods: from Pending to Ready, or to one of the many ways not to get there."""

from typing import Any

from .cluster import SOURCE_ANNOTATION, set_condition, set_status, tell
from .failures import CRASH_MESSAGE, LOAD_MESSAGE, Failure, Failures
from .server import ApiServer
from .store import Object

INITIALIZER, CONTAINER = "storage-initializer", "kserve-container"
READY_AFTER = 3
MOST_RESTARTS = 5


class Kubelet:
    """Scheduler and kubelet in one: each tick every pod gets one step further.

    Attributes:
        busy: Whether a pod is still on its way, though nothing was written this tick.
    """

    def __init__(self, api: ApiServer, failures: Failures) -> None:
        self._api, self._failures = api, failures
        self._ages: dict[str, int] = {}
        self._well: dict[str, int] = {}
        self.busy = False

    def tick(self, pod: Object) -> None:
        """Takes one pod a step further."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        uri = (metadata.get("annotations") or {}).get(SOURCE_ANNOTATION, "")
        failure = self._failures.of(uri)
        age = self._ages[uid] = self._ages.get(uid, 0) + 1
        status = pod.get("status") or {"phase": "Pending", "conditions": []}
        conditions = [dict(entry) for entry in status.get("conditions", [])]
        new: dict[str, Any] = {"phase": "Pending", "conditions": conditions}
        if failure.kind == "unschedulable":
            self._unschedulable(pod, conditions)
        else:
            set_condition(self._api, conditions, "PodScheduled", "True")
            new["podIP"] = "10.0.0.9"
            self._run(pod, new, failure, age, uri)
        set_status(self._api, "pods", pod, {**new, "conditions": conditions})

    def forget(self, uids: set[str]) -> None:
        """Forgets all pods but these."""
        self._ages = {uid: age for uid, age in self._ages.items() if uid in uids}

    def _unschedulable(self, pod: Object, conditions: list[dict[str, Any]]) -> None:
        message = (
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are "
            "available: 3 No preemption victims found for incoming pod."
        )
        told = {"reason": "Unschedulable", "message": message}
        set_condition(self._api, conditions, "PodScheduled", "False", **told)
        tell(self._api, pod, "Warning", "FailedScheduling", message)

    def _run(self, pod: Object, new: Object, failure: Failure, age: int, uri: str) -> None:
        delay = failure.ticks if failure.kind == "slow" else 0
        if age < READY_AFTER - 1 + delay:
            self.busy = True
            self._containers(
                pod, new, {"running": {}} if uri else None, {"waiting": _initializing()}
            )
        elif failure.kind == "failed_to_load" and uri:
            message = LOAD_MESSAGE.format(uri=uri)
            ended = {"exitCode": 1, "reason": "Error", "message": message}
            self._crash(pod, new, ended, age, init=True)
        elif failure.kind == "image_pull":
            image = pod["spec"]["containers"][0].get("image", "")
            reason = "ErrImagePull" if age == READY_AFTER - 1 else "ImagePullBackOff"
            message = f'Back-off pulling image "{image}"'
            self.busy = self.busy or reason == "ErrImagePull"
            waiting = {"reason": reason, "message": message}
            self._containers(pod, new, _done() if uri else None, {"waiting": waiting})
            tell(self._api, pod, "Warning", "Failed", f"Failed to pull image: {message}")
        elif failure.kind == "crash_loop" or self._crashes_now(pod, failure, age):
            ended = {"exitCode": 1, "reason": "Error", "message": CRASH_MESSAGE}
            self._crash(pod, new, ended, age, init=False)
        else:
            ready = age >= READY_AFTER + delay and failure.kind not in ("never_ready", "deadline")
            self.busy = self.busy or age < READY_AFTER + delay
            new["phase"] = "Running"
            running = {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
            self._containers(pod, new, _done() if uri else None, running, ready)
            if ready:
                self._api.logs.setdefault(
                    (pod["metadata"]["namespace"], pod["metadata"]["name"]),
                    f"INFO: model {uri} is loaded\n",
                )

    def _crashes_now(self, pod: Object, failure: Failure, age: int) -> bool:
        if failure.kind != "ready_then_crash":
            return False
        uid = pod["metadata"]["uid"]
        if age >= READY_AFTER:
            self._well[uid] = self._well.get(uid, 0) + 1
        over = self._well.get(uid, 0) > failure.ticks
        self.busy = self.busy or not over
        return over

    def _crash(self, pod: Object, new: Object, ended: dict[str, Any], age: int, init: bool) -> None:
        """Ended for one tick, then waiting to be started again."""
        where = "initContainerStatuses" if init else "containerStatuses"
        before = (pod.get("status") or {}).get(where) or [{}]
        restarts = before[0].get("restartCount", 0)
        if before[0].get("state", {}).get("terminated") or "lastState" in before[0]:
            name = INITIALIZER if init else CONTAINER
            waiting = {
                "reason": "CrashLoopBackOff",
                "message": f"back-off 5m0s restarting failed container={name} "
                f"pod={pod['metadata']['name']}",
            }
            state: dict[str, Any] = {"waiting": waiting}
            restarts = min(restarts + 1, MOST_RESTARTS)
            last: dict[str, Any] | None = {"terminated": ended}
            self.busy = self.busy or restarts < MOST_RESTARTS
        else:
            state, last, self.busy = {"terminated": ended}, None, True
        new["phase"] = "Pending" if init else "Running"
        if init:
            self._containers(pod, new, state, {"waiting": _initializing()})
        else:
            has_source = SOURCE_ANNOTATION in (pod["metadata"].get("annotations") or {})
            self._containers(pod, new, _done() if has_source else None, state)
        entry = new[where][0]
        entry["restartCount"] = restarts
        if last:
            entry["lastState"] = last
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        self._api.logs[key] = ended["message"] + "\n"
        tell(self._api, pod, "Warning", "BackOff", "Back-off restarting failed container")

    def _containers(
        self,
        pod: Object,
        new: Object,
        init: dict[str, Any] | None,
        main: dict[str, Any],
        ready: bool = False,
    ) -> None:
        if init is not None:
            done = "terminated" in init and init["terminated"]["exitCode"] == 0
            entry = {"name": INITIALIZER, "ready": done, "restartCount": 0, "state": init}
            new["initContainerStatuses"] = [entry]
        new["containerStatuses"] = [
            {"name": c["name"], "ready": ready, "restartCount": 0, "state": main}
            for c in pod["spec"]["containers"]
        ]
        told = {} if ready else {"reason": "ContainersNotReady"}
        if not ready:
            names = " ".join(c["name"] for c in pod["spec"]["containers"])
            told["message"] = f"containers with unready status: [{names}]"
        state = "True" if ready else "False"
        for name in ("ContainersReady", "Ready"):
            set_condition(self._api, new["conditions"], name, state, **told)


def _done() -> dict[str, Any]:
    return {"terminated": {"exitCode": 0, "reason": "Completed"}}


def _initializing() -> dict[str, Any]:
    return {"reason": "PodInitializing"}
