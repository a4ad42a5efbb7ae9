# SPDX-License-Identifier: Apache-2.0
"""Reading a dataset in pieces, and the choice between memory and disk."""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import dataset_files, row_count
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature
from kfloop.components.training.encoder import ENCODE_ROWS

INPUTS = ("auto", "memory", "stream")
# Bytes per row and feature of training in memory: the encoded number with its indicator (or the
# category), once as an array and once as the tensor that batches are gathered from.
FEATURE_BYTES = 16
# Share of the available memory that the data may take.
SHARE_OF_MEMORY = 0.5


def streams(wanted: str, dataset: str | Path, features: list[Feature]) -> bool:
    """Decides whether a dataset is streamed, and prints why.

    Args:
        wanted: One of `INPUTS`.
        dataset: The training dataset.
        features: The model's features.

    Raises:
        InputError: If `wanted` is none of them.
    """
    if wanted not in INPUTS:
        raise InputError(f"The input is {wanted!r}; it must be one of {', '.join(INPUTS)}.")
    # The label is another four bytes, twice; it is counted as a feature.
    needed = row_count(dataset) * (len(features) + 1) * FEATURE_BYTES
    available = available_memory()
    streamed = wanted == "stream" or (
        wanted == "auto" and available is not None and needed > SHARE_OF_MEMORY * available
    )
    free = "an unknown amount" if available is None else f"{available / 1e9:,.1f} GB"
    how = "streamed from local disk" if streamed else "held in memory"
    asked = "" if wanted == "auto" else f" (input is {wanted})"
    print(
        f"The training data takes about {needed / 1e9:,.2f} GB in memory and {free} is available: "
        f"it is {how}{asked}.",
        flush=True,
    )
    return streamed


def available_memory() -> int | None:
    """Returns the bytes this process may still take, or None where it cannot be known.

    The least of what the machine has left (/proc/meminfo) and what the container's limit leaves
    (cgroup v2).
    """
    found = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        found.append(int(text) - int((group / "memory.current").read_text()))
    return min(found) if found else None


def read_tables(dataset: str | Path, columns: Iterable[str]) -> Iterator[pa.Table]:
    """Yields a dataset's rows in order, in tables of at most `ENCODE_ROWS` rows."""
    wanted = list(dict.fromkeys(columns))
    for path in dataset_files(dataset):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ENCODE_ROWS, columns=wanted):
                yield pa.Table.from_batches([batch]).select(wanted)


def require_disk(directory: Path, needed: int) -> None:
    """Raises InputError when less than `needed` bytes are free in `directory`."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"Streaming needs {needed / 1e9:,.1f} GB in {os.fspath(directory)} and "
            f"{free / 1e9:,.1f} GB are free; set TMPDIR to a larger volume."
        )
