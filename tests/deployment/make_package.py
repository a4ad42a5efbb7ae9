# SPDX-License-Identifier: Apache-2.0
"""Makes tiny model packages, run with the serving environment's Python: it needs TensorFlow.

python make_package.py DIRECTORY: writes packages `good`, `better`, `inverted`, `classes`,
and `flaky`, which has no answer to every fourth row.

python make_package.py DIRECTORY cluster: writes what the tests need on a real cluster: `1`, `2`
and `3`, which are as good as each other, and `4`, which is `flaky` past its golden rows.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from kfloop.components.contracts.model_package import (
    GOLDEN,
    REFERENCE,
    SAVED_MODEL,
    Feature,
    ModelPackage,
    write_model_json,
)

FEATURES = [
    Feature("distance", "float"),
    Feature("stops", "int"),
    Feature("rush", "bool"),
    Feature("carrier", "string"),
]
CLASSES = ["early", "late", "on time"]


class Tiny(tf.Module):
    """A logistic formula of four features; missing values count as zero."""

    def __init__(self, task: str, weight: float, bias: float, flaky: bool) -> None:
        super().__init__()
        self.task = task
        self.flaky = flaky
        self.weight = tf.Variable(weight)
        self.bias = tf.Variable(bias)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, "distance"),
            tf.TensorSpec([None], tf.float32, "stops"),
            tf.TensorSpec([None], tf.float32, "rush"),
            tf.TensorSpec([None], tf.string, "carrier"),
        ]
    )
    def answer(self, distance, stops, rush, carrier):
        known = [tf.where(tf.math.is_nan(x), 0.0, x) for x in (distance / 1000.0, stops, rush)]
        carrier_is_b = tf.cast(tf.equal(carrier, "B"), tf.float32)
        score = (
            self.weight * (known[0] - 0.3 * known[1] + 0.5 * known[2] + carrier_is_b) + self.bias
        )
        if self.flaky:
            score = tf.where(stops > 2.5, float("nan"), score)
        if self.task == "multiclass":
            return {"probabilities": tf.nn.softmax(tf.stack([-score, score, 0 * score], 1))}
        return {"probability": tf.sigmoid(score)}


def rows(number: int) -> dict[str, list]:
    return {
        "distance": [None if i % 17 == 3 else 40.0 * (i % 50) for i in range(number)],
        "stops": [i % 4 for i in range(number)],
        "rush": [i % 3 == 0 for i in range(number)],
        "carrier": [None if i % 11 == 5 else "ABC"[i % 3] for i in range(number)],
    }


def write_package(
    directory: Path, task: str, weight: float, bias: float, flaky: bool = False, version: str = ""
) -> None:
    module = Tiny(task, weight, bias, flaky)
    tf.saved_model.save(module, str(directory / SAVED_MODEL), signatures=module.answer)
    package = ModelPackage(
        name="tiny",
        task=task,
        label="late",
        version=version,
        features=FEATURES,
        classes=CLASSES if task == "multiclass" else [],
        entities=["tail"],
        timestamp="at",
        schema_fingerprint="5" * 64,
        dataset_fingerprint="d" * 64,
        git_commit="abc123",
        metrics={"auc": 0.8},
    )
    write_model_json(package, directory)
    data = rows(300)
    nan = float("nan")
    output = module.answer(
        tf.constant([nan if x is None else x for x in data["distance"]], tf.float32),
        tf.constant(data["stops"], tf.float32),
        tf.constant(data["rush"], tf.float32),
        tf.constant([x or "" for x in data["carrier"]]),
    )
    if task == "multiclass":
        prediction = [CLASSES[i] for i in output["probabilities"].numpy().argmax(1)]
    else:
        prediction = [float(x) for x in output["probability"].numpy()]
    table = pa.table({**data, "prediction": prediction})
    (directory / REFERENCE).parent.mkdir()
    pq.write_table(table, directory / REFERENCE)
    hidden = flaky and version
    answered = [row for row in range(20) if not hidden or data["stops"][row] < 3]
    pq.write_table(table.take(answered), directory / GOLDEN)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if sys.argv[2:] == ["cluster"]:
        for number in (1, 2, 3, 4):
            bias = -0.5 - number / 100
            write_package(root / str(number), "binary", 1.0, bias, number == 4, str(number))
        sys.exit()
    write_package(root / "good", "binary", 1.0, -0.5)
    write_package(root / "better", "binary", 1.05, -0.55)
    write_package(root / "inverted", "binary", -3.0, 1.0)
    write_package(root / "flaky", "binary", 1.0, -0.5, flaky=True)
    write_package(root / "classes", "multiclass", 2.0, 0.1)
