# SPDX-License-Identifier: Apache-2.0
"""How to train. No TensorFlow here: tuning reads it before any is needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kfloop.components.contracts.errors import InputError


@dataclass
class TrainSettings:
    """How to train.

    Attributes:
        name: Model name.
        task: `binary`, `multiclass` or `regression`.
        feature_service: Feast feature service that gave the features, or empty.
        epochs: Largest number of passes over the data; early stopping may end before.
        batch_size: Rows per training step, on all devices together.
        learning_rate: Adam's step size.
        seed: Of weights, shuffle, validation split and reference sample. The same seed, data and
            settings give bit-identical weights on a CPU.
        validation_fraction: Share of the rows held out to say when to stop: the latest ones when
            there is a timestamp, else drawn at random.
        hyperparameters: See `Hyperparameters`; with a module of your own, whatever it reads.
        module_uri: Your own network, see `network`; empty for the built-in one.
        reference_rows: Rows of the reference sample.
        input: `memory`, `stream` (rows are encoded once to local disk and shuffled from there), or
            `auto`: stream when the data would take more than half of the available memory.
        checkpoint_uri: Directory, outside of what dies with this process. The state is written
            there after every epoch, gone on from when it is of the same training (see
            `checkpoint.identity`), and removed at the end; empty for none. It is locked: one
            training at a time may use it.
        require_gpu: Fail when there is no GPU.
        mixed_precision: `bfloat16` computes in it and keeps weights and outputs in float32;
            empty computes in float32.
        onnx: Whether the package holds the graph as ONNX too. One that cannot be converted is left
            out, and the log says why.
    """

    name: str
    task: str
    feature_service: str = ""
    epochs: int = 20
    batch_size: int = 1024
    learning_rate: float = 0.001
    seed: int = 7
    validation_fraction: float = 0.1
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    module_uri: str = ""
    reference_rows: int = 5000
    input: str = "auto"
    checkpoint_uri: str = ""
    require_gpu: bool = False
    mixed_precision: str = ""
    onnx: bool = False


def check_settings(settings: TrainSettings) -> None:
    """Raises InputError when a setting cannot be used, whatever the data."""
    if not settings.name:
        raise InputError("The model has no name; set `name`.")
    if settings.mixed_precision not in ("", "bfloat16"):
        raise InputError(
            f"mixed_precision is {settings.mixed_precision!r}; it must be 'bfloat16' or empty."
        )
    for name in ("epochs", "batch_size", "reference_rows"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}; it must be at least 1.")
    if not settings.learning_rate > 0:
        raise InputError(f"learning_rate is {settings.learning_rate}; it must be above 0.")
    if not 0 < settings.validation_fraction < 1:
        raise InputError(
            f"validation_fraction is {settings.validation_fraction}; it must be between 0 and 1."
        )
