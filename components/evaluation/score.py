"""Runs a model package over a table."""

import os
from collections.abc import Callable
from pathlib import Path

# Before TensorFlow is imported: its notices bury everything else, and oneDNN lets results depend on
# how rows are batched, so that evaluation and serving would differ in the last digits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import pyarrow as pa
import tensorflow as tf

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path
from kfloop.components.contracts.inference_log import MODEL_VERSION
from kfloop.components.contracts.model_io import model_inputs, prediction_column
from kfloop.components.contracts.model_package import (
    PREDICTION,
    SAVED_MODEL,
    ModelPackage,
    read_model_json,
)

_ROWS_AT_ONCE = 65536

Scorer = Callable[[pa.Table], np.ndarray]


def load_scorer(directory: str | Path, package: ModelPackage) -> Scorer:
    """Loads a package's SavedModel as a function from rows to its output.

    The output is 1-D, or rows × classes for multiclass.

    Raises:
        InputError: If the package holds no SavedModel.
    """
    path = Path(directory) / SAVED_MODEL
    if not (path / "saved_model.pb").is_file():
        raise InputError(f"The model package {directory} holds no SavedModel in {SAVED_MODEL}/.")
    module = tf.saved_model.load(str(path))

    def score(table: pa.Table) -> np.ndarray:
        inputs = model_inputs(table, package.features)
        pieces = [
            # Through the module, which the closure must hold: its variables die with it.
            module.signatures["serving_default"](
                **{
                    name: tf.constant(values[start : start + _ROWS_AT_ONCE])
                    for name, values in inputs.items()
                }
            )[package.output].numpy()
            # One piece of no rows too, so that the output has its shape.
            for start in range(0, max(table.num_rows, 1), _ROWS_AT_ONCE)
        ]
        return np.concatenate(pieces)

    return score


def score_data(model_uri: str, dataset: str | Path, predictions: str | Path) -> dict[str, object]:
    """Predicts every row of a dataset.

    Args:
        model_uri: Model package, as a path or file:// URI.
        dataset: Rows with the model's features.
        predictions: Dataset to write: all columns of `dataset`, with `prediction` and
            `model_version`.

    Returns:
        The metadata of the written dataset.

    Raises:
        InputError: If the dataset is empty, lacks a feature, or has such a column already.
    """
    directory = local_path(model_uri, "model_uri")
    package = read_model_json(directory)
    table = read_dataset(dataset)
    if not table.num_rows:
        raise InputError(f"The dataset {dataset} has no rows to score; check its window.")
    for column in (PREDICTION, MODEL_VERSION):
        if column in table.column_names:
            raise InputError(
                f"The dataset {dataset} already has a column {column!r}; rename it in the query."
            )
    outputs = load_scorer(directory, package)(table)
    versions = pa.array([package.version] * table.num_rows, pa.string())
    scored = table.append_column(PREDICTION, prediction_column(outputs, package))
    timestamp = package.timestamp if package.timestamp in table.column_names else ""
    return write_dataset(scored.append_column(MODEL_VERSION, versions), predictions, timestamp)
