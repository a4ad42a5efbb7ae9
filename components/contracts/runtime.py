# SPDX-License-Identifier: Apache-2.0
"""What runs a package's graph: ONNX Runtime where the package holds an ONNX copy, or TensorFlow."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ONNX, ModelPackage

ONNX_RUNTIME, TENSORFLOW = "onnx", "tensorflow"


class Runnable(Protocol):
    """A loaded graph.

    Attributes:
        runtime: What runs it, for people.
        numbers: Names of the features that go in as numbers, in order.
        texts: Names of those that go in as texts.
    """

    runtime: str
    numbers: list[str]
    texts: list[str]

    def __call__(
        self, numbers: npt.NDArray[np.float32], texts: npt.NDArray[np.object_]
    ) -> npt.NDArray[np.float32]:
        """Returns the graph's output for arrays of shape [names, rows]."""


def load_graph(
    directory: str, package: ModelPackage, runtime: str = "", threads: int = 1
) -> Runnable:
    """Loads a package's graph; the library of the other runtime is not imported.

    Args:
        directory: The model package.
        package: What its `model.json` says.
        runtime: `onnx`, `tensorflow`, or empty: ONNX if the package holds it.
        threads: ONNX Runtime: how many work on one call.

    Raises:
        InputError: If there is no such runtime, or the package lacks what it runs.
    """
    if runtime not in ("", ONNX_RUNTIME, TENSORFLOW):
        raise InputError(f"The runtime is {runtime!r}; it must be 'onnx', 'tensorflow' or empty.")
    held = (Path(directory) / ONNX).is_file()
    if runtime == ONNX_RUNTIME and not held:
        raise InputError(
            f"The package {directory} holds no {ONNX}; train it with `onnx`, or leave the choice "
            "of a runtime to the server."
        )
    if held and runtime != TENSORFLOW:
        from kfloop.components.contracts.onnx_model import OnnxModel

        return OnnxModel(directory, package, threads)
    from kfloop.components.contracts.saved_model import SavedModel

    return SavedModel(directory, package)
