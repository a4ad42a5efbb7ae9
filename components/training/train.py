# SPDX-License-Identifier: Apache-2.0
"""Trains a model on a dataset and writes its package."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before TensorFlow is imported: its notices bury the progress lines, and oneDNN lets results depend
# on how rows are batched, so that training, evaluation and serving would differ in the last digits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras

from kfloop.components.contracts.files import new_directory, write_text
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.training.checkpoint import (
    Checkpoint,
    identity,
    locked_directory,
    remove_checkpoint,
)
from kfloop.components.training.columns import Roles
from kfloop.components.training.curves import curves_page
from kfloop.components.training.devices import Devices, require_gpu, use_devices
from kfloop.components.training.fit import FitResult, FitSettings, fit
from kfloop.components.training.hyperparameters import Hyperparameters, parse_hyperparameters
from kfloop.components.training.label import class_weights
from kfloop.components.training.network import NetworkSchema, build_from_module, build_network
from kfloop.components.training.package import add_onnx, write_package
from kfloop.components.training.prepare import Prepared, prepare
from kfloop.components.training.progress import OnEpoch
from kfloop.components.training.record import describe_training, model_metadata
from kfloop.components.training.settings import TrainSettings, check_settings
from kfloop.components.training.stored import StoredExamples

__all__ = ["Learned", "Roles", "TrainSettings", "learn", "model_metadata", "train"]


@dataclass
class Learned:
    """A trained network, with what it takes to export and describe it."""

    data: Prepared
    network: keras.Model
    own: Hyperparameters
    devices: Devices
    result: FitResult


def train(
    dataset: str | Path,
    schema: str | Path,
    model: str | Path,
    curves: str | Path,
    roles: Roles,
    settings: TrainSettings,
) -> ModelPackage:
    """Trains a model and writes its package and its training curves.

    Of several processes that train together (see `distributed`) one writes.

    Args:
        dataset: The training dataset.
        schema: Data schema (TFDV text proto): deprecated features and those without the
            environment SERVING stay out, categorical integers and string domains are respected.
        model: Directory of the model package to write.
        curves: HTML file of the training curves to write.
        roles: What the columns are for.
        settings: How to train.

    Returns:
        The content of the package's `model.json`.

    Raises:
        InputError: If a setting, a column or the label cannot be used.
    """
    devices = _start(settings)
    with locked_directory(settings.checkpoint_uri, devices.leads) as directory:
        learned = _learn(dataset, schema, roles, settings, devices, directory)
        package = describe_training(
            dataset, schema, roles, settings, learned.own, learned.data, devices, learned.result
        )
        if devices.leads:
            with new_directory(model) as beside:
                write_package(beside, package, learned.data, learned.network)
                if settings.onnx:
                    add_onnx(beside)
            write_text(curves, curves_page(package, learned.result))
            if directory:
                remove_checkpoint(directory)
    return package


def learn(
    dataset: str | Path,
    schema: str | Path,
    roles: Roles,
    settings: TrainSettings,
    on_epoch: OnEpoch | None = None,
) -> Learned:
    """Trains a network as `train` does, and writes nothing but the checkpoint.

    Args:
        dataset: The training dataset.
        schema: Data schema (TFDV text proto).
        roles: What the columns are for.
        settings: How to train.
        on_epoch: See `fit`.

    Raises:
        InputError: If a setting, a column or the label cannot be used.
    """
    devices = _start(settings)
    with locked_directory(settings.checkpoint_uri, devices.leads) as directory:
        return _learn(dataset, schema, roles, settings, devices, directory, on_epoch)


def _start(settings: TrainSettings) -> Devices:
    """Checks the settings, forgets earlier trainings of this process, and takes the devices."""
    check_settings(settings)
    if settings.require_gpu:
        require_gpu()
    keras.utils.clear_session()
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if settings.mixed_precision else "float32")
    return use_devices()


def _learn(
    dataset: str | Path,
    schema: str | Path,
    roles: Roles,
    settings: TrainSettings,
    devices: Devices,
    directory: Path | None,
    on_epoch: OnEpoch | None = None,
) -> Learned:
    own = parse_hyperparameters(settings.hyperparameters, open_ended=bool(settings.module_uri))
    with tempfile.TemporaryDirectory(prefix="kfloop-") as scratch:
        data = prepare(dataset, schema, roles, settings, own, Path(scratch))
        with devices.scope():
            network = _network(data, settings, own)
        _announce(data, network, devices)
        checkpoint = None
        if directory:
            streamed = isinstance(data.training, StoredExamples)
            of = identity(dataset, schema, roles, settings, streamed, devices.count)
            checkpoint = Checkpoint(directory, of, devices.leads)
        result = fit(
            network,
            data.training,
            data.validation,
            FitSettings(
                settings.task,
                settings.epochs,
                settings.batch_size,
                settings.learning_rate,
                own.patience,
                settings.seed,
                data.label.scale,
                tuple(class_weights(data.label, own.class_weights)),
                own.schedule,
                own.warmup_epochs,
                own.clip_norm,
                own.finish_epochs,
            ),
            devices,
            checkpoint,
            on_epoch,
        )
    seconds = sum(logs["seconds"] for logs in result.epochs)
    print(f"Kept the weights of epoch {result.best + 1} after {seconds:.0f} s.", flush=True)
    return Learned(data, network, own, devices, result)


def _network(data: Prepared, settings: TrainSettings, own: Hyperparameters) -> keras.Model:
    schema = NetworkSchema(
        settings.task,
        max(1, len(data.label.classes)),
        tuple(data.encoder.numeric_names),
        data.encoder.vocabulary_sizes,
        tuple(data.encoder.numeric_edges),
    )
    if settings.module_uri:
        return build_from_module(settings.module_uri, schema, settings.hyperparameters)
    return build_network(schema, own)


def _announce(data: Prepared, network: keras.Model, devices: Devices) -> None:
    categories = ", ".join(
        f"{name} ({size})" for name, size in data.encoder.vocabulary_sizes.items()
    )
    print(
        f"{len(data.training):,} rows to learn from, {len(data.validation):,} to validate on.\n"
        f"{len(data.features)} features; categories with their vocabularies: "
        f"{categories or 'none'}.\n"
        f"{network.count_params():,} weights; backend {keras.backend.backend()}; trained on "
        f"{devices.description}.",
        flush=True,
    )
