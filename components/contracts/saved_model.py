# SPDX-License-Identifier: Apache-2.0
"""The SavedModel of a package, called with two arrays instead of one tensor per feature.

Making a tensor costs about as much for one number as for a thousand. So all numbers go in as one
array and all texts as another, and a traced function takes them apart in the graph: the same
operations on the same values, so the answers are the same to the last bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import SAVED_MODEL, ModelPackage


class SavedModel:
    """A loaded SavedModel with the contract's signature; safe to call from several threads."""

    runtime = "TensorFlow"

    def __init__(self, directory: str, package: ModelPackage) -> None:
        """Loads and traces it.

        Raises:
            InputError: If it is not a SavedModel with the contract's inputs and outputs.
        """
        path = f"{directory}/{SAVED_MODEL}"
        if not Path(path, "saved_model.pb").is_file():
            raise InputError(
                f"The model package {directory} holds no SavedModel in {SAVED_MODEL}/."
            )
        import tensorflow as tf  # slow: only once the package is known to be readable

        try:
            # Kept: the signature holds only weak references to the variables.
            self._loaded = tf.saved_model.load(path)
            signature = self._loaded.signatures["serving_default"]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} cannot be loaded as a SavedModel: {error}.") from error
        inputs = set(signature.structured_input_signature[1])
        if inputs != set(package.feature_names):
            raise InputError(
                f"The SavedModel {path} takes {sorted(inputs)}, but model.json names the features "
                f"{sorted(package.feature_names)}; export the package again."
            )
        if package.output not in signature.structured_outputs:
            raise InputError(
                f"The SavedModel {path} has no output {package.output!r}, which the task "
                f"{package.task} needs; export the package again."
            )
        self.numbers, self.texts = package.numbers, package.texts
        groups = [names for names in (self.numbers, self.texts) if names]
        types = [tf.float32 if names is self.numbers else tf.string for names in groups]

        def packed(*arrays: Any) -> Any:
            columns: dict[str, Any] = {}
            for names, array in zip(groups, arrays, strict=True):
                columns |= dict(zip(names, tf.unstack(array, num=len(names)), strict=True))
            return signature(**columns)[package.output]

        shapes = [
            tf.TensorSpec([len(names), None], kind)
            for names, kind in zip(groups, types, strict=True)
        ]
        self._function = tf.function(packed).get_concrete_function(*shapes)
        self._tensor = tf.constant

    def __call__(
        self, numbers: npt.NDArray[np.float32], texts: npt.NDArray[np.object_]
    ) -> npt.NDArray[np.float32]:
        """Returns the model's output.

        Args:
            numbers: Float32 of shape [`self.numbers`, rows]; NaN is missing.
            texts: Python strings of shape [`self.texts`, rows]; empty is missing.
        """
        arrays = [self._tensor(array) for array in (numbers, texts) if len(array)]
        scores: npt.NDArray[np.float32] = self._function(*arrays).numpy()
        return scores
