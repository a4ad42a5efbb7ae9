# SPDX-License-Identifier: Apache-2.0
"""Batches from encoded rows: shuffled as a whole to learn from, in order to validate on.

Every process that takes part in a training computes the same batches and takes its own share of
each, so that n processes see what one would have seen.
"""

from typing import Any

import tensorflow as tf

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.devices import Devices
from kfloop.components.training.examples import Examples
from kfloop.components.training.stored import StoredExamples

VALIDATION_BATCH = 8192
AnyExamples = Examples | StoredExamples


def batch_rows(rows: int, wanted: int, devices: Devices) -> int:
    """Returns the rows of a batch: at most `wanted`, and as many for each device.

    Raises:
        InputError: If there are more devices than rows in a batch.
    """
    size = min(wanted, rows) // devices.count * devices.count
    if not size:
        raise InputError(
            f"A batch of {min(wanted, rows)} rows cannot be shared by {devices.count} devices; "
            "raise batch_size or give more rows."
        )
    return size


def shuffled_batches(
    examples: AnyExamples, size: int, seed: int, epoch: tf.Variable, devices: Devices
) -> tf.data.Dataset:
    """Returns batches in a new order per epoch, which depends on `seed` and `epoch` alone.

    In memory the order is one permutation of the row numbers, and a batch is gathered from the
    arrays by its part of it; rows are never shuffled one by one. See `stored` for rows on disk. The
    last, incomplete batch is left out, other rows each epoch, so that every step has one shape and
    is compiled once.
    """
    if isinstance(examples, StoredExamples):
        dataset = examples.shuffled(size, seed, epoch)
    else:
        dataset = _gathered(examples, size, seed, epoch)
    steps = tf.data.experimental.assert_cardinality(len(examples) // size)
    return _share(dataset, devices).apply(steps).prefetch(4)


def ordered_batches(examples: AnyExamples, devices: Devices) -> tf.data.Dataset:
    """Returns batches in order, every row once; fewer than one row per device may be left out."""
    size = batch_rows(len(examples), VALIDATION_BATCH, devices)
    rows = len(examples) // devices.count * devices.count
    if isinstance(examples, StoredExamples):
        dataset = examples.in_order(size, rows)
    else:
        inputs, label = _tensors(examples)
        dataset = tf.data.Dataset.from_tensor_slices((inputs, label)).take(rows).batch(size)
    steps = tf.data.experimental.assert_cardinality(-(-rows // size))
    return _share(dataset, devices).apply(steps).prefetch(2)


def weighted(dataset: tf.data.Dataset, class_weights: tuple[float, ...]) -> tf.data.Dataset:
    """Adds each row's weight by its class; without weights, returns the dataset as it is."""
    if not class_weights:
        return dataset
    table = tf.constant(class_weights, tf.float32)
    return dataset.map(
        lambda inputs, label: (inputs, label, tf.gather(table, tf.cast(label, tf.int32)))
    )


def _gathered(examples: Examples, size: int, seed: int, epoch: tf.Variable) -> tf.data.Dataset:
    rows = len(examples)
    inputs, label = _tensors(examples)

    def one_epoch(_: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(rows), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        starts = tf.data.Dataset.range(0, rows - size + 1, size)
        return starts.map(lambda start: gather(order[start : start + size]))

    def gather(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        index = tf.ensure_shape(index, [size])
        gathered = {name: tf.gather(values, index) for name, values in inputs.items()}
        return gathered, tf.gather(label, index)

    return tf.data.Dataset.range(1).flat_map(one_epoch)


def _tensors(examples: Examples) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Returns the arrays in the machine's memory: a GPU's is for the network."""
    with tf.device("CPU:0"):
        inputs = {name: tf.constant(values) for name, values in examples.inputs.items()}
        return inputs, tf.constant(examples.label)


def _share(dataset: tf.data.Dataset, devices: Devices) -> tf.data.Dataset:
    """Keeps this process's rows of every batch."""
    if devices.processes == 1:
        return dataset

    def part(values: tf.Tensor) -> tf.Tensor:
        rows = tf.shape(values)[0] // devices.processes
        return values[devices.process * rows : (devices.process + 1) * rows]

    def parts(*batch: Any) -> Any:
        return tf.nest.map_structure(part, batch)

    return dataset.map(parts)
