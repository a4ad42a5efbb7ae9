# SPDX-License-Identifier: Apache-2.0
"""The hyperparameters of the built-in network and of the encoding, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kfloop.components.contracts.errors import InputError


@dataclass(frozen=True)
class Hyperparameters:
    """What `hyperparameters` may set.

    Attributes:
        hidden: Units of the hidden layers.
        dropout: Share of units left out at random in training, after each hidden layer.
        l2: Weight of the L2 penalty on the hidden layers' kernels.
        embedding_size: Width of every embedding; 0 chooses min(32, 1.6 × vocabulary^0.56) each.
        categorical: Integer features to treat as categories.
        minimum_count: Training rows a category must have; rarer ones count as unknown.
        vocabulary_limit: Largest number of categories of one feature.
        patience: Epochs without a better validation loss before training stops.
        class_weights: "balanced" (every class weighs the same in the loss: rows / (classes × rows
            of the class)), or class to weight, where classes that are not named weigh 1. Weighted
            probabilities are no longer calibrated to the data.
        schedule: How the learning rate falls after the warm-up, to 1 % at the last epoch:
            "cosine", "exponential", or "" for not at all.
        warmup_epochs: Epochs in which the learning rate rises in a line from 0.
        clip_norm: Largest norm of all gradients together; 0 for no limit.
        numeric_bins: Ranges, with equally many training rows each, into which every number is
            split beside itself; 0 for none. See `network.PiecewiseLinear`.
        finish_epochs: Passes over the held-out rows once the best epoch is found, at half the
            learning rate: they are the latest, and would else be lost to the model. 0 for none.
    """

    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.1
    l2: float = 0.0
    embedding_size: int = 0
    categorical: tuple[str, ...] = ()
    minimum_count: int = 5
    vocabulary_limit: int = 10_000
    patience: int = 3
    class_weights: str | dict[str, float] = ""
    schedule: str = ""
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    numeric_bins: int = 16
    finish_epochs: int = 3


# Without effect when a module of the user's builds the network.
BUILT_IN_NETWORK = ("hidden", "dropout", "l2", "embedding_size", "numeric_bins")
_AT_LEAST = {
    "dropout": 0,
    "l2": 0,
    "embedding_size": 0,
    "minimum_count": 1,
    "vocabulary_limit": 1,
    "patience": 1,
    "warmup_epochs": 0,
    "clip_norm": 0,
    "numeric_bins": 0,
    "finish_epochs": 0,
}
_CHOICES = {"class_weights": ("", "balanced"), "schedule": ("", "cosine", "exponential")}


def parse_hyperparameters(given: Mapping[str, Any], open_ended: bool) -> Hyperparameters:
    """Reads hyperparameters; whole numbers may come as floats, since KFP's structs have no ints.

    Args:
        given: Names and values.
        open_ended: Whether other names are allowed, because a module of the user's reads them.

    Raises:
        InputError: If a name is unknown or a value does not fit.
    """
    known = {field.name: field.default for field in fields(Hyperparameters)}
    unknown = [name for name in given if name not in known]
    if unknown and not open_ended:
        raise InputError(
            f"Unknown hyperparameter {', '.join(map(repr, unknown))}; there is {', '.join(known)}."
        )
    return Hyperparameters(
        **{
            name: _checked(name, given[name], default)
            for name, default in known.items()
            if name in given
        }
    )


def _checked(name: str, value: Any, default: Any) -> Any:
    if name == "hidden":
        return tuple(_whole(name, units, 1) for units in _listed(name, value))
    if name == "categorical":
        return tuple(str(column) for column in _listed(name, value))
    if name == "class_weights" and isinstance(value, dict):
        return {str(label): _number(name, weight, 0) for label, weight in value.items()}
    if name in _CHOICES:
        return _chosen(name, value)
    if isinstance(default, int):
        return _whole(name, value, _AT_LEAST[name])
    return _number(name, value, _AT_LEAST[name])


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"The hyperparameter {name} is {value!r}; it must be a list.")
    return list(value)


def _chosen(name: str, value: Any) -> str:
    if value not in _CHOICES[name]:
        also = ", or class to weight" if name == "class_weights" else ""
        raise InputError(
            f"The hyperparameter {name} is {value!r}; it must be one of "
            f"{', '.join(map(repr, _CHOICES[name]))}{also}."
        )
    return str(value)


def _number(name: str, value: Any, least: float) -> float:
    below_one = name != "dropout" or (isinstance(value, int | float) and value < 1)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (value >= least and below_one)
    ):
        limit = " and below 1" if name == "dropout" else ""
        raise InputError(
            f"The hyperparameter {name} is {value!r}; it must be a number from {least} on{limit}."
        )
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != int(value)
        or value < least
    ):
        raise InputError(
            f"The hyperparameter {name} holds {value!r}; it must be a whole number from {least} on."
        )
    return int(value)
