# SPDX-License-Identifier: Apache-2.0
"""How long the model takes on this machine, without a server around it."""

import statistics
import time

import pyarrow as pa

from kfloop.components.evaluation.score import Scorer

BATCH_ROWS = 256
_ROW_CALLS, _BATCH_CALLS = 30, 5


def measure_latency(score: Scorer, table: pa.Table) -> dict[str, float]:
    """Returns the median milliseconds of one row, and of a batch, from table to output.

    It is of this machine and leaves out the network, the server and the encoding of requests: good
    for finding a model that became ten times as slow, not for a promise to callers.

    Returns:
        `row_ms`, `batch_ms` and `batch_rows` (at most `BATCH_ROWS`); nothing without rows.
    """
    if not table.num_rows:
        return {}
    batch = table.slice(0, BATCH_ROWS)
    return {
        "row_ms": _median_ms(score, table.slice(0, 1), _ROW_CALLS),
        "batch_ms": _median_ms(score, batch, _BATCH_CALLS),
        "batch_rows": batch.num_rows,
    }


def _median_ms(score: Scorer, rows: pa.Table, calls: int) -> float:
    score(rows)  # the first call of a shape is slower
    took = []
    for _ in range(calls):
        started = time.perf_counter()
        score(rows)
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)
