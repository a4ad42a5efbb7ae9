"""The registry: a published version with its metrics and its lineage, in MLflow."""

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.deployment.packages import local_path, read_package

OFF = "none"
URI_TAG = "kfloop.model_uri"


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
        registry_uri: MLflow tracking URI; `none` registers nothing. Empty takes
            `MLFLOW_TRACKING_URI`, else the laptop's `$KFLOOP_STATE/mlflow.db`.
        alias: Alias that the version gets, for example `champion`; empty for none.
        run_id: Id of the pipeline run, when it is known.

    Returns:
        `<name>/<version>` of the registry, or `none`.

    Raises:
        InputError: If no registry is given, or it cannot be reached.
    """
    if registry_uri == OFF:
        print("The registry is off (registry_uri is 'none'): nothing is registered.", flush=True)
        return OFF
    package = read_package(model_uri)
    uri = str(local_path(model_uri, "model_uri"))
    # Slow to import, and not needed when the registry is off.
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # A first use of a sqlite registry tells every migration of its schema.
    for chatty in ("alembic", "mlflow", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    place = _registry(registry_uri)
    try:
        registered = _register(MlflowClient(place), package, uri, evaluation, alias, run_id)
    except MlflowException as error:
        raise InputError(
            f"{uri} could not be registered in {place}: {str(error).splitlines()[0]}"
        ) from error
    print(f"{uri} is {registered} in the registry.", flush=True)
    return registered


def _registry(registry_uri: str) -> str:
    place = registry_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if place:
        return place
    state = os.environ.get("KFLOOP_STATE", "")
    if not state:
        raise InputError(
            "registry_uri is empty and neither MLFLOW_TRACKING_URI nor KFLOOP_STATE is set; give "
            "an MLflow tracking URI, or 'none' to register nothing."
        )
    Path(state).mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{Path(state).absolute() / 'mlflow.db'}"


def _register(
    client: Any, package: ModelPackage, uri: str, evaluation: str | Path, alias: str, run_id: str
) -> str:
    from mlflow.exceptions import MlflowException

    name = package.name
    tags = lineage(package, uri, run_id)
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
    known = [
        version
        for version in client.search_model_versions(f"name = '{name}'")
        if version.source == uri
    ]
    if known:
        version = min(known, key=lambda found: int(found.version))
    else:
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        run = client.create_run(
            experiment_id, run_name=f"{name} {package.version}", tags=tags
        ).info.run_id
        for metric, value in flatten_metrics(read_json(evaluation)):
            client.log_metric(run, metric, value)
        for parameter, value in package.hyperparameters.items():
            client.log_param(run, parameter, value)
        client.set_terminated(run)
        version = client.create_model_version(name, source=uri, run_id=run, tags=tags)
    if alias:
        client.set_registered_model_alias(name, alias, version.version)
    return f"{name}/{version.version}"


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
