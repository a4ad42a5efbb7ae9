"""Writing the model package: the exported graph, and its own predictions as reference."""

from collections.abc import Callable
from pathlib import Path

import keras
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from kfloop.components.contracts.model_io import model_inputs, prediction_column
from kfloop.components.contracts.model_package import (
    GOLDEN,
    PREDICTION,
    REFERENCE,
    SAVED_MODEL,
    ModelPackage,
    write_model_json,
)
from kfloop.components.training.encoder import Encoder

GOLDEN_ROWS = 32


def write_package(
    directory: Path,
    package: ModelPackage,
    encoder: Encoder,
    network: keras.Model,
    label_shift: float,
    label_scale: float,
    reference: pa.Table,
) -> None:
    """Writes a whole model package.

    Args:
        directory: An existing, empty directory.
        package: What goes into `model.json`.
        encoder: Put in front of the network.
        network: Returns logits, or the standardised value.
        label_shift: Regression: mean of the label.
        label_scale: Regression: standard deviation of the label.
        reference: Training rows to keep with their predictions; the first `GOLDEN_ROWS` of them
            are the golden rows.
    """
    saved_model = directory / SAVED_MODEL
    _export(saved_model, package, encoder, network, label_shift, label_scale)
    predict = _load(saved_model, package)
    for path, table in ((REFERENCE, reference), (GOLDEN, reference.slice(0, GOLDEN_ROWS))):
        (directory / path).parent.mkdir(exist_ok=True)
        pq.write_table(
            table.append_column(PREDICTION, predict(table)),
            directory / path,
            coerce_timestamps="us",
        )
    write_model_json(package, directory)


def _export(
    path: Path,
    package: ModelPackage,
    encoder: Encoder,
    network: keras.Model,
    label_shift: float,
    label_scale: float,
) -> None:
    def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = network(encoder(inputs), training=False)
        if package.task == "multiclass":
            return {package.output: tf.nn.softmax(outputs)}
        if package.task == "binary":
            return {package.output: tf.sigmoid(outputs)[:, 0]}
        return {package.output: outputs[:, 0] * label_scale + label_shift}

    signature = {
        feature.name: tf.TensorSpec(
            [None], tf.string if feature.type == "string" else tf.float32, name=feature.name
        )
        for feature in package.features
    }
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.track(encoder)
    archive.add_endpoint("serving_default", serve, input_signature=[signature])
    archive.write_out(str(path), verbose=False)


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
