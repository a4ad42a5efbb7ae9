"""Training data that does not fit in memory: encoded once to local disk, shuffled from there.

An epoch reads the stored rows in blocks, in a new order. As many blocks as `WINDOW_BYTES` hold are
shuffled row by row together, so that a batch mixes rows from all over the data; memory stays at a
few windows, however many rows there are. The order depends on the seed and the epoch alone.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from kfloop.components.contracts.dataset import dataset_files, row_count
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature
from kfloop.components.training.encoder import ENCODE_ROWS, Arrays

INPUTS = ("auto", "memory", "stream")
WINDOW_BYTES = 64 << 20
# Contiguous rows per read: long enough for a disk, short enough that a window mixes many places.
BLOCK_ROWS = 2048
# Bytes per row and feature at the peak of training in memory: the Arrow column, the model's input
# (a Python string of some 60 bytes for text), and four bytes in each of the encoded copies.
NUMBER_BYTES, TEXT_BYTES = 24, 110
# Share of the available memory that the data may take.
SHARE_OF_MEMORY = 0.5


class StoredExamples:
    """Encoded rows in files, one per array; only the label is held in memory."""

    def __init__(self, directory: Path, label: np.ndarray, sample: Arrays) -> None:
        """Makes room for rows.

        Args:
            directory: Where the files are made; it is made too.
            label: The label of every row.
            sample: Encoded rows that show the names, types and widths of the arrays.
        """
        directory.mkdir()
        self.label = label
        self.inputs = {name: directory / f"{name}.rows" for name in sample}
        self._types = {name: values.dtype for name, values in sample.items()}
        self._widths = {name: values.shape[1] for name, values in sample.items()}

    def __len__(self) -> int:
        return len(self.label)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row in all files."""
        return sum(self._types[name].itemsize * self._widths[name] for name in self.inputs)

    def append(self, encoded: Arrays) -> None:
        """Writes further rows behind the ones that are there."""
        for name, path in self.inputs.items():
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(encoded[name]).data)

    def shuffled(
        self, batch_size: int, seed: int, epoch: tf.Variable, window_bytes: int = WINDOW_BYTES
    ) -> tf.data.Dataset:
        """Returns batches in a new order per epoch; the last, incomplete batch is left out."""
        size = min(batch_size, len(self))
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

        signature = (tf.TensorSpec([], tf.int64), *self._signature(None))
        dataset = tf.data.Dataset.from_generator(windows, output_signature=signature)
        dataset = dataset.prefetch(1).flat_map(batches_of)
        steps = len(self) // size
        return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(16)

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """Returns batches in order, every row once."""

        def pieces() -> Iterator[tuple[Arrays, np.ndarray]]:
            for start in range(0, len(self), batch_size):
                yield self._read(np.array([start]), batch_size)

        dataset = tf.data.Dataset.from_generator(pieces, output_signature=self._signature(None))
        steps = -(-len(self) // batch_size)
        return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)

    def _signature(self, rows: int | None) -> tuple[dict[str, tf.TensorSpec], tf.TensorSpec]:
        inputs = {
            name: tf.TensorSpec([rows, self._widths[name]], self._types[name])
            for name in self.inputs
        }
        return inputs, tf.TensorSpec([rows], self.label.dtype)

    def _read(self, starts: np.ndarray, rows: int) -> tuple[Arrays, np.ndarray]:
        inputs = {}
        for name, path in self.inputs.items():
            width, kind = self._widths[name], self._types[name]
            with path.open("rb") as file:
                pieces = []
                for start in starts:
                    file.seek(int(start) * width * kind.itemsize)
                    pieces.append(np.fromfile(file, kind, rows * width).reshape(-1, width))
            inputs[name] = np.concatenate(pieces)
        return inputs, np.concatenate([self.label[start : start + rows] for start in starts])


def streams(wanted: str, dataset: str | Path, features: list[Feature]) -> bool:
    """Decides whether a dataset is streamed, and prints why.

    Args:
        wanted: One of `INPUTS`.
        dataset: The training dataset.
        features: The model's features.

    Raises:
        InputError: If `wanted` is none of them.
    """
    if wanted not in INPUTS:
        raise InputError(f"The input is {wanted!r}; it must be one of {', '.join(INPUTS)}.")
    needed = row_count(dataset) * sum(
        TEXT_BYTES if feature.type == "string" else NUMBER_BYTES for feature in features
    )
    available = available_memory()
    streamed = wanted == "stream" or (
        wanted == "auto" and available is not None and needed > SHARE_OF_MEMORY * available
    )
    free = "an unknown amount" if available is None else f"{available / 1e9:,.1f} GB"
    how = "streamed from local disk" if streamed else "held in memory"
    asked = "" if wanted == "auto" else f" (input is {wanted})"
    print(
        f"The training data takes about {needed / 1e9:,.2f} GB in memory and {free} is available: "
        f"it is {how}{asked}.",
        flush=True,
    )
    return streamed


def available_memory() -> int | None:
    """Returns the bytes this process may still take, or None where it cannot be known.

    The least of what the machine has left (/proc/meminfo) and what the container's limit leaves
    (cgroup v2).
    """
    found = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        found.append(int(text) - int((group / "memory.current").read_text()))
    return min(found) if found else None


def read_tables(dataset: str | Path, columns: list[str]) -> Iterator[pa.Table]:
    """Yields a dataset's rows in order, in tables of at most `ENCODE_ROWS` rows."""
    for path in dataset_files(dataset):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ENCODE_ROWS, columns=columns):
                yield pa.Table.from_batches([batch]).select(columns)


def require_disk(directory: Path, needed: int) -> None:
    """Raises InputError when less than `needed` bytes are free in `directory`."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"Streaming needs {needed / 1e9:,.1f} GB in {os.fspath(directory)} and "
            f"{free / 1e9:,.1f} GB are free; set TMPDIR to a larger volume."
        )
