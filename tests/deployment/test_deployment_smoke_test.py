# SPDX-License-Identifier: Apache-2.0
"""How far an answer may be from the golden prediction."""

import pytest

from kfloop.components.deployment.client import Answer
from kfloop.components.deployment.smoke_test import TOLERANCE, check_answer


def passes(answered: list, expected: list) -> bool:
    (reason,) = check_answer("v1", Answer(200, predictions=answered), expected, "", TOLERANCE)
    return reason.passed


def test_noise_near_zero_of_a_wide_range_is_no_difference():
    assert passes([2.0e9, -2.0e9, 310.0], [2.0e9, -2.0e9, 300.0])


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        ([2.0e9, -2.0e9, 1.0e6], [2.0e9, -2.0e9, 300.0]),
        ([0.2001, 0.9], [0.2, 0.9]),
        ([float("nan"), 0.9], [0.2, 0.9]),
        (["blue"], ["red"]),
        ([None], [0.2]),
    ],
)
def test_another_prediction_is_a_difference(answered, expected):
    assert not passes(answered, expected)
