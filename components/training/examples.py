# SPDX-License-Identifier: Apache-2.0
"""Encoded rows and what is to be predicted, in memory."""

import numpy as np

from kfloop.components.training.encoder import Arrays


class Examples:
    """Rows in memory, one array per input."""

    def __init__(self, inputs: Arrays, label: np.ndarray) -> None:
        self.inputs = inputs
        self.label = label
        self._filled = len(label)

    @classmethod
    def with_room(cls, rows: int, inputs: Arrays, label: np.ndarray) -> "Examples":
        """Makes room for `rows` rows of the types and widths of the given ones."""
        empty = {name: np.empty((rows, v.shape[1]), v.dtype) for name, v in inputs.items()}
        made = cls(empty, np.empty(rows, label.dtype))
        made._filled = 0
        return made

    def __len__(self) -> int:
        return len(self.label)

    def append(self, inputs: Arrays, label: np.ndarray) -> None:
        """Puts further rows behind the ones that are there."""
        place = slice(self._filled, self._filled + len(label))
        for name, values in inputs.items():
            self.inputs[name][place] = values
        self.label[place] = label
        self._filled = place.stop
