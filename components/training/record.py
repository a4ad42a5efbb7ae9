# SPDX-License-Identifier: Apache-2.0
"""What is recorded about a training: in `model.json` and in the artifact's metadata."""

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kfloop.components.contracts.dataset import fingerprint
from kfloop.components.contracts.files import local_path
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.training.checkpoint import sha256
from kfloop.components.training.columns import Roles
from kfloop.components.training.devices import Devices
from kfloop.components.training.fit import FitResult
from kfloop.components.training.hyperparameters import BUILT_IN_NETWORK, Hyperparameters
from kfloop.components.training.prepare import Prepared
from kfloop.components.training.settings import TrainSettings


def describe_training(
    dataset: str | Path,
    schema: str | Path,
    roles: Roles,
    settings: TrainSettings,
    own: Hyperparameters,
    data: Prepared,
    devices: Devices,
    result: FitResult,
) -> ModelPackage:
    """Returns the content of `model.json`."""
    return ModelPackage(
        name=settings.name,
        task=settings.task,
        label=roles.label,
        features=data.features,
        classes=data.label.classes,
        entities=roles.entities,
        timestamp=roles.timestamp,
        feature_service=settings.feature_service,
        schema_fingerprint=sha256(schema),
        dataset_fingerprint=fingerprint(dataset),
        training_window=data.window,
        trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=os.environ.get("KFLOOP_GIT_COMMIT", ""),
        image=os.environ.get("KFLOOP_IMAGE", ""),
        metrics={
            name.replace("val_", "validation_"): value
            for name, value in result.epochs[result.best].items()
            if name.startswith("val_")
        },
        hyperparameters=_recorded(settings, own, result),
        framework={
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "trained_on": devices.description,
            "devices": str(devices.count),
        },
    )


def model_metadata(package: ModelPackage) -> dict[str, Any]:
    """Returns what the component writes into the model artifact's metadata."""
    return {
        "framework": "tensorflow",
        "name": package.name,
        "task": package.task,
        "label": package.label,
        "features": package.feature_names,
        "dataset_fingerprint": package.dataset_fingerprint,
        "training_window": package.training_window,
        "backend": package.framework["backend"],
        "trained_on": package.framework["trained_on"],
        "devices": int(package.framework["devices"]),
    }


def _recorded(settings: TrainSettings, own: Hyperparameters, result: FitResult) -> dict[str, Any]:
    """Returns everything that shaped the weights, as JSON values."""
    recorded = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(own).items()
        if not (settings.module_uri and name in BUILT_IN_NETWORK)
    }
    for name in ("epochs", "batch_size", "learning_rate", "seed", "validation_fraction"):
        recorded[name] = getattr(settings, name)
    recorded["mixed_precision"] = settings.mixed_precision
    recorded["best_epoch"] = result.best + 1
    if settings.module_uri:
        recorded |= dict(settings.hyperparameters)
        recorded["module_uri"] = settings.module_uri
        recorded["module_sha256"] = sha256(local_path(settings.module_uri, "module_uri"))
    return recorded
