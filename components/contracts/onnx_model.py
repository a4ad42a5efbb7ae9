# SPDX-License-Identifier: Apache-2.0
"""The ONNX copy of a package's graph, run by ONNX Runtime: no TensorFlow in the process.

It takes one array per feature, which costs ONNX Runtime next to nothing, so the rows of the two
arrays that `SavedModel` takes are its inputs as they are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as refused

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json
from kfloop.components.contracts.model_package import ONNX, ONNX_ABOUT, ModelPackage

BROKEN = (
    *(refused.Fail, refused.InvalidArgument, refused.InvalidGraph, refused.InvalidProtobuf),
    *(refused.NotImplemented, refused.RuntimeException),
)
# ONNX Runtime's names of what the contract's features are.
TYPES = {"string": "tensor(string)"}
NUMBER = "tensor(float)"


class OnnxModel:
    """A loaded ONNX graph with the contract's inputs; safe to call from several threads."""

    runtime = "ONNX Runtime"

    def __init__(self, directory: str, package: ModelPackage, threads: int = 1) -> None:
        """Loads it.

        Args:
            directory: The model package.
            package: What its `model.json` says.
            threads: How many work on one call. One where several calls run at a time: more would
                only wait for each other.

        Raises:
            InputError: If it is no ONNX, or of another model than `model.json` tells of.
        """
        path = Path(directory) / ONNX
        _require_same_model(Path(directory) / ONNX_ABOUT, package)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except BROKEN as error:
            raise InputError(
                f"{path} cannot be loaded as ONNX ({' '.join(str(error).split())}); export the "
                "package again, or serve its SavedModel with --runtime tensorflow."
            ) from error
        found = {one.name: one.type for one in self._session.get_inputs()}
        wanted = {feature.name: TYPES.get(feature.type, NUMBER) for feature in package.features}
        outputs = [one.name for one in self._session.get_outputs()]
        if found != wanted or package.output not in outputs:
            raise _does_not_fit(path, f"takes {found} and returns {outputs}")
        self.numbers, self.texts = package.numbers, package.texts
        self._names = [*self.numbers, *self.texts]
        self._output = [package.output]

    def __call__(
        self, numbers: npt.NDArray[np.float32], texts: npt.NDArray[np.object_]
    ) -> npt.NDArray[np.float32]:
        """Returns the model's output.

        Args:
            numbers: Float32 of shape [`self.numbers`, rows]; NaN is missing.
            texts: Python strings of shape [`self.texts`, rows]; empty is missing.
        """
        columns = dict(zip(self._names, (*numbers, *texts), strict=True))
        scores: npt.NDArray[np.float32] = self._session.run(self._output, columns)[0]
        return scores


def _require_same_model(path: Path, package: ModelPackage) -> None:
    """Compares what the graph itself cannot tell, such as the order of classes."""
    try:
        about = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}, which tells of the ONNX model, cannot be read: {error}."
        ) from error
    wanted: dict[str, Any] = {
        "name": package.name,
        "task": package.task,
        "inputs": {feature.name: feature.type for feature in package.features},
        "output": package.output,
        "classes": package.classes,
    }
    told = {key: about.get(key) for key in wanted} if isinstance(about, dict) else {}
    for key, value in wanted.items():
        if told.get(key) != value:
            raise _does_not_fit(path, f"has {key} {told.get(key)!r}")


def _does_not_fit(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} {what}, unlike the model.json beside it; export the package again, or serve its "
        "SavedModel with --runtime tensorflow."
    )
