# SPDX-License-Identifier: Apache-2.0
"""Labels of odd ranges and types: learned from, or refused in one sentence."""

from typing import Any

import pyarrow as pa
import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.label import Label, LabelFitter, LabelReader


def learned(values: Any, task: str, kind: pa.DataType | None = None) -> Label:
    column = pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values, kind)])
    reader = LabelReader("y", task)
    reader.update(column)
    label = reader.label()
    fitter = LabelFitter(label)
    fitter.update(column)
    fitter.finish()
    return label


def test_whole_numbers_beyond_two_to_the_53_are_numbers() -> None:
    """Nanoseconds, or amounts in millionths."""
    label = learned([2**53 + 1, 2**60], "regression", pa.int64())
    assert label.scale == pytest.approx((2**60 - 2**53) / 2)


@pytest.mark.parametrize(
    "values", [[1e300, -1e300], [1e-300, 2e-300], [1e9, 1e9 + 1e-6], [1.7e18, 1.7e18 + 1e9]]
)
def test_a_label_that_float32_cannot_hold_is_refused(values: list[float]) -> None:
    """It would train to NaN, or answer the same everywhere."""
    with pytest.raises(InputError, match="32-bit floating point cannot tell apart; scale or shift"):
        learned(values, "regression")


@pytest.mark.parametrize(
    ("values", "kind"), [([2**63 + 5, 1], pa.uint64()), ([1e30, 2.0], pa.float64())]
)
def test_numbers_too_large_to_be_classes_are_refused(
    values: list[float], kind: pa.DataType
) -> None:
    with pytest.raises(InputError, match="must be strings or integers"):
        learned(values, "multiclass", kind)


def test_a_null_among_the_values_of_a_dictionary_is_a_missing_label() -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array(["a", None]))
    with pytest.raises(InputError, match="null in 2 of 3 rows"):
        learned(values, "multiclass")
