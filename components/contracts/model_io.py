# SPDX-License-Identifier: Apache-2.0
"""From table columns to a model package's SavedModel and back: one rule, everywhere.

Numbers and booleans go in as float32 with NaN for null, strings with "" for null. The prediction
that is kept is the probability of the positive class, the most probable class, or the value.
"""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, ModelPackage

if TYPE_CHECKING:
    import numpy as np


def feature_type(column: pa.DataType) -> str:
    """Returns which of `FEATURE_TYPES` an Arrow type is, or "" when it cannot be a feature."""
    if pa.types.is_dictionary(column):
        column = column.value_type
    if pa.types.is_boolean(column):
        return "bool"
    if pa.types.is_integer(column):
        return "int"
    if pa.types.is_floating(column) or pa.types.is_decimal(column):
        return "float"
    if pa.types.is_string(column) or pa.types.is_large_string(column):
        return "string"
    return ""


def model_inputs(table: pa.Table, features: list[Feature]) -> dict[str, "np.ndarray"]:
    """Returns one array per feature: float32, or Python strings as objects.

    A column without any value (Arrow type null) counts as all missing.

    Raises:
        InputError: If a feature's column is missing, or holds text where the model takes a number
            or the reverse.
    """
    present = set(table.column_names)  # asked for once: Arrow makes a new list each time
    missing = [feature.name for feature in features if feature.name not in present]
    if missing:
        raise InputError(
            f"The model needs {', '.join(map(repr, missing))}, which the data lacks; "
            f"it has {', '.join(table.column_names)}."
        )
    return {feature.name: _array(table[feature.name], feature) for feature in features}


def prediction_column(outputs: "np.ndarray", package: ModelPackage) -> pa.Array:
    """Returns the output named `package.output` as the column `prediction`: float64 or string."""
    if package.task == "multiclass":
        return pa.array(package.classes, pa.string()).take(pa.array(outputs.argmax(axis=1)))
    return pa.array(outputs).cast(pa.float64())


def _array(column: pa.ChunkedArray, feature: Feature) -> "np.ndarray":
    text = feature.type == "string"
    if not pa.types.is_null(column.type):
        found = feature_type(column.type)
        if not found or (found == "string") != text:
            raise InputError(
                f"The model takes {feature.name!r} as {feature.type}, but the data holds "
                f"{column.type}; cast it in the query."
            )
    if text:
        return pc.fill_null(column.cast(pa.string()), "").to_numpy()
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    # safe=False: an integer beyond 2**24 is rounded to the nearest float32, as the graph would.
    return pc.fill_null(column.cast(pa.float32(), safe=False), float("nan")).to_numpy()
