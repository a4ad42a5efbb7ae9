# SPDX-License-Identifier: Apache-2.0
"""The comparison of a candidate with the champion on the same rows."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_toys import make_package, toy_table

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.decision import read_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature
from kfloop.components.evaluation.bootstrap import estimate
from kfloop.components.evaluation.compare import CompareSettings, compare_models
from kfloop.components.evaluation.metrics import binary_measure, improvement_measure


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that know what red does, and models that have it backwards."""
    root = tmp_path_factory.mktemp("models")
    return {
        (task, kind): make_package(root / f"{task}-{kind}", task, red, version=kind)
        for task in ("binary", "multiclass", "regression")
        for kind, red in (("good", 1.0), ("bad", -2.0))
    }


@pytest.fixture
def compare(tmp_path):
    def run(model, champion, table, **settings):
        write_dataset(table, tmp_path / "data")
        paths = [tmp_path / name for name in ("comparison.json", "decision.json", "page.html")]
        champion_uri = champion if isinstance(champion, str) else champion.as_uri()
        given = CompareSettings(**({"resamples": 100} | settings))
        decision = compare_models(model, tmp_path / "data", champion_uri, *paths, given)
        assert read_decision(paths[1]) == decision
        document = json.loads(paths[0].read_text())
        return SimpleNamespace(decision=decision, document=document, page=paths[2].read_text())

    return run


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_worse_model_fails_and_a_better_one_passes_with_its_interval(compare, models, task):
    good, bad = models[task, "good"], models[task, "bad"]
    table = toy_table(task, rows=4000)
    worse = compare(bad, good, table)
    assert worse.decision.decision == "fail"
    assert "surely worse" in worse.decision.summary
    better = compare(good, bad, table)
    assert better.decision.decision == "pass"
    found = better.document["metrics"][better.document["metric"]]["improvement"]
    assert 0 < found["low"] < found["value"] < found["high"]
    assert f"{found['low']:.4g} to {found['high']:.4g}" in better.page
    assert better.document["champion"] == {"model_uri": bad.as_uri(), "version": "bad"}


def test_a_champion_on_a_volume_is_found_where_it_is_mounted(compare, models, monkeypatch):
    good, bad, table = models["binary", "good"], models["binary", "bad"], toy_table("binary")
    monkeypatch.setenv("KFLOOP_PVC_ROOT", str(good.parents[1]))
    uri = f"pvc://{good.parent.name}/{good.name}"
    found = compare(bad, uri, table)
    assert found.document["champion"] == {"model_uri": uri, "version": "good"}
    assert found.document["metrics"] == compare(bad, good, table).document["metrics"]
    monkeypatch.delenv("KFLOOP_PVC_ROOT")
    with pytest.raises(InputError, match="on a volume that this step does not have"):
        compare(bad, uri, table)


def test_equal_models_pass_with_an_improvement_of_zero(compare, models):
    same = compare(models["binary", "good"], models["binary", "good"], toy_table("binary"))
    assert same.decision.decision == "pass"
    for entry in same.document["metrics"].values():
        assert entry["improvement"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_same_seed_gives_the_same_comparison(compare, models):
    good, bad, table = models["binary", "good"], models["binary", "bad"], toy_table("binary")
    first, again = (compare(good, bad, table, slices=["colour"]) for _ in range(2))
    assert first.document == again.document
    assert compare(good, bad, table, seed=8, slices=["colour"]).document != first.document


def test_a_tolerance_lets_a_little_worse_pass(compare, models):
    good, bad, table = models["binary", "good"], models["binary", "bad"], toy_table("binary")
    assert compare(bad, good, table, tolerance=0.9).decision.decision == "pass"


def test_slices_are_compared_on_their_own(compare, models):
    good, bad = models["binary", "good"], models["binary", "bad"]
    slices = compare(bad, good, toy_table("binary"), slices=["colour"]).document["slices"]
    parts = {part["slice"]: part for part in slices}
    # Only red is judged differently, and within red alone its order is the same.
    assert parts["colour=green"]["metrics"]["log_loss"]["improvement"]["value"] == 0
    assert parts["colour=red"]["metrics"]["log_loss"]["improvement"]["high"] < 0
    assert parts["colour=blue"]["why"] == "fewer than 100 rows"


def test_without_a_champion_the_outcome_says_so_and_loads_no_model(compare, tmp_path, models):
    found = compare(models["binary", "good"], "", toy_table("binary"))
    assert found.decision.decision == "no_baseline"
    assert "there is no champion yet" in found.page
    assert found.document["champion"] is None
    code = "import sys, kfloop.components.evaluation.compare; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "other"}, "predicts other"),
        ({"features": [Feature("weight", "float")]}, "needs weight"),
    ],
)
def test_a_champion_that_cannot_be_scored_here_is_no_baseline(
    compare, models, tmp_path, changes, message
):
    champion = make_package(tmp_path / "champion", "binary", **changes)
    found = compare(models["binary", "good"], champion, toy_table("binary"))
    assert found.decision.decision == "no_baseline"
    assert message in found.decision.summary


def test_other_classes_and_unknown_metrics_are_named(compare, models, tmp_path):
    table = toy_table("multiclass")
    with pytest.raises(InputError, match="not a metric of this task"):
        compare(models["multiclass", "good"], models["multiclass", "good"], table, metric="auc")
    other = make_package(tmp_path / "o", "multiclass", classes=["high", "low", "tiny"])
    assert compare(models["multiclass", "good"], other, table).decision.decision == "no_baseline"


def test_rows_without_two_labels_are_no_data(compare, models):
    good, table = models["binary", "good"], toy_table("binary")
    assert compare(good, good, table.slice(0, 0)).decision.decision == "no_data"
    constant = table.filter(table["label"])
    assert compare(good, good, constant).decision.decision == "no_data"


def test_a_champion_that_has_seen_these_rows_is_no_baseline(compare, models, tmp_path):
    window = {"since": "1970-01-01T00:00:00+00:00", "until": "1970-02-01T00:00:00+00:00"}
    champion = make_package(tmp_path / "champion", "binary", training_window=window)
    found = compare(models["binary", "good"], champion, toy_table("binary"))
    assert found.decision.decision == "no_baseline"
    assert "has seen some of these" in found.decision.summary


def test_pairing_narrows_the_interval_and_covers_the_truth():
    """The paired interval of two like models is far narrower than the one of a single model."""
    random = np.random.default_rng(0)
    labels = (random.random(2000) < 0.4).astype(float)
    champion = random.normal(size=2000) + labels
    candidate = champion + random.normal(scale=0.1, size=2000)
    new, old = (1 / (1 + np.exp(-scores)) for scores in (candidate, champion))
    measures = [binary_measure(labels, scores, 0.5) for scores in (new, old)]
    paired = estimate(improvement_measure(*measures), 2000, 200, 0)["auc"]
    alone = estimate(measures[0], 2000, 200, 0)["auc"]
    assert paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)


def test_a_resample_of_the_improvement_is_that_of_the_drawn_rows():
    random = np.random.default_rng(0)
    labels = (random.random(900) < 0.4).astype(float)
    counts = np.random.default_rng(1).integers(0, 3, 900)

    def measures(repeats):
        return [
            binary_measure(np.repeat(labels, repeats), np.repeat(scores, repeats), 0.5)
            for scores in models
        ]

    models = [1 / (1 + np.exp(-random.normal(size=900) - labels)) for _ in range(2)]
    weighed = improvement_measure(*measures(1)).resample(counts.astype(np.uint8)[:, None])
    for name, value in improvement_measure(*measures(counts)).values.items():
        assert weighed[name][0] == pytest.approx(value, abs=1e-9), name
