# SPDX-License-Identifier: Apache-2.0
"""What a step would change: the manifest, and a diff that a person reads."""

import difflib
import json
from typing import Any

import yaml

from kfloop.components.contracts.deployment_record import RECORD_ANNOTATION
from kfloop.components.deployment.backend import Backend
from kfloop.components.deployment.manifest import Manifest

# What the server keeps, which no step sets.
SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


def preview(backend: Backend, before: Manifest | None, after: Manifest | None) -> str:
    """Returns the manifest that would be written, and how it differs from the one that is there.

    The backend is asked what it would store, so a manifest that it refuses is refused here too.
    Nothing is written.

    Args:
        backend: Where the service lives.
        before: The service as it is, or None.
        after: The service as it would be; None when it would be removed.

    Raises:
        InputError: If the backend refuses the manifest.
    """
    stored = as_yaml(backend.dry_run(after)) if after is not None else ""
    change = diff(as_yaml(before) if before is not None else "", stored)
    manifest = f"# the manifest\n{stored}\n" if stored else "# the service would be removed\n"
    return f"{manifest}# what would change (nothing was written)\n{change or '# nothing'}"


def diff(before: str, after: str) -> str:
    """Returns the unified diff of two texts; empty when they are the same."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "now", "then", lineterm="", n=3
    )
    return "\n".join(lines)


def as_yaml(manifest: Manifest) -> str:
    """Returns a manifest as YAML: what the server keeps left out, the record unfolded."""
    metadata = {k: v for k, v in manifest["metadata"].items() if k not in SERVERS}
    annotations: dict[str, Any] = dict(metadata.get("annotations") or {})
    if RECORD_ANNOTATION in annotations:
        # As one line of JSON every change of it would be one line of difference.
        annotations[RECORD_ANNOTATION] = json.loads(annotations[RECORD_ANNOTATION])
    shown = {key: value for key, value in manifest.items() if key != "status"}
    shown["metadata"] = metadata | ({"annotations": annotations} if annotations else {})
    return yaml.safe_dump(shown, sort_keys=True, allow_unicode=True, width=100)
