"""What training writes after every epoch, so that a killed run continues and ends the same.

One file holds the network's weights, the state of its random layers and of the optimizer, the best
weights so far, and the logs. The shuffle needs nothing kept: it depends on seed and epoch alone.
"""

import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kfloop.components.contracts.files import write_bytes

FILE = "training-checkpoint.npz"


class Checkpoint:
    """The checkpoint of one training, in a directory that outlives the process."""

    def __init__(self, directory: Path, identity: str) -> None:
        """Names a checkpoint.

        Args:
            directory: Where it lies; made when it is written.
            identity: Fingerprint of data, code and settings; another one's state is not taken up.
        """
        self.path = directory / FILE
        self._identity = identity

    def save(
        self, network: keras.Model, best_weights: list[np.ndarray], state: dict[str, Any]
    ) -> None:
        """Writes the state after an epoch; a reader sees the old file or the whole new one."""
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
                    f"The checkpoint {self.path} is of other data or settings; starting over.",
                    flush=True,
                )
                return None
            for index, variable in enumerate(_variables(network)):
                variable.assign(arrays[f"variable_{index}"])
            count = len(network.get_weights())
            return state, [arrays[f"best_{index}"] for index in range(count)]

    def remove(self) -> None:
        """Removes it, once its model is written."""
        self.path.unlink(missing_ok=True)


def _variables(network: keras.Model) -> list[Any]:
    if not network.optimizer.built:
        network.optimizer.build(network.trainable_variables)
    # Those that are not trained are the state of normalisation and of random layers.
    return [
        *network.trainable_variables,
        *network.non_trainable_variables,
        *network.optimizer.variables,
    ]
