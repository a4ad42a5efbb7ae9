"""What the network is trained on: found, and demanded."""

import os

import tensorflow as tf

from kfloop.components.contracts.errors import InputError


def describe_devices() -> str:
    """Returns the GPUs with their names and compute capabilities, or the CPU."""
    found = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ())))
        name = gpu.name.removeprefix("/physical_device:")
        found.append(f"{name} {details.get('device_name', '')} (compute {capability})")
    return ", ".join(found) or f"CPU ({os.cpu_count()} cores)"


def require_gpu() -> None:
    """Raises InputError when TensorFlow sees no GPU, with what it sees."""
    if tf.config.list_physical_devices("GPU"):
        return
    built = "with" if tf.test.is_built_with_cuda() else "without"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    raise InputError(
        f"require_gpu is set and there is no GPU: found {describe_devices()}; TensorFlow "
        f"{tf.__version__} is built {built} CUDA, CUDA_VISIBLE_DEVICES is "
        f"{'not set' if visible is None else repr(visible)}. Give the task an accelerator and the "
        "image with requirements-cuda.txt, or unset require_gpu."
    )
