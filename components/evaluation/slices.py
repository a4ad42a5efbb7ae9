# SPDX-License-Identifier: Apache-2.0
"""Parts of the data to judge on their own: the values, or ranges of values, of a column."""

import itertools
from dataclasses import dataclass
from typing import Any

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
    Columns joined by a comma are crossed: a slice is the rows that share a slice of each.

    Raises:
        InputError: If a column is missing or is not a number, boolean or string.
    """
    found = []
    for entry in columns:
        names = [entry] if entry in table.column_names else [n.strip() for n in entry.split(",")]
        parts = [_slices_of_named(table, name) for name in names]
        found += parts[0] if len(parts) == 1 else _crossed(parts, table.num_rows)
    return found


def slice_entries(
    parts: list[Slice], metrics: dict[str, dict[str, Any]], minimum_size: int
) -> list[dict[str, Any]]:
    """Returns slices as JSON values: name, rows and metrics; of one that is too small, why.

    Args:
        parts: The slices.
        metrics: Metrics by the slice's name, of those that are large enough.
        minimum_size: Fewest rows that a slice with metrics has.
    """
    entries: list[dict[str, Any]] = []
    for part in parts:
        entry = {"slice": part.name, "rows": len(part.rows), "metrics": metrics.get(part.name, {})}
        if part.name not in metrics:
            entry["why"] = f"fewer than {minimum_size} rows"
        entries.append(entry)
    return entries


def _slices_of_named(table: pa.Table, name: str) -> list[Slice]:
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
    return _slices_of_column(name, table[name], kind)


def _crossed(parts: list[list[Slice]], rows: int) -> list[Slice]:
    """Returns the combinations that occur."""
    if not rows:
        return []
    positions = np.empty((len(parts), rows), int)
    for line, slices in zip(positions, parts, strict=True):
        for position, part in enumerate(slices):
            line[part.rows] = position
    sizes = tuple(map(len, parts))
    codes = np.ravel_multi_index(tuple(positions), sizes)
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    crossed = [
        Slice(
            ", ".join(
                slices[position].name
                for slices, position in zip(parts, np.unravel_index(code, sizes), strict=True)
            ),
            members,
        )
        for code, members in zip(present, np.split(order, starts[1:]), strict=True)
    ]
    return sorted(crossed, key=lambda part: (-len(part.rows), part.name))


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
