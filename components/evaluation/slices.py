"""Parts of the data to judge on their own: the values, or ranges of values, of a column."""

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import feature_type

# More values than this: text is cut to the most frequent, numbers become quartiles.
MAXIMUM_VALUES = 20
MISSING = "(missing)"


@dataclass
class Slice:
    """Rows that share a value: its name, as `column=value`, and their positions."""

    name: str
    rows: np.ndarray


def slices_of(table: pa.Table, columns: list[str]) -> list[Slice]:
    """Returns the slices of each column, largest first; together they hold every row once.

    Missing values are a slice, and so are all values beyond the `MAXIMUM_VALUES` most frequent.

    Raises:
        InputError: If a column is missing or is not a number, boolean or string.
    """
    found = []
    for name in columns:
        if name not in table.column_names:
            raise InputError(
                f"The slice column {name!r} is not in the evaluation data; "
                f"it has {', '.join(table.column_names)}."
            )
        kind = feature_type(table[name].type)
        if not kind:
            raise InputError(
                f"The slice column {name!r} holds {table[name].type}; slices are made of numbers, "
                "booleans and strings."
            )
        found += _slices_of_column(name, table[name], kind)
    return found


def _slices_of_column(name: str, column: pa.ChunkedArray, kind: str) -> list[Slice]:
    if kind in ("int", "float") and pc.count_distinct(column).as_py() > MAXIMUM_VALUES:
        labels, codes = _quartiles(column.cast(pa.float64()).to_numpy())
    else:
        encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
        labels = encoded.dictionary.to_pylist()
        codes = pc.fill_null(encoded.indices, -1).to_numpy()
    sizes = np.bincount(codes[codes >= 0], minlength=len(labels))
    ranked = sorted(range(len(labels)), key=lambda code: (-sizes[code], labels[code]))
    kept, others = ranked[:MAXIMUM_VALUES], ranked[MAXIMUM_VALUES:]
    parts = [Slice(f"{name}={labels[code]}", np.flatnonzero(codes == code)) for code in kept]
    if others:
        rest = np.flatnonzero(np.isin(codes, others))
        parts.append(Slice(f"{name}=({len(others)} other values)", rest))
    if (codes < 0).any():
        parts.append(Slice(f"{name}={MISSING}", np.flatnonzero(codes < 0)))
    return parts


def _quartiles(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns the names of the ranges and the range of each row; -1 for missing values."""
    present = np.isfinite(values)
    edges = np.unique(np.quantile(values[present], [0.0, 0.25, 0.5, 0.75, 1.0]))
    codes = np.searchsorted(edges[1:-1], values, side="right")
    last = len(edges) - 2
    labels = [
        f"[{low:.6g}, {high:.6g}{']' if index == last else ')'}"
        for index, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    return labels, np.where(present, codes, -1)
