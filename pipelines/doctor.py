# SPDX-License-Identifier: Apache-2.0
"""What a run on a cluster needs, checked one by one: each is fine, or told with its remedy."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.kubernetes_api import DeniedError, connect_cluster
from kfloop.components.images import VERSION
from kfloop.pipelines.doctor_cluster import CLUSTER_CHECKS, Case
from kfloop.pipelines.doctor_loop import LOOP_CHECKS
from kfloop.pipelines.findings import Finding, fix, note, ok
from kfloop.pipelines.kfp_client import api_errors, connect, greet
from kfloop.pipelines.loop import load_loop

# Older servers do not know how kfloop writes CPU and memory, and ignore them.
OLDEST_SERVER = (2, 5)


def examine(
    host: str = "",
    namespace: str = "",
    loop_file: str | Path | None = None,
    service_account: str = "",
) -> Iterator[Finding]:
    """Yields a finding for everything that a run on a cluster needs, as it is checked.

    Args:
        host: URL of the KFP API; see `kfp_client.connect`.
        namespace: Namespace of the runs and services; empty takes the current one.
        loop_file: Adds what this loop needs: storage, secrets, GPUs.
        service_account: Account of the pipelines' pods; empty takes KFP's own.
    """
    yield ok("kfloop", VERSION)
    yield from _kfp(host, namespace)
    try:
        cluster = connect_cluster(namespace)
        version = cluster.read("/version") or {}
    except InputError as error:
        yield fix("Kubernetes", f"{error} Without it, nothing below can be checked.")
        return
    yield ok("Kubernetes", f"{version.get('gitVersion', '?')} at {cluster.server}")
    loop = None
    if loop_file:
        try:
            loop, _ = load_loop(loop_file)
            yield ok("loop file", str(loop_file))
        except InputError as error:
            yield fix("loop file", str(error))
    case = Case(cluster, loop, service_account)
    for name, check in (CLUSTER_CHECKS | LOOP_CHECKS if loop else CLUSTER_CHECKS).items():
        yield from _guarded(name, check, case)


def _guarded(
    name: str, check: Callable[[Case], Iterator[Finding]], case: Case
) -> Iterator[Finding]:
    """Turns what an account may not look at into a note: it may be fine all the same."""
    try:
        yield from check(case)
    except DeniedError as error:
        yield note(name, f"this account may not look: {error}")
    except InputError as error:
        yield fix(name, str(error))


def _kfp(host: str, namespace: str) -> Iterator[Finding]:
    import kfp

    yield ok("kfp client", kfp.__version__)
    endpoint = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    try:
        facts = greet(endpoint) if endpoint else {}
        client = connect(host)
        with api_errors("The runs cannot be listed"):
            client.list_runs(page_size=1, namespace=namespace or None)
    except InputError as error:
        yield fix("KFP API", str(error))
        return
    tag = str(facts.get("tag_name") or "unknown")
    yield ok("KFP API", f"{tag} at {endpoint or 'this cluster'}, and this account may list runs")
    parts = tag.lstrip("v").split(".")
    if not all(part.isdigit() for part in parts[:2]) or len(parts) < 2:
        yield note("KFP version", f"the server does not tell it ({tag})")
    elif (int(parts[0]), int(parts[1])) < OLDEST_SERVER:
        wanted = ".".join(map(str, OLDEST_SERVER))
        yield fix(
            "KFP version",
            f"{tag} ignores the CPU and memory of tasks; upgrade to {wanted} or later",
        )
    if facts.get("multi_user") and not namespace:
        yield fix("KFP namespace", "this Kubeflow is for many users; name yours with --namespace")
