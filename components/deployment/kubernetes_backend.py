# SPDX-License-Identifier: Apache-2.0
"""The cluster's backend: KServe's InferenceServices, in Standard and in Knative mode.

The manifest that rollouts edit has the shape of Standard mode; Knative mode is translated here, at
the edge. One write changes the spec and the deployment record together. A write whose answer was
lost, or that came too late, is decided again on what the server has then.
"""

import copy
import time
from functools import cached_property
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import knative, knative_status, standard_status
from kfloop.components.deployment.backend import (
    KNATIVE,
    STANDARD,
    ConflictError,
    ServiceStatus,
)
from kfloop.components.deployment.kubernetes_api import (
    INFERENCE_SERVICES,
    Cluster,
    Object,
    UnsureError,
)
from kfloop.components.deployment.kubernetes_mode import (
    MODE_ANNOTATION,
    SPELLINGS,
    Settings,
    default_mode,
    mode_of,
    read_settings,
    require_storage,
    splits_traffic,
)
from kfloop.components.deployment.manifest import Manifest

POLL_SECONDS = 1.0
# What gateways and kube-proxy take at most, as a rule, to follow a change.
DRAIN_SECONDS = 5.0
WRITE_SECONDS = 60.0
DELETE_SECONDS = 120.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
STOP_ANNOTATION = "serving.kserve.io/stop"
OURS = "kfloop.org/"
SEEN = 50


class KubernetesBackend:
    """The services of one namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self.namespace = cluster.namespace
        self.poll_seconds = POLL_SECONDS
        self._cluster = cluster
        # What `get` returned, by resourceVersion: tells our edits from those of others.
        self._seen: dict[str, Object] = {}

    @cached_property
    def _settings(self) -> Settings:
        return read_settings(self._cluster)

    @cached_property
    def _default_mode(self) -> str:
        return default_mode(self._cluster, self._settings)

    @property
    def mode(self) -> str:
        """How new services run: `STANDARD` or `KNATIVE`."""
        return SPELLINGS[self._default_mode]

    def names(self) -> list[str]:
        """Returns the names of all services."""
        return sorted(entry["metadata"]["name"] for entry in self._cluster.list(INFERENCE_SERVICES))

    def get(self, service: str) -> Manifest | None:
        """Returns a service's manifest, or None when there is none."""
        stored = self._stored(service)
        if stored is None:
            return None
        self._seen[stored["metadata"]["resourceVersion"]] = stored
        while len(self._seen) > SEEN:
            self._seen.pop(next(iter(self._seen)))
        return self._in_our_shape(stored)

    def apply(self, manifest: Manifest) -> int:
        """Writes a manifest and returns its generation; see `Backend`."""
        name = manifest["metadata"]["name"]
        deadline, pause = time.monotonic() + WRITE_SECONDS, FIRST_PAUSE
        while True:
            try:
                found = self._cluster.get(INFERENCE_SERVICES, name)
                return int(self._put(manifest, found)["metadata"]["generation"])
            except UnsureError as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"The service {name!r} could not be written within {WRITE_SECONDS:g} s: "
                        f"{error}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def dry_run(self, manifest: Manifest) -> Manifest:
        """Returns what `apply` would store, as the server says, and writes nothing."""
        found = self._stored(manifest["metadata"]["name"])
        return self._in_our_shape(self._put(manifest, found, dry_run=True))

    def advance(self, service: str) -> None:
        """Gives a restored live version its requests, once its revision is ready (Knative)."""
        stored = self._stored(service)
        if stored is None or self._mode_of(stored) != KNATIVE or not knative.holds(stored):
            return
        if knative_status.newest_is_ready(self._cluster, stored):
            try:
                self._cluster.replace(INFERENCE_SERVICES, knative.released(stored))
            except UnsureError:
                return  # whoever waits calls again

    def delete(self, service: str) -> None:
        """Deletes a service and waits until it is gone."""
        deadline = time.monotonic() + DELETE_SECONDS
        while True:
            try:
                self._cluster.delete(INFERENCE_SERVICES, service)
                if self._cluster.get(INFERENCE_SERVICES, service) is None:
                    return
                told = "see its finalizers"
            except UnsureError as error:
                told = str(error)
            if time.monotonic() > deadline:
                raise InputError(
                    f"The service {service!r} was deleted but is still there after "
                    f"{DELETE_SECONDS:g} s: {told}"
                )
            time.sleep(self.poll_seconds)

    def ensure_running(self, service: str) -> None:
        """Says so when a service was stopped; else KServe runs it.

        Raises:
            InputError: If it was stopped.
        """
        stored = self._stored(service)
        annotations = (stored["metadata"].get("annotations") or {}) if stored else {}
        if annotations.get(STOP_ANNOTATION) == "true":
            raise InputError(
                f"The service {service!r} is stopped; remove its annotation {STOP_ANNOTATION}."
            )

    def status(self, service: str) -> ServiceStatus:
        """Returns what the service is doing now; see the modules of the two modes."""
        stored = self._stored(service)
        if stored is None:
            return ServiceStatus(False, "", 0, 0)
        manifest = self._in_our_shape(stored)
        if self._mode_of(stored) == KNATIVE:
            return knative_status.read_status(self._cluster, stored, manifest)
        return standard_status.read_status(self._cluster, stored, manifest)

    def flush_log(self, service: str) -> None:
        """Does nothing: what is on its way to a cluster's log cannot be asked for."""

    def default_log(self, service: str) -> str:
        """Returns '': on a cluster the log is where the payload logger writes it."""
        return ""

    def storage_uri(self, model_uri: str) -> str:
        """Returns the URI, if KServe can read it."""
        return require_storage(model_uri)

    def log_uri(self, inference_log: str) -> str:
        """Returns the place of the log as given; http(s) is a payload logger."""
        return inference_log

    def drain_seconds(self, service: str) -> float:
        """Returns some seconds in Standard mode with a gateway; Knative sees to it itself."""
        stored = self._stored(service)
        if stored is None or self._mode_of(stored) == KNATIVE:
            return 0.0
        return DRAIN_SECONDS if splits_traffic(self._cluster, service, self._settings) else 0.0

    def splits_traffic(self, service: str) -> bool:
        """Whether a candidate can get a share: always in Knative mode."""
        stored = self._stored(service)
        mode = self._mode_of(stored) if stored else self.mode
        return mode == KNATIVE or splits_traffic(self._cluster, service, self._settings)

    def _stored(self, service: str) -> Object | None:
        """Returns a service as the cluster has it; one that is being deleted is gone already."""
        found = self._cluster.get(INFERENCE_SERVICES, service)
        return None if found and found["metadata"].get("deletionTimestamp") else found

    def _mode_of(self, stored: Object) -> str:
        # What names no mode is as the cluster's default says, which need not be asked otherwise.
        return mode_of(stored, STANDARD if _names_mode(stored) else self._default_mode)

    def _in_our_shape(self, stored: Object) -> Manifest:
        made = knative.from_knative(stored) if self._mode_of(stored) == KNATIVE else stored
        kept = copy.deepcopy({key: made[key] for key in ("apiVersion", "kind", "metadata", "spec")})
        kept["metadata"].pop("managedFields", None)
        return kept

    def _put(self, manifest: Manifest, found: Object | None, dry_run: bool = False) -> Object:
        """Writes what is to be changed, if anything, and returns what is stored.

        Raises:
            UnsureError: If it is to be decided again on what the server has then.
        """
        name = manifest["metadata"]["name"]
        if found is None:
            if manifest["metadata"].get("uid"):
                raise ConflictError(f"The service {name!r} was deleted by somebody else meanwhile.")
            return self._cluster.create(INFERENCE_SERVICES, self._new(manifest), dry_run)
        if found["metadata"].get("deletionTimestamp"):
            raise UnsureError(f"the old {name!r} is still being deleted")
        base = self._seen.get(manifest["metadata"].get("resourceVersion", ""))
        wanted = self._edited(manifest, found, base)
        if base is None or not _is_same(base, found):
            # Unless this is our own write, whose answer was lost, it is somebody else's.
            if _is_stored(wanted, found):
                return found
            raise ConflictError(
                f"The service {name!r} was changed by somebody else meanwhile; run this step again."
            )
        if self._is_unedited(manifest, base):
            return found
        self._require_split(manifest, found)
        in_knative = self._mode_of(found) == KNATIVE
        if in_knative and not dry_run and (forgetting := knative.forgetting(found, wanted)):
            kept = self._cluster.replace_status(INFERENCE_SERVICES, forgetting)
            wanted["metadata"]["resourceVersion"] = kept["metadata"]["resourceVersion"]
        stored = self._cluster.replace(INFERENCE_SERVICES, wanted, dry_run)
        if dropped := _missing(wanted["spec"], stored["spec"], "spec"):
            raise InputError(
                f"The cluster does not keep {dropped} of the service {name!r}; its KServe is older "
                "than 0.20. Canaries that get requests in Standard mode need 0.21."
            )
        return stored

    def _new(self, manifest: Manifest) -> Object:
        made = knative.to_knative(manifest) if self.mode == KNATIVE else copy.deepcopy(manifest)
        made["metadata"]["namespace"] = self.namespace
        annotations = made["metadata"].setdefault("annotations", {})
        annotations[MODE_ANNOTATION] = self._default_mode
        return made

    def _edited(self, manifest: Manifest, found: Object, base: Object | None) -> Object:
        """Returns what is stored now, with this manifest's spec and with its edits of metadata."""
        in_knative = self._mode_of(found) == KNATIVE
        made = knative.to_knative(manifest, found) if in_knative else copy.deepcopy(manifest)
        before = base["metadata"] if base else {}
        metadata = copy.deepcopy(found["metadata"])
        metadata.pop("managedFields", None)
        for field in ("annotations", "labels"):
            old, new = before.get(field) or {}, made["metadata"].get(field) or {}
            kept = {
                k: v for k, v in (metadata.get(field) or {}).items() if k in new or k not in old
            }
            changed = {key: value for key, value in new.items() if old.get(key) != value}
            metadata[field] = {**kept, **changed}
        if MODE_ANNOTATION in (found["metadata"].get("annotations") or {}):
            # KServe lets nobody change it.
            metadata["annotations"][MODE_ANNOTATION] = found["metadata"]["annotations"][
                MODE_ANNOTATION
            ]
        return {**made, "metadata": metadata}

    def _is_unedited(self, manifest: Manifest, base: Object) -> bool:
        ours = self._in_our_shape(base)
        return manifest["spec"] == ours["spec"] and all(
            (manifest["metadata"].get(field) or {}) == (ours["metadata"].get(field) or {})
            for field in ("annotations", "labels")
        )

    def _require_split(self, manifest: Manifest, found: Object) -> None:
        shares = [entry["trafficPercent"] for entry in manifest["spec"].get("canary") or []]
        name = found["metadata"]["name"]
        if self._mode_of(found) == KNATIVE or not any(shares):
            return
        if not splits_traffic(self._cluster, name, self._settings):
            why = self._settings.unread or "ingress.enableGatewayApi is not on"
            raise InputError(
                f"This cluster splits no traffic in Standard mode ({why}), so a candidate of "
                f"{name!r} with {shares[0]} % would get nothing; deploy it with traffic_percent 0, "
                "judge it by its own address, and promote it at once."
            )


def _names_mode(stored: Object) -> bool:
    said = (stored["metadata"].get("annotations") or {}).get(MODE_ANNOTATION)
    return said in SPELLINGS or (stored.get("status") or {}).get("deploymentMode") in SPELLINGS


def _is_stored(wanted: Object, found: Object) -> bool:
    """Whether a write has taken place, for all that the server adds to it."""
    return (
        not _missing(wanted["spec"], found["spec"], "spec")
        and _switches(wanted) == _switches(found)
        and all(
            (found["metadata"].get("annotations") or {}).get(key) == value
            for key, value in wanted["metadata"]["annotations"].items()
            if key.startswith(OURS)
        )
    )


def _switches(manifest: Object) -> tuple[Any, ...]:
    """What changes a rollout by being absent."""
    spec = manifest["spec"]
    return (bool(spec.get("canary")), spec["predictor"].get(knative.PERCENT))


def _missing(wanted: Any, found: Any, path: str) -> str:
    """Returns the path of the first thing that is not as wanted, or ''; more may be there."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            if value not in (None, {}, []) and (
                inner := _missing(value, found.get(key), f"{path}.{key}")
            ):
                return inner
        return ""
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return next(filter(None, (_missing(a, b, f"{path}[{i}]") for i, (a, b) in pairs)), "")
    return "" if wanted == found else path


def _is_same(base: Object, found: Object) -> bool:
    """Whether the spec and our own annotations are as they were; a new status is no change."""
    return (
        base["metadata"]["uid"] == found["metadata"]["uid"]
        and base["metadata"]["generation"] == found["metadata"]["generation"]
        and _ours(base) == _ours(found)
    )


def _ours(stored: Object) -> dict[str, str]:
    annotations = stored["metadata"].get("annotations") or {}
    return {key: value for key, value in annotations.items() if key.startswith(OURS)}
