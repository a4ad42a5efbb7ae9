"""Statistics of a dataset: Parquet record batches streamed through TFDV's generators."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import (
    dataset_files,
    fingerprint,
    in_window,
    read_schema,
    require_columns,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_bytes
from kfloop.components.validation.columns import clean, kind_of
from kfloop.components.validation.summary import KIND
from kfloop.components.validation.tfdv import StatisticsStream

BATCH_ROWS = 65_536


def compute_statistics(
    dataset: str | Path,
    statistics: str | Path,
    timestamp: str = "",
    since: str = "",
    until: str = "",
) -> dict[str, Any]:
    """Measures a dataset, or a window of it, and writes a DatasetFeatureStatisticsList.

    Memory does not grow with the number of rows.

    Args:
        dataset: Directory of Parquet files.
        statistics: File to write: TFDV's binary statistics proto.
        timestamp: Column of event times; needed for a window.
        since: Start of the window, inclusive, ISO 8601; empty for no start.
        until: End of the window, exclusive, ISO 8601; empty for no end.

    Returns:
        The artifact's metadata: `rows`, `columns`, `dataset_fingerprint`, `fingerprint` (of the
        statistics), `timestamp`, `since`, `until`.

    Raises:
        InputError: If a column cannot be measured or the window holds no rows.
    """
    if (since or until) and not timestamp:
        raise InputError("A window needs the name of the timestamp column; set timestamp.")
    if timestamp:
        require_columns(dataset, [timestamp])
    kinds = _kinds(dataset)
    rows, stream = 0, StatisticsStream()
    for batch in _batches(dataset, timestamp, since, until):
        stream.add(batch)
        if (rows + batch.num_rows) // 1_000_000 > rows // 1_000_000:
            print(f"measured {rows + batch.num_rows:,} rows", flush=True)
        rows += batch.num_rows
    if not rows:
        raise InputError(_no_rows(dataset, timestamp, since, until))

    measured = stream.statistics()
    _complete(measured.datasets[0], kinds)
    content = measured.SerializeToString(deterministic=True)
    write_bytes(statistics, content)
    print(f"measured {rows:,} rows × {len(kinds)} columns", flush=True)
    return {
        "rows": rows,
        "columns": list(kinds),
        "dataset_fingerprint": fingerprint(dataset),
        "fingerprint": hashlib.sha256(content).hexdigest(),
        "timestamp": timestamp,
        "since": since,
        "until": until,
    }


def _kinds(dataset: str | Path) -> dict[str, str]:
    """Returns what each column holds, and makes sure that all files agree."""
    schema = read_schema(dataset)
    if not schema.names:
        raise InputError(f"{dataset} has no columns.")
    for file in dataset_files(dataset):
        other = pq.read_schema(file)
        if not other.equals(schema):
            raise InputError(
                f"{file.name} of the dataset {dataset} has other columns or types than its first "
                "file; write the dataset anew with one schema."
            )
    return {field.name: kind_of(field.name, field.type) for field in schema}


def _batches(
    dataset: str | Path, timestamp: str, since: str, until: str
) -> Iterator[pa.RecordBatch]:
    """Yields the cleaned, non-empty batches of the window."""
    for file in dataset_files(dataset):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS):
                cleaned = clean(batch)
                if since or until:
                    inside = in_window(batch[timestamp], timestamp, since, until)
                    cleaned = cleaned.filter(inside)
                if cleaned.num_rows:
                    yield cleaned


def _no_rows(dataset: str | Path, timestamp: str, since: str, until: str) -> str:
    if not since and not until:
        return f"The dataset {dataset} holds no rows."
    return (
        f"The dataset {dataset} holds no rows between {since or 'its start'} and "
        f"{until or 'its end'} by {timestamp!r}; check the window and the source."
    )


def _complete(dataset: Any, kinds: dict[str, str]) -> None:
    """Puts the columns into the dataset's order and says what each holds."""
    measured = {feature.path.step[0]: feature for feature in dataset.features}
    ordered = []
    for name, kind in kinds.items():
        feature = type(dataset.features[0])()
        feature.CopyFrom(measured[name])
        feature.custom_stats.add(name=KIND, str=kind)
        ordered.append(feature)
    del dataset.features[:]
    dataset.features.extend(ordered)
