# SPDX-License-Identifier: Apache-2.0
"""What happens around the epochs: logs, the best weights, the checkpoint, and when to stop."""

import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.checkpoint import Checkpoint

OnEpoch = Callable[[int, dict[str, float]], None]
# An epoch that takes longer than this says how far it is.
_SILENCE_SECONDS = 30.0


class Progress(keras.callbacks.Callback):
    """Keeps the logs and the best weights, prints, moves the shuffle on, and stops early."""

    # Keras may call the batch hook beside the training, which then never waits for it.
    async_safe = True

    def __init__(
        self,
        epoch: tf.Variable,
        rows: int,
        steps: int,
        epochs: int,
        patience: int,
        label_scale: float,
        checkpoint: Checkpoint | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        """Sets up the bookkeeping of one training.

        Args:
            epoch: Set to the number of each epoch, from 0, before it begins.
            rows: Rows to learn from.
            steps: Steps of an epoch.
            epochs: Largest number of epochs.
            patience: Epochs without a better validation loss before training stops.
            label_scale: Unit of a regression's errors.
            checkpoint: Written after every epoch; None for none.
            on_epoch: Told about every epoch and its logs.
        """
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self.best = 0
        self.best_weights: list[np.ndarray] = []
        self._epoch = epoch
        self._rows = rows
        self._steps = steps
        self._wanted = epochs
        self._patience = patience
        self._label_scale = label_scale
        self._checkpoint = checkpoint
        self._on_epoch = on_epoch
        self._started = self._spoke = 0.0
        self._training_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or the loss has not fallen for long enough."""
        done = len(self.epochs)
        return done >= self._wanted or (done > 0 and done - 1 - self.best >= self._patience)

    def resume(self, network: keras.Model) -> None:
        """Goes on from the checkpoint, if there is one of this training."""
        restored = self._checkpoint.restore(network) if self._checkpoint else None
        if restored:
            state, self.best_weights = restored
            self.epochs, self.best = state["epochs"], state["best"]
            print(f"Going on after epoch {len(self.epochs)} of the checkpoint.", flush=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Moves the shuffle on."""
        self._epoch.assign(epoch)
        self._started = self._spoke = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Says how far a long epoch is."""
        now = time.monotonic()
        if now - self._spoke < _SILENCE_SECONDS:
            return
        self._spoke = now
        done = (batch + 1) / self._steps
        taken = now - self._started
        print(
            f"Epoch {len(self.epochs) + 1}/{self._wanted} is at {done:.0%}: "
            f"{done * self._rows / taken:,.0f} examples/s, {_duration(taken / done - taken)} left "
            "in it.",
            flush=True,
        )

    def on_test_begin(self, logs: Any = None) -> None:
        """Takes the time of the training part."""
        self._training_seconds = time.monotonic() - self._started

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps, checks, saves and prints what the epoch gave."""
        values = {name: float(value) for name, value in logs.items()}
        for name in ("rmse", "val_rmse"):
            if name in values:
                values[name] *= self._label_scale
        values["seconds"] = time.monotonic() - self._started
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
        print(self._line(), flush=True)
        if self._on_epoch:
            self._on_epoch(epoch, values)
        if self.finished:
            self.model.stop_training = True

    def _line(self) -> str:
        """Returns what is said about the last epoch."""
        done, values = len(self.epochs), self.epochs[-1]
        shown = ", ".join(
            f"{name} {value:.4f}"
            for name, value in values.items()
            if name not in ("seconds", "examples_per_second")
        )
        best = "the best so far" if self.best == done - 1 else f"the best is epoch {self.best + 1}"
        if self.finished and done < self._wanted:
            end = f"stops, since {self._patience} epochs in a row were not better"
        else:
            seconds = sum(logs["seconds"] for logs in self.epochs) / done * (self._wanted - done)
            end = f"at most {_duration(seconds)} left" if seconds else "done"
        return (
            f"Epoch {done}/{self._wanted}: {shown}, {values['examples_per_second']:,.0f} "
            f"examples/s; {best}; {end}."
        )


def _duration(seconds: float) -> str:
    """Returns a duration in two units at most, for example `1 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
