# SPDX-License-Identifier: Apache-2.0
"""Parallel ingest from gs:// against one download after another, as `gsutil cp` without -m does it.

    .venv/bin/python benchmarks/ingest.py

Both read the same objects from the tests' object store on loopback, in a process of its own. Bare
loopback shows what the code costs; the other setting gives every request 30 ms and every connection
50 MB/s, as one stream from a bucket in the same region roughly has. What counts is the ratio within
one run, here and from 1 to 10 times the rows. Writes nothing outside a temporary directory.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).resolve().parent.parent / "tests" / "data" / "storage_server.py"
ROWS = 1_000_000
OBJECTS = 8
SETTINGS = {
    "loopback": {"latency": 0.0, "bytes_per_second": 0.0},
    "30 ms, 50 MB/s": {"latency": 0.03, "bytes_per_second": 50e6},
}


def main() -> None:
    """Runs itself in the data family's environment."""
    from kfloop.pipelines.local import environments

    data = environments.ensure(["data"])["data"]
    command = [str(data.python), __file__, "--measure"]
    subprocess.run(command, env=environments.task_environment(data), check=True)


def measure() -> None:
    """Prints one line per setting and size."""
    print(f"{'':16} {'rows':>11} {'MB':>5} {'sequential':>22} {'parallel':>22} {'ratio':>13}")
    print(f"{'':16} {'':11} {'':5} {'download':>10} {'ingest':>11} {'download':>10} {'ingest':>11}")
    seconds: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory(prefix="kfloop-benchmark-") as scratch:
        for times in (1, 10):
            files = _make(Path(scratch) / f"{times}x", ROWS * times)
            size = sum(file.stat().st_size for file in files) / 1e6
            for name, setting in SETTINGS.items():
                with _serving(files, setting):
                    first = [_sequential(Path(scratch)), _parallel(Path(scratch))]
                    second = [_sequential(Path(scratch)), _parallel(Path(scratch))]
                # The better of two that take turns: the rest is what else the machine does.
                old, new = (tuple(map(min, *pair)) for pair in zip(first, second, strict=True))
                seconds[name, times] = new[1]
                ratio = f"{old[0] / new[0]:.1f}x {old[1] / new[1]:.1f}x"
                print(
                    f"{name:16} {ROWS * times:11,} {size:5.0f} {old[0]:8.2f} s {old[1]:9.2f} s "
                    f"{new[0]:8.2f} s {new[1]:9.2f} s {ratio:>13}",
                    flush=True,
                )
    for name in SETTINGS:
        growth = seconds[name, 10] / seconds[name, 1]
        print(f"{name}: ten times the rows take {growth:.1f} times as long")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of this process: {peak:.2f} GB")


def _make(directory: Path, rows: int) -> list[Path]:
    import duckdb

    directory.mkdir()
    part = rows // OBJECTS
    for number in range(OBJECTS):
        duckdb.execute(
            f"COPY (SELECT i, hash(i) AS key, 'name-' || hash(i) % 1000 AS name, sin(i) AS x, "
            f"TIMESTAMP '2024-01-01' + to_seconds(i) AS at FROM range({number * part}, "
            f"{(number + 1) * part}) AS r(i)) TO '{directory}/{number}.parquet'"
        )
    return sorted(directory.iterdir())


@contextmanager
def _serving(files: list[Path], setting: dict[str, float]) -> Iterator[None]:
    objects = {f"in/{file.name}": str(file) for file in files}
    command = [sys.executable, str(SERVER), json.dumps({"objects": objects, **setting})]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
        try:
            yield
        finally:
            server.terminate()


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _sequential(scratch: Path) -> tuple[float, float]:
    """Returns the seconds of the download, and of the download and the reading."""
    from google.cloud import storage

    from kfloop.components.data.ingest import ingest

    with tempfile.TemporaryDirectory(dir=scratch) as place:

        def download() -> None:
            client = storage.Client()
            for blob in client.list_blobs("bucket", prefix="in/"):
                blob.download_to_filename(f"{place}/{Path(blob.name).name}")

        downloaded = _timed(download)
        source = {"name": "rows", "uri": place}
        return downloaded, downloaded + _timed(lambda: ingest([source], scratch / "tables"))


def _parallel(scratch: Path) -> tuple[float, float]:
    """Returns the seconds of the download, and of the whole ingest."""
    from kfloop.components.data.ingest import ingest
    from kfloop.components.data.storage import open_store

    with tempfile.TemporaryDirectory(dir=scratch) as place:

        def download() -> None:
            store = open_store("gs")
            store.download(store.find("gs://bucket/in"), Path(place))

        downloaded = _timed(download)
    source = {"name": "rows", "uri": "gs://bucket/in"}
    return downloaded, _timed(lambda: ingest([source], scratch / "tables"))


if __name__ == "__main__":
    measure() if "--measure" in sys.argv else main()
