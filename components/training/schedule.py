# SPDX-License-Identifier: Apache-2.0
"""The optimizer's learning rate over time: warm-up, then constant, cosine or exponential."""

import math
from typing import Any

import keras

# Share of the peak that is left at the last step of a schedule.
FINAL_SHARE = 0.01


class WarmUpAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a line to the peak, then falls to `FINAL_SHARE` of it at the last step.

    With p running from 0 at the end of the warm-up to 1 at the last step, and f = `FINAL_SHARE`:
    cosine is peak · (f + (1 - f) · (1 + cos πp) / 2), exponential is peak · f^p, and "" stays at
    the peak.
    """

    def __init__(self, peak: float, decay: str, warmup_steps: int, steps: int) -> None:
        super().__init__()
        self._peak = peak
        self._decay = decay
        self._warmup_steps = warmup_steps
        self._steps = steps

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step, counted from 0."""
        step = keras.ops.cast(step, "float32")
        share = (step - self._warmup_steps) / max(1, self._steps - self._warmup_steps)
        share = keras.ops.clip(share, 0.0, 1.0)
        if self._decay == "cosine":
            wave = (1 + keras.ops.cos(math.pi * share)) / 2
            factor = FINAL_SHARE + (1 - FINAL_SHARE) * wave
        elif self._decay == "exponential":
            factor = keras.ops.exp(share * math.log(FINAL_SHARE))
        else:
            factor = keras.ops.ones_like(step)
        # The first step is not 0, which would learn nothing.
        rise = (step + 1) / max(1, self._warmup_steps)
        return self._peak * keras.ops.where(step < self._warmup_steps, rise, factor)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            "peak": self._peak,
            "decay": self._decay,
            "warmup_steps": self._warmup_steps,
            "steps": self._steps,
        }


def learning_rate(
    peak: float, decay: str, warmup_epochs: float, epochs: int, steps_per_epoch: int
) -> float | WarmUpAndDecay:
    """Returns what an optimizer takes as its learning rate.

    Args:
        peak: The largest learning rate.
        decay: "", "cosine" or "exponential".
        warmup_epochs: Epochs to rise to the peak in; 0 for none.
        epochs: Epochs over which it falls; early stopping may end before.
        steps_per_epoch: Steps of one epoch.
    """
    if not decay and not warmup_epochs:
        return peak
    warmup = round(warmup_epochs * steps_per_epoch)
    return WarmUpAndDecay(peak, decay, warmup, epochs * steps_per_epoch)
