# SPDX-License-Identifier: Apache-2.0
"""Runs a model package over a table, as the model server runs it."""

import os
from collections.abc import Callable
from pathlib import Path

# Read when TensorFlow is imported, if it is: its notices bury everything else, and oneDNN lets
# results depend on how rows are batched, so that evaluation and serving would differ in the last
# digits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import MODEL_VERSION
from kfloop.components.contracts.model_io import model_inputs, prediction_column
from kfloop.components.contracts.model_package import PREDICTION, ModelPackage, read_model_json
from kfloop.components.contracts.package_storage import package_directory
from kfloop.components.contracts.runtime import load_graph

_ROWS_AT_ONCE = 65536

Scorer = Callable[[pa.Table], np.ndarray]


def load_scorer(directory: str | Path, package: ModelPackage) -> Scorer:
    """Loads a package's graph as a function from rows to its output.

    It is the ONNX copy where there is one, as in the model server: what is judged is what will
    answer, and importing TensorFlow takes longer than most evaluations.

    The output is 1-D, or rows × classes for multiclass.

    Raises:
        InputError: If the package's graph cannot be used.
    """
    graph = load_graph(str(directory), package, threads=os.cpu_count() or 1)

    def score(table: pa.Table) -> np.ndarray:
        inputs = model_inputs(table, package.features)
        # One piece of no rows too, so that the output has its shape.
        starts = range(0, max(table.num_rows, 1), _ROWS_AT_ONCE)
        return np.concatenate(
            [
                graph(
                    _stacked(inputs, graph.numbers, start, np.float32),
                    _stacked(inputs, graph.texts, start, object),
                )
                for start in starts
            ]
        )

    return score


def _stacked(inputs: dict[str, np.ndarray], names: list[str], start: int, kind: type) -> np.ndarray:
    """Returns a piece of some columns as one array of shape [names, rows]."""
    pieces = [inputs[name][start : start + _ROWS_AT_ONCE] for name in names]
    return np.stack(pieces) if pieces else np.empty((0, 0), kind)


def score_data(model_uri: str, dataset: str | Path, predictions: str | Path) -> dict[str, object]:
    """Predicts every row of a dataset.

    Args:
        model_uri: Model package: a path, or a URI with file://, pvc://, gs:// or s3://.
        dataset: Rows with the model's features.
        predictions: Dataset to write: all columns of `dataset`, with `prediction` and
            `model_version`.

    Returns:
        The metadata of the written dataset.

    Raises:
        InputError: If the dataset is empty, lacks a feature, or has such a column already.
    """
    directory = package_directory(model_uri, whole=True)
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
