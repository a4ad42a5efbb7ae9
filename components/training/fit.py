"""The training loop: batches from memory or disk, early stopping, one progress line per epoch."""

import math
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.checkpoint import Checkpoint
from kfloop.components.training.encoder import Arrays
from kfloop.components.training.schedule import learning_rate
from kfloop.components.training.stored import StoredExamples

# Training steps per call into TensorFlow: amortises Python between the steps.
_STEPS_PER_EXECUTION = 32
_VALIDATION_BATCH = 8192


@dataclass
class Examples:
    """Encoded rows and what is to be predicted."""

    inputs: Arrays
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


@dataclass
class FitSettings:
    """How to train.

    Attributes:
        task: One of the contract's `TASKS`.
        epochs: Largest number of passes over the data.
        batch_size: Rows per step.
        learning_rate: Adam's largest step size.
        patience: Epochs without a better validation loss before training stops.
        seed: Of the shuffle.
        label_scale: Regression: standard deviation of the label, to print errors in its unit.
        class_weights: Weight in the loss by class position; empty for all alike.
        schedule: How the learning rate falls: "", "cosine" or "exponential".
        warmup_epochs: Epochs in which it rises.
        clip_norm: Largest norm of the gradients; 0 for no limit.
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


@dataclass
class FitResult:
    """What came out: one dict of logs per epoch, and the epoch whose weights were kept (from 0)."""

    epochs: list[dict[str, float]]
    best: int


METRICS = {"binary": "auc", "multiclass": "accuracy", "regression": "rmse"}


def fit(
    network: keras.Model,
    training: Examples | StoredExamples,
    validation: Examples | StoredExamples,
    settings: FitSettings,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Trains `network` in place and leaves it with the weights of the best epoch.

    Args:
        network: Returns logits; compiled here unless it comes compiled.
        training: Rows to learn from.
        validation: Rows that say when to stop.
        settings: How to train.
        checkpoint: Written after every epoch and gone on from; None for neither.

    Returns:
        Per epoch `loss`, `val_loss`, the task's metric of `METRICS` for both, and
        `examples_per_second`.

    Raises:
        InputError: If the validation loss is not finite.
    """
    if not network.compiled:
        _compile(network, settings, steps_per_epoch(len(training), settings.batch_size))
    epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
    progress = _Progress(epoch, len(training), settings, checkpoint)
    progress.resume(network)
    weights = settings.class_weights
    if not progress.finished:
        network.fit(
            weighted(
                shuffled_batches(training, settings.batch_size, settings.seed, epoch), weights
            ),
            validation_data=weighted(batches(validation, _VALIDATION_BATCH), weights),
            initial_epoch=len(progress.epochs),
            epochs=settings.epochs,
            callbacks=[progress],
            verbose=0,
            shuffle=False,  # the dataset shuffles itself
        )
    network.set_weights(progress.best_weights)
    return FitResult(progress.epochs, progress.best)


def shuffled_batches(
    examples: Examples | StoredExamples, batch_size: int, seed: int, epoch: tf.Variable
) -> tf.data.Dataset:
    """Returns batches in a new order per epoch, which depends on `seed` and `epoch` alone.

    The order is one permutation of the row numbers, and a batch is gathered from the arrays by its
    part of it; rows are never shuffled one by one. The last, incomplete batch is left out, other
    rows each epoch, so that every step has one shape and is compiled once. See `stored` for how
    rows on disk are shuffled.
    """
    if isinstance(examples, StoredExamples):
        return examples.shuffled(batch_size, seed, epoch)
    rows = len(examples)
    size = min(batch_size, rows)
    inputs = {name: tf.constant(values) for name, values in examples.inputs.items()}
    label = tf.constant(examples.label)

    def one_epoch(_: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(rows), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        starts = tf.data.Dataset.range(0, rows - size + 1, size)
        return starts.map(lambda start: gather(order[start : start + size]))

    def gather(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        index = tf.ensure_shape(index, [size])
        return {name: tf.gather(values, index) for name, values in inputs.items()}, tf.gather(
            label, index
        )

    steps = steps_per_epoch(rows, batch_size)
    dataset = tf.data.Dataset.range(1).flat_map(one_epoch)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(4)


def batches(examples: Examples | StoredExamples, batch_size: int) -> tf.data.Dataset:
    """Returns batches in order, every row once."""
    if isinstance(examples, StoredExamples):
        return examples.batches(batch_size)
    return tf.data.Dataset.from_tensor_slices((examples.inputs, examples.label)).batch(batch_size)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Returns the number of whole batches, at least one."""
    return rows // min(batch_size, rows)


def weighted(dataset: tf.data.Dataset, class_weights: tuple[float, ...]) -> tf.data.Dataset:
    """Adds each row's weight by its class; without weights, returns the dataset as it is."""
    if not class_weights:
        return dataset
    table = tf.constant(class_weights, tf.float32)
    return dataset.map(
        lambda inputs, label: (inputs, label, tf.gather(table, tf.cast(label, tf.int32)))
    )


def _compile(network: keras.Model, settings: FitSettings, steps: int) -> None:
    rate = learning_rate(
        settings.learning_rate, settings.schedule, settings.warmup_epochs, settings.epochs, steps
    )
    network.compile(
        optimizer=keras.optimizers.Adam(rate, global_clipnorm=settings.clip_norm or None),
        loss=_loss(settings.task),
        metrics=[_metric(settings.task)],
        steps_per_execution=_STEPS_PER_EXECUTION,
    )


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


class _Progress(keras.callbacks.Callback):
    """Keeps the logs and the best weights, prints, moves the shuffle on, and stops early."""

    def __init__(
        self,
        epoch: tf.Variable,
        rows: int,
        settings: FitSettings,
        checkpoint: Checkpoint | None,
    ) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self.best = 0
        self.best_weights: list[np.ndarray] = []
        self._checkpoint = checkpoint
        self._epoch = epoch
        self._rows = rows
        self._settings = settings
        self._started = 0.0
        self._training_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or the loss has not fallen for long enough."""
        done = len(self.epochs)
        return done >= self._settings.epochs or (
            done > 0 and done - 1 - self.best >= self._settings.patience
        )

    def resume(self, network: keras.Model) -> None:
        """Goes on from the checkpoint, if there is one of this training."""
        restored = self._checkpoint.restore(network) if self._checkpoint else None
        if restored:
            state, self.best_weights = restored
            self.epochs, self.best = state["epochs"], state["best"]
            print(f"Going on after epoch {len(self.epochs)} of the checkpoint.", flush=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch.assign(epoch)
        self._started = time.monotonic()

    def on_test_begin(self, logs: Any = None) -> None:
        self._training_seconds = time.monotonic() - self._started

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in logs.items()}
        for name in ("rmse", "val_rmse"):
            if name in values:
                values[name] *= self._settings.label_scale
        values["examples_per_second"] = self._rows / self._training_seconds
        self.epochs.append(values)
        if not math.isfinite(values["val_loss"]):
            raise InputError(
                f"The validation loss is {values['val_loss']} after epoch {epoch + 1}; "
                "lower learning_rate."
            )
        if epoch == 0 or values["val_loss"] < self.epochs[self.best]["val_loss"]:
            self.best = epoch
            self.best_weights = self.model.get_weights()
        if self._checkpoint:
            state = {"epochs": self.epochs, "best": self.best}
            self._checkpoint.save(self.model, self.best_weights, state)
        shown = ", ".join(
            f"{name} {value:.4f}" for name, value in values.items() if name != "examples_per_second"
        )
        print(
            f"Epoch {epoch + 1}/{self._settings.epochs}: {shown}, "
            f"{values['examples_per_second']:,.0f} examples/s",
            flush=True,
        )
        if self.finished:
            self.model.stop_training = True
