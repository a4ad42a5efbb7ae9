# SPDX-License-Identifier: Apache-2.0
"""Trains a small model of each task on the toy features, with ONNX in its package.

Run in the training family's environment: DIRECTORY.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.model_package import write_model_json
from kfloop.components.training.train import Roles, TrainSettings, train

ROWS = 400
FEATURES = ["distance", "seats", "weekend", "carrier"]
SCHEMA = 'feature { name: "carrier" type: BYTES }'


def main() -> None:
    root = Path(sys.argv[1])
    random = np.random.default_rng(0)
    score = random.normal(0, 1, ROWS)
    columns = {
        "at": pa.array(np.arange(ROWS) * 60_000_000, pa.timestamp("us", tz="UTC")),
        "plane": [f"N{row % 7}" for row in range(ROWS)],
        "distance": pa.array(1000 + 300 * score, mask=random.random(ROWS) < 0.2),
        "seats": pa.array(random.integers(2, 400, ROWS), mask=random.random(ROWS) < 0.2),
        "weekend": random.random(ROWS) < 0.3,
        "carrier": pa.array(random.choice(["AA", "UA", "Ünï"], ROWS), mask=score > 2),
    }
    labels = {
        "binary": score > 0,
        "multiclass": np.array(["early", "late", "on time"])[np.digitize(score, [-0.5, 0.5])],
        "regression": 100 + 50 * score,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "schema.pbtxt").write_text(SCHEMA)
    for version, (task, label) in enumerate(labels.items(), 1):
        write_dataset(pa.table({**columns, "label": label}), root / "data")
        package = train(
            root / "data",
            root / "schema.pbtxt",
            root / task,
            root / "curves.html",
            Roles("label", "at", ["carrier", "plane"], FEATURES),
            TrainSettings(
                "toy",
                task,
                epochs=2,
                learning_rate=0.01,
                hyperparameters={"hidden": [8]},
                reference_rows=100,
                onnx=True,
            ),
        )
        write_model_json(replace(package, version=str(version)), root / task)


if __name__ == "__main__":
    main()
