# SPDX-License-Identifier: Apache-2.0
"""Training sets: our offline store against Feast's two and a plain ASOF JOIN, at 1x and 10x rows.

    .venv/bin/python benchmarks/training_sets.py [--quick]

It runs itself in the environment of the features family. Each measurement is a process of its own,
so that peak memory is its own too. The imports are not in the time, which is the best of five, or
of fewer once ten seconds are over. 1x is 30,000 entity rows x 3 feature views x 60,000-row
histories, 10x is 300,000 x 3 x 600,000 (10,000 entities, 6 features a view, a ttl of 30 days).
Feast's dask store takes minutes and 5 GB at 10x: it runs there with --dask-at-10x. --quick measures
a tenth of both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

STORES = ("asof", "duckdb", "dask", "plain")
OURS = "kfloop.components.features.offline_store.AsOfOfflineStore"
TYPES = {"asof": OURS, "duckdb": "duckdb", "dask": "dask"}
TITLES = {
    "asof": "kfloop AsOfOfflineStore",
    "duckdb": "Feast duckdb store",
    "dask": "Feast dask store",
    "plain": "plain ASOF JOIN (no Feast)",
}
VIEWS, FEATURES, ENTITIES, TTL_DAYS = 3, 6, 10_000, 30
REPEATS, ENOUGH_SECONDS = 5, 10


def main() -> int:
    """Runs what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--dask-at-10x", action="store_true", help="Feast's dask store at 10x too")
    parser.add_argument("--measure", nargs=2, metavar=("STORE", "REPO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        store, repo = options.measure
        print(json.dumps(measure(store, Path(repo))))
        return 0
    if "KFLOOP_BENCHMARK" not in os.environ:
        return run_in_the_family_environment()
    rows = 3_000 if options.quick else 30_000
    print(f"{os.cpu_count()} CPUs; {rows:,} and {10 * rows:,} entity rows, {VIEWS} views")
    return compare(rows, options.dask_at_10x)


def run_in_the_family_environment() -> int:
    """Runs this file again where Feast is, and returns its exit status."""
    from kfloop.pipelines.local import environments

    made = environments.ensure(["features"])["features"]
    variables = environments.task_environment(made) | {"KFLOOP_BENCHMARK": "1"}
    return subprocess.run([str(made.python), *sys.argv], env=variables, check=False).returncode


def compare(rows: int, dask_at_10x: bool) -> int:
    """Prints the table, and returns 1 when a store's values differ from the plain join's."""
    results: dict[tuple[str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for scale in (1, 10):
            repo = Path(scratch) / f"{scale}x"
            make_data(repo, rows * scale, 2 * rows * scale)
            for store in STORES:
                if store != "dask" or scale == 1 or dask_at_10x:
                    results[store, scale] = run(store, repo)
                    print(f"  {scale:2}x {TITLES[store]}: done", flush=True)
    print(
        f"\n{'':28}{'rows':>10}{'seconds':>9}{'x plain':>9}{'peak MB':>9}{'rows out':>10}  values"
    )
    worst = 0
    for (store, scale), result in results.items():
        plain = results["plain", scale]
        same = (
            result["rows"] == plain["rows"]
            and result["missing"] == plain["missing"]
            and abs(result["sum"] - plain["sum"]) < 1e-6 * max(abs(plain["sum"]), 1)
        )
        worst = max(worst, int(not same and store != "dask"))
        print(
            f"{TITLES[store]:28}{rows * scale:10,}{result['seconds']:9.2f}"
            f"{result['seconds'] / plain['seconds']:9.1f}{result['megabytes']:9,.0f}"
            f"{result['rows']:10,.0f}  {'the same' if same else 'DIFFERENT'}"
        )
    for store in STORES:
        if (store, 10) in results:
            growth = results[store, 10]["seconds"] / results[store, 1]["seconds"]
            memory = results[store, 10]["megabytes"] / results[store, 1]["megabytes"]
            print(f"10x rows: {TITLES[store]:28} time x {growth:.1f}, memory x {memory:.1f}")
    return worst


def run(store: str, repo: Path) -> dict[str, float]:
    """Measures one store in a process of its own."""
    command = [sys.executable, __file__, "--measure", store, str(repo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{store} failed:\n{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def make_data(repo: Path, examples: int, history: int) -> None:
    """Writes histories, examples and a repository."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    start = np.datetime64("2024-01-01", "us")
    day = 86_400_000_000

    def moments(days: int, count: int) -> pa.Array:
        offsets = random.integers(0, days * day, count).astype("timedelta64[us]")
        return pa.array(start + offsets).cast(pa.timestamp("us", "UTC"))

    for view in range(VIEWS):
        columns = {
            "entity_id": random.integers(0, ENTITIES, history),
            "known_at": moments(60, history),
        }
        columns |= {f"v{view}_f{f}": random.normal(size=history) for f in range(FEATURES)}
        (repo / "data" / f"v{view}").mkdir(parents=True)
        pq.write_table(pa.table(columns), repo / "data" / f"v{view}" / "part-00000.parquet")
    asked = {
        "entity_id": random.integers(0, ENTITIES + 100, examples),
        "event_timestamp": moments(70, examples),
    }
    pq.write_table(pa.table(asked), repo / "examples.parquet")


def measure(store: str, repo: Path) -> dict[str, float]:
    """Makes the training set and returns what it took; times without imports and `apply`."""
    import pyarrow.compute as pc

    columns = [f"v{view}_f{f}" for view in range(VIEWS) for f in range(FEATURES)]
    job = plain_join if store == "plain" else feast_join(store, repo)
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH_SECONDS:
        started = time.perf_counter()
        table = job(repo)
        times.append(time.perf_counter() - started)
    return {
        "seconds": min(times),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": table.num_rows,
        "missing": sum(table[name].null_count for name in columns),
        "sum": sum(pc.sum(table[name]).as_py() or 0 for name in columns),
    }


def feast_join(store: str, repo: Path) -> Callable[[Path], Any]:
    """Returns a function that makes the training set with one of the stores, through Feast."""
    import pandas as pd
    import yaml
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float64

    config = {
        "project": "benchmark",
        "provider": "local",
        "registry": f"{store}.db",
        "online_store": None,
        "offline_store": {"type": TYPES[store]},
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    # Feast's duckdb store looks for relative paths in the working directory.
    os.chdir(repo)
    entity = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=f"v{view}",
            entities=[entity],
            ttl=timedelta(days=TTL_DAYS),
            schema=[Field(name=f"v{view}_f{f}", dtype=Float64) for f in range(FEATURES)],
            source=FileSource(
                name=f"v{view}",
                path=f"data/v{view}/part-00000.parquet",
                file_format=ParquetFormat(),
                timestamp_field="known_at",
            ),
        )
        for view in range(VIEWS)
    ]
    opened = FeatureStore(repo_path=str(repo))
    opened.apply([entity, *views])
    refs = [f"v{view}:v{view}_f{f}" for view in range(VIEWS) for f in range(FEATURES)]

    def job(repo: Path) -> Any:
        entities = pd.read_parquet(repo / "examples.parquet")
        return opened.get_historical_features(entities, features=refs).to_arrow()

    return job


def plain_join(repo: Path) -> Any:
    """The least that the question costs: one SQL statement, no checks, no order."""
    import duckdb

    features = ", ".join(
        f"CASE WHEN event_timestamp <= v{view}.known_at + INTERVAL {TTL_DAYS} DAYS "
        f"THEN v{view}_f{f} END AS v{view}_f{f}"
        for view in range(VIEWS)
        for f in range(FEATURES)
    )
    joins = " ".join(
        f"ASOF LEFT JOIN '{repo}/data/v{view}/*.parquet' v{view} "
        f"ON e.entity_id = v{view}.entity_id AND e.event_timestamp >= v{view}.known_at"
        for view in range(VIEWS)
    )
    query = f"SELECT e.*, {features} FROM '{repo}/examples.parquet' e {joins}"
    return duckdb.sql(query).to_arrow_table()


if __name__ == "__main__":
    sys.exit(main())
