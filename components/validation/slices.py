# SPDX-License-Identifier: Apache-2.0
"""Slices: the rows of a dataset with one value in a column, or in several, such as each carrier."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import statistics_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.summary import ALL_ROWS
from kfloop.components.validation.tfdv import OF_A_SLICE, StatisticsStream

SLICEABLE = ("string", "int", "bool")
# The sketches of a slice take about 2 MB for each numeric column.
MAXIMUM_SLICES = 200
# Measuring costs about as much for a few rows as for thousands, so rows are gathered first.
WAITING_ROWS = 262_144

Columns = tuple[str, ...]


def parse_slices(slices: list[str], kinds: dict[str, str]) -> list[Columns]:
    """Parses what a dataset is sliced by: a column, or several joined by commas.

    Args:
        slices: For example `["origin", "origin,carrier"]`.
        kinds: The kind of each column of the dataset, see columns.KINDS.

    Returns:
        The columns of each, sorted by name as in TFDV's names of slices, without repetitions.

    Raises:
        InputError: If a column is missing, or has values that nobody would slice by.
    """
    parsed = []
    for text in slices:
        columns = tuple(sorted({name.strip() for name in text.split(",")}))
        for name in columns:
            if name not in kinds:
                raise InputError(
                    f"Column {name!r} of the slice {text!r} is missing; "
                    f"the dataset has {', '.join(kinds)}."
                )
            if kinds[name] not in SLICEABLE:
                raise InputError(
                    f"Column {name!r} of the slice {text!r} holds {kinds[name]}; "
                    f"slice by a column of {', '.join(SLICEABLE)}."
                )
        parsed.append(columns)
    return list(dict.fromkeys(parsed))


def cut(batch: pa.RecordBatch, columns: Columns) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields the slices of a batch under the names that TFDV gives them, `origin_JFK`.

    A row without a value in one of the columns is in no slice, as in TFDV.

    Args:
        batch: A batch as `clean` returns it, or in the canonical form of TFDV, lists of one value.
        columns: The columns to slice by.

    Raises:
        InputError: If the batch alone has more than `MAXIMUM_SLICES` of them.
    """
    keys = [_values(batch.column(name)) for name in columns]
    present = np.flatnonzero(np.all([key.is_valid().to_numpy(False) for key in keys], axis=0))
    keys = [key.take(pa.array(present)) for key in keys]
    groups = np.zeros(len(present), np.int64)
    for key in keys:
        encoded = key.dictionary_encode()
        groups = groups * len(encoded.dictionary) + encoded.indices.to_numpy()
        groups = np.unique(groups, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    if len(starts) > MAXIMUM_SLICES:
        raise too_many(columns)
    ordered = batch.take(pa.array(present[order]))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        values = [_text(key[int(order[start])].as_py()) for key in keys]
        name = "_".join(f"{name}_{value}" for name, value in zip(columns, values, strict=True))
        yield name, ordered.slice(start, end - start)


def too_many(columns: Columns | None = None) -> InputError:
    """Returns the error of a dataset with more slices than fit into memory."""
    by = f" by {','.join(columns)}" if columns else ""
    return InputError(
        f"The dataset has more than {MAXIMUM_SLICES} slices{by}; slice by columns of fewer values."
    )


class SlicedStream:
    """Statistics of all rows and of every slice, in one pass and bounded memory."""

    def __init__(self, slices: list[Columns]) -> None:
        self._slices = slices
        self._all = StatisticsStream()
        self._streams: dict[str, StatisticsStream] = {}
        self._owners: dict[str, Columns] = {}
        self._waiting: dict[str, list[pa.RecordBatch]] = {}
        self._waiting_rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds the rows of a batch as `clean` returns it.

        Raises:
            InputError: If there are too many slices, or two that TFDV would call the same.
        """
        self._all.add(batch)
        for columns in self._slices:
            for name, part in cut(batch, columns):
                if self._owners.setdefault(name, columns) != columns:
                    raise InputError(
                        f"Two slices are named {name!r}, by {','.join(columns)} and by "
                        f"{','.join(self._owners[name])}; rename a column in the query."
                    )
                self._waiting.setdefault(name, []).append(part)
                self._waiting_rows += part.num_rows
            if len(self._owners) > MAXIMUM_SLICES:
                raise too_many()
        if self._waiting_rows >= WAITING_ROWS:
            self._measure_waiting()

    def statistics(self, minimum_size: int) -> Any:
        """Returns a DatasetFeatureStatisticsList, see `join`."""
        self._measure_waiting()
        found = self._all.statistics()
        if not self._slices:
            return found
        parts = []
        for name, stream in self._streams.items():
            if stream.rows >= minimum_size:  # the histograms take time
                part = stream.statistics().datasets[0]
                part.name = name
                parts.append(part)
        return join(found, parts, minimum_size)

    @property
    def names(self) -> list[str]:
        """The names of all slices seen so far, small ones too."""
        return sorted(self._owners)

    def _measure_waiting(self) -> None:
        for name, parts in self._waiting.items():
            table = pa.Table.from_batches(parts).combine_chunks()
            for batch in table.to_batches():
                self._streams.setdefault(name, StatisticsStream(OF_A_SLICE)).add(batch)
        self._waiting, self._waiting_rows = {}, 0


def join(whole: Any, parts: Iterable[Any], minimum_size: int) -> Any:
    """Returns the statistics of all rows, then of each slice by name, small ones left out.

    Args:
        whole: DatasetFeatureStatisticsList of all rows.
        parts: DatasetFeatureStatistics of slices.
        minimum_size: Fewest rows of a slice that is kept.
    """
    result = statistics_pb2.DatasetFeatureStatisticsList()
    result.CopyFrom(whole)
    result.datasets[0].name = ALL_ROWS
    large = (part for part in parts if part.num_examples >= minimum_size)
    result.datasets.extend(sorted(large, key=lambda part: part.name))
    return result


def _values(column: pa.Array) -> pa.Array:
    """Returns a value or null for each row, also of a column of lists of one value."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.list_element(column, 0)
    return column


def _text(value: str | bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
