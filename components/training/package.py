# SPDX-License-Identifier: Apache-2.0
"""Writing the model package: the exported graph, and its own predictions as reference."""

from collections.abc import Callable
from pathlib import Path

import keras
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import model_inputs, prediction_column
from kfloop.components.contracts.model_package import (
    GOLDEN,
    ONNX,
    PREDICTION,
    REFERENCE,
    SAVED_MODEL,
    ModelPackage,
    write_model_json,
)
from kfloop.components.training.export import export
from kfloop.components.training.prepare import Prepared

GOLDEN_ROWS = 32


def write_package(
    directory: Path, package: ModelPackage, data: Prepared, network: keras.Model
) -> None:
    """Writes a whole model package.

    Args:
        directory: An existing, empty directory.
        package: What goes into `model.json`.
        data: Its encoder goes in front of the network; its reference rows are kept with their
            predictions, the first `GOLDEN_ROWS` of them as the golden rows.
        network: Returns logits, or the standardised value.
    """
    saved_model = directory / SAVED_MODEL
    export(saved_model, package, data.encoder, network, data.label)
    predict = _load(saved_model, package)
    reference = data.reference
    for path, table in ((REFERENCE, reference), (GOLDEN, reference.slice(0, GOLDEN_ROWS))):
        (directory / path).parent.mkdir(exist_ok=True)
        pq.write_table(
            table.append_column(PREDICTION, predict(table)),
            directory / path,
            coerce_timestamps="us",
        )
    write_model_json(package, directory)


def add_onnx(directory: Path) -> None:
    """Adds the graph as ONNX to a package; where that cannot be, says why and leaves it as it is.

    Args:
        directory: What `write_package` wrote.
    """
    try:
        if keras.backend.backend() == "jax":
            raise InputError("Keras on JAX leaves StableHLO in the graph, which ONNX cannot hold.")
        # Slow, and not in the lock with JAX.
        from kfloop.components.training.onnx_export import export_onnx

        export_onnx(directory, (directory / ONNX).parent)
    except InputError as error:
        print(f"The package holds no ONNX, only the SavedModel. {error}", flush=True)


def _load(path: Path, package: ModelPackage) -> Callable[[pa.Table], pa.Array]:
    """Returns the exported model as a function; what is kept must be what will be served."""
    # The module is held by the closure: its variables live only as long as it does.
    module = tf.saved_model.load(str(path))

    def predict(table: pa.Table) -> pa.Array:
        inputs = {
            name: tf.constant(values)
            for name, values in model_inputs(table, package.features).items()
        }
        outputs = module.signatures["serving_default"](**inputs)[package.output].numpy()
        return prediction_column(outputs, package)

    return predict
