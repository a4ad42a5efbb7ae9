# SPDX-License-Identifier: Apache-2.0
"""What the network is trained on: found, demanded, and put to work.

With the TensorFlow backend a `MirroredStrategy` shares every batch among all GPUs of the machine.
With the JAX backend `keras.distribution.DataParallel` shares it among all devices of all processes.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kfloop.components.contracts.errors import InputError


@dataclass(frozen=True)
class Devices:
    """What shares every batch.

    Attributes:
        description: For people.
        count: Devices of all processes.
        processes: Processes that train together, each with as many devices.
        process: Which of them this is, from 0.
        steps_per_execution: Training steps per call into the backend: amortises Python between
            the steps. Keras 3.15 fails to run more than one under a `MirroredStrategy`.
        scope: What a network is built, compiled and restored in.
    """

    description: str
    count: int = 1
    processes: int = 1
    process: int = 0
    steps_per_execution: int = 32
    scope: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.process == 0


def use_devices() -> Devices:
    """Returns the devices to train on: all GPUs, or without one the CPU."""
    if keras.backend.backend() == "jax":
        return _jax_devices()
    # One logical device is one physical one, unless the process was told to divide them.
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(found) == 1:
        return Devices(describe_devices())
    strategy = tf.distribute.MirroredStrategy([device.name for device in found])
    return Devices(
        f"{len(found)} devices, each batch shared by MirroredStrategy: {describe_devices()}",
        count=strategy.num_replicas_in_sync,
        steps_per_execution=1,
        scope=strategy.scope,
    )


def _jax_devices() -> Devices:
    import jax

    # TensorFlow only encodes and shuffles here; it must not take the GPUs' memory from JAX.
    tf.config.set_visible_devices([], "GPU")
    if jax.device_count() == 1:
        keras.distribution.set_distribution(None)
        return Devices(describe_devices())
    # Not sharded by Keras: `batches` gives each process its share.
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(
            devices=keras.distribution.list_devices(), auto_shard_dataset=False
        )
    )
    return Devices(
        f"{jax.device_count()} devices in {jax.process_count()} processes, each batch shared by "
        f"DataParallel: {describe_devices()}",
        count=jax.device_count(),
        processes=jax.process_count(),
        process=jax.process_index(),
    )


def require_same_start(devices: Devices, epochs: int) -> None:
    """Raises InputError when the processes would not begin with the same epoch.

    Without it, those that are behind would wait for the others for ever.
    """
    if devices.processes == 1:
        return
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.array(epochs)).tolist()
    if len(set(found)) > 1:
        raise InputError(
            f"The processes found checkpoints after {', '.join(map(str, found))} epochs; "
            "checkpoint_uri must be a directory that all of them share."
        )


def describe_devices() -> str:
    """Returns the GPUs with their names and compute capabilities, or the CPU."""
    found = _gpus()
    if found:
        return ", ".join(found)
    logical = len(tf.config.list_logical_devices("CPU"))
    divided = f", divided into {logical}" if logical > 1 else ""
    return f"CPU ({os.cpu_count()} cores{divided})"


def _gpus() -> list[str]:
    if keras.backend.backend() == "jax":
        import jax

        return [
            f"{device.platform}:{device.id} {device.device_kind}"
            for device in jax.devices()
            if device.platform != "cpu"
        ]
    found = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ())))
        name = gpu.name.removeprefix("/physical_device:")
        found.append(f"{name} {details.get('device_name', '')} (compute {capability})")
    return found


def require_gpu() -> None:
    """Raises InputError when the backend sees no GPU, with what it sees."""
    if _gpus():
        return
    built = "with" if tf.test.is_built_with_cuda() else "without"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    backend = "JAX" if keras.backend.backend() == "jax" else "TensorFlow"
    raise InputError(
        f"require_gpu is set and there is no GPU: {backend} found {describe_devices()}; TensorFlow "
        f"{tf.__version__} is built {built} CUDA, CUDA_VISIBLE_DEVICES is "
        f"{'not set' if visible is None else repr(visible)}. Give the task an accelerator and the "
        "image with requirements-cuda.txt, or unset require_gpu."
    )
