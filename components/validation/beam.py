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
from kfloop.components.validation.tfdv import canonical, stats_options, tfdv

# Runners that work on this machine, and so see its files.
LOCAL_RUNNERS = ("", "DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "PrismRunner")


def measure_on_beam(
    files: list[Path],
    window: Window,
    slices: list[Columns],
    pipeline_options: list[str],
    dataset_uri: str = "",
    result_uri: str = "",
) -> Any:
    """Returns a DatasetFeatureStatisticsList of all rows and of every slice.

    Args:
        files: The dataset's files on this machine.
        window: Rows to measure.
        slices: Columns to slice by.
        pipeline_options: Beam's options, such as `--runner=DirectRunner`.
        dataset_uri: The dataset's directory as the workers see it; used by runners that work
            elsewhere, and only if it is a URI with a scheme.
        result_uri: File that workers can write and this process can read; like `dataset_uri`.

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
        _run(paths, window, slices, options, result)
        with FileSystems.open(result) as stream:
            found = statistics_pb2.DatasetFeatureStatisticsList.FromString(stream.read())
        FileSystems.delete([result])
    if len(found.datasets) > MAXIMUM_SLICES + 1:
        raise too_many()
    return found


def _run(
    paths: list[str], window: Window, slices: list[Columns], options: Any, result: str
) -> None:
    import apache_beam as beam

    slice_functions = [_slice_function(columns) for columns in slices]
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Files" >> beam.Create(paths)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, window).with_output_types(pa.RecordBatch)
            | "Measure" >> tfdv().GenerateStatistics(stats_options(slice_functions or None))
            | "Write" >> tfdv().WriteStatisticsToBinaryFile(result)
        )


def _read(path: str, window: Window) -> Iterator[pa.RecordBatch]:
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as stream:
        for batch in read_batches(stream, window):
            yield canonical(batch)


def _slice_function(columns: Columns) -> Callable[[pa.RecordBatch], Any]:
    def slice_function(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        return cut(batch, columns)

    return slice_function  # TFDV takes no other callable
