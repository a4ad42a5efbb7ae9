# SPDX-License-Identifier: Apache-2.0
"""The network between the encoded features and the prediction: built in, or the user's own.

A module of the user's is a Python file with one function::

    def build_model(schema: NetworkSchema, hyperparameters: dict) -> keras.Model:
        inputs = schema.inputs()
        x = keras.layers.Dense(32, activation="relu")(inputs["numeric"])
        return keras.Model(inputs, keras.layers.Dense(schema.outputs)(x))

It takes `schema.inputs()` and returns one tensor (batch, `schema.outputs`) without a final
activation: the logit of the positive class, one logit per class, or the standardised value.
Encoding, the final activation and the return to the label's unit are kfloop's. A model that comes
compiled keeps its optimizer and loss (of logits); otherwise kfloop compiles it.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.training.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class NetworkSchema:
    """What a network is built from.

    Attributes:
        task: `binary`, `multiclass` or `regression`.
        outputs: Width of the network's output: 1, or the number of classes.
        numeric: Names of the columns of the input `numeric`, already standardised.
        categorical: Positions per column of the input `categorical`, in order: values run from 0
            (unknown) to that number less one.
    """

    task: str
    outputs: int
    numeric: tuple[str, ...]
    categorical: dict[str, int]
    # Of each numeric column quantiles of its training values, rising; empty where it has none.
    edges: tuple[tuple[float, ...], ...] = ()

    def inputs(self) -> dict[str, Any]:
        """Returns Keras inputs: `numeric` (float32) and `categorical` (int32), where they exist."""
        inputs = {}
        if self.numeric:
            inputs["numeric"] = keras.Input((len(self.numeric),), name="numeric")
        if self.categorical:
            inputs["categorical"] = keras.Input(
                (len(self.categorical),), dtype="int32", name="categorical"
            )
        return inputs


def build_network(schema: NetworkSchema, settings: Hyperparameters) -> keras.Model:
    """Builds the built-in network: embeddings beside the numbers, then dense layers."""
    inputs = schema.inputs()
    parts = [inputs["numeric"]] if schema.numeric else []
    if any(schema.edges):
        parts.append(PiecewiseLinear(schema.edges)(inputs["numeric"]))
    for position, (name, size) in enumerate(schema.categorical.items()):
        width = settings.embedding_size or embedding_size(size)
        embedding = keras.layers.Embedding(size, width, name=f"embed_{name}")
        parts.append(embedding(inputs["categorical"][:, position]))
    x = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    for units in settings.hidden:
        x = keras.layers.Dense(
            units, activation="relu", kernel_regularizer=keras.regularizers.L2(settings.l2)
        )(x)
        x = keras.layers.Dropout(settings.dropout)(x)
    # float32 whatever the layers before compute in: bfloat16 has three digits.
    return keras.Model(inputs, keras.layers.Dense(schema.outputs, dtype="float32")(x))


class PiecewiseLinear(keras.layers.Layer):
    """Splits each number at its edges: how much of each range lies below it, from 0 to 1.

    So a dense layer learns any piecewise linear function of the number at once, where it would
    need many steps to bend its own. Gorishniy et al. 2022, "On Embeddings for Numerical Features
    in Tabular Deep Learning", section 3.2, with quantiles as edges.
    """

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        # float32 whatever the layers around compute in: neighbouring edges are close.
        super().__init__(dtype="float32", trainable=False)
        self._edges = [list(each) for each in edges]
        ranges = [
            (column, low, 1.0 / (high - low))
            for column, each in enumerate(self._edges)
            for low, high in itertools.pairwise(each)
        ]
        columns, self._lows, self._slopes = map(list, zip(*ranges, strict=True))
        self._columns = np.array(columns, np.int32)

    def call(self, numeric: Any) -> Any:
        """Returns (batch, ranges of all columns) from (batch, columns)."""
        spread = keras.ops.take(numeric, self._columns, axis=1)
        return keras.ops.clip((spread - np.float32(self._lows)) * np.float32(self._slopes), 0, 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"edges": self._edges}


def embedding_size(vocabulary: int) -> int:
    """Returns the default width of an embedding: fast.ai's rule of thumb, at most 32."""
    return min(32, round(1.6 * vocabulary**0.56))


def build_from_module(
    module_uri: str, schema: NetworkSchema, hyperparameters: Mapping[str, Any]
) -> keras.Model:
    """Builds the network with `build_model` of the user's module (see this module's docstring).

    Args:
        module_uri: Path or file:// URI of the Python file; it is executed.
        schema: Given to `build_model`.
        hyperparameters: Given to `build_model` as they are.

    Raises:
        InputError: If there is no such file or function, or it returns something else than a
            network of the right shape.
    """
    path = local_path(module_uri, "module_uri")
    spec = importlib.util.spec_from_file_location("kfloop_user_model", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"module_uri is {module_uri!r}, which is not a Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "build_model", None)):
        raise InputError(f"{path} has no function build_model(schema, hyperparameters).")
    network = module.build_model(schema, dict(hyperparameters))
    if not isinstance(network, keras.Model):
        raise InputError(
            f"build_model of {path} returned {type(network).__name__}; it must be a keras.Model."
        )
    expected = (None, schema.outputs)
    if network.output_shape != expected:
        raise InputError(
            f"The model of {path} returns the shape {network.output_shape}; it must be {expected}, "
            "so end with keras.layers.Dense(schema.outputs)."
        )
    if network.outputs[0].dtype != "float32":
        raise InputError(
            f"The model of {path} returns {network.outputs[0].dtype}; end with "
            'keras.layers.Dense(schema.outputs, dtype="float32").'
        )
    return network
