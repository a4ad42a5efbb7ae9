# SPDX-License-Identifier: Apache-2.0
"""The training loop: compiles a network, feeds it batches, stops early, keeps the best weights."""

from dataclasses import dataclass, replace

import keras
import tensorflow as tf

from kfloop.components.training.allocator import keep_freed_memory
from kfloop.components.training.batches import (
    AnyExamples,
    batch_rows,
    ordered_batches,
    shuffled_batches,
    weighted,
)
from kfloop.components.training.checkpoint import Checkpoint
from kfloop.components.training.devices import Devices, require_same_start
from kfloop.components.training.progress import OnEpoch, Progress
from kfloop.components.training.schedule import learning_rate

# Here, since TensorFlow must not have run an operation yet.
keep_freed_memory()


@dataclass
class FitSettings:
    """How to train.

    Attributes:
        task: One of the contract's `TASKS`.
        epochs: Largest number of passes over the data.
        batch_size: Rows per step, on all devices together.
        learning_rate: Adam's largest step size.
        patience: Epochs without a better validation loss before training stops.
        seed: Of the shuffle.
        label_scale: Regression: standard deviation of the label, to print errors in its unit.
        class_weights: Weight in the loss by class position; empty for all alike.
        schedule: How the learning rate falls: "", "cosine" or "exponential".
        warmup_epochs: Epochs in which it rises.
        clip_norm: Largest norm of the gradients; 0 for no limit.
        finish_epochs: Passes over the validation rows at the end.
    """

    task: str
    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    seed: int
    label_scale: float = 1.0
    class_weights: tuple[float, ...] = ()
    schedule: str = ""
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    finish_epochs: int = 0


@dataclass
class FitResult:
    """What came out: one dict of logs per epoch, and the epoch whose weights were kept (from 0)."""

    epochs: list[dict[str, float]]
    best: int


METRICS = {"binary": "auc", "multiclass": "accuracy", "regression": "rmse"}


def fit(
    network: keras.Model,
    training: AnyExamples,
    validation: AnyExamples,
    settings: FitSettings,
    devices: Devices,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
) -> FitResult:
    """Trains `network` in place and leaves it with the weights of the best epoch.

    Args:
        network: Returns logits; built in the scope of `devices`, and compiled here unless it comes
            compiled.
        training: Rows to learn from.
        validation: Rows that say when to stop.
        settings: How to train.
        devices: What to train on.
        checkpoint: Written after every epoch and gone on from; None for neither.
        on_epoch: Told about every epoch (counted from 0) and its logs; what it raises ends the
            training.

    Returns:
        Per epoch `loss`, `val_loss`, the task's metric of `METRICS` for both, `seconds`, and
        `examples_per_second` of its training part.

    Raises:
        InputError: If the validation loss is not finite, or a batch has fewer rows than there are
            devices.
    """
    size = batch_rows(len(training), settings.batch_size, devices)
    # Outside of the scope, and where tf.data is: it belongs to the input.
    with tf.device("CPU:0"):
        epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
    progress = Progress(
        epoch,
        len(training),
        len(training) // size,
        settings.epochs,
        settings.patience,
        settings.label_scale,
        checkpoint,
        on_epoch,
    )
    with devices.scope():
        own = not network.compiled
        if own:
            _compile(network, settings, len(training) // size, devices.steps_per_execution)
        progress.resume(network)
    require_same_start(devices, len(progress.epochs))
    weights = settings.class_weights
    if not progress.finished:
        batches = shuffled_batches(training, size, settings.seed, epoch, devices)
        network.fit(
            weighted(batches, weights),
            validation_data=weighted(ordered_batches(validation, devices), weights),
            initial_epoch=len(progress.epochs),
            epochs=settings.epochs,
            callbacks=[progress],
            verbose=0,
            shuffle=False,  # the dataset shuffles itself
        )
    network.set_weights(progress.best_weights)
    # A network that came compiled has an optimizer that is not ours to replace.
    if own and settings.finish_epochs:
        _finish(network, validation, settings, devices)
    return FitResult(progress.epochs, progress.best)


def _finish(
    network: keras.Model, held: AnyExamples, settings: FitSettings, devices: Devices
) -> None:
    """Learns from the held-out rows too, which are the latest, once they have said when to stop."""
    if len(held) < max(settings.batch_size, devices.count):
        return
    size = batch_rows(len(held), settings.batch_size, devices)
    slower = replace(
        settings, learning_rate=settings.learning_rate / 2, schedule="", warmup_epochs=0.0
    )
    steps = len(held) // size
    epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
    with devices.scope():
        _compile(network, slower, steps, min(steps, devices.steps_per_execution))
    batches = shuffled_batches(held, size, settings.seed, epoch, devices)
    for number in range(settings.finish_epochs):
        epoch.assign(number)
        network.fit(weighted(batches, settings.class_weights), verbose=0, shuffle=False)
    print(f"Finished on the {len(held):,} validation rows, {settings.finish_epochs} times.")


def _compile(
    network: keras.Model, settings: FitSettings, steps: int, steps_per_execution: int
) -> None:
    rate = learning_rate(
        settings.learning_rate, settings.schedule, settings.warmup_epochs, settings.epochs, steps
    )
    network.compile(
        optimizer=keras.optimizers.Adam(rate, global_clipnorm=settings.clip_norm or None),
        loss=_loss(settings.task),
        metrics=[_metric(settings.task)],
        steps_per_execution=steps_per_execution,
    )
    # A step that makes variables would be traced twice: seconds, whatever the data.
    network.optimizer.build(network.trainable_variables)


def _loss(task: str) -> keras.losses.Loss:
    if task == "binary":
        return keras.losses.BinaryCrossentropy(from_logits=True)
    if task == "multiclass":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def _metric(task: str) -> keras.metrics.Metric:
    if task == "binary":
        return keras.metrics.AUC(from_logits=True, name=METRICS[task])
    if task == "multiclass":
        return keras.metrics.SparseCategoricalAccuracy(name=METRICS[task])
    return keras.metrics.RootMeanSquaredError(name=METRICS[task])
