# SPDX-License-Identifier: Apache-2.0
"""Runs one object of a custom kind to its end on a Kubernetes cluster, and tells why it failed.

Its name says what it does with which data, so a second run finds the first one's and waits on.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

from kfloop.components.contracts.errors import InputError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
REQUEST_TIMEOUT = (5, 30)
BUSY = (429, 500, 502, 503, 504)
_CREATE_ATTEMPTS = 8
_LOG_LINES = 5
# What every pod goes through.
_USUAL = ("ContainerCreating", "PodInitializing")

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A custom kind, and how an object of it ends.

    Attributes:
        group: API group.
        version: API version.
        plural: Plural, as in its path.
        name: Kind, for people.
        complete: Condition that is true when it went well.
        pods: Label of its pods that holds the object's name.
        part_of: What has to be installed.
    """

    group: str
    version: str
    plural: str
    name: str
    complete: str
    pods: str
    part_of: str


class Cluster:
    """One namespace of the cluster of this process: the pod's own, or the kubeconfig's."""

    def __init__(self, namespace: str = "") -> None:
        """Connects; `namespace` is empty for the current one.

        Raises:
            InputError: If there is no cluster to connect to.
        """
        settings = client.Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(settings)
                current = NAMESPACE_FILE.read_text().strip()
            else:
                # Named, since the client reads the variable only when it is imported.
                files = os.environ.get("KUBECONFIG") or None
                config.load_kube_config(files, client_configuration=settings)
                _, context = config.list_kube_config_contexts(files)
                current = context["context"].get("namespace", "default")
        except (ConfigException, OSError) as error:
            raise InputError(
                f"There is no cluster to run on ({str(error).rstrip('.')}); set KUBECONFIG to a "
                "kubeconfig file, or set dry_run to see the manifest."
            ) from error
        settings.retries = urllib3.Retry(
            total=8, allowed_methods={"GET"}, status_forcelist=BUSY, backoff_factor=0.1
        )
        self.namespace = namespace or current
        api = client.ApiClient(settings)
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def get(self, kind: Kind, name: str) -> Object | None:
        """Returns an object, or None when there is none."""
        try:
            found: Object = self._custom.get_namespaced_custom_object(
                *self._place(kind), name, _request_timeout=REQUEST_TIMEOUT
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise self._told(error, f"read the {kind.name} {name!r}") from error
        except urllib3.exceptions.HTTPError as error:
            raise InputError(f"The API server does not answer: {error}.") from error
        return found

    def create(self, kind: Kind, manifest: Object) -> Object:
        """Creates an object, or returns the one of that name.

        A lost answer is not a lost object: it is looked for before it is created again.

        Raises:
            InputError: If the cluster refuses it, or drops what it does not know.
        """
        name = manifest["metadata"]["name"]
        for attempt in range(_CREATE_ATTEMPTS):
            time.sleep(min(5.0, 0.1 * 2**attempt) if attempt else 0)
            try:
                stored: Object = self._custom.create_namespaced_custom_object(
                    *self._place(kind), manifest, _request_timeout=REQUEST_TIMEOUT
                )
            except client.ApiException as error:
                if error.status == 404:
                    raise InputError(
                        f"The cluster knows no {kind.name}; install {kind.part_of}, which has "
                        f"{kind.plural}.{kind.group}/{kind.version}."
                    ) from error
                if error.status != 409 and error.status not in BUSY:
                    raise self._told(error, f"create the {kind.name} {name!r}") from error
            except urllib3.exceptions.HTTPError:
                pass  # perhaps it is there
            else:
                dropped = [key for key in manifest["spec"] if key not in stored["spec"]]
                if dropped:
                    self.delete(kind, name)
                    raise InputError(
                        f"The cluster's {kind.name} has no {', '.join(dropped)}; install a newer "
                        f"{kind.part_of}."
                    )
                return stored
            if found := self.get(kind, name):
                return found
        raise InputError(f"The {kind.name} {name!r} could not be created: the server is busy.")

    def delete(self, kind: Kind, name: str) -> None:
        """Deletes an object with what it made; that there is none is fine."""
        try:
            self._custom.delete_namespaced_custom_object(
                *self._place(kind),
                name,
                propagation_policy="Foreground",
                _request_timeout=REQUEST_TIMEOUT,
            )
        except client.ApiException as error:
            if error.status != 404:
                raise self._told(error, f"delete the {kind.name} {name!r}") from error

    def troubles(self, kind: Kind, name: str) -> str:
        """Returns what keeps the pods of an object from running or made them fail, or nothing."""
        try:
            answer = self._core.list_namespaced_pod(
                self.namespace,
                label_selector=f"{kind.pods}={name}",
                _preload_content=False,
                _request_timeout=REQUEST_TIMEOUT,
            )
            pods = json.loads(answer.data)["items"]
        except client.ApiException as error:
            return f"its pods cannot be read ({error.reason})"
        told = {trouble: None for pod in pods for trouble in self._pod_troubles(pod)}
        return "; ".join(told)

    def _pod_troubles(self, pod: Object) -> list[str]:
        status, name, found = pod.get("status", {}), pod["metadata"]["name"], []
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                found.append(f"pod {name}: {condition.get('reason')}: {condition.get('message')}")
        parts = (*status.get("initContainerStatuses", []), *status.get("containerStatuses", []))
        for part in parts:
            state = part.get("state", {})
            waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
            if waiting.get("reason", _USUAL[0]) not in _USUAL:
                found.append(f"pod {name}: {waiting['reason']}: {waiting.get('message', '')}")
            if ended.get("exitCode", 0) != 0:
                log = self._log(name, part["name"])
                reason = f"{ended.get('reason', 'Error')}, exit status {ended['exitCode']}"
                found.append(f"pod {name}: {reason}{f': {log}' if log else ''}")
        return found

    def _log(self, pod: str, container: str) -> str:
        """Returns the last lines of a container, in one."""
        try:
            text = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                tail_lines=_LOG_LINES,
                _request_timeout=REQUEST_TIMEOUT,
            )
        except client.ApiException:
            return ""
        return " / ".join(line.strip() for line in str(text).splitlines() if line.strip())

    def _place(self, kind: Kind) -> tuple[str, str, str, str]:
        return kind.group, kind.version, self.namespace, kind.plural

    def _told(self, error: Any, what: str) -> InputError:
        try:
            message = json.loads(error.body)["message"]
        except (ValueError, TypeError, KeyError):
            message = error.reason
        wanted = "; give this account a Role that allows it" if error.status in (401, 403) else ""
        return InputError(
            f"The cluster answers {error.status} to the wish to {what} in {self.namespace!r}: "
            f"{str(message).rstrip('.')}{wanted}."
        )


def run_to_end(
    cluster: Cluster, kind: Kind, manifest: Object, seconds: float, poll_seconds: float = 5.0
) -> Object:
    """Creates an object, unless it is there, and waits until it went well.

    One of the same name that failed is deleted and created again.

    Args:
        cluster: Where.
        kind: What it is an object of.
        manifest: The object; its name says what is in it.
        seconds: Longest wait; then the object is deleted.
        poll_seconds: Time between two looks.

    Returns:
        The object at its end.

    Raises:
        InputError: If it fails or takes too long, with what its pods say.
    """
    name, deadline = manifest["metadata"]["name"], time.monotonic() + seconds
    shown = f"{kind.name} {cluster.namespace}/{name}"
    found = cluster.get(kind, name)
    if found and _condition(found, "Failed"):
        print(f"{shown} has failed before; it is replaced.", flush=True)
        cluster.delete(kind, name)
        while cluster.get(kind, name):
            _pause(deadline, poll_seconds, f"{shown} is still being deleted; run it again later.")
        found = None
    current = found or cluster.create(kind, manifest)
    print(f"{shown} is {'there already; it is waited for' if found else 'created'}.", flush=True)
    told = ""
    while not _condition(current, kind.complete):
        if failed := _condition(current, "Failed"):
            why = f"{failed.get('reason', '')}: {str(failed.get('message', '')).rstrip('.')}"
            troubles = cluster.troubles(kind, name)
            raise InputError(f"{shown} failed: {why}{'; ' + troubles if troubles else ''}.")
        troubles = cluster.troubles(kind, name)
        if troubles and troubles != told:
            told = troubles
            print(f"{shown} waits: {troubles}", flush=True)
        if time.monotonic() >= deadline:
            cluster.delete(kind, name)
            raise InputError(
                f"{shown} was not done after {seconds / 60:.4g} minutes and is deleted"
                f"{'; ' + troubles if troubles else ''}."
            )
        time.sleep(poll_seconds)
        after = cluster.get(kind, name)
        if after is None:
            raise InputError(f"{shown} was deleted by somebody else before it was done.")
        current = after
    print(f"{shown} is done.", flush=True)
    return current


def _pause(deadline: float, seconds: float, too_long: str) -> None:
    if time.monotonic() >= deadline:
        raise InputError(too_long)
    time.sleep(seconds)


def _condition(found: Object, wanted: str) -> Object | None:
    """Returns a condition that is true."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == wanted and condition["status"] == "True":
            return dict(condition)
    return None
