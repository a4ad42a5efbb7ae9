# SPDX-License-Identifier: Apache-2.0
"""Registering a published version with its metrics and its lineage."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kfloop.components.contracts.files import local_path, read_json
from kfloop.components.contracts.model_package import EVALUATION, ModelPackage
from kfloop.components.contracts.package_storage import package_directory, read_package
from kfloop.components.deployment.registry import OFF, URI_TAG, Version, open_registry


def register_model(
    model_uri: str,
    evaluation: str | Path,
    registry_uri: str = "",
    run_id: str = "",
) -> str:
    """Registers a published version, once; it becomes the champion by `update_champion`.

    MLflow counts versions itself. When every published version is registered, and none of them
    twice, its numbers are those of the packages; the tag `kfloop.version` is the published one.

    Args:
        model_uri: What publish_model returned.
        evaluation: The evaluation's JSON file; its metrics are logged with their intervals.
        registry_uri: See `open_registry`.
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
    directory = package_directory(model_uri)
    uri = published_uri(model_uri)
    document = read_json(evaluation)
    version = Version(
        package.name,
        package.version,
        uri,
        lineage(package, uri, run_id),
        dict(flatten_metrics(document)),
        package.hyperparameters,
        _datasets(package, document),
        {"model.json": directory / "model.json", EVALUATION: Path(evaluation)},
    )
    registered = registry.register(version)
    print(f"{uri} is {registered} in the registry.", flush=True)
    return registered


def published_uri(model_uri: str) -> str:
    """Returns a package's URI as it is registered: without file://, and as it is in the cloud."""
    if urlsplit(model_uri).scheme in ("", "file"):
        return str(local_path(model_uri, "model_uri"))
    return model_uri


def _datasets(package: ModelPackage, evaluation: dict[str, Any]) -> dict[str, str]:
    found = {
        "training": package.dataset_fingerprint,
        "evaluation": str(evaluation.get("dataset_fingerprint") or ""),
    }
    return {use: fingerprint for use, fingerprint in found.items() if fingerprint}


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
        "kfloop.image": package.image,
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
