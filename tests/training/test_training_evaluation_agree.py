# SPDX-License-Identifier: Apache-2.0
"""What training wrote, evaluation computes again; its needs are a part of training's."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.model_package import GOLDEN
from kfloop.components.evaluation.evaluate import EvaluateSettings, evaluate
from kfloop.components.training.train import Roles, TrainSettings, train


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_evaluation_repeats_the_golden_predictions(tmp_path, task):
    random = np.random.default_rng(0)
    x = random.normal(size=400)
    label = {
        "binary": x > 0,
        "multiclass": np.digitize(x, [-0.5, 0.5]),
        "regression": 100 + 30 * x,
    }[task]
    word = [None if index % 9 == 0 else f"w{index % 4}" for index in range(400)]
    write_dataset(pa.table({"x": x, "word": word, "label": label}), tmp_path / "train")
    (tmp_path / "schema").write_text("")
    settings = TrainSettings("toy", task, epochs=2, batch_size=64)
    model = tmp_path / "model"
    train(
        tmp_path / "train",
        tmp_path / "schema",
        model,
        tmp_path / "curves",
        Roles("label"),
        settings,
    )
    golden = pq.read_table(model / GOLDEN)
    write_dataset(golden.drop_columns("prediction"), tmp_path / "golden")
    evaluate(
        model,
        tmp_path / "golden",
        tmp_path / "evaluation",
        tmp_path / "report",
        tmp_path / "predictions",
        EvaluateSettings(resamples=10),
    )
    again = read_dataset(tmp_path / "predictions")["prediction"]
    if task == "multiclass":
        assert again.to_pylist() == golden["prediction"].to_pylist()
    else:
        expected = golden["prediction"].to_numpy()
        np.testing.assert_allclose(again.to_numpy(), expected, rtol=1e-6, atol=1e-6)
