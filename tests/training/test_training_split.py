# SPDX-License-Identifier: Apache-2.0
"""Which rows are held out, and how a label is read piece by piece."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.training.label import LabelFitter, LabelReader
from kfloop.components.training.split import split_rows


def held(dataset, split, pieces: int) -> np.ndarray:
    tables = (dataset.slice(start, pieces) for start in range(0, dataset.num_rows, pieces))
    return np.concatenate([mask for _, mask in split.parts(tables)])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(-(2**55), 2**55) | st.integers(0, 3), min_size=4, max_size=60),
    st.floats(0.2, 0.8),
    st.integers(1, 9),
)
def test_the_latest_rows_are_held_out(tmp_path_factory, moments, fraction, pieces):
    directory = tmp_path_factory.mktemp("split")
    table = pa.table({"at": pa.array(moments, pa.timestamp("us"))})
    write_dataset(table, directory)
    mask = held(table, split_rows(directory, "at", fraction, seed=1), pieces)
    order = np.argsort(moments, kind="stable")
    expected = np.zeros(len(moments), bool)
    expected[order[len(moments) - round(len(moments) * fraction) :]] = True
    np.testing.assert_array_equal(mask, expected)


def test_dates_order_rows_too(tmp_path):
    table = pa.table({"at": [date(2024, 1, day) for day in (5, 1, 4, 2, 3)]})
    write_dataset(table, tmp_path / "data")
    split = split_rows(tmp_path / "data", "at", 0.4, seed=1)
    assert held(table, split, 2).tolist() == [True, False, True, False, False]
    assert (split.since, split.until) == ("2024-01-01", "2024-01-05")


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 200_000), st.floats(0.01, 0.99), st.integers(0, 5), st.integers(5000, 90_000))
def test_a_random_draw_has_its_size_and_depends_on_the_seed_alone(rows, fraction, seed, pieces):
    from kfloop.components.training.split import RandomRows

    count = min(max(1, round(rows * fraction)), rows - 1)
    table = pa.table({"x": np.arange(rows)})
    first = held(table, RandomRows(rows, count, seed), pieces)
    again = held(table, RandomRows(rows, count, seed), 65_536)
    assert first.sum() == count
    np.testing.assert_array_equal(first, again)
    if rows > 1000 and 0.1 < fraction < 0.9:
        assert (held(table, RandomRows(rows, count, seed + 1), pieces) != first).any()
        # Not all at one end.
        assert 0 < first[: rows // 2].sum() < count


@pytest.mark.parametrize(
    ("task", "values", "expected"),
    [
        ("binary", [0, 1, 1, 0], [0, 1, 1, 0]),
        ("binary", [True, False, True, True], [1, 0, 1, 1]),
        ("multiclass", ["b", "a", "c", "a"], [1, 0, 2, 0]),
        ("multiclass", [3.0, 10.0, 2.0, 3.0], [1, 2, 0, 1]),
        ("regression", [1.0, 3.0, 1.0, 3.0], [-1, 1, -1, 1]),
    ],
)
def test_a_label_read_in_pieces_is_the_label(task, values, expected):
    column = pa.chunked_array([values])
    reader = LabelReader("y", task)
    for start in range(4):
        reader.update(column.slice(start, 1))
    label = reader.label()
    fitter = LabelFitter(label)
    for start in (0, 2):
        fitter.update(column.slice(start, 2))
    fitter.finish()
    assert label.target(column).tolist() == expected
    encoded = pa.chunked_array([column.combine_chunks().dictionary_encode()])
    assert label.target(encoded).tolist() == expected


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("binary", [0, 1, 2], "holds 0, 1, 2; for the task binary"),
        ("binary", [0.0, float("nan"), 1.0], "holds 0.0, 1.0, nan"),
        ("multiclass", [0.5, 1.0, 2.0], "holds double; for the task multiclass"),
        ("regression", [1.0, float("inf"), 2.0], "infinity in 1 of 3 rows"),
        ("regression", ["1", "2", "3"], "holds string; for the task regression"),
        ("regression", [2.0, 2.0, 2.0], "is 2.0 in all 3 rows"),
        ("multiclass", ["a", None, "b"], "null in 1 of 3 rows"),
    ],
)
def test_a_label_that_does_not_fit_is_said_whatever_the_pieces(task, values, message):
    reader = LabelReader("y", task)
    for value in values:
        reader.update(pa.chunked_array([pa.array([value], pa.array(values).type)]))
    with pytest.raises(InputError, match=message):
        reader.label()
