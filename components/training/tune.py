# SPDX-License-Identifier: Apache-2.0
"""Looks for the hyperparameters that train the best model: many short trainings, compared.

This process proposes, compares and stops (Optuna, see `study`); worker processes train (see
`trial`). What a trial measured is what training with its parameters measures again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kfloop.components.contracts.dataset import fingerprint, row_count
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, write_text
from kfloop.components.training.best_parameters import (
    BestParameters,
    best_parameters,
    write_best_parameters,
)
from kfloop.components.training.columns import Roles
from kfloop.components.training.hyperparameters import Hyperparameters
from kfloop.components.training.search_space import ARGUMENTS, Dimension, Range, parse_space
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.trial import TrialWork, describe

PRUNING = ("median", "hyperband", "none")
DIRECTIONS = {
    "validation_loss": "minimize",
    "validation_auc": "maximize",
    "validation_accuracy": "maximize",
    "validation_rmse": "minimize",
}
TASK_METRICS = {
    "binary": "validation_auc",
    "multiclass": "validation_accuracy",
    "regression": "validation_rmse",
}
# Part of the loss themselves, so that the loss does not compare them.
_IN_THE_LOSS = ("class_weights", "l2")


@dataclass
class TuneSettings:
    """What to try, and for how long.

    Attributes:
        space: Search space, see `search_space`; empty tunes nothing.
        trials: Trials of the study in all; a second run with more goes on.
        parallel_trials: Processes that train at the same time; they share the processors.
        timeout_minutes: No trial starts after so many minutes of this run; 0 for no limit.
        metric: What is compared, at the epoch whose weights a trial keeps: `validation_loss`, or
            `validation_` and a metric of the training; empty for the task's.
        direction: `maximize` or `minimize`; empty for the metric's own.
        pruning: Ends a trial that is worse than others were at the same epoch: `median`,
            `hyperband`, or `none`.
        study_uri: Directory that outlives the process, for a killed tuning to go on; empty for
            none. One tuning at a time may use it.
    """

    space: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 20
    parallel_trials: int = 1
    timeout_minutes: float = 0.0
    metric: str = ""
    direction: str = ""
    pruning: str = "median"
    study_uri: str = ""


def tune(
    dataset: str | Path,
    schema: str | Path,
    best_path: str | Path,
    page: str | Path,
    roles: Roles,
    settings: TrainSettings,
    tuning: TuneSettings,
) -> dict[str, float]:
    """Tunes, and writes the best parameters and a page.

    Without a search space the given hyperparameters are passed on as they are.

    Args:
        dataset: The training dataset; each trial holds out the same validation part as training.
        schema: Data schema (TFDV text proto).
        best_path: JSON file of the best parameters to write, see `BestParameters`.
        page: HTML file to write.
        roles: What the columns are for.
        settings: How to train; what the search space names is replaced.
        tuning: What to try.

    Returns:
        Numbers to log: the metric, the best trial, and how many trials ended how.

    Raises:
        InputError: If a setting cannot be used, or no trial ended with a value.
    """
    if not tuning.space:
        write_best_parameters(BestParameters(dict(settings.hyperparameters)), best_path)
        write_text(page, "<p>Nothing was tuned: there is no search space.</p>\n")
        print("There is no search space; the given parameters are used.", flush=True)
        return {}
    # Optuna, which a pipeline that tunes nothing does not wait for.
    from kfloop.components.training import search
    from kfloop.components.training import study as studies
    from kfloop.components.training.tune_page import tune_page

    space = parse_space(tuning.space, open_ended=bool(settings.module_uri))
    metric, direction = check_tuning(tuning, space, settings.task)
    if not row_count(dataset):
        raise InputError(f"The training dataset {dataset} has no rows; check its window.")
    work = TrialWork(str(dataset), str(schema), roles, settings)
    name = studies.study_name(settings.name, _shaping(work, tuning, metric, direction))
    with TemporaryDirectory(prefix="kfloop-") as scratch:
        directory = local_path(tuning.study_uri, "study_uri") if tuning.study_uri else Path(scratch)
        most = _most_epochs(settings, space)
        with studies.open_study(directory, name, direction, tuning.pruning, most) as study:
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(studies.write_values(space, _given(settings, space)))
            limits = search.Limits(
                tuning.trials, tuning.parallel_trials, tuning.timeout_minutes * 60
            )
            search.Search(study, space, metric, limits, work).run()
            best = studies.best_trial(study)
            found = best_parameters(
                studies.read_values(space, best.params),
                metric=metric,
                direction=direction,
                value=best.value,
                trial=best.number,
                study=name,
            )
            write_best_parameters(found, best_path)
            write_text(page, tune_page(study, space, found))
            counts = studies.counts(study)
    print(f"The best is trial {best.number} with {metric} {best.value}.", flush=True)
    return {metric: best.value, "best_trial": best.number, **counts}


def check_tuning(tuning: TuneSettings, space: list[Dimension], task: str) -> tuple[str, str]:
    """Returns the metric and the direction, once everything fits.

    Raises:
        InputError: If a setting cannot be used.
    """
    metric = tuning.metric or TASK_METRICS.get(task, "validation_loss")
    for name in ("trials", "parallel_trials"):
        if getattr(tuning, name) < 1:
            raise InputError(f"{name} is {getattr(tuning, name)}; it must be at least 1.")
    if tuning.timeout_minutes < 0:
        raise InputError(f"timeout_minutes is {tuning.timeout_minutes}; it must be at least 0.")
    if tuning.pruning not in PRUNING:
        raise InputError(f"pruning is {tuning.pruning!r}; it must be {', '.join(PRUNING)}.")
    if tuning.direction not in ("", "maximize", "minimize"):
        raise InputError(
            f"direction is {tuning.direction!r}; it must be maximize, minimize or empty."
        )
    direction = tuning.direction or DIRECTIONS.get(metric, "")
    if not direction:
        raise InputError(
            f"Whether {metric} should rise or fall is not known; set direction to maximize or "
            f"minimize, or the metric to one of {', '.join(DIRECTIONS)}."
        )
    shares = [each.name for each in space if each.name in _IN_THE_LOSS]
    if metric == "validation_loss" and shares:
        raise InputError(
            f"{', '.join(shares)} is part of the loss, so validation_loss cannot compare its "
            "values; set the metric to another."
        )
    return metric, direction


def _given(settings: TrainSettings, space: list[Dimension]) -> dict[str, Any]:
    """Returns what would be trained without tuning, as far as it lies in the space.

    It is the first trial, so that the best one is no worse.
    """
    hyperparameters = {**asdict(Hyperparameters()), **settings.hyperparameters}
    if settings.module_uri:
        hyperparameters = dict(settings.hyperparameters)
    given = {}
    for each in space:
        value = getattr(settings, each.name) if each.name in ARGUMENTS else None
        value = hyperparameters.get(each.name) if value is None else value
        if value is not None and each.holds(value):
            given[each.name] = value
    return given


def _most_epochs(settings: TrainSettings, space: list[Dimension]) -> int:
    for each in space:
        if each.name == "epochs":
            return int(each.high if isinstance(each, Range) else max(map(int, each.options)))
    return settings.epochs


def _shaping(work: TrialWork, tuning: TuneSettings, metric: str, direction: str) -> dict[str, Any]:
    """Returns what makes two trials comparable, as JSON values."""
    shaping = describe(work) | {"data": fingerprint(work.dataset), "schema": _sha256(work.schema)}
    if work.settings.module_uri:
        shaping["module"] = _sha256(local_path(work.settings.module_uri, "module_uri"))
    kept = asdict(tuning)
    shaping |= {name: kept[name] for name in ("space", "pruning")}
    return shaping | {"metric": metric, "direction": direction}


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
