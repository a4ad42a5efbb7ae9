# SPDX-License-Identifier: Apache-2.0
"""The artifact that tuning writes and training reads: what to train with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json
from kfloop.components.training.search_space import ARGUMENTS
from kfloop.components.training.settings import TrainSettings

CONTRACT_VERSION = 1


@dataclass(frozen=True)
class BestParameters:
    """What the best trial was trained with.

    Attributes:
        hyperparameters: Win over those the training was given.
        arguments: Of `search_space.ARGUMENTS`; win over the training's own.
        metric: What was compared, for example `validation_auc`; empty when nothing was tuned.
        direction: `maximize` or `minimize`.
        value: The metric at the epoch whose weights the trial kept.
        trial: Number of the trial.
        study: Name of the study; a Katib experiment counts as one.
    """

    hyperparameters: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    direction: str = ""
    value: float | None = None
    trial: int | None = None
    study: str = ""


def best_parameters(values: Mapping[str, Any], **found: Any) -> BestParameters:
    """Sorts tuned values into hyperparameters and arguments; `found` is the rest."""
    return BestParameters(
        {name: value for name, value in values.items() if name not in ARGUMENTS},
        {name: value for name, value in values.items() if name in ARGUMENTS},
        **found,
    )


def write_best_parameters(best: BestParameters, path: str | Path) -> None:
    """Writes the artifact, atomically."""
    write_json(path, {"contract_version": CONTRACT_VERSION, **asdict(best)})


def read_best_parameters(path: str | Path) -> BestParameters:
    """Reads the artifact.

    Raises:
        InputError: If it is not one, or a newer release wrote it.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no tuned parameters: {error}.") from error
    version = document.get("contract_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version > CONTRACT_VERSION:
        raise InputError(
            f"The tuned parameters {path} have contract version {version}, this kfloop reads up to "
            f"{CONTRACT_VERSION}; use the kfloop release that wrote them or a newer one."
        )
    known = {each.name for each in fields(BestParameters)}
    return BestParameters(**{key: value for key, value in document.items() if key in known})


def apply_best_parameters(settings: TrainSettings, path: str | Path | None) -> TrainSettings:
    """Returns the settings with the tuned values in place of their own; None changes nothing.

    Raises:
        InputError: If the artifact cannot be used.
    """
    if not path:
        return settings
    best = read_best_parameters(path)
    if unknown := [name for name in best.arguments if name not in ARGUMENTS]:
        raise InputError(
            f"The tuned parameters {path} set {', '.join(map(repr, unknown))}, which training "
            f"does not take; there is {', '.join(ARGUMENTS)}."
        )
    return with_parameters(settings, best)


def with_parameters(settings: TrainSettings, best: BestParameters) -> TrainSettings:
    """Returns the settings with other parameters."""
    arguments: dict[str, Any] = {name: ARGUMENTS[name](v) for name, v in best.arguments.items()}
    hyperparameters = {**settings.hyperparameters, **best.hyperparameters}
    return replace(settings, hyperparameters=hyperparameters, **arguments)
