# SPDX-License-Identifier: Apache-2.0
"""Measures the metrics with intervals against a bootstrap that draws rows again and again.

    .venv/bin/python benchmarks/evaluation.py [--rows 100000] [--naive-resamples 20]

A binary model's metrics on `rows` rows and in 6 slices of them, 200 resamples each, as
evaluate_model makes them, beside the paired comparison of two models on the same parts. The naive
way draws row numbers with replacement and computes the same nine metrics of the drawn rows from
their definitions, by NumPy alone, with one sort per resample; it gets fewer resamples, and its time
is scaled to 200. Then the whole of evaluate_model, with a small model: reading, metrics, curves,
importance, model card and predictions, with TensorFlow's import and the model's own time apart. All
in one process of the evaluation environment. Prints two Markdown tables.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESAMPLES, SLICES = 200, 6


def measure(rows: int, naive_resamples: int) -> None:
    """Measures in this process and prints the table."""
    import numpy as np

    from kfloop.components.evaluation.bootstrap import estimate_parts
    from kfloop.components.evaluation.metrics import binary_measure, improvement_measure

    random = np.random.default_rng(0)
    labels = (random.random(rows) < 0.3).astype(float)
    scores, other = (1 / (1 + np.exp(1 - labels - random.normal(size=rows))) for _ in range(2))
    part = random.integers(0, SLICES, rows)
    parts = [np.arange(rows), *(np.flatnonzero(part == index) for index in range(SLICES))]

    def ours() -> dict[str, tuple[float, float]]:
        judged = [(binary_measure(labels[at], scores[at], 0.5), at) for at in parts]
        found = estimate_parts(judged, rows, RESAMPLES, 7)
        return {name: (each.low or 0, each.high or 0) for name, each in found[0].items()}

    def paired() -> dict[str, tuple[float, float]]:
        judged = []
        for at in parts:
            both = [binary_measure(labels[at], each[at], 0.5) for each in (scores, other)]
            judged.append((improvement_measure(*both), at))
        estimate_parts(judged, rows, RESAMPLES, 7)
        return {}

    def naive() -> dict[str, tuple[float, float]]:
        whole: list[dict[str, float]] = []
        for at in parts:
            for _ in range(naive_resamples):
                drawn = random.choice(at, len(at))
                found = by_definition(labels[drawn], scores[drawn])
                if at is parts[0]:
                    whole.append(found)
        bounds = {name: np.quantile([e[name] for e in whole], [0.025, 0.975]) for name in whole[0]}
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}

    print(f"{rows:,} rows, all and {SLICES} slices, {RESAMPLES} resamples, 9 metrics\n")
    print("| way | seconds | CPU seconds | AUC, 95 % interval |\n|---|---|---|---|")
    ways: list[tuple[str, Callable[[], dict[str, tuple[float, float]]], float]] = [
        ("evaluate_model", ours, 1.0),
        ("compare_models, paired", paired, 1.0),
        ("rows drawn again, scaled", naive, RESAMPLES / naive_resamples),
    ]
    for title, way, scale in ways:
        started, processor = time.perf_counter(), time.process_time()
        found = way()
        seconds = (time.perf_counter() - started) * scale
        processor = (time.process_time() - processor) * scale
        told = "{:.4f} to {:.4f}".format(*found["auc"]) if found else "–"
        print(f"| {title} | {seconds:.2f} | {processor:.2f} | {told} |", flush=True)


def measure_step(rows: int) -> None:
    """Measures the whole of evaluate_model and prints where the time went."""
    started = time.perf_counter()
    import numpy as np
    import pyarrow as pa

    from kfloop.components.contracts.dataset import write_dataset
    from kfloop.components.evaluation import evaluate as step

    imports = time.perf_counter() - started
    random = np.random.default_rng(0)
    scores = random.normal(size=rows)
    table = {f"f{k}": random.normal(size=rows) for k in range(1, 10)}
    table |= {"f0": scores, "late": (random.logistic(size=rows) < scores).astype(int)}
    table["part"] = np.array([f"part {k}" for k in range(SLICES)])[random.integers(0, SLICES, rows)]
    in_model = [0.0]

    def timed(*arguments: Any) -> Any:
        before = time.perf_counter()
        score = load(*arguments)
        in_model[0] += time.perf_counter() - before

        def call(table: pa.Table) -> np.ndarray:
            before = time.perf_counter()
            outputs = score(table)
            in_model[0] += time.perf_counter() - before
            return outputs

        return call

    load, step.load_scorer = step.load_scorer, timed
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_model(root / "model")
        write_dataset(pa.table(table), root / "data")
        settings = step.EvaluateSettings(slices=["part"], resamples=RESAMPLES)
        outputs = [root / name for name in ("evaluation.json", "card.html", "predictions")]
        started = time.perf_counter()
        step.evaluate(root / "model", root / "data", *outputs, settings)
        whole = time.perf_counter() - started
    print("\n| evaluate_model, 10 features | seconds |\n|---|---|")
    print(f"| imports, TensorFlow most of all | {imports:.2f} |")
    print(f"| loading and calling the model | {in_model[0]:.2f} |")
    print(f"| everything else | {whole - in_model[0]:.2f} |", flush=True)


def write_model(directory: Path) -> None:
    """Writes the package of a model whose score is its first feature."""
    import tensorflow as tf

    from kfloop.components.contracts.model_package import Feature, ModelPackage, write_model_json

    features = [Feature(f"f{k}", "float") for k in range(10)]
    signature = [tf.TensorSpec([None], tf.float32, name=each.name) for each in features]

    class Score(tf.Module):
        @tf.function(input_signature=signature)
        def serve(self, *inputs):  # type: ignore[no-untyped-def]  # tensors of another environment
            return {"probability": tf.sigmoid(inputs[0])}

    module = Score()
    tf.saved_model.save(module, str(directory / "1"), {"serving_default": module.serve})
    write_model_json(ModelPackage("toy", "binary", "late", features), directory)


def by_definition(labels, scores) -> dict[str, float]:  # type: ignore[no-untyped-def]  # arrays of an environment that the driver lacks
    """Computes the nine metrics of a sample as a textbook does, with one sort."""
    import numpy as np

    order = np.argsort(scores)
    labels, scores = labels[order], scores[order]
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    positives, total = labels.sum(), len(labels)
    negatives = total - positives
    called = scores >= 0.5
    found, clipped = labels[called].sum(), np.clip(scores, 1e-7, 1 - 1e-7)
    above = labels[::-1].cumsum()
    bins = np.minimum((scores * 10).astype(int), 9)
    return {
        "auc": (ranks[labels == 1].sum() - positives * (positives + 1) / 2)
        / (positives * negatives),
        "pr_auc": (above / np.arange(1, total + 1) * labels[::-1]).sum() / positives,
        "log_loss": -np.where(labels == 1, np.log(clipped), np.log1p(-clipped)).mean(),
        "brier": ((scores - labels) ** 2).mean(),
        "accuracy": (called == (labels == 1)).mean(),
        "precision": found / max(called.sum(), 1),
        "recall": found / positives,
        "f1": 2 * found / (called.sum() + positives),
        "ece": np.abs(np.bincount(bins, labels - scores, 10)).sum() / total,
    }


def main() -> int:
    """Starts itself in the environment of the evaluation family."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--naive-resamples", type=int, default=20)
    parser.add_argument("--here", action="store_true", help="measure in this environment")
    options = parser.parse_args()
    if options.here:
        measure(options.rows, options.naive_resamples)
        measure_step(options.rows)
        return 0
    from kfloop.pipelines.local import environments

    family = environments.ensure(["evaluation"])["evaluation"]
    environments.make_ready([family])
    # Without this folder on the path, whose statistics.py is not the standard library's.
    command = [str(family.python), "-P", __file__, "--here", f"--rows={options.rows}"]
    command.append(f"--naive-resamples={options.naive_resamples}")
    variables = environments.task_environment(family)
    return subprocess.run(command, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
