# SPDX-License-Identifier: Apache-2.0
"""The same statistics on an Apache Beam runner, for data that is too large for one machine.

Each file of the dataset is read by a worker, and its batches go through TFDV's GenerateStatistics
with the same options and slices as in one process. Workers need this family's packages and kfloop:
on Dataflow, Flink or Spark give them its image (`--sdk_container_image`).
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tensorflow_metadata.proto.v0 import statistics_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.batches import Window, read_batches
from kfloop.components.validation.slices import MAXIMUM_SLICES, Columns, cut, too_many
from kfloop.components.validation.summary import ALL_ROWS
from kfloop.components.validation.tfdv import (
    OF_A_SLICE,
    OF_ALL_ROWS,
    canonical,
    stats_options,
    tfdv,
)

SLICES = ".slices"  # ends the name of the file with the slices' statistics
DIRECT = ("", "DirectRunner")
# Runners that work on this machine, and so see its files.
LOCAL_RUNNERS = (*DIRECT, "BundleBasedDirectRunner", "FnApiRunner", "PrismRunner")


def measure_on_beam(
    files: list[Path],
    window: Window,
    slices: list[Columns],
    pipeline_options: list[str],
    dataset_uri: str = "",
    result_uri: str = "",
) -> tuple[Any, list[Any]]:
    """Measures all rows, and every slice.

    Args:
        files: The dataset's files on this machine.
        window: Rows to measure.
        slices: Columns to slice by.
        pipeline_options: Beam's options, such as `--runner=DirectRunner`.
        dataset_uri: The dataset's directory as the workers see it; used by runners that work
            elsewhere, and only if it is a URI with a scheme.
        result_uri: File that workers can write and this process can read; like `dataset_uri`.

    Returns:
        A DatasetFeatureStatisticsList of all rows, and the DatasetFeatureStatistics of each slice.

    Raises:
        InputError: If Beam knows no file system for a URI, or there are too many slices.
    """
    tfdv()
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    options = PipelineOptions(pipeline_options)
    runner = (options.view_as(StandardOptions).runner or "").rsplit(".", 1)[-1]
    elsewhere = runner not in LOCAL_RUNNERS
    with tempfile.TemporaryDirectory() as scratch:
        paths, result = [str(file.absolute()) for file in files], f"{scratch}/statistics.pb"
        if elsewhere and "://" in dataset_uri and "://" in result_uri:
            paths = [f"{dataset_uri.rstrip('/')}/{file.name}" for file in files]
            result = f"{result_uri}.beam"
        try:
            FileSystems.get_filesystem(paths[0])
            FileSystems.get_filesystem(result)
        except ValueError as error:
            raise InputError(f"Beam's {runner} cannot reach {paths[0]}: {error}") from error
        print(f"measuring {len(paths)} files on {runner or 'DirectRunner'}", flush=True)
        try:
            _run(paths, window, slices, options, result)
        except (RuntimeError, ValueError) as error:  # what runners make of an error in a worker
            for columns in slices:
                if str(too_many(columns)) in str(error):
                    raise too_many(columns) from error
            raise
        whole = _collect(result)
        # TFDV measures all rows beside the slices once more.
        found = _collect(result + SLICES).datasets if slices else []
        parts = [each for each in found if each.name != ALL_ROWS]
    if len(parts) > MAXIMUM_SLICES:
        raise too_many()
    return whole, parts


def _run(
    paths: list[str], window: Window, slices: list[Columns], options: Any, result: str
) -> None:
    import apache_beam as beam

    with beam.Pipeline(_runner(options), options) as pipeline:
        batches = (
            pipeline
            | "Files" >> beam.Create(paths)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, window).with_output_types(pa.RecordBatch)
        )
        _ = (
            batches
            | "Measure" >> tfdv().GenerateStatistics(stats_options(OF_ALL_ROWS))
            | "Write" >> tfdv().WriteStatisticsToBinaryFile(result)
        )
        if slices:
            functions = [_slice_function(columns) for columns in slices]
            _ = (
                batches
                | "MeasureSlices" >> tfdv().GenerateStatistics(stats_options(OF_A_SLICE, functions))
                | "WriteSlices" >> tfdv().WriteStatisticsToBinaryFile(result + SLICES)
            )


def _runner(options: Any) -> Any:
    """Returns the runner to use instead of the one in the options, or None.

    Beam's DirectRunner first downloads another runner, Prism, and falls back to this one where it
    cannot. Nothing is to be installed at run time.
    """
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

    return FnApiRunner() if (options.view_as(StandardOptions).runner or "") in DIRECT else None


def _collect(path: str) -> Any:
    """Reads the statistics that workers wrote, and removes the file."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as stream:
        found = statistics_pb2.DatasetFeatureStatisticsList.FromString(stream.read())
    FileSystems.delete([path])
    return found


def _read(path: str, window: Window) -> Iterator[pa.RecordBatch]:
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as stream:
        for batch in read_batches(stream, window):
            yield canonical(batch)


def _slice_function(columns: Columns) -> Callable[[pa.RecordBatch], Any]:
    def slice_function(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        return cut(batch, columns)

    return slice_function  # TFDV takes no other callable
