# SPDX-License-Identifier: Apache-2.0
"""Reading published model packages: where they are, and their rows as request instances."""

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.model_package import PREDICTION
from kfloop.components.contracts.package_storage import package_directory

Instance = dict[str, Any]


def package_rows(
    model_uri: str, file: str, columns: list[str], limit: int
) -> tuple[list[Instance], list[Any]]:
    """Returns up to `limit` rows of a package's Parquet file as instances and predictions.

    Args:
        model_uri: The published package.
        file: `REFERENCE` or `GOLDEN` of the contract.
        columns: Columns of an instance; one that the file lacks is left out.
        limit: Largest number of rows; they are taken evenly from the whole file.
    """
    table = pq.read_table(package_directory(model_uri) / file)
    if table.num_rows > limit:
        table = table.take(pa.array(range(table.num_rows))[:: table.num_rows // limit][:limit])
    return instances_of(table, columns), table[PREDICTION].to_pylist()


def instances_of(table: pa.Table | pa.RecordBatch, columns: list[str]) -> list[Instance]:
    """Turns rows into what a JSON request carries: NaN becomes null, times become ISO 8601."""
    present = [column for column in columns if column in table.schema.names]
    return [
        {name: _json_value(value) for name, value in row.items()}
        for row in table.select(present).to_pylist()
    ]


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return value
