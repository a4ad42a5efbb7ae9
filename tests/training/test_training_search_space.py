# SPDX-License-Identifier: Apache-2.0
"""The search space: what it takes, and how it names what is wrong."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.search_space import Choice, Range, parse_space

SPACE = {
    "learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
    "batch_size": {"low": 64, "high": 512, "step": 64},
    "dropout": {"low": 0, "high": 0.5},
    "hidden": {"choices": [[64], [128, 64]]},
    "schedule": {"choices": ["", "cosine"]},
}


def test_ranges_and_choices_are_read_with_the_type_of_what_they_vary():
    rate, batch, dropout, hidden, schedule = parse_space(SPACE, open_ended=False)
    assert rate == Range("learning_rate", 0.0001, 0.01, log=True)
    assert batch == Range("batch_size", 64, 512, whole=True, step=64)
    assert dropout == Range("dropout", 0, 0.5)
    assert hidden == Choice("hidden", ("[64]", "[128, 64]"))
    assert [json.loads(option) for option in schedule.options] == ["", "cosine"]


def test_a_module_of_the_users_has_names_of_its_own():
    space = {"width": {"low": 1, "high": 9, "type": "int"}, "gain": {"low": 1, "high": 2}}
    width, gain = parse_space(space, open_ended=True)
    assert (width.whole, gain.whole) == (True, False)
    with pytest.raises(InputError, match="'width', which cannot be tuned"):
        parse_space(space, open_ended=False)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("droput", {"low": 0, "high": 1}, "'droput', which cannot be tuned; there is batch_size"),
        ("categorical", {"choices": [["a"], ["b"]]}, "cannot be tuned"),
        ("dropout", [0, 1], "give it `choices`, or `low` and `high`"),
        ("dropout", {"low": 0, "choices": [0, 1]}, "give it `choices`, or"),
        ("dropout", {"high": 0.5}, "give it `choices`, or"),
        ("dropout", {"low": 0.1}, "has no `high`"),
        ("dropout", {"low": 0.5, "high": 0.1}, "low must be below high"),
        ("dropout", {"low": 0, "high": 1}, "dropout is 1; it must be a number from 0 on and below"),
        ("dropout", {"low": 0, "high": 0.5, "log": True}, "low must be above 0"),
        ("dropout", {"low": 0, "high": 0.5, "size": 3}, "has no key 'size'"),
        ("dropout", {"low": "0", "high": 0.5}, "The low of dropout is '0'"),
        ("dropout", {"low": True, "high": 0.5}, "The low of dropout is True"),
        ("dropout", {"low": 0, "high": 0.5, "step": 1}, "The step of dropout is 1"),
        ("dropout", {"low": 0, "high": 0.5, "type": "int"}, "names of your own module"),
        ("patience", {"low": 1, "high": 2.5}, "patience is a whole number"),
        ("batch_size", {"low": 0, "high": 64}, "it must be a whole number from 1 on"),
        ("learning_rate", {"low": -1, "high": 1}, "it must be above 0"),
        ("hidden", {"low": 1, "high": 9}, "hidden is no number; give it `choices`"),
        ("hidden", {"choices": [[64]]}, "give a list of two or more"),
        ("hidden", {"choices": [[64], [64]]}, "hold a value twice"),
        ("hidden", {"choices": [[64], [0]]}, "hidden holds 0"),
        ("schedule", {"choices": ["cosine", "linear"]}, "schedule is 'linear'"),
        ("schedule", {"choices": ["", "cosine"], "log": True}, "has choices and log"),
    ],
)
def test_what_is_wrong_is_named(name, given, message):
    with pytest.raises(InputError, match=message):
        parse_space({name: given}, open_ended=False)


@given(
    st.dictionaries(
        st.sampled_from(["low", "high", "step", "log", "choices", "type"]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-3, 9),
            st.floats(),
            st.text(max_size=3),
            st.lists(st.integers(-1, 9), max_size=3),
        ),
    ),
    st.sampled_from(["dropout", "patience", "hidden", "schedule", "learning_rate", "own"]),
)
def test_any_entry_is_read_or_refused_in_one_sentence(entry, name):
    try:
        (read,) = parse_space({name: entry}, open_ended=True)
    except InputError as error:
        assert "\n" not in str(error)
        return
    if isinstance(read, Range):
        assert math.isfinite(read.low) and read.low < read.high
        assert read.holds(read.low)
    else:
        assert len(set(read.options)) == len(read.options) > 1
