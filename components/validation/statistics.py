# SPDX-License-Identifier: Apache-2.0
"""Statistics of a dataset, in this process or on an Apache Beam runner."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import (
    dataset_files,
    fingerprint,
    read_schema,
    require_columns,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_bytes
from kfloop.components.validation.batches import Window, read_batches
from kfloop.components.validation.columns import kind_of
from kfloop.components.validation.slices import (
    Columns,
    SlicedStream,
    join,
    parse_slices,
)
from kfloop.components.validation.summary import ALL_ROWS, KIND, of_all_rows

PROGRESS_ROWS = 1_000_000


def compute_statistics(
    dataset: str | Path,
    statistics: str | Path,
    timestamp: str = "",
    since: str = "",
    until: str = "",
    slices: list[str] | None = None,
    minimum_slice_size: int = 100,
    pipeline_options: list[str] | None = None,
    dataset_uri: str = "",
    result_uri: str = "",
) -> dict[str, Any]:
    """Measures a dataset, or a window of it, and writes a DatasetFeatureStatisticsList.

    Memory does not grow with the number of rows. The statistics of slices follow those of all
    rows, under TFDV's names: `origin_JFK`, `carrier_AA_origin_JFK`.

    Args:
        dataset: Directory of Parquet files.
        statistics: File to write: TFDV's binary statistics proto.
        timestamp: Column of event times; needed for a window.
        since: Start of the window, inclusive, ISO 8601; empty for no start.
        until: End of the window, exclusive, ISO 8601; empty for no end.
        slices: Columns to slice by, several joined by commas: `["origin", "origin,carrier"]`.
        minimum_slice_size: Slices of fewer rows are left out and counted in the metadata.
        pipeline_options: Options of an Apache Beam pipeline, such as `--runner=FlinkRunner`; empty
            to measure in this process.
        dataset_uri: The dataset as Beam's workers see it, where they run on other machines.
        result_uri: File there that they can write and this process can read.

    Returns:
        The artifact's metadata: `rows`, `columns`, `slices` (names), `small_slices` (how many were
        left out), `dataset_fingerprint`, `fingerprint` (of the statistics), `timestamp`, `since`,
        `until`.

    Raises:
        InputError: If a column cannot be measured or sliced by, the window holds no rows, there
            are too many slices, or Beam cannot use the options or read the URI.
    """
    if minimum_slice_size < 1:
        raise InputError(f"minimum_slice_size is {minimum_slice_size}; it is at least 1.")
    if timestamp:
        require_columns(dataset, [timestamp])
    window = Window(timestamp, since, until)
    window.check(read_schema(dataset))
    kinds = _kinds(dataset)
    by = parse_slices(slices or [], kinds)
    files = dataset_files(dataset)
    if pipeline_options:
        from kfloop.components.validation.beam import measure_on_beam

        whole, parts = measure_on_beam(files, window, by, pipeline_options, dataset_uri, result_uri)
        measured = join(whole, parts, minimum_slice_size) if by else whole
        small = len(parts) - (len(measured.datasets) - 1)
    else:
        measured, small = _measure_here(files, window, by, minimum_slice_size)
    rows = int(of_all_rows(measured).datasets[0].num_examples)
    if not rows:
        raise InputError(f"The dataset {dataset} holds no rows{window}; check window and source.")

    for each in measured.datasets:
        _complete(each, kinds)
    content = measured.SerializeToString(deterministic=True)
    write_bytes(statistics, content)
    names = [each.name for each in measured.datasets if each.name not in ("", ALL_ROWS)]
    print(f"measured {rows:,} rows × {len(kinds)} columns" + _told(by, names, small), flush=True)
    return {
        "rows": rows,
        "columns": list(kinds),
        "slices": names,
        "small_slices": small,
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


def _measure_here(
    files: list[Path], window: Window, by: list[Columns], minimum_slice_size: int
) -> tuple[Any, int]:
    """Streams all batches through TFDV; returns the statistics and how many slices were small."""
    stream, rows = SlicedStream(by), 0
    # TFDV computes means of infinite values too; that they are infinite is told by a check.
    with np.errstate(invalid="ignore"):
        for file in files:
            for batch in read_batches(file, window):
                stream.add(batch)
                if (rows + batch.num_rows) // PROGRESS_ROWS > rows // PROGRESS_ROWS:
                    print(f"measured {rows + batch.num_rows:,} rows", flush=True)
                rows += batch.num_rows
    measured = stream.statistics(minimum_slice_size)
    return measured, len(stream.names) - (len(measured.datasets) - 1)


def _told(by: list[Columns], names: list[str], small: int) -> str:
    if not by:
        return ""
    return f", {len(names)} slices" + (f" ({small} smaller ones left out)" if small else "")


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
