# SPDX-License-Identifier: Apache-2.0
"""Weights of classes, the learning rate over time, and gradient clipping."""

import math
import re

import numpy as np
import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.train import (  # imported before TensorFlow: it quietens the log
    parse_hyperparameters,
)

from kfloop.components.training.devices import Devices  # isort: skip
from kfloop.components.training.examples import Examples  # isort: skip
from kfloop.components.training.fit import FitSettings, fit  # isort: skip
from kfloop.components.training.label import Label, class_weights  # isort: skip
from kfloop.components.training.progress import _duration  # isort: skip
from kfloop.components.training.schedule import learning_rate  # isort: skip

import keras  # isort: skip

ROWS = 4000


def rare_positive() -> Examples:
    random = np.random.default_rng(0)
    numbers = random.normal(size=(ROWS, 3)).astype(np.float32)
    label = (numbers[:, 0] + random.normal(size=ROWS) > 2.5).astype(np.float32)
    return Examples({"numeric": numbers}, label)


def trained(examples: Examples, **changes) -> tuple[keras.Model, list[dict[str, float]]]:
    keras.utils.set_random_seed(1)
    inputs = {"numeric": keras.Input((3,), name="numeric")}
    network = keras.Model(inputs, keras.layers.Dense(1)(inputs["numeric"]))
    settings = FitSettings(**{
        "task": "binary", "epochs": 4, "batch_size": 100, "learning_rate": 0.05, "patience": 9,
        "seed": 3,
    } | changes)  # fmt: skip
    return network, fit(network, examples, examples, settings, Devices("one")).epochs


def test_balanced_classes_pull_the_mean_probability_to_a_half():
    examples = rare_positive()
    share = float(examples.label.mean())
    positive = int(examples.label.sum())
    label = Label("y", "binary", counts=[ROWS - positive, positive])
    weights = tuple(class_weights(label, "balanced"))
    assert weights == pytest.approx((0.5 / (1 - share), 0.5 / share))
    plain, _ = trained(examples)
    balanced, _ = trained(examples, class_weights=weights)
    means = [
        float(keras.ops.mean(keras.ops.sigmoid(network(examples.inputs))))
        for network in (plain, balanced)
    ]
    assert means[0] == pytest.approx(share, abs=0.02)
    assert means[1] > 3 * share


def test_weights_are_given_by_the_name_of_the_class():
    kinds = Label("y", "multiclass", ["high", "low", "mid"], [1, 2, 0])
    assert class_weights(kinds, {"low": 3.0}) == [1.0, 3.0, 1.0]
    assert class_weights(kinds, "balanced") == [1.5, 0.75, 1.0]
    binary = Label("y", "binary", counts=[1, 1])
    assert class_weights(binary, {"True": 5.0}) == [1.0, 5.0]
    assert class_weights(binary, "") == []


@pytest.mark.parametrize(
    ("label", "wanted", "message"),
    [
        (Label("y", "multiclass", ["a", "b"], [1, 1]), {"c": 2.0}, "'c', which is no class"),
        (Label("y", "regression"), "balanced", "regression has none"),
    ],
)
def test_weights_that_fit_no_class_are_refused(label, wanted, message):
    with pytest.raises(InputError, match=message):
        class_weights(label, wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_weights": "equal"}, "or class to weight"),
        ({"class_weights": {"1": -1}}, "must be a number from 0"),
        ({"schedule": "linear"}, "must be one of '', 'cosine', 'exponential'"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"clip_norm": "big"}, "clip_norm"),
    ],
)
def test_a_wrong_setting_is_named(given, message):
    with pytest.raises(InputError, match=message):
        parse_hyperparameters(given, open_ended=False)


@pytest.mark.parametrize(
    ("decay", "half"), [("", 1.0), ("cosine", 0.01 + 0.99 / 2), ("exponential", math.sqrt(0.01))]
)
def test_the_learning_rate_rises_then_falls(decay, half):
    rate = learning_rate(0.2, decay, warmup_epochs=2, epochs=12, steps_per_epoch=10)
    values = [float(rate(step)) for step in range(121)]
    assert values[0] == pytest.approx(0.2 / 20)
    assert values[9] == pytest.approx(0.1)
    assert max(values) == values[20] == pytest.approx(0.2)
    assert values[70] == pytest.approx(0.2 * half, rel=1e-4)
    assert values[120] == pytest.approx(0.2 if not decay else 0.002, rel=1e-4)


def test_a_constant_learning_rate_stays_a_number():
    assert learning_rate(0.2, "", 0, 5, 5) == 0.2


@pytest.mark.parametrize(
    "changes",
    [{"schedule": "cosine", "warmup_epochs": 1.0}, {"schedule": "exponential"}, {"clip_norm": 0.1}],
)
def test_every_variant_learns_and_is_repeatable(changes):
    examples = rare_positive()
    first, epochs = trained(examples, **changes)
    second, again = trained(examples, **changes)
    assert epochs[-1]["val_loss"] < epochs[0]["val_loss"]
    assert epochs[-1]["val_loss"] == again[-1]["val_loss"]
    for left, right in zip(first.get_weights(), second.get_weights(), strict=True):
        assert left.tobytes() == right.tobytes()


def test_clipping_bounds_the_first_step():
    network, _ = trained(rare_positive(), clip_norm=1e-9, epochs=1)
    assert network.optimizer.global_clipnorm == 1e-9


def test_the_log_can_be_followed(monkeypatch, capsys):
    monkeypatch.setattr("kfloop.components.training.progress._SILENCE_SECONDS", -1.0)
    _, epochs = trained(rare_positive(), learning_rate=3.0, patience=1, epochs=50)
    printed = capsys.readouterr().out
    assert re.search(r"Epoch 1/50 is at 80%: [\d,]+ examples/s, \d+ s left in it\.", printed)
    assert len(epochs) < 50
    assert f"the best is epoch {len(epochs) - 1}; stops, since 1 epochs" in printed
    assert epochs[0]["seconds"] > 0


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (61, "1 min 01 s"), (3601, "1 h 00 min")]
)
def test_durations_are_short(seconds, said):
    assert _duration(seconds) == said
