# SPDX-License-Identifier: Apache-2.0
"""A small hand-made model package of each task, and rows that it predicts."""

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.model_package import Feature, ModelPackage, write_model_json
from kfloop.components.evaluation.score import load_scorer  # noqa: F401  # sets what TensorFlow reads

import tensorflow as tf  # isort: skip

FEATURES = [Feature("x", "float"), Feature("colour", "string")]


class HandMade(tf.Module):
    """A graph that follows the contract: x, plus `red` for red, through the task's output."""

    def __init__(self, task: str, red: float = 1.0) -> None:
        super().__init__()
        self.task = task
        self.red = red

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([None], tf.string, name="colour"),
        ]
    )
    def serve(self, x, colour):
        known = tf.where(tf.math.is_finite(x), x, 0.0)
        score = known + self.red * tf.cast(colour == "red", tf.float32)
        if self.task == "binary":
            return {"probability": tf.sigmoid(score)}
        if self.task == "multiclass":
            return {"probabilities": tf.nn.softmax(tf.stack([-score, score, 0 * score], axis=1))}
        return {"value": score * 10}


def make_package(root, task, red=1.0, **changes):
    module = HandMade(task, red)
    tf.saved_model.save(module, str(root / "1"), signatures={"serving_default": module.serve})
    facts = {
        "name": "toy",
        "task": task,
        "label": "label",
        "features": FEATURES,
        "classes": ["high", "low", "mid"] if task == "multiclass" else [],
        "entities": ["machine"],
        "timestamp": "at",
        "version": "3",
        "training_window": {"rows": 10},
    }
    write_model_json(ModelPackage(**(facts | changes)), root)
    return root


def toy_table(task, rows=1200, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    known = random.random(rows) > 0.1
    colour = random.choice(["red", "green", "blue"], rows, p=[0.3, 0.66, 0.04]).astype(object)
    score = np.where(known, x, 0) + (colour == "red")
    noise = random.logistic(size=rows)
    label = {
        "binary": score + noise > 0,
        "multiclass": np.array(["high", "mid", "low"])[np.digitize(score + noise, [-1, 1])],
        "regression": score * 10 + noise,
    }[task]
    colour[random.random(rows) < 0.2] = None
    return pa.table(
        {
            "at": pa.array(np.arange(rows) * 3_600_000_000, pa.timestamp("us", tz="UTC")),
            "machine": [f"m{index % 5}" for index in range(rows)],
            "x": pa.array(x, mask=~known),
            "colour": pa.array(colour.tolist(), pa.string()),
            "size": random.normal(size=rows),
            "label": label,
        }
    )
