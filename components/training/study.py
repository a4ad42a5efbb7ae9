# SPDX-License-Identifier: Apache-2.0
"""The study: Optuna, in a directory that outlives the process.

One process writes it, under a lock. What a killed process left is put right when it is opened: a
line that was not written to its end is cut off, and a trial that was running is tried again with
the same values.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.search_space import Dimension, Range

JOURNAL = "study.jsonl"
# Times a trial is tried again after its process was killed: perhaps it is what kills the process.
RETRIES = 2
_RETRY_OF, _ATTEMPT = "retry_of", "attempt"


@contextmanager
def open_study(
    directory: Path, name: str, direction: str, pruning: str, most_epochs: int
) -> Iterator[optuna.Study]:
    """Opens or makes a study and holds it until the block ends.

    Args:
        directory: Where it lies; it may hold other studies.
        name: Name of the study.
        direction: `maximize` or `minimize`.
        pruning: `median`, `hyperband` or `none`.
        most_epochs: Most values a trial reports.

    Raises:
        InputError: If another process holds the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / JOURNAL
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another tuning is using {directory}; wait for it, or give another study."
            ) from error
        journal_lock = optuna.storages.journal.JournalFileOpenLock(str(path))
        Path(f"{path}.lock").unlink(missing_ok=True)  # of a process that was killed
        _cut_torn_line(path)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = optuna.storages.journal.JournalFileBackend(str(path), journal_lock)
        study = optuna.create_study(
            study_name=name,
            storage=optuna.storages.JournalStorage(backend),
            direction=direction,
            pruner=_pruner(pruning, most_epochs),
            load_if_exists=True,
        )
        _retry_interrupted(study)
        yield study


def study_name(name: str, shaping: Mapping[str, Any]) -> str:
    """Returns a name that is the same for what can be compared, and only for that."""
    identity = json.dumps(shaping, sort_keys=True).encode()
    return f"{name}-{hashlib.sha256(identity).hexdigest()[:12]}"


def ask(study: optuna.Study, space: list[Dimension], seed: int, parallel: bool) -> optuna.Trial:
    """Starts the next trial: one that waits, else what the sampler proposes.

    The sampler is seeded by the number of trials so far, so a study that was interrupted goes on
    as if it had not been.
    """
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(trials(study)), constant_liar=parallel
    )
    return study.ask({each.name: _distribution(each) for each in space})


def trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that count: not those that were tried again, nor those that wait."""
    every = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get(_RETRY_OF) for trial in every}
    return [
        trial
        for trial in every
        if trial.number not in again and trial.state is not TrialState.WAITING
    ]


def read_values(space: list[Dimension], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a trial's values as training takes them: choices are kept as JSON texts."""
    ranges = {each.name for each in space if isinstance(each, Range)}
    return {
        name: value if name in ranges else json.loads(value) for name, value in parameters.items()
    }


def write_values(space: list[Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `read_values` would read as `values`."""
    ranges = {each.name for each in space if isinstance(each, Range)}
    return {name: value if name in ranges else json.dumps(value) for name, value in values.items()}


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Returns the best completed trial.

    Raises:
        InputError: If there is none.
    """
    found = counts(study)
    if found["trials_complete"]:
        return study.best_trial
    reasons = [trial.user_attrs.get("reason") for trial in trials(study)]
    first = next((f"; the first: {reason}" for reason in reasons if reason), "")
    raise InputError(
        f"No trial ended with a value: {found['trials_failed']} failed, "
        f"{found['trials_pruned']} were stopped early{first}"
    )


def counts(study: optuna.Study) -> dict[str, int]:
    """Returns how many trials ended how."""
    states = [trial.state for trial in trials(study)]
    return {
        "trials_complete": states.count(TrialState.COMPLETE),
        "trials_pruned": states.count(TrialState.PRUNED),
        "trials_failed": states.count(TrialState.FAIL),
    }


def importances(study: optuna.Study) -> dict[str, float]:
    """Returns each parameter's share in how good a trial was; empty with too few trials.

    PED-ANOVA (Watanabe et al., 2023) over the completed trials.
    """
    done = study.get_trials(states=(TrialState.COMPLETE,))
    if len({trial.value for trial in done}) < 4:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension.options)
    if dimension.whole:
        return IntDistribution(
            int(dimension.low), int(dimension.high), dimension.log, int(dimension.step) or 1
        )
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step or None)


def _pruner(pruning: str, most_epochs: int) -> optuna.pruners.BasePruner:
    if pruning == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=1)
    if pruning == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=most_epochs)
    return optuna.pruners.NopPruner()


def _retry_interrupted(study: optuna.Study) -> None:
    every = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get(_RETRY_OF) for trial in every}
    for trial in every:
        if trial.state is not TrialState.RUNNING:
            continue
        attempt = trial.user_attrs.get(_ATTEMPT, 0) + 1
        # First the new one: killed between the two, the next start finds it.
        if trial.number not in again and attempt <= RETRIES:
            study.enqueue_trial(
                trial.params, user_attrs={_RETRY_OF: trial.number, _ATTEMPT: attempt}
            )
        study.tell(trial.number, state=TrialState.FAIL)
        print(
            f"Trial {trial.number} was interrupted; "
            f"{'it is tried again' if attempt <= RETRIES else 'it has been too often'}.",
            flush=True,
        )


def _cut_torn_line(path: Path) -> None:
    """Cuts off a last line that has no end; what is appended to it would be lost with it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())
