# SPDX-License-Identifier: Apache-2.0
"""Encoded rows on local disk, for data that does not fit in memory, and shuffled from there.

An epoch reads the stored rows in blocks, in a new order. As many blocks as `WINDOW_BYTES` hold are
shuffled row by row together, so that a batch mixes rows from all over the data; memory stays at a
few windows, however many rows there are. The order depends on the seed and the epoch alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kfloop.components.training.encoder import Arrays

WINDOW_BYTES = 32 << 20
# Contiguous rows per read: long enough for a disk, short enough that a window mixes many places.
BLOCK_ROWS = 2048
_LABEL = "label"


class StoredExamples:
    """Rows in files, one per input and one for the label; nothing of them is held in memory."""

    def __init__(self, directory: Path, inputs: Arrays, label: np.ndarray) -> None:
        """Makes room for rows.

        Args:
            directory: Where the files are made; it is made too.
            inputs: Encoded rows that show the names, types and widths of the arrays.
            label: Labels that show their type.
        """
        directory.mkdir()
        self._directory = directory
        self._rows = 0
        self._kinds = {_LABEL: (label.dtype, 1)}
        # The user's columns are inside the arrays, so no input can be called like the label.
        self._kinds |= {name: (v.dtype, v.shape[1]) for name, v in inputs.items()}

    def __len__(self) -> int:
        return self._rows

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row in all files."""
        return sum(kind.itemsize * width for kind, width in self._kinds.values())

    def append(self, inputs: Arrays, label: np.ndarray) -> None:
        """Writes further rows behind the ones that are there."""
        for name, values in {**inputs, _LABEL: label}.items():
            with self._path(name).open("ab") as file:
                file.write(np.ascontiguousarray(values).data)
        self._rows += len(label)

    def shuffled(
        self, size: int, seed: int, epoch: tf.Variable, window_bytes: int = WINDOW_BYTES
    ) -> tf.data.Dataset:
        """Returns batches of `size` rows in a new order per epoch; a rest is left out."""
        # Whole batches per block, so that no window but the one with the last block leaves a rest.
        block = size * -(-BLOCK_ROWS // size)
        blocks = max(1, window_bytes // (block * self.bytes_per_row))

        def windows() -> Iterator[tuple[int, Arrays, np.ndarray]]:
            generator = np.random.default_rng([seed % 2**63, int(epoch.numpy())])
            order = generator.permutation(-(-len(self) // block)) * block
            for start in range(0, len(order), blocks):
                chosen = order[start : start + blocks]
                yield (int(generator.integers(2**62)), *self._read(chosen, block))

        def batches_of(
            random: tf.Tensor, inputs: dict[str, tf.Tensor], label: tf.Tensor
        ) -> tf.data.Dataset:
            rows = tf.shape(label)[0]
            order = tf.random.experimental.stateless_shuffle(
                tf.range(rows), seed=tf.stack([random, 0])
            )
            order = tf.reshape(order[: rows // size * size], [-1, size])
            return tf.data.Dataset.from_tensor_slices(order).map(
                lambda index: (
                    {name: tf.gather(values, index) for name, values in inputs.items()},
                    tf.gather(label, index),
                )
            )

        signature = (tf.TensorSpec([], tf.int64), *self._signature())
        dataset = tf.data.Dataset.from_generator(windows, output_signature=signature)
        return dataset.prefetch(1).flat_map(batches_of)

    def in_order(self, size: int, rows: int) -> tf.data.Dataset:
        """Returns the first `rows` rows in order, in batches of `size` and a rest."""

        def pieces() -> Iterator[tuple[Arrays, np.ndarray]]:
            for start in range(0, rows, size):
                yield self._read(np.array([start]), min(size, rows - start))

        return tf.data.Dataset.from_generator(pieces, output_signature=self._signature())

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.rows"

    def _signature(self) -> tuple[dict[str, tf.TensorSpec], tf.TensorSpec]:
        inputs = {
            name: tf.TensorSpec([None, width], kind)
            for name, (kind, width) in self._kinds.items()
            if name != _LABEL
        }
        return inputs, tf.TensorSpec([None], self._kinds[_LABEL][0])

    def _read(self, starts: np.ndarray, rows: int) -> tuple[Arrays, np.ndarray]:
        arrays = {}
        for name, (kind, width) in self._kinds.items():
            with self._path(name).open("rb") as file:
                pieces = []
                for start in starts:
                    file.seek(int(start) * width * kind.itemsize)
                    pieces.append(np.fromfile(file, kind, rows * width).reshape(-1, width))
            arrays[name] = np.concatenate(pieces)
        return arrays, arrays.pop(_LABEL)[:, 0]
