# SPDX-License-Identifier: Apache-2.0
"""Measures compute_statistics against TFDV's own ways, all on the same rows and in one run.

    .venv/bin/python benchmarks/statistics.py [--rows 1000000] [--only stream,dataframe]

Each way runs in a fresh process of the validation environment, on 21 columns (12 floats, 8 strings
of up to 2,000 values, a label), at two sizes ten times apart. Time is from file to statistics,
without imports; the ratios are of CPU time per row, which a busy machine changes least. Memory is
the process's peak, and beside it what is above the imports. TFDV reads CSV so slowly that it gets a
tenth of the rows. Prints a Markdown table.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLOATS, STRINGS, BATCH = 12, 8, 100_000


def make(directory: Path, rows: int, csv: bool) -> None:
    """Writes a dataset, and the same rows as CSV when that is asked for."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    from kfloop.components.contracts.dataset import write_dataset

    random = np.random.default_rng(0)

    def batch(size: int) -> pa.RecordBatch:
        columns: dict[str, Any] = {
            f"n{i}": random.normal(size=size).astype("float32") for i in range(FLOATS)
        }
        for i in range(STRINGS):
            columns[f"s{i}"] = random.integers(0, 10 * (i + 1) ** 2.5, size).astype(str)
        columns["label"] = random.integers(0, 2, size)
        return pa.record_batch(columns)

    first = batch(min(BATCH, rows))
    rest = (batch(BATCH) for _ in range(rows // BATCH - 1))
    reader = pa.RecordBatchReader.from_batches(first.schema, (each for each in (first, *rest)))
    write_dataset(reader, directory / "data")
    if csv:
        from kfloop.components.contracts.dataset import read_dataset

        arrow_csv.write_csv(read_dataset(directory / "data"), directory / "data.csv")


def stream(directory: Path, **settings: Any) -> int:
    """Measures with this project's component."""
    from kfloop.components.validation.statistics import compute_statistics

    return int(compute_statistics(directory / "data", directory / "statistics", **settings)["rows"])


def dataframe(directory: Path) -> int:
    """Measures with TFDV's generate_statistics_from_dataframe."""
    import pandas as pd
    import tensorflow_data_validation as tfdv

    frame = pd.read_parquet(directory / "data")
    return int(tfdv.generate_statistics_from_dataframe(frame).datasets[0].num_examples)


def csv(directory: Path) -> int:
    """Measures with the pipeline of TFDV's generate_statistics_from_csv.

    Spelled out for its last step alone: TFDV writes a TFRecord, whose checksum needs a package that
    the environment leaves out.
    """
    import apache_beam as beam
    import tensorflow_data_validation as tfdv
    from tensorflow_data_validation.coders import csv_decoder

    with (directory / "data.csv").open(encoding="utf-8") as file:
        names = file.readline().strip().replace('"', "").split(",")
    result = str(directory / "statistics.pb")
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromText(str(directory / "data.csv"), skip_header_lines=1)
            | csv_decoder.DecodeCSV(names)
            | tfdv.GenerateStatistics(tfdv.StatsOptions())
            | tfdv.WriteStatisticsToBinaryFile(result)
        )
    return int(tfdv.load_stats_binary(result).datasets[0].num_examples)


# Name: what runs, and the share of the rows it gets.
WAYS: dict[str, tuple[Callable[[Path], int], float]] = {
    "stream": (stream, 1),
    "stream, 10 slices": (lambda directory: stream(directory, slices=["s0"]), 1),
    "stream on Beam (DirectRunner)": (
        lambda directory: stream(directory, pipeline_options=["--runner=DirectRunner"]),
        1,
    ),
    "from_dataframe": (dataframe, 1),
    "from_csv": (csv, 0.1),
}


def measure(way: str, directory: Path, rows: int) -> None:
    """Runs one way in this process and prints what it took as JSON."""
    from kfloop.components.validation.tfdv import tfdv

    tfdv()
    imported = _peak()
    started, processor = time.perf_counter(), time.process_time()
    counted = WAYS[way][0](directory)
    seconds, busy = time.perf_counter() - started, time.process_time() - processor
    if counted != rows:
        raise RuntimeError(f"{way} counted {counted} rows of {rows}")
    found = {"seconds": seconds, "cpu": busy, "peak": _peak(), "imported": imported}
    print(json.dumps(found))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux


def main() -> None:
    """Runs every way at two sizes and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="parts of the names of ways, by commas")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, directory, rows = options.child
        if way.startswith("make"):
            make(Path(directory), int(rows), csv=way == "make csv")
        else:
            measure(way, Path(directory), int(rows))
        return

    wanted = [part for part in options.only.split(",") if part]
    ways = [way for way in WAYS if not wanted or any(part in way for part in wanted)]
    print("| way | rows | seconds | CPU seconds | peak MiB | above imports | CPU to stream |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    base = 0.0
    for size in (options.rows // 10, options.rows, 10 * options.rows):
        with tempfile.TemporaryDirectory() as scratch:
            now = [way for way in ways if size in _sizes(way, options.rows)]
            if now:
                _child("make csv" if "from_csv" in now else "make", scratch, size)
            for way in now:
                took = _child(way, scratch, size)
                base = took["cpu"] / size if way == "stream" else base
                ratio = f"{took['cpu'] / size / base:.1f}×" if base else ""
                print(
                    f"| {way} | {size:,} | {took['seconds']:.1f} | {took['cpu']:.1f} "
                    f"| {took['peak']:,.0f} | {took['peak'] - took['imported']:,.0f} | {ratio} |",
                    flush=True,
                )


def _sizes(way: str, rows: int) -> tuple[int, int]:
    """Returns the two sizes at which a way runs."""
    first = int(rows * WAYS[way][1])
    return first, 10 * first


def _child(way: str, directory: str, rows: int) -> dict[str, float]:
    """Runs one way in a process of the validation environment."""
    from kfloop.pipelines.local import environments

    environment = environments.ensure(["validation"])["validation"]
    done = subprocess.run(
        [str(environment.python), "-P", __file__, "--child", way, directory, str(rows)],
        env=environments.task_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{way} at {rows:,} rows failed:\n{done.stderr[-2000:]}")
    lines = done.stdout.strip().splitlines()
    return {} if way.startswith("make") else json.loads(lines[-1])


if __name__ == "__main__":
    sys.exit(main())
