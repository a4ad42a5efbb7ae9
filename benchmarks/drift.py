# SPDX-License-Identifier: Apache-2.0
"""Measures what detect_drift alarms at, and how long it takes, on the sample flights.

    .venv/bin/python benchmarks/drift.py [--seeds 100]

Ten columns of the flights and the weather of their hour; the reference is what the package of a
model would hold. Every line is a question with a known answer. Needs `kfloop sample-data`. Prints
Markdown tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAMPLE = Path("data")
NUMBERS = ["distance", "scheduled_minute", "temperature", "humidity", "wind_speed", "visibility"]
TEXTS = ["carrier", "origin", "dest", "weekday"]


def flights() -> Any:
    """Returns the year as an Arrow table with `month` and ten features."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(SAMPLE / "flights.parquet")
    weather = pq.read_table(SAMPLE / "weather.parquet")
    hours = ["origin", "year", "month", "day", "hour"]
    weather = weather.select([*hours, "temp", "humid", "wind_speed", "visib"])
    joined = rows.join(weather, hours, join_type="inner")
    day = pc.strptime(
        pc.binary_join_element_wise(
            *(pc.cast(joined[name], pa.string()) for name in ("year", "month", "day")), "-"
        ),
        format="%Y-%m-%d",
        unit="s",
    )
    minute = pc.add(pc.multiply(joined["hour"], 60), joined["minute"])
    numbers = [joined["distance"], minute, joined["temp"], joined["humid"]]
    columns = {
        name: pc.cast(column, pa.float64())
        for name, column in zip(
            NUMBERS, [*numbers, joined["wind_speed"], joined["visib"]], strict=True
        )
    }
    columns |= {name: joined[name] for name in TEXTS[:3]}
    columns["weekday"] = pc.cast(pc.day_of_week(day), pa.string())
    return pa.table(columns | {"month": joined["month"]})


class Detector:
    """detect_drift on tables, through files as the component has them."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def drifted(self, reference: Any, current: Any, **settings: Any) -> tuple[str, list[str]]:
        """Returns the decision, and the columns that drifted."""
        import pyarrow.parquet as pq

        from kfloop.components.contracts.dataset import write_dataset
        from kfloop.components.contracts.model_package import (
            REFERENCE,
            Feature,
            ModelPackage,
            write_model_json,
        )
        from kfloop.components.monitoring.drift import detect_drift

        package = self._scratch / "package"
        (package / REFERENCE).parent.mkdir(parents=True, exist_ok=True)
        features = [Feature(name, "float") for name in NUMBERS]
        features += [Feature(name, "string") for name in TEXTS]
        write_model_json(
            ModelPackage(name="flights", label="late", task="binary", features=features), package
        )
        pq.write_table(reference, package / REFERENCE)
        write_dataset(current, self._scratch / "window")
        self.started = time.perf_counter()
        report = detect_drift(
            self._scratch / "window",
            str(package),
            self._scratch / "decision.json",
            self._scratch / "page.html",
            **settings,
        )
        self.seconds = time.perf_counter() - self.started
        return report.decision.decision, report.metadata["drifted"]


def halves(rows: Any, seed: int, size: int = 0) -> tuple[Any, Any]:
    """Returns two random parts without a row in common."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(rows.num_rows)
    size = size or rows.num_rows // 2
    return rows.take(order[:size]), rows.take(order[size : 2 * size])


def changed(rows: Any, column: str, values: Any) -> Any:
    """Returns the table with one column replaced."""
    import pyarrow as pa

    place = rows.schema.get_field_index(column)
    return rows.set_column(place, column, pa.array(values, from_pandas=True))


def answers(seeds: int, scratch: Path) -> dict[str, Any]:
    """Asks every question."""
    import numpy as np
    import pyarrow.compute as pc

    detector, year = Detector(scratch), flights()
    months = {month: year.filter(pc.equal(year["month"], month)) for month in (1, 6, 7)}
    june = months[6]
    alarms = 0
    for seed in range(seeds):
        alarms += detector.drifted(*halves(june, seed), seed=seed)[0] == "fail"
        print(f"{seed + 1} of {seeds}, {alarms} alarms", file=sys.stderr, end="\r")
    found: list[tuple[str, str, str]] = [
        (f"two random halves of June, {seeds} seeds", "at most 5 %", f"{alarms} alarms")
    ]

    def ask(what: str, wanted: str, reference: Any, current: Any) -> None:
        decision, drifted = detector.drifted(reference, current)
        told = f"{decision}: {', '.join(drifted)}" if drifted else decision
        found.append((what, wanted, told))

    ask("January against July", "fail", months[1], months[7])
    before, after = halves(june, 0)
    broken = after["temperature"].to_numpy(zero_copy_only=False).copy()
    broken[np.random.default_rng(0).random(len(broken)) < 0.33] = np.nan
    ask("33 % of `temperature` turn missing", "fail", before, changed(after, "temperature", broken))
    gone = after.filter(pc.not_equal(after["carrier"], "UA"))
    ask("the carrier UA vanishes", "fail", before, gone)
    before, after = halves(year, 0, 50_000)
    distance = after["distance"].to_numpy(zero_copy_only=False)
    moved = changed(after, "distance", distance + 0.02 * distance.std())
    ask("`distance` moves by 0.02 SD, 50,000 rows", "pass", before, moved)
    moved = changed(after, "distance", distance + 0.5 * distance.std())
    ask("`distance` moves by 0.5 SD, 50,000 rows", "fail", before, moved)
    seconds = {}
    for rows in (20_000, 50_000):
        detector.drifted(before, after, maximum_rows=rows)
        seconds[f"univariate, at most {rows:,} rows"] = detector.seconds
    detector.drifted(before, after, multivariate=True)
    seconds["with the multivariate test, at most 20,000 rows"] = detector.seconds
    return {"found": found, "seconds": seconds}


def main() -> None:
    """Runs the questions in the monitoring environment and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(answers(options.seeds, Path(scratch))))
        return
    from kfloop.pipelines.local import environments

    environment = environments.ensure(["monitoring"])["monitoring"]
    command = [str(environment.python), "-P", __file__, "--child", "--seeds", str(options.seeds)]
    done = subprocess.run(
        command, env=environments.task_environment(environment), stdout=subprocess.PIPE, check=True
    )
    result = json.loads(done.stdout.decode().strip().splitlines()[-1])
    print("\n| change | wanted | detect_drift |\n|---|---|---|")
    for what, wanted, told in result["found"]:
        print(f"| {what} | {wanted} | {told} |")
    print("\n| window of 50,000 rows × 10 columns | seconds |\n|---|---:|")
    for what, seconds in result["seconds"].items():
        print(f"| {what} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
