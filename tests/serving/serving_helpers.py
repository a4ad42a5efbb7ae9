# SPDX-License-Identifier: Apache-2.0
"""Small real model packages, manifests for them, and what their models answer."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

import kfloop.serving
from kfloop.components.contracts.model_package import Feature, ModelPackage, write_model_json
from kfloop.serving import local_state

CODE = Path(kfloop.serving.__path__[0]).parent.parent
FEATURES = [
    Feature("distance", "float"),
    Feature("seats", "int"),
    Feature("weekend", "bool"),
    Feature("carrier", "string"),
]
TENSORS = {"float": tf.float32, "int": tf.float32, "bool": tf.float32, "string": tf.string}


class Scorer(tf.Module):
    """A logistic score in which every feature counts; missing numbers are zero."""

    def __init__(self, shift: float, output: str) -> None:
        super().__init__()
        self.shift = tf.Variable(shift)
        self.output = output

    def __call__(self, **columns: Any) -> dict[str, tf.Tensor]:
        def number(name: str) -> tf.Tensor:
            return tf.where(tf.math.is_nan(columns[name]), 0.0, columns[name])

        carrier = tf.cast(tf.strings.to_hash_bucket_fast(columns["carrier"], 7), tf.float32)
        score = number("distance") / 1000 + number("seats") / 100 + number("weekend") + carrier / 7
        logit = score - 2 + self.shift
        if self.output == "value":
            return {"value": logit}
        if self.output == "probabilities":
            return {"probabilities": tf.nn.softmax(tf.stack([logit, -logit, 0 * logit], 1))}
        return {"probability": tf.sigmoid(logit)}


def write_package(path: Path, version: str, shift: float = 0.0, task: str = "binary") -> Path:
    package = ModelPackage(
        name="toy",
        task=task,
        label="late",
        features=FEATURES,
        classes=["early", "late", "on time"] if task == "multiclass" else [],
        entities=["carrier", "plane"],
        timestamp="at",
        version=version,
    )
    scorer = Scorer(shift, package.output)
    signature = tf.function(scorer.__call__).get_concrete_function(
        **{f.name: tf.TensorSpec([None], TENSORS[f.type], f.name) for f in FEATURES}
    )
    tf.saved_model.save(scorer, str(path / "1"), signatures={"serving_default": signature})
    write_model_json(package, path)
    return path


def manifest(
    name: str, stable: Path, canary: Path | None = None, percent: int = 10, log: Path | None = None
) -> dict[str, Any]:
    def predictor(package: Path) -> dict[str, Any]:
        return {
            "name": package.name,
            "model": {"modelFormat": {"name": "kfloop"}, "storageUri": str(package)},
        }

    spec: dict[str, Any] = {"predictor": predictor(stable)}
    if canary is not None:
        spec["canary"] = [{"trafficPercent": percent, "predictor": predictor(canary)}]
    annotations = {local_state.LOG_ANNOTATION: str(log)} if log else {}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    }
