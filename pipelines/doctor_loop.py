# SPDX-License-Identifier: Apache-2.0
"""What one loop needs of a cluster: storage, an inference log, secrets, GPUs."""

import base64
from collections.abc import Callable, Iterator
from decimal import Decimal
from urllib.parse import urlsplit

from kfloop.components.contracts.environment import REFERENCE
from kfloop.components.deployment.kubernetes_api import Kind
from kfloop.components.deployment.kubernetes_mode import require_storage
from kfloop.pipelines.doctor_cluster import SERVICE_ACCOUNTS, Case
from kfloop.pipelines.findings import Finding, fix, note, ok
from kfloop.pipelines.loop import Loop

CLAIMS = Kind("", "v1", "persistentvolumeclaims")
SECRETS = Kind("", "v1", "secrets")
WORKLOAD_IDENTITY = "iam.gke.io/gcp-service-account"
WEB_IDENTITY = "eks.amazonaws.com/role-arn"
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def check_storage(case: Case) -> Iterator[Finding]:
    """Models lie where pods can read and write."""
    loop = _loop(case)
    repository = loop.serving.model_repository
    if not repository:
        yield fix("storage", "serving.model_repository is not set; give gs://, s3:// or pvc://")
        return
    require_storage(repository)
    place = urlsplit(repository)
    claims = {name: volume.path for name, volume in loop.volumes.items()}
    if place.scheme == "pvc":
        claims.setdefault(place.netloc, "")
    else:
        yield ok("storage", repository)
    for name, path in claims.items():
        yield _claim(case, name, path or repository)
    if place.scheme == "pvc" and place.netloc not in loop.volumes:
        yield fix("storage", f"the tasks need {place.netloc} too; add it to `volumes`")
    if place.scheme == "gs":
        yield from _google(case, loop)


def _claim(case: Case, name: str, place: str) -> Finding:
    claim = case.cluster.get(CLAIMS, name)
    if claim is None:
        return fix("storage", f"there is no PersistentVolumeClaim {name} for {place}; create it")
    state = (claim.get("status") or {}).get("phase", "Pending")
    if state == "Lost":
        return fix("storage", f"the volume of the claim {name} is lost")
    return ok("storage", f"{place} on the claim {name} ({state})")


def _google(case: Case, loop: Loop) -> Iterator[Finding]:
    if loop.serving.storage_secret:
        return  # it is among the secrets
    accounts = {case.account(), loop.serving.service_account or "default"} - {""}
    for account in sorted(accounts):
        found = case.cluster.get(SERVICE_ACCOUNTS, account)
        annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
        if found is None:
            yield fix("storage access", f"there is no service account {account}; create it")
        elif WORKLOAD_IDENTITY in annotations:
            yield ok("storage access", f"{account} is {annotations[WORKLOAD_IDENTITY]}")
        else:
            yield note(
                "storage access",
                f"{account} has no annotation {WORKLOAD_IDENTITY}; unless the nodes or a direct "
                "grant give it the bucket, annotate it (docs/cluster.md)",
            )


def check_inference_log(case: Case) -> Iterator[Finding]:
    """Requests are logged by something that KServe can send them to."""
    place = _loop(case).serving.inference_log
    if place.startswith(("http://", "https://")):
        yield ok("inference log", place)
    elif place:
        yield note(
            "inference log",
            f"KServe writes nothing to {place}: unless the runtime's own --payload_logger does, "
            "give serving.inference_log the address of the payload logger, and "
            "monitoring.inference_log the directory that it writes",
        )
    else:
        yield note(
            "inference log",
            "serving.inference_log names no payload logger, so there is nothing to monitor",
        )


def check_sources(case: Case) -> Iterator[Finding]:
    """The tasks have credentials for what they read and write at s3://."""
    loop = _loop(case)
    places = [source.uri for source in loop.sources.values()] + [loop.batch_scoring.export_to]
    if not any(place.startswith("s3://") for place in places):
        return
    given = [name for name in AWS_KEYS if name in loop.secrets]
    if given:
        for name in sorted(set(AWS_KEYS) - set(given) - set(loop.environment)):
            yield fix("s3:// access", f"`secrets` has {given[0]} but not {name}; give it, too")
        return  # they are among the secrets
    account = case.account()
    found = case.cluster.get(SERVICE_ACCOUNTS, account) if account else None
    annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
    if WEB_IDENTITY in annotations:
        yield ok("s3:// access", f"{account} is {annotations[WEB_IDENTITY]}")
    else:
        yield note(
            "s3:// access",
            f"the loop has no {' and '.join(AWS_KEYS)} in `secrets`, and {account or 'no account'} "
            f"no annotation {WEB_IDENTITY}; unless the nodes or a pod identity give the tasks the "
            "bucket, give one of them (docs/cluster.md)",
        )


def check_secrets(case: Case) -> Iterator[Finding]:
    """Every Secret that the loop names is there, and every variable comes from one."""
    loop = _loop(case)
    wanted = {(one.secret, one.key): name for name, one in loop.secrets.items()}
    if loop.serving.storage_secret:
        wanted[loop.serving.storage_secret, ""] = "serving.storage_secret"
    for (secret, key), name in wanted.items():
        found = case.cluster.get(SECRETS, secret)
        flag = f" --from-literal={key}=…" if key else ""
        create = f"kubectl -n {case.cluster.namespace} create secret generic {secret}{flag}"
        if found is None:
            yield fix("secret", f"{name}: there is no Secret {secret}: {create}")
        elif key and not base64.b64decode((found.get("data") or {}).get(key) or ""):
            yield fix("secret", f"{name}: the Secret {secret} has no key {key}, or it is empty")
        else:
            yield ok("secret", f"{name} from {secret}")
    unset = sorted(_variables(loop) - set(loop.secrets) - set(loop.environment))
    for name in unset:
        yield fix(
            "secret",
            f"${{{name}}} is used, but neither `secrets` nor `environment` gives it to the tasks",
        )


def _variables(loop: Loop) -> set[str]:
    texts = [source.uri for source in loop.sources.values()] + [loop.monitoring.notify.webhook]
    return {name for text in texts for name in REFERENCE.findall(text)}


def check_gpus(case: Case) -> Iterator[Finding]:
    """A node has the GPUs that one task asks for."""
    loop = _loop(case)
    accelerator = loop.training.accelerator
    wanted = {accelerator.type: accelerator.count}
    for given in loop.resources.values():
        wanted[given.gpu_type] = max(wanted.get(given.gpu_type, 0), given.gpu)
    for name, count in wanted.items():
        if not count:
            continue
        nodes = (case.cluster.read("/api/v1/nodes") or {}).get("items", [])
        most = max((_allocatable(node, name) for node in nodes), default=0)
        if most >= count:
            yield ok("GPU nodes", f"a node has {most} of {name}")
        else:
            yield fix(
                "GPU nodes",
                f"a task asks for {count} of {name} and no node has more than {most}; add a node "
                "pool, or install the device plug-in that announces its GPUs",
            )


def _allocatable(node: dict[str, dict[str, dict[str, str]]], name: str) -> int:
    return int(Decimal(node.get("status", {}).get("allocatable", {}).get(name, "0")))


def _loop(case: Case) -> Loop:
    assert case.loop is not None, "these checks are for a loop"
    return case.loop


LOOP_CHECKS: dict[str, Callable[[Case], Iterator[Finding]]] = {
    "storage": check_storage,
    "inference log": check_inference_log,
    "s3:// access": check_sources,
    "secret": check_secrets,
    "GPU nodes": check_gpus,
}
