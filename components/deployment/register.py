"""Registering a published version with its metrics and its lineage."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfloop.components.contracts.files import local_path, read_json
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.deployment.packages import read_package
from kfloop.components.deployment.registry import OFF, URI_TAG, Version, open_registry
from kfloop.components.images import image


def register_model(
    model_uri: str,
    evaluation: str | Path,
    registry_uri: str = "",
    alias: str = "",
    run_id: str = "",
) -> str:
    """Registers a published version; registering it again only moves the alias.

    Args:
        model_uri: What publish_model returned.
        evaluation: The evaluation's JSON file; its metrics are logged with their intervals.
        registry_uri: See `open_registry`.
        alias: Alias that the version gets, for example `champion`; empty for none.
        run_id: Id of the pipeline run, when it is known.

    Returns:
        `<name>/<version>` of the registry, or `none`.

    Raises:
        InputError: If no registry is given, or it cannot be reached.
    """
    registry = open_registry(registry_uri)
    if registry is None:
        print("The registry is off (registry_uri is 'none'): nothing is registered.", flush=True)
        return OFF
    package = read_package(model_uri)
    uri = str(local_path(model_uri, "model_uri"))
    version = Version(
        package.name,
        package.version,
        uri,
        lineage(package, uri, run_id),
        dict(flatten_metrics(read_json(evaluation))),
        package.hyperparameters,
    )
    registered = registry.register(version, alias)
    print(f"{uri} is {registered} in the registry.", flush=True)
    return registered


def lineage(package: ModelPackage, uri: str, run_id: str) -> dict[str, str]:
    """Returns where a version comes from, as tags; what is not known is left out."""
    window = package.training_window
    tags = {
        URI_TAG: uri,
        "kfloop.version": package.version,
        "kfloop.task": package.task,
        "kfloop.label": package.label,
        "kfloop.dataset_fingerprint": package.dataset_fingerprint,
        "kfloop.schema_fingerprint": package.schema_fingerprint,
        "kfloop.feature_service": package.feature_service,
        "kfloop.git_commit": package.git_commit,
        "kfloop.image": image("training"),
        "kfloop.training_since": str(window.get("since") or ""),
        "kfloop.training_until": str(window.get("until") or ""),
        "kfloop.training_rows": str(window.get("rows") or ""),
        "kfloop.pipeline_run": run_id,
    }
    return {key: value for key, value in tags.items() if value}


def flatten_metrics(evaluation: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the evaluation's metrics: `auc`, and `auc.low` and `auc.high` of its interval.

    What is not a finite number (a metric that an empty slice does not have) is left out.
    """
    for name, metric in (evaluation.get("metrics") or {}).items():
        parts = metric if isinstance(metric, dict) else {"value": metric}
        for part, value in parts.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and math.isfinite(value):
                yield (name if part == "value" else f"{name}.{part}"), float(value)
