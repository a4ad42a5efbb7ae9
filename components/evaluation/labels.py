# SPDX-License-Identifier: Apache-2.0
"""The true labels of evaluation rows, in the form the metrics take."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import feature_type
from kfloop.components.contracts.model_package import ModelPackage


def read_labels(table: pa.Table, package: ModelPackage) -> np.ndarray:
    """Returns 0.0 and 1.0 (binary), positions in `package.classes` or numbers (regression).

    Unlike in training, a label may be constant here: metrics that this leaves undefined say so.

    Raises:
        InputError: If the label column is missing, has nulls or does not fit the model's task.
    """
    name = package.label
    if name not in table.column_names:
        raise InputError(
            f"The label {name!r} is not in the evaluation data; "
            f"it has {', '.join(table.column_names)}."
        )
    column = table[name]
    if column.null_count:
        raise InputError(
            f"The label {name!r} is null in {column.null_count} of {len(column)} evaluation rows; "
            "filter those rows out in the query."
        )
    if package.task == "multiclass":
        return _positions(column, package)
    values = _numbers(column, name)
    if package.task == "binary" and not np.isin(values, (0.0, 1.0)).all():
        raise InputError(f"The label {name!r} of a binary model must be a boolean or 0 and 1.")
    return values


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    if feature_type(column.type) not in ("float", "int", "bool"):
        raise InputError(f"The label {name!r} holds {column.type}; the model predicts a number.")
    # Whole numbers beyond 2**53 are rounded.
    values: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()
    if not np.isfinite(values).all():
        raise InputError(
            f"The label {name!r} holds NaN or infinity in {int((~np.isfinite(values)).sum())} "
            "evaluation rows; filter those rows out in the query."
        )
    return values


def _positions(column: pa.ChunkedArray, package: ModelPackage) -> np.ndarray:
    if feature_type(column.type) != "string":
        # As in training: 2.0 and 2 are the class "2".
        column = pa.chunked_array([_numbers(column, package.label)]).cast(pa.int64())
    positions = pc.index_in(column.cast(pa.string()), pa.array(package.classes, pa.string()))
    unknown = pc.unique(column.filter(pc.is_null(positions)))
    if len(unknown):
        raise InputError(
            f"The label {package.label!r} holds {', '.join(map(repr, unknown.to_pylist()[:5]))}, "
            "which the model was not trained on; train on rows of it, or filter it out."
        )
    return positions.to_numpy()
