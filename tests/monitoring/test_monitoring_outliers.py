# SPDX-License-Identifier: Apache-2.0
"""Outlier scores per request."""

from pathlib import Path

import numpy as np
import pytest
from monitoring_world import log, people, publish

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.monitoring.outliers import score_outliers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(tmp_path_factory.mktemp("model"), people(5000, seed=0))


def test_a_strange_request_stands_out_and_ordinary_ones_do_not(tmp_path: Path, model: str) -> None:
    columns = people(1000, seed=1)
    for name, value in (("load", 200.0), ("age", 400.0), ("visits", 50)):
        columns[name] = np.where(np.arange(1000) == 7, value, columns[name])
    window = log(tmp_path / "window", columns)
    metadata = score_outliers(window, model, tmp_path / "scores", contamination=0.01)
    scores = read_dataset(tmp_path / "scores")
    assert scores["outlier"][7].as_py()
    assert 0.001 < metadata["outlier_share"] < 0.05
    assert scores.column_names == ["event_time", "outlier_score", "outlier"]


def test_the_same_seed_gives_the_same_scores(tmp_path: Path, model: str) -> None:
    window = log(tmp_path / "window", people(300, seed=1))
    for name in ("one", "two"):
        score_outliers(window, model, tmp_path / name, seed=3)
    assert read_dataset(tmp_path / "one").equals(read_dataset(tmp_path / "two"))


def test_a_model_without_reference_is_named(tmp_path: Path) -> None:
    window = log(tmp_path / "window", people(300, seed=1))
    with pytest.raises(InputError, match="no reference of 200 rows"):
        score_outliers(window, publish(tmp_path / "bare"), tmp_path / "scores")


def test_a_share_that_cannot_be_is_named(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match=r"contamination is 0\.9"):
        score_outliers(tmp_path, model, tmp_path / "scores", contamination=0.9)
