# SPDX-License-Identifier: Apache-2.0
"""Going back: the candidate is taken away, or the version before the live one is live again.

The deployment record says to what, so nobody has to guess. What was rolled back stays so, however
often it is run.
"""

from dataclasses import replace
from pathlib import Path

from kfloop.components.contracts.deployment_record import DeploymentRecord, write_record
from kfloop.components.deployment import acts
from kfloop.components.deployment.backend import Backend, connect, require_service
from kfloop.components.deployment.dry_run import preview
from kfloop.components.deployment.manifest import (
    DEPLOYED,
    RESTORING,
    ROLLED_BACK,
    Manifest,
    record_of,
    restored,
    without_canary,
)
from kfloop.components.deployment.rollout import uris
from kfloop.components.deployment.wait import TIMEOUT_SECONDS, wait_for_version

# What a roll back does, by name.
CANDIDATE_REMOVED = "candidate_removed"
RESTORED = "restored"
SERVICE_REMOVED = "service_removed"
ALREADY_ROLLED_BACK = "already_rolled_back"
NOT_SERVING = "not_serving"
DRY_RUN = "dry_run"


def roll_back_model(
    service: str,
    record: str | Path,
    reason: str = "",
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    *,
    dry_run: bool = False,
) -> tuple[str, str]:
    """Takes the candidate away or, when there is none, restores the version before the live one.

    A first version, named by `model_uri`, has nothing before it: its service is removed. Running
    this twice does not roll back twice: what was rolled back stays so.

    Args:
        service: Name of the service.
        record: Where the deployment record goes, a JSON file.
        reason: Why; it is kept in the deployment record.
        model_uri: The version to get away from; nothing happens when it is neither the candidate
            nor live. Empty: the newest one.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until the good version alone answers.
        dry_run: Print what would change, and change nothing.

    Returns:
        URI of the model that is live now (empty when the service was removed), and what was done:
        `candidate_removed`, `restored`, `service_removed`, `already_rolled_back`, `not_serving`
        (the version to get away from), or `dry_run`.

    Raises:
        InputError: If there is nothing to roll back to, or it does not come up.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    before = record_of(manifest)
    unwanted = backend.storage_uri(model_uri) if model_uri else ""
    what = _what(before, unwanted)
    if dry_run:
        return _previewed(backend, manifest, what, reason, record)
    if what == SERVICE_REMOVED:
        backend.delete(service)
        removed = replace(
            before, state=ROLLED_BACK, reason=reason, changed_at=acts.now(), undone=unwanted
        )
        write_record(removed, record)
        acts.say(service, f"removed, nothing served before {unwanted}")
        return "", what
    if what == CANDIDATE_REMOVED:
        acts.take_away(backend, manifest, reason, timeout_seconds)
    elif what == RESTORED:
        acts.restore(backend, manifest, reason, timeout_seconds)
    else:
        done = f"{unwanted} does not serve" if what == NOT_SERVING else _already(before)
        acts.say(service, f"{done}; nothing to do")
        # A roll back that was killed is completed here.
        generation = backend.apply(manifest)
        alone = before.candidate is None
        wait_for_version(backend, service, generation, before.stable, timeout_seconds, alone)
    after = record_of(require_service(backend, service))
    write_record(after, record)
    return after.stable.storage_uri, what


def _what(before: DeploymentRecord, unwanted: str) -> str:
    """Says what a roll back does; `unwanted` is the URI to get away from, or empty."""
    if before.state == RESTORING:
        return RESTORED
    if unwanted in uris(before.stable) and before.state == DEPLOYED and not before.previous:
        return SERVICE_REMOVED
    if unwanted and unwanted not in uris(before.candidate, before.stable):
        return NOT_SERVING
    if before.candidate is not None and unwanted != before.stable.storage_uri:
        return CANDIDATE_REMOVED
    if not unwanted and before.state == ROLLED_BACK:
        return ALREADY_ROLLED_BACK
    return RESTORED


def _already(before: DeploymentRecord) -> str:
    undone = f"{before.undone} was rolled back already" if before.undone else "rolled back already"
    return (
        f"{undone} ({before.reason or 'no reason given'}) and {before.stable.storage_uri} is "
        "live; name a model_uri to go back further"
    )


def _previewed(
    backend: Backend, manifest: Manifest, what: str, reason: str, record: str | Path
) -> tuple[str, str]:
    service, after = manifest["metadata"]["name"], manifest
    if what == CANDIDATE_REMOVED:
        after = without_canary(manifest, reason, acts.now())
    elif what == RESTORED:
        after = restored(manifest, reason, acts.now())
    acts.say(service, f"a roll back would be: {what}")
    print(preview(backend, manifest, None if what == SERVICE_REMOVED else after), flush=True)
    write_record(record_of(after), record)
    return record_of(manifest).stable.storage_uri, DRY_RUN
