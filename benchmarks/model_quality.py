# SPDX-License-Identifier: Apache-2.0
"""Holds the flights model beside two kinds of boosted trees, on the same rows and features.

    make run
    .venv/bin/python benchmarks/model_quality.py [--run .kfloop/runs/training-…]

Takes the training set, the model and its predictions of June 2013 from a training run of the sample
loop (the newest unless named), and trains LightGBM and scikit-learn's HistGradientBoosting on the
same rows. The loss on the last tenth of the training rows says how many rounds; then they are
trained again on all rows. HistGradientBoosting has its default settings; LightGBM's are the best of
six that were tried, on June itself, which flatters it a little. Both come from an environment that
uv makes for this script. Prints a Markdown table; the intervals are kfloop's own, the differences
are paired.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightgbm==4.7.0", "scikit-learn==1.9.1", "pyarrow==26.0.1", "numpy==2.4.6")
RESAMPLES, SEED = 1000, 7
# Rounds without a better loss before a booster stops, and the most rounds.
PATIENCE, ROUNDS = 50, 2000


def measure(run: Path) -> None:
    """Trains and compares in this process, and prints the table."""
    import numpy as np
    import pyarrow.parquet as pq

    from kfloop.components.contracts.model_package import read_model_json
    from kfloop.components.evaluation.bootstrap import estimate
    from kfloop.components.evaluation.metrics import binary_measure, improvement_measure

    package = read_model_json(run / "train-model" / "model")
    train = pq.read_table(run / "split-data" / "train").sort_by(package.timestamp)
    june = pq.read_table(run / "split-data" / "evaluation")
    ours = pq.read_table(run / "evaluate-model" / "predictions")["prediction"].to_numpy()
    labels = june[package.label].to_numpy().astype(float)
    categories = [feature.name for feature in package.features if feature.type == "string"]
    inputs = [encode(table, train, package.feature_names, categories) for table in (train, june)]
    target = train[package.label].to_numpy().astype(int)
    learn = train.num_rows - round(train.num_rows * package.hyperparameters["validation_fraction"])
    at = [package.feature_names.index(name) for name in categories]
    print(f"{learn:,} rows to learn from, {june.num_rows:,} rows of June\n")
    print(
        "| model | ROC AUC, 95 % interval | better than ours, 95 % interval | log loss | seconds |"
    )
    print("|---|---|---|---|---|")

    def line(title: str, scores: Any, seconds: str) -> None:
        found = estimate(binary_measure(labels, scores, 0.5), len(labels), RESAMPLES, SEED)
        better = "–"
        if scores is not ours:
            both = [binary_measure(labels, each, 0.5) for each in (scores, ours)]
            paired = improvement_measure(*both)
            gain = estimate(paired, len(labels), RESAMPLES, SEED)["auc"]
            better = f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        auc, loss = found["auc"], found["log_loss"]
        told = f"{auc.value:.4f} ({auc.low:.4f} to {auc.high:.4f})"
        print(f"| {title} | {told} | {better} | {loss.value:.4f} | {seconds} |", flush=True)

    line("kfloop's network", ours, training_seconds(run))
    boosters: list[tuple[str, Callable[..., Any]]] = [
        ("LightGBM", light), ("HistGradientBoosting", hist),
    ]  # fmt: skip
    for title, fit in boosters:
        started = time.perf_counter()
        predict = fit(inputs[0], target, learn, at)
        seconds = time.perf_counter() - started
        line(title, np.asarray(predict(inputs[1])), f"{seconds:.0f}")


def encode(table: Any, train: Any, features: list[str], categories: list[str]) -> Any:
    """Returns one float column per feature: categories by their position in the training rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = []
    for name in features:
        column = table[name]
        if name in categories:
            column = pc.index_in(column, pc.unique(train[name].drop_null()))
        columns.append(column.cast(pa.float64()).to_numpy())
    return np.stack(columns, axis=1)


def light(rows: Any, target: Any, learn: int, categories: list[int]) -> Callable[[Any], Any]:
    """Trains LightGBM and returns its prediction."""
    import lightgbm

    settings = {
        "objective": "binary", "learning_rate": 0.05, "num_leaves": 31, "min_child_samples": 200,
        "feature_fraction": 0.5, "seed": SEED, "verbose": -1,
        # The cores of this process: LightGBM becomes slow with more threads than those.
        "num_threads": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    training = lightgbm.Dataset(rows[:learn], target[:learn], categorical_feature=categories)
    held = lightgbm.Dataset(rows[learn:], target[learn:], reference=training)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    found = lightgbm.train(settings, training, ROUNDS, valid_sets=[held], callbacks=[stop])
    whole = lightgbm.Dataset(rows, target, categorical_feature=categories)
    return lightgbm.train(settings, whole, found.best_iteration).predict


def hist(rows: Any, target: Any, learn: int, categories: list[int]) -> Callable[[Any], Any]:
    """Trains HistGradientBoosting and returns its prediction."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        categorical_features=categories, max_iter=ROUNDS, early_stopping=True,
        n_iter_no_change=PATIENCE, random_state=SEED,
    )  # fmt: skip
    model.fit(rows[:learn], target[:learn], X_val=rows[learn:], y_val=target[learn:])
    best = int(np.argmax(model.validation_score_))
    model.set_params(max_iter=max(best, 1), early_stopping=False).fit(rows, target)
    return lambda inputs: model.predict_proba(inputs)[:, 1]


def training_seconds(run: Path) -> str:
    """Returns what the training step said it took."""
    for text in (run / "train-model" / "log.txt").read_text().splitlines():
        if text.startswith("Kept the weights of epoch"):
            return text.split()[-2]
    return "?"


def newest_run() -> Path:
    """Returns the newest training run of the sample loop that evaluated a model."""
    found = (ROOT / ".kfloop" / "runs").glob("training-*/train-candidate/evaluate-model")
    runs = sorted(place.parent for place in found)
    if not runs:
        sys.exit("There is no training run of the sample loop; start `make run` first.")
    return runs[-1]


def main() -> int:
    """Starts itself in an environment that has the boosters."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="directory of a training run")
    parser.add_argument("--here", action="store_true", help="train in this environment")
    options = parser.parse_args()
    run = options.run or newest_run()
    if (run / "train-candidate").is_dir():
        run = run / "train-candidate"
    if options.here:
        measure(run)
        return 0
    from kfloop.pipelines.local import environments

    uv = Path(sys.executable).parent / "uv"
    command = [str(uv), "run", "--quiet", "--isolated", "--no-project"]
    command += ["--python", sys.executable]
    for package in PACKAGES:
        command += ["--with", package]
    command += ["python", __file__, "--here", "--run", str(run.absolute())]
    variables = os.environ | {"PYTHONPATH": str(environments.code_path())}
    return subprocess.run(command, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
