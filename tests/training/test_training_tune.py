# SPDX-License-Identifier: Apache-2.0
"""Tuning with real trainings: what it finds, keeps, goes on from, and refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pytest
from optuna.trial import TrialState

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.training.best_parameters import (
    BestParameters,
    apply_best_parameters,
    read_best_parameters,
    write_best_parameters,
)
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.study import JOURNAL
from kfloop.components.training.tune import TuneSettings, tune

SETTINGS = TrainSettings(name="toy", task="binary", epochs=4, batch_size=64, seed=3)
SPACE = {
    "learning_rate": {"low": 0.0005, "high": 0.1, "log": True},
    "dropout": {"low": 0, "high": 0.5},
    "hidden": {"choices": [[8], [32], [128, 64]]},
}
TUNING = TuneSettings(space=SPACE, trials=6)
# What a killed process ran; the tests' own packages are on the path of this process only.
TUNE = """
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
from test_training_tune import TUNING, Workspace
if __name__ == "__main__":
    Workspace(Path(sys.argv[2])).tune(replace(TUNING, study_uri=sys.argv[3]))
"""
MODULE = """
import os
import keras
def build_model(schema, hyperparameters):
    width = int(hyperparameters["width"])
    if width == 13:
        os._exit(1)
    inputs = schema.inputs()
    hidden = keras.layers.Dense(width, activation="relu")(inputs["numeric"])
    return keras.Model(inputs, keras.layers.Dense(schema.outputs)(hidden))
"""


def table(rows: int = 800) -> pa.Table:
    random = np.random.default_rng(0)
    x, y = random.normal(size=rows), random.normal(size=rows)
    colour = random.choice(["red", "blue"], rows)
    score = x * y + (colour == "red") + random.normal(0, 0.5, rows)
    return pa.table({"x": x, "y": y, "colour": colour, "label": score > 0})


class Workspace:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.best, self.page = root / "best.json", root / "page.html"
        if not (root / "train").exists():
            write_dataset(table(), root / "train")
            (root / "schema.pbtxt").write_text("")

    def tune(self, tuning: TuneSettings, settings: TrainSettings = SETTINGS) -> dict[str, float]:
        return tune(
            self.root / "train",
            self.root / "schema.pbtxt",
            self.best,
            self.page,
            Roles("label"),
            settings,
            tuning,
        )


def stored(directory: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(directory / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    (study,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=study.study_name, storage=storage).trials


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("tuned"))
    study = workspace.root / "study"
    return workspace, workspace.tune(replace(TUNING, study_uri=str(study))), stored(study)


def test_the_best_trial_wins_and_is_no_worse_than_without_tuning(tuned):
    workspace, logged, trials = tuned
    best = read_best_parameters(workspace.best)
    values = [trial.value for trial in trials if trial.state is TrialState.COMPLETE]
    assert best.value == max(values) == logged["validation_auc"]
    assert logged["trials_complete"] + logged["trials_pruned"] == len(trials) == 6
    assert (best.metric, best.direction) == ("validation_auc", "maximize")
    assert set(best.arguments) == {"learning_rate"}
    assert set(best.hyperparameters) == {"dropout", "hidden"}
    # The first trial is what would be trained without tuning.
    assert trials[0].params == {"learning_rate": 0.001, "dropout": 0.1, "hidden": "[128, 64]"}
    assert best.value >= trials[0].value


def test_training_with_the_best_parameters_measures_what_the_trial_measured(tuned):
    from kfloop.components.training.train import learn

    workspace, _, _ = tuned
    best = read_best_parameters(workspace.best)
    settings = apply_best_parameters(SETTINGS, workspace.best)
    assert settings.learning_rate == best.arguments["learning_rate"]
    result = learn(
        workspace.root / "train", workspace.root / "schema.pbtxt", Roles("label"), settings
    ).result
    assert result.epochs[result.best]["val_auc"] == best.value


def test_the_page_shows_history_parameters_and_the_best_trial(tuned):
    workspace, logged, _ = tuned
    page = workspace.page.read_text()
    assert page.count("<svg") == 2
    assert f"The best is trial {logged['best_trial']:.0f}" in page
    assert page.count("<polyline") == logged["trials_complete"] + 2
    assert "What mattered" in page
    assert "http" not in page


def test_more_trials_go_on_with_the_study_and_repeat_none(tuned, capsys):
    workspace, _, before = tuned
    study = workspace.root / "study"
    logged = workspace.tune(replace(TUNING, trials=7, study_uri=str(study)))
    after = stored(study)
    assert [trial.params for trial in after[:6]] == [trial.params for trial in before]
    assert len(after) == 7
    assert len(re.findall(r"^Trial \d+ \(", capsys.readouterr().out, re.M)) == 1
    assert sum(logged[f"trials_{state}"] for state in ("complete", "pruned", "failed")) == 7


def test_killed_and_run_again_it_goes_on_as_if_it_had_not_been(tuned, tmp_path):
    workspace, _, whole = tuned
    study = tmp_path / "study"
    here = str(Path(__file__).parent)
    script = tmp_path / "script.py"
    script.write_text(TUNE)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), here, str(workspace.root), str(study)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=variables)
    while not any(
        trial.number > 1 and trial.state is TrialState.RUNNING and trial.intermediate_values
        for trial in (stored(study) if (study / JOURNAL).exists() else [])
    ):
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ended = [trial for trial in stored(study) if trial.state.is_finished()]
    with (study / JOURNAL).open("a") as journal:
        journal.write('{"op_code":6,"worker')  # and in the middle of a line

    logged = workspace.tune(replace(TUNING, study_uri=str(study)))
    after = stored(study)
    interrupted = [trial for trial in after if trial.state is TrialState.FAIL]
    counted = [trial for trial in after if trial.state is not TrialState.FAIL]
    assert after[: len(ended)] == ended
    assert [trial.number for trial in interrupted] == [len(ended)]
    assert [t.params for t in counted] == [t.params for t in whole[:6]]
    assert [t.value for t in counted] == [t.value for t in whole[:6]]
    assert logged["trials_failed"] == 0


def test_a_trial_whose_process_dies_fails_and_the_others_beside_it_do_not(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    module = tmp_path / "module.py"
    module.write_text(MODULE)
    settings = replace(SETTINGS, epochs=2, module_uri=str(module), hyperparameters={"width": 13})
    logged = workspace.tune(
        TuneSettings({"width": {"choices": [4, 8, 13]}}, 3, parallel_trials=2, pruning="none"),
        settings,
    )
    assert logged["trials_failed"] >= 1
    assert logged["trials_complete"] + logged["trials_failed"] == 3
    assert "failed: its process ended with status 1" in capsys.readouterr().out
    assert read_best_parameters(workspace.best).hyperparameters["width"] in (4, 8)


def test_when_every_trial_fails_the_first_reason_is_told(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(InputError, match=r"3 failed, .* the first: The hyperparameter cat"):
        workspace.tune(
            replace(TUNING, trials=50),
            replace(SETTINGS, hyperparameters={"categorical": ["colours"]}),
        )


def test_without_a_search_space_the_given_parameters_are_passed_on(tmp_path):
    workspace = Workspace(tmp_path)
    settings = replace(SETTINGS, hyperparameters={"hidden": [16]})
    assert workspace.tune(TuneSettings(), settings) == {}
    assert read_best_parameters(workspace.best) == BestParameters({"hidden": [16]})
    assert apply_best_parameters(settings, workspace.best) == settings
    assert apply_best_parameters(settings, None) == settings
    assert "Nothing was tuned" in workspace.page.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"parallel_trials": 0}, "parallel_trials is 0"),
        ({"timeout_minutes": -1}, "timeout_minutes is -1"),
        ({"timeout_minutes": 1e-9}, "No trial ended with a value: 0 failed"),
        ({"pruning": "asha"}, "pruning is 'asha'; it must be median, hyperband, none"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"metric": "validation_f1"}, "set direction to maximize or minimize"),
        ({"space": {"l2": {"low": 0, "high": 1}}, "metric": "validation_loss"}, "part of the loss"),
        ({"space": {"speed": {"low": 0, "high": 1}}}, "'speed', which cannot be tuned"),
        ({"metric": "validation_f1", "direction": "maximize"}, "it measures validation_"),
    ],
)
def test_what_cannot_be_tuned_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        Workspace(tmp_path).tune(replace(TUNING, **changes))


def test_a_study_in_use_is_not_used_twice(tmp_path):
    from kfloop.components.training.study import open_study

    directory = tmp_path / "study"
    with (
        open_study(directory, "a", "maximize", "median", 3),
        pytest.raises(InputError, match="Another tuning is using"),
        open_study(directory, "b", "maximize", "median", 3),
    ):
        pass


def test_best_parameters_of_a_newer_contract_or_of_something_else_are_refused(tmp_path):
    path = tmp_path / "best.json"
    write_best_parameters(BestParameters({"dropout": 0.2}), path)
    assert read_best_parameters(path) == BestParameters({"dropout": 0.2})
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"contract_version": 2}))
    with pytest.raises(InputError, match="use the kfloop release that wrote them"):
        read_best_parameters(path)
    path.write_text("not JSON")
    with pytest.raises(InputError, match="holds no tuned parameters"):
        read_best_parameters(path)
    path.write_text(json.dumps(document | {"arguments": {"epoch": 3}}))
    with pytest.raises(InputError, match="set 'epoch', which training does not take"):
        apply_best_parameters(SETTINGS, path)
