# SPDX-License-Identifier: Apache-2.0
"""Input of training: ours from memory and from disk against what Keras users write.

    .venv/bin/python benchmarks/training_input.py [--quick] [--batch 1024] [--memory]

It runs itself in the environment of the training family. One table of 12 numbers, 8 categories and
a binary label is trained on with the built-in network by every way, at equal batch size (unless
told otherwise the default of train_model), optimizer, loss and metric; each way is a process of its
own, and the rounds take turns. The examples per second are those of the best epoch but the first,
without validation; ratios are taken within a round, and their median and range printed. `--memory`
measures instead what streaming holds: peak memory of a whole training at 1x, 5x and 10x rows.
`--quick` takes a tenth of the rows.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 1_000_000
NUMBERS, CATEGORIES, VALUES = 12, 8, 200
# Fewer rows measure the last two as well: they handle every row by itself.
WAYS = {
    "memory": ("kfloop, in memory", ROWS),
    "stream": ("kfloop, streamed from disk", ROWS),
    "numpy": ("model.fit on NumPy arrays", ROWS),
    "csv": ("make_csv_dataset", ROWS // 10),
    "generator": ("Dataset.from_generator, a row each", ROWS // 50),
}
ROUNDS, EPOCHS = 3, 3


def main() -> int:
    """Runs what the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--memory", action="store_true", help="peak memory of streaming")
    parser.add_argument("--batch", type=int, default=1024, help="rows per step; 1024")
    parser.add_argument(
        "--measure", nargs=3, metavar=("WAY", "DIR", "ROWS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.measure:
        way, directory, rows = options.measure
        run = measure_memory if way == "peak" else measure
        print(json.dumps(run(way, Path(directory), int(rows), options.batch)))
        return 0
    if "KFLOOP_BENCHMARK" not in os.environ:
        return run_in_the_family_environment()
    share = 10 if options.quick else 1
    with tempfile.TemporaryDirectory() as scratch:
        (compare_memory if options.memory else compare)(Path(scratch), share, options.batch)
    return 0


def run_in_the_family_environment() -> int:
    """Runs this file again where TensorFlow is, and returns its exit status."""
    from kfloop.pipelines.local import environments

    made = environments.ensure(["training"])["training"]
    variables = environments.task_environment(made) | {"KFLOOP_BENCHMARK": "1"}
    variables |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    return subprocess.run([str(made.python), *sys.argv], env=variables, check=False).returncode


def compare(directory: Path, share: int, batch: int) -> None:
    """Prints examples per second and final loss of every way."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, (_, rows) in WAYS.items():
            found[way].append(in_a_process(way, directory, rows // share, batch))
    print(
        f"{os.cpu_count()} CPUs, batches of {batch}, {ROUNDS} rounds, "
        f"best of {EPOCHS - 1} epochs in each\n"
    )
    print("| input | rows | examples/s | × fit on NumPy | loss |\n|---|---:|---:|---:|---:|")
    for way, (title, rows) in WAYS.items():
        speed = sorted(run["speed"] for run in found[way])[ROUNDS // 2]
        print(
            f"| {title} | {rows // share:,} | {speed:,.0f} | "
            f"{ratios(found[way], found['numpy'])} | {found[way][0]['loss']:.4f} |"
        )
    print(f"\nstreamed is {ratios(found['stream'], found['memory'])} times in memory")


def ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str:
    """Returns the median over the rounds of how much faster one is, and the range."""
    found = sorted(our["speed"] / their["speed"] for our, their in zip(ours, theirs, strict=True))
    return f"{found[ROUNDS // 2]:.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def compare_memory(directory: Path, share: int, batch: int) -> None:
    """Prints the peak memory of streamed trainings of growing size."""
    print("| rows | peak MB | MB above imports | seconds |\n|---:|---:|---:|---:|")
    for rows in (1_000_000 // share, 5_000_000 // share, 10_000_000 // share):
        run = in_a_process("peak", directory, rows, batch)
        print(
            f"| {rows:,} | {run['peak']:,.0f} | {run['peak'] - run['imports']:,.0f} | "
            f"{run['seconds']:.0f} |",
            flush=True,
        )


def in_a_process(way: str, directory: Path, rows: int, batch: int) -> dict[str, float]:
    """Measures one way in a fresh process."""
    command = [sys.executable, __file__, "--batch", str(batch)]
    command += ["--measure", way, str(directory), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def columns(rows: int, seed: int = 0) -> dict[str, Any]:
    """Returns the table: every number and category matters a little, and the label is noisy."""
    import numpy as np

    random = np.random.default_rng(seed)
    effect = np.random.default_rng(7).normal(size=VALUES).astype("float32")
    table = {f"n{i}": random.normal(size=rows).astype("float32") for i in range(NUMBERS)}
    table |= {f"c{i}": random.integers(0, VALUES, rows, dtype="int32") for i in range(CATEGORIES)}
    score = sum(table[f"n{i}"] for i in range(NUMBERS)) / 3
    score = score + sum(effect[table[f"c{i}"]] for i in range(CATEGORIES)) / 2
    noise = random.normal(size=rows).astype("float32")
    return {**table, "y": (score + noise > 0).astype("float32")}


def measure(way: str, directory: Path, rows: int, batch: int) -> dict[str, float]:
    """Trains by one way; returns the `speed` of its best later epoch and its last `loss`."""
    ours = way in ("memory", "stream")
    if ours:
        from kfloop.components.training import fit  # noqa: F401 - its import sets up the allocator

    import keras
    import numpy as np
    import tensorflow as tf

    from kfloop.components.training.batches import shuffled_batches
    from kfloop.components.training.devices import Devices
    from kfloop.components.training.examples import Examples
    from kfloop.components.training.hyperparameters import Hyperparameters
    from kfloop.components.training.network import NetworkSchema, build_network
    from kfloop.components.training.stored import StoredExamples

    keras.utils.set_random_seed(1)
    table = columns(rows)
    inputs = {
        "numeric": np.stack([table[f"n{i}"] for i in range(NUMBERS)], axis=1),
        "categorical": np.stack([table[f"c{i}"] for i in range(CATEGORIES)], axis=1),
    }
    devices, epoch = Devices("CPU"), tf.Variable(0, dtype=tf.int64)
    schema = NetworkSchema(
        "binary", 1, tuple(f"n{i}" for i in range(NUMBERS)),
        {f"c{i}": VALUES for i in range(CATEGORIES)},
    )  # fmt: skip
    network = build_network(schema, Hyperparameters())
    network.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True)],
        # What `fit` does; the other ways do what Keras does unasked.
        steps_per_execution=devices.steps_per_execution if ours else 1,
    )
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda number, logs: (epoch.assign(number), times.append(time.monotonic())),
        on_epoch_end=lambda number, logs: times.append(time.monotonic()),
    )
    arguments: dict[str, Any] = {"epochs": EPOCHS, "verbose": 0, "callbacks": [clock]}
    if way == "numpy":
        history = network.fit(inputs, table["y"], batch_size=batch, **arguments)
    elif way == "csv":
        history = network.fit(
            _csv(directory, table, batch), steps_per_epoch=rows // batch, **arguments
        )
    elif way == "generator":
        history = network.fit(_generator(inputs, table["y"], batch), **arguments)
    else:
        examples: Examples | StoredExamples = Examples(inputs, table["y"])
        if way == "stream":
            place = Path(tempfile.mkdtemp(dir=directory)) / "rows"
            examples = StoredExamples(place, inputs, table["y"])
            examples.append(inputs, table["y"])
        data = shuffled_batches(examples, batch, 3, epoch, devices)
        history = network.fit(data, shuffle=False, **arguments)
    seconds = [end - begin for begin, end in zip(times[::2], times[1::2], strict=True)]
    return {"speed": rows / min(seconds[1:]), "loss": history.history["loss"][-1]}


def _csv(directory: Path, table: dict[str, Any], batch: int) -> Any:
    """Returns what TensorFlow's guide to CSV files does."""
    import pyarrow as pa
    import pyarrow.csv
    import tensorflow as tf

    path = directory / f"{len(table['y'])}.csv"
    if not path.is_file():
        pyarrow.csv.write_csv(pa.table(table), path)
    dataset = tf.data.experimental.make_csv_dataset(
        str(path),
        batch,
        label_name="y",
        column_defaults=[tf.float32] * NUMBERS + [tf.int32] * CATEGORIES + [tf.float32],
    )

    def stacked(row: dict[str, Any], label: Any) -> Any:
        numbers = tf.stack([row[f"n{i}"] for i in range(NUMBERS)], axis=1)
        categories = tf.stack([row[f"c{i}"] for i in range(CATEGORIES)], axis=1)
        return {"numeric": numbers, "categorical": categories}, label

    return dataset.map(stacked).prefetch(tf.data.AUTOTUNE)


def _generator(inputs: dict[str, Any], label: Any, batch: int) -> Any:
    """Returns a shuffled dataset that asks Python for every row."""
    import tensorflow as tf

    def rows() -> Any:
        for i in range(len(label)):
            yield {name: values[i] for name, values in inputs.items()}, label[i]

    signature = (
        {name: tf.TensorSpec(v.shape[1:], v.dtype) for name, v in inputs.items()},
        tf.TensorSpec([], label.dtype),
    )
    dataset = tf.data.Dataset.from_generator(rows, output_signature=signature)
    return dataset.shuffle(10_000).batch(batch).prefetch(tf.data.AUTOTUNE)


def measure_memory(_: str, directory: Path, rows: int, batch: int) -> dict[str, float]:
    """Trains one epoch from Parquet with `train`, streamed; returns megabytes and seconds."""
    import pyarrow as pa

    from kfloop.components.contracts.dataset import write_dataset
    from kfloop.components.training.train import Roles, TrainSettings, train

    place = Path(tempfile.mkdtemp(dir=directory))
    schema = pa.schema(
        [("at", pa.timestamp("us")), *((f"n{i}", pa.float32()) for i in range(NUMBERS)),
         *((f"c{i}", pa.int32()) for i in range(CATEGORIES)), ("y", pa.float32())]
    )  # fmt: skip

    def batches() -> Any:
        step = 100_000
        for start in range(0, rows, step):
            at = pa.array(range(start, min(rows, start + step)), pa.timestamp("us"))
            table = {"at": at, **columns(len(at), start)}
            yield pa.record_batch([pa.array(table[name]) for name in schema.names], schema)

    write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), place / "data")
    (place / "schema").write_text("")
    imports = _peak_megabytes()
    settings = TrainSettings(
        "peak", "binary", epochs=1, batch_size=batch, input="stream",
        hyperparameters={"categorical": [f"c{i}" for i in range(CATEGORIES)]},
    )  # fmt: skip
    started = time.monotonic()
    train(place / "data", place / "schema", place / "m", place / "h", Roles("y", "at"), settings)
    seconds = time.monotonic() - started
    return {"peak": _peak_megabytes(), "imports": imports, "seconds": seconds}


def _peak_megabytes() -> float:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 1e3


if __name__ == "__main__":
    sys.exit(main())
