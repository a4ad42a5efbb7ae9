# SPDX-License-Identifier: Apache-2.0
"""Which rows say when to stop: the latest ones, or a random draw; never held in memory.

A split is asked for the mask of one table after the other, so that neither the timestamps nor the
row numbers of a large dataset have to be kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import isoformat, read_schema, row_count
from kfloop.components.contracts.errors import InputError
from kfloop.components.training.reading import read_tables

# Bins of a pass over the timestamps: three passes tell microseconds apart within eight years.
_BINS = 1 << 16
_BLOCK_ROWS = 65536

Parts = Iterator[tuple[pa.Table, np.ndarray]]


@dataclass(frozen=True)
class LatestRows:
    """The rows with the latest timestamps.

    Attributes:
        rows: Rows of the dataset.
        held: Rows that are held out.
        column: The timestamp.
        threshold: Every later row is held out (the timestamp as an integer in its own unit).
        skipped: Rows at the threshold, the first in the data's order, that are learned from; those
            behind them are held out.
        since: Earliest timestamp of all rows, ISO 8601.
        until: Latest timestamp of all rows, ISO 8601.
    """

    rows: int
    held: int
    column: str
    threshold: int
    skipped: int
    since: str
    until: str

    def parts(self, tables: Iterator[pa.Table]) -> Parts:
        """Yields all tables of the dataset in order, each with the mask of the rows held out."""
        seen = 0
        for table in tables:
            moments = _integers(table[self.column])
            equal = moments == self.threshold
            nth = seen + np.cumsum(equal)
            yield table, (moments > self.threshold) | (equal & (nth > self.skipped))
            seen += int(equal.sum())


@dataclass(frozen=True)
class RandomRows:
    """A random draw without replacement; a row's fate depends on its number alone.

    Attributes:
        rows: Rows of the dataset.
        held: Rows to hold out.
        seed: Of the draw.
    """

    rows: int
    held: int
    seed: int

    def parts(self, tables: Iterator[pa.Table]) -> Parts:
        """Yields all tables of the dataset in order, each with the mask of the rows held out."""
        masks = self._blocks()
        waiting = np.zeros(0, bool)
        for table in tables:
            while len(waiting) < table.num_rows:
                waiting = np.concatenate([waiting, next(masks)])
            yield table, waiting[: table.num_rows]
            waiting = waiting[table.num_rows :]

    def _blocks(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng(self.seed)
        rows, held = self.rows, self.held
        while rows:
            size = min(_BLOCK_ROWS, rows)
            count = int(random.hypergeometric(held, rows - held, size))
            mask = np.zeros(size, bool)
            mask[random.choice(size, count, replace=False)] = True
            yield mask
            rows, held = rows - size, held - count


def split_rows(
    dataset: str | Path, timestamp: str, fraction: float, seed: int
) -> LatestRows | RandomRows:
    """Decides which rows are held out.

    Args:
        dataset: The training dataset.
        timestamp: Its event time; empty for a random draw.
        fraction: Share of the rows to hold out.
        seed: Of the draw.

    Raises:
        InputError: If there are too few rows, or the timestamp cannot order them.
    """
    rows = row_count(dataset)
    held = round(rows * fraction)
    if held < 1 or held >= rows:
        raise InputError(
            f"{rows} training rows cannot be split with validation_fraction {fraction}; "
            "give more rows."
        )
    if not timestamp:
        return RandomRows(rows, held, seed)
    kind = read_schema(dataset).field(timestamp).type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise InputError(f"The timestamp {timestamp!r} holds {kind}; cast it in the query.")
    nulls, bounds = 0, []
    for table in read_tables(dataset, [timestamp]):
        nulls += table[timestamp].null_count
        moments = _integers(table[timestamp].drop_null())
        bounds += [int(moments.min()), int(moments.max())] if len(moments) else []
    if nulls:
        raise InputError(
            f"The timestamp {timestamp!r} is null in {nulls} rows; filter them out in the query."
        )
    low, high = min(bounds), max(bounds)
    since, until = (
        isoformat(pa.scalar(bound, _integer(kind)).cast(kind).as_py()) for bound in (low, high)
    )
    threshold, skipped = _threshold(dataset, timestamp, held, low, high)
    return LatestRows(rows, held, timestamp, threshold, skipped, since, until)


def _threshold(
    dataset: str | Path, timestamp: str, held: int, low: int, high: int
) -> tuple[int, int]:
    """Returns the timestamp of the earliest row held out, and how many rows at it are not.

    A histogram of the range that is left narrows it down to one value.
    """
    wanted = held  # rows to hold out of those up to `high`
    while True:
        width = -(-(high - low + 1) // _BINS)
        counts = np.zeros(_BINS, np.int64)
        for table in read_tables(dataset, [timestamp]):
            moments = _integers(table[timestamp])
            inside = moments[(moments >= low) & (moments <= high)]
            counts += np.bincount((inside - low) // width, minlength=_BINS)
        later = np.cumsum(counts[::-1])[::-1]  # rows in a bin and behind it
        bin_of = int(np.flatnonzero(later >= wanted)[-1])
        wanted -= int(later[bin_of] - counts[bin_of])
        low += bin_of * width
        high = low + width - 1
        if width == 1:
            return low, int(counts[bin_of]) - wanted


def _integer(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(kind) else pa.int64()


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(_integer(column.type)).to_numpy().astype(np.int64)
