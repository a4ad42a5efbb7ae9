# SPDX-License-Identifier: Apache-2.0
"""A window of the inference log: which of its rows count, and its columns as values."""

from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.dataset import isoformat
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import EVENT_TIME, MODEL_VERSION, STATUS

FIRST_FAILED_STATUS = 400

Numbers: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """The answered requests of a window.

    Attributes:
        rows: Answered requests only.
        failed: How many requests were left out because they failed (status 400 and above).
        since: Oldest event time, ISO 8601, or empty.
        until: Newest event time, ISO 8601, or empty.
    """

    rows: pa.Table
    failed: int
    since: str
    until: str


def answered(table: pa.Table) -> Window:
    """Leaves out failed requests; a table without `status` is a plain dataset and kept whole."""
    rows = table
    if STATUS in table.column_names:
        rows = table.filter(pc.less(table[STATUS], FIRST_FAILED_STATUS))
    since, until = _bounds(table)
    return Window(rows, table.num_rows - rows.num_rows, since, until)


def of_version(table: pa.Table, version: str) -> pa.Table:
    """Keeps the rows that `version` answered; all of them when the rows or the model tell none."""
    if not version or MODEL_VERSION not in table.column_names:
        return table
    return table.filter(pc.equal(table[MODEL_VERSION].cast(pa.string()), version))


def _bounds(table: pa.Table) -> tuple[str, str]:
    if EVENT_TIME not in table.column_names:
        return "", ""
    bounds: Any = pc.min_max(table[EVENT_TIME])
    if bounds["min"].as_py() is None:
        return "", ""
    oldest, newest = bounds["min"].as_py(), bounds["max"].as_py()
    if not isinstance(oldest, date):  # a datetime is a date too
        raise InputError(f"Column {EVENT_TIME!r} holds {table[EVENT_TIME].type}, not timestamps.")
    return isoformat(oldest), isoformat(newest)


def sample(table: pa.Table, rows: int, seed: int) -> pa.Table:
    """Returns at most `rows` rows, drawn without replacement, in their order."""
    if table.num_rows <= rows:
        return table
    chosen = np.random.default_rng(seed).choice(table.num_rows, rows, replace=False)
    return table.take(pa.array(np.sort(chosen)))


def numbers(table: pa.Table, column: str) -> Numbers:
    """Returns a column as floats; null and infinite values become NaN.

    A column that is not in the table is all missing: a feature that no client sends any more.

    Raises:
        InputError: If the column holds text that is not a number.
    """
    if column not in table.column_names:
        return np.full(table.num_rows, np.nan)
    try:
        values = table[column].cast(pa.float64(), safe=False).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"Column {column!r} is a number to the model, but the window holds "
            f"{table[column].type} that cannot be read as one."
        ) from error
    return np.where(np.isfinite(values), values, np.nan)


def texts(table: pa.Table, column: str, boolean: bool = False) -> pa.ChunkedArray:
    """Returns a column as strings; null and "" become null.

    Args:
        table: The rows.
        column: The column; one that is not in the table is all null.
        boolean: Whether it is true or false, however it was stored (bool, 0/1, 0.0/1.0).
    """
    if column not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    values = table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if boolean and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        values = pc.not_equal(values.cast(pa.float64()), 0.0)
    strings = values.cast(pa.string())
    return pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)
