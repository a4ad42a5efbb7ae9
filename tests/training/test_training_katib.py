# SPDX-License-Identifier: Apache-2.0
"""A Katib Experiment of the same search space: its manifest, its trials, its best parameters."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles import ApiServer
from kubeflow_katib_api.models.v1beta1_experiment import V1beta1Experiment
from test_training_train import SETTINGS, binary_table

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.training.best_parameters import read_best_parameters
from kfloop.components.training.columns import Roles
from kfloop.components.training.katib import KatibSettings, experiment, tune_with_katib
from kfloop.components.training.search_space import parse_space
from kfloop.components.training.shared_volume import Volume
from kfloop.components.training.tune import TuneSettings

SPACE = {
    "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "batch_size": {"low": 64, "high": 128, "step": 64},
    "hidden": {"choices": [[16], [32, 16]]},
    "schedule": {"choices": ["", "cosine"]},
}
TUNING = TuneSettings(SPACE, trials=4, parallel_trials=2, timeout_minutes=2)
# Katib's own, of its metrics collector (pkg/metricscollector/v1beta1/common/const.go).
KATIB_FILTER = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")


def settings(volume: Path, **changes: Any) -> KatibSettings:
    made = KatibSettings("kfloop/training:1", Volume("shared", str(volume)), poll_seconds=0.01)
    return replace(made, **changes)


def manifest(space: dict[str, Any], **changes: Any) -> dict[str, Any]:
    dimensions = parse_space(space, open_ended=True)
    katib = settings(Path("/mnt"), **changes)
    return experiment("toy-1", dimensions, "validation_auc", "maximize", TUNING, katib)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "volume").mkdir()
    write_dataset(binary_table(rows=300), tmp_path / "train")
    (tmp_path / "schema.pbtxt").write_text("")
    return tmp_path


def tune(place: Path, tuning: TuneSettings = TUNING, **changes: Any) -> Any:
    return tune_with_katib(
        place / "train",
        place / "schema.pbtxt",
        place / "best.json",
        Roles("label", "at", ["machine"]),
        replace(SETTINGS, epochs=2),
        tuning,
        settings(place / "volume", **changes),
    )


def test_the_manifest_is_one_of_katibs_own():
    made = manifest(SPACE, resources={"cpu": 4, "memory": "8Gi"})
    read = V1beta1Experiment.from_dict(made)
    assert read is not None
    assert json.loads(read.to_json()) == made
    spaces = {each["name"]: each for each in made["spec"]["parameters"]}
    assert spaces["learning_rate"]["feasibleSpace"]["distribution"] == "logUniform"
    assert spaces["batch_size"] == {
        "name": "batch_size",
        "parameterType": "int",
        "feasibleSpace": {"min": "64", "max": "128", "step": "64"},
    }
    assert spaces["hidden"]["feasibleSpace"]["list"] == ["[16]", "[32, 16]"]
    assert spaces["schedule"]["feasibleSpace"]["list"] == ["", "cosine"]


def test_every_parameter_is_used_by_the_template_exactly_once():
    made = manifest(SPACE)
    template = made["spec"]["trialTemplate"]
    used = re.findall(r"\$\{trialParameters\.(.+?)\}", json.dumps(template["trialSpec"]))
    assert used == [each["reference"] for each in template["trialParameters"]] == list(SPACE)


@pytest.mark.parametrize("choice", [{"a": 1}, 'say "hi"', "12", "back\\slash"])
def test_a_choice_that_the_template_cannot_hold_is_refused(choice):
    with pytest.raises(InputError, match=r"Katib cannot pass the choice .* use tune_model"):
        manifest({"own": {"choices": ["plain", choice]}})


def run_trial(stored: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """Does what Katib and a trial's pod do; returns the last value of every metric printed."""
    template = json.dumps(stored["spec"]["trialTemplate"]["trialSpec"])
    for name, value in values.items():
        template = template.replace(f"${{trialParameters.{name}}}", value)
    (container,) = json.loads(template)["spec"]["template"]["spec"]["containers"]
    command = [sys.executable, *container["command"][1:]]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
    found = [KATIB_FILTER.search(line) for line in done.stdout.splitlines()]
    return {match[1]: match[2] for match in found if match and match[2]}


def test_the_best_trial_comes_back_as_the_best_parameters(place, monkeypatch):
    values = {
        "learning_rate": "0.02",
        "batch_size": "64",
        "hidden": "[32, 16]",
        "schedule": "cosine",
    }
    measured: dict[str, str] = {}
    with ApiServer() as api:
        api.namespace("ml")
        config = api.kubeconfig(place / "kubeconfig", namespace="ml")
        monkeypatch.setenv("KUBECONFIG", str(config))

        def act(stored: dict[str, Any]) -> None:
            measured.update(run_trial(stored, values))
            metrics = [
                {"name": name, "latest": value, "min": value, "max": value}
                for name, value in measured.items()
            ]
            optimal = {
                "bestTrialName": "toy-x",
                "parameterAssignments": [{"name": n, "value": v} for n, v in values.items()],
                "observation": {"metrics": metrics},
            }
            ended = {"type": "Succeeded", "status": "True", "reason": "ExperimentMaxTrialsReached"}
            status = {"conditions": [ended], "currentOptimalTrial": optimal}
            api.set_status("experiments", stored["metadata"]["name"], "ml", status)

        def written(event: str, resource: Any, stored: dict[str, Any]) -> None:
            if event == "ADDED" and stored["kind"] == "Experiment":
                threading.Thread(target=act, args=(stored,), daemon=True).start()

        api.on_write(written)
        found = tune(place)
    assert found == read_best_parameters(place / "best.json")
    assert found.arguments == {"learning_rate": 0.02, "batch_size": 64}
    assert found.hyperparameters == {"hidden": [32, 16], "schedule": "cosine"}
    assert found.value == float(measured["validation_auc"])
    assert 0 < found.value <= 1


@pytest.mark.parametrize(
    ("tuning", "changes", "message"),
    [
        (replace(TUNING, space={}), {}, "There is no search space"),
        (replace(TUNING, trials=0), {}, "trials is 0"),
        (TUNING, {"dry_run": True}, "dry_run is set: the Experiment above was not submitted"),
    ],
)
def test_what_is_not_submitted_says_why(place, tuning, changes, message):
    with pytest.raises(InputError, match=message):
        tune(place, tuning, **changes)
    assert not list((place / "volume").iterdir())
