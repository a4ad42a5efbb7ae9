# SPDX-License-Identifier: Apache-2.0
"""Tuning over many pods: a Katib Experiment of the same search space, and its best parameters."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.best_parameters import (
    BestParameters,
    best_parameters,
    write_best_parameters,
)
from kfloop.components.training.cluster import Cluster, Kind, run_to_end
from kfloop.components.training.columns import Roles
from kfloop.components.training.search_space import Dimension, Range, parse_space
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.shared_volume import (
    SPEC,
    Volume,
    job_name,
    share,
    specification,
)
from kfloop.components.training.trial_job import as_value
from kfloop.components.training.tune import TuneSettings, check_tuning

EXPERIMENT = Kind(
    "kubeflow.org",
    "v1beta1",
    "experiments",
    "Experiment",
    "Succeeded",
    "katib.kubeflow.org/experiment",
    "Katib 0.17 or newer",
)
CONTAINER = "training"


@dataclass
class KatibSettings:
    """Where and on what the trials run.

    Attributes:
        image: The training family's.
        volume: Seen by this process and by every trial.
        algorithm: Katib's name: `tpe`, `random`, `bayesianoptimization`, `grid`, `cmaes`, …
        resources: Of each trial, for example `{"cpu": "4", "memory": "8Gi"}`.
        namespace: Empty for the current one.
        poll_seconds: Time between two looks.
        dry_run: Print the manifest and submit nothing.
    """

    image: str
    volume: Volume
    algorithm: str = "tpe"
    resources: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""
    poll_seconds: float = 5.0
    dry_run: bool = False


def tune_with_katib(
    dataset: str | Path,
    schema: str | Path,
    best_path: str | Path,
    roles: Roles,
    settings: TrainSettings,
    tuning: TuneSettings,
    katib: KatibSettings,
) -> BestParameters:
    """Tunes as `tune` does, with a pod for every trial.

    Args:
        dataset: The training dataset; copied to the volume once.
        schema: Data schema (TFDV text proto).
        best_path: JSON file of the best parameters to write.
        roles: What the columns are for.
        settings: How to train; what the search space names is replaced.
        tuning: What to try. `timeout_minutes` is the longest wait, 24 hours when it is 0; Katib
            keeps the study and does not prune.
        katib: Where and on what.

    Raises:
        InputError: If a setting cannot be used, the experiment fails or takes too long, or
            `dry_run` is set: then nothing was tuned.
    """
    space = parse_space(tuning.space, open_ended=bool(settings.module_uri))
    metric, direction = check_tuning(tuning, space, settings.task)
    if not space:
        raise InputError("There is no search space; give one.")
    lasting = replace(katib, poll_seconds=0.0, dry_run=False)
    content = [asdict(each) for each in (settings, roles, tuning, lasting)]
    name = job_name(settings.name, content, dataset)
    manifest = experiment(name, space, metric, direction, tuning, katib)
    if katib.dry_run:
        print(json.dumps(manifest, indent=2), flush=True)
        raise InputError("dry_run is set: the Experiment above was not submitted.")
    directory = Path(katib.volume.path) / name
    share(katib.volume, name, dataset, schema, specification(directory, roles, settings))
    seconds = (tuning.timeout_minutes or 24 * 60) * 60
    ended = run_to_end(Cluster(katib.namespace), EXPERIMENT, manifest, seconds, katib.poll_seconds)
    found = _best(ended, name, metric, direction)
    write_best_parameters(found, best_path)
    return found


def experiment(
    name: str,
    space: list[Dimension],
    metric: str,
    direction: str,
    tuning: TuneSettings,
    katib: KatibSettings,
) -> dict[str, Any]:
    """Returns the manifest of an Experiment whose trials run `trial_job`."""
    resources = {key: str(value) for key, value in katib.resources.items()}
    settings = [f"--set={each.name}=${{trialParameters.{each.name}}}" for each in space]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": katib.image,
        "command": [
            *("python", "-m", "kfloop.components.training.trial_job"),
            *("--spec", str(Path(katib.volume.path) / name / SPEC)),
            *settings,
        ],
        "volumeMounts": [{"name": "shared", "mountPath": katib.volume.path}],
    }
    if resources:
        container["resources"] = {"requests": resources, "limits": resources}
    claim = {"claimName": katib.volume.claim}
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": claim}],
    }
    # Katib adds its collector to the pod; a service mesh's sidecar would keep the job from ending.
    template = {"metadata": {"annotations": {"sidecar.istio.io/inject": "false"}}, "spec": pod}
    return {
        "apiVersion": f"{EXPERIMENT.group}/{EXPERIMENT.version}",
        "kind": EXPERIMENT.name,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "kfloop"}},
        "spec": {
            "objective": {
                "type": direction,
                "objectiveMetricName": metric,
                # The last line is of the epoch whose weights are kept, not the best of all.
                "metricStrategies": [{"name": metric, "value": "latest"}],
            },
            "algorithm": {"algorithmName": katib.algorithm},
            "parallelTrialCount": min(tuning.parallel_trials, tuning.trials),
            "maxTrialCount": tuning.trials,
            "maxFailedTrialCount": min(3, tuning.trials),
            "parameters": [_parameter(each) for each in space],
            "trialTemplate": {
                "primaryContainerName": CONTAINER,
                "trialParameters": [
                    {"name": each.name, "description": each.name, "reference": each.name}
                    for each in space
                ],
                "trialSpec": {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "spec": {"backoffLimit": 0, "template": template},
                },
            },
        },
    }


def _parameter(dimension: Dimension) -> dict[str, Any]:
    if not isinstance(dimension, Range):
        space: dict[str, Any] = {"list": [_text(option) for option in dimension.options]}
        return {"name": dimension.name, "parameterType": "categorical", "feasibleSpace": space}
    space = {"min": str(dimension.low), "max": str(dimension.high)}
    if dimension.log:
        space["distribution"] = "logUniform"
    if dimension.step:
        space["step"] = str(dimension.step)
    kind = "int" if dimension.whole else "double"
    return {"name": dimension.name, "parameterType": kind, "feasibleSpace": space}


def _text(option: str) -> str:
    """Returns a choice as the text that Katib puts into the template, which is JSON itself."""
    value = json.loads(option)
    text = value if isinstance(value, str) else option
    if '"' in text or "\\" in text or as_value(text) != value:
        raise InputError(f"Katib cannot pass the choice {option} on; use tune_model for it.")
    return text


def _best(ended: dict[str, Any], name: str, metric: str, direction: str) -> BestParameters:
    optimal = ended.get("status", {}).get("currentOptimalTrial", {})
    assigned = optimal.get("parameterAssignments", [])
    measured = {each["name"]: each for each in optimal.get("observation", {}).get("metrics", [])}
    if not assigned or metric not in measured:
        raise InputError(f"The Experiment {name} ended without a trial that measured {metric}.")
    return best_parameters(
        {each["name"]: as_value(each["value"]) for each in assigned},
        metric=metric,
        direction=direction,
        value=float(measured[metric]["latest"]),
        study=f"{name}/{optimal.get('bestTrialName', '')}",
    )
