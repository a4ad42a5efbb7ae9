# SPDX-License-Identifier: Apache-2.0
"""What training writes after every epoch, so that a killed run continues and ends the same.

One file holds the network's weights, the state of its random layers and of the optimizer, the best
weights so far, and the logs. The shuffle needs nothing kept: it depends on seed and epoch alone.
"""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kfloop.components.contracts.dataset import fingerprint
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, write_bytes
from kfloop.components.images import VERSION
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings

FILE = "training-checkpoint.npz"
LOCK = "training-checkpoint.lock"


@contextmanager
def locked_directory(uri: str, lock: bool) -> Iterator[Path | None]:
    """Keeps the checkpoint's directory for one training; the lock ends with the process.

    Args:
        uri: The directory, made when it is missing; empty for None.
        lock: Not for the processes of a training that only read it.

    Raises:
        InputError: If another training has it.
    """
    if not uri:
        yield None
        return
    directory = local_path(uri, "checkpoint_uri")
    if not lock:
        yield directory
        return
    directory.mkdir(parents=True, exist_ok=True)
    # A file and not the directory: NFS locks only what is open for writing. It is never removed,
    # since a process that waits for a removed file would lock something else than the next one.
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(
            f"Another training uses the checkpoint directory {directory}; wait for it, or give "
            "this one a checkpoint_uri of its own."
        ) from error
    try:
        yield directory
    finally:
        os.close(handle)


def identity(
    dataset: str | Path,
    schema: str | Path,
    roles: Roles,
    settings: TrainSettings,
    streamed: bool,
    devices: int,
) -> str:
    """Returns the fingerprint of all that determines the result of a training.

    The data, the schema, the settings, the user's module, kfloop's version, the backend and its
    versions, the number of devices, and whether the rows are shuffled in memory or from disk.
    """
    shaping = asdict(settings) | {"checkpoint_uri": "", "require_gpu": False, "input": streamed}
    shaping["onnx"] = False  # it shapes the package, not the weights
    shaping |= {"roles": asdict(roles), "data": fingerprint(dataset), "schema": sha256(schema)}
    shaping |= {"kfloop": VERSION, "tensorflow": tf.__version__, "keras": keras.__version__}
    shaping |= {"backend": keras.backend.backend(), "devices": devices}
    if settings.module_uri:
        shaping["module"] = sha256(local_path(settings.module_uri, "module_uri"))
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """Returns the sha256 of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Checkpoint:
    """The checkpoint of one training, in a directory that outlives the process."""

    def __init__(self, directory: Path, identity: str, writes: bool = True) -> None:
        """Names a checkpoint.

        Args:
            directory: Where it lies, held by `locked_directory`.
            identity: See `identity`; the state of another one is not taken up.
            writes: Whether this process is the one that writes it.
        """
        self.path = directory / FILE
        self._identity = identity
        self._writes = writes

    def save(
        self, network: keras.Model, best_weights: list[np.ndarray], state: dict[str, Any]
    ) -> None:
        """Writes the state after an epoch; a reader sees the old file or the whole new one."""
        if not self._writes:
            return
        about = json.dumps({"identity": self._identity, **state}).encode()
        arrays = {f"variable_{i}": np.asarray(v) for i, v in enumerate(_variables(network))}
        arrays |= {f"best_{i}": values for i, values in enumerate(best_weights)}
        content = io.BytesIO()
        np.savez(content, state=np.frombuffer(about, np.uint8), **arrays)
        write_bytes(self.path, content.getvalue())

    def restore(self, network: keras.Model) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """Puts the saved state into a compiled network.

        Returns:
            The `state` and the best weights given to `save`; None when there is nothing to go on
            from, which is said when there is a checkpoint of something else.
        """
        if not self.path.is_file():
            return None
        with np.load(self.path, allow_pickle=False) as arrays:
            state = json.loads(arrays["state"].tobytes())
            if state.pop("identity") != self._identity:
                print(
                    f"The checkpoint {self.path} is of other data, settings or code; "
                    "starting over.",
                    flush=True,
                )
                return None
            for index, variable in enumerate(_variables(network)):
                variable.assign(arrays[f"variable_{index}"])
            count = len(network.get_weights())
            return state, [arrays[f"best_{index}"] for index in range(count)]


def remove_checkpoint(directory: Path) -> None:
    """Removes the checkpoint, once its model is written."""
    (directory / FILE).unlink(missing_ok=True)


def _variables(network: keras.Model) -> list[Any]:
    if not network.optimizer.built:
        network.optimizer.build(network.trainable_variables)
    # Those that are not trained are the state of normalisation and of random layers.
    return [
        *network.trainable_variables,
        *network.non_trainable_variables,
        *network.optimizer.variables,
    ]
