# SPDX-License-Identifier: Apache-2.0
"""The rows to measure: record batches of a time window, in types that TFDV reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import in_window
from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.columns import clean

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Window:
    """Rows with `since` <= timestamp < `until`; an empty bound is open."""

    timestamp: str = ""
    since: str = ""
    until: str = ""

    def check(self, schema: pa.Schema) -> None:
        """Makes sure that the window can be taken of data of this schema.

        Raises:
            InputError: If the column is not named, not there or not a time, or a bound is no time.
        """
        if not self.since and not self.until:
            return
        if not self.timestamp:
            raise InputError("A window needs the name of the timestamp column; set timestamp.")
        self.mask(pa.RecordBatch.from_pylist([], schema))

    def mask(self, batch: pa.RecordBatch) -> pa.Array:
        """Returns which rows of a batch lie in the window."""
        return in_window(batch[self.timestamp], self.timestamp, self.since, self.until)

    def __str__(self) -> str:
        """Says the window in words, for errors."""
        if not self.since and not self.until:
            return ""
        since, until = self.since or "its start", self.until or "its end"
        return f" between {since} and {until} by {self.timestamp!r}"


def read_batches(source: Path | BinaryIO, window: Window) -> Iterator[pa.RecordBatch]:
    """Yields the cleaned, non-empty batches of the window from one Parquet file."""
    with pq.ParquetFile(source) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS):
            cleaned = clean(batch)
            if window.since or window.until:
                cleaned = cleaned.filter(window.mask(batch))
            if cleaned.num_rows:
                yield cleaned
