# SPDX-License-Identifier: Apache-2.0
"""The encoding of features, and the batches."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import Feature
from kfloop.components.training.batches import batch_rows, ordered_batches, shuffled_batches
from kfloop.components.training.devices import Devices
from kfloop.components.training.encoder import CLIP, EncoderFitter, encode_pieces
from kfloop.components.training.examples import Examples

import tensorflow as tf  # isort: skip

NUMBER = [Feature("x", "float")]


def fitted(values, features=NUMBER, **options):
    defaults = {"categorical": set(), "domains": {}, "minimum_count": 1, "vocabulary_limit": 100}
    fitter = EncoderFitter(features, **(defaults | options))
    fitter.update({features[0].name: values})
    return fitter.encoder()


def encode(encoder, inputs):
    return next(encode_pieces(encoder, [inputs]))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=50),
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=10),
)
def test_any_float_is_encoded_to_something_finite_and_bounded(training, serving):
    encoder = fitted(np.array(training, np.float32))
    encoded = encode(encoder, {"x": np.array(serving, np.float32)})["numeric"]
    assert np.isfinite(encoded).all()
    assert np.abs(encoded).max() <= CLIP


def test_numbers_are_standardised_and_missing_ones_marked():
    values = np.array([1, 3, np.nan, 5], np.float32)
    encoder = fitted(values)
    assert encoder.numeric_names == ["x", "x_missing"]
    expected = (np.array([1, 3, 3, 5]) - 3) / np.std([1, 3, 5])
    encoded = encode(encoder, {"x": values})["numeric"]
    np.testing.assert_allclose(encoded[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(encoded[:, 1], [0, 0, 1, 0])


def test_a_constant_column_becomes_zero():
    encoded = encode(fitted(np.full(5, 0.1, np.float32)), {"x": np.full(2, 0.1, np.float32)})
    np.testing.assert_allclose(encoded["numeric"], 0, atol=1e-6)


def test_booleans_stay_zero_and_one():
    feature = [Feature("x", "bool")]
    encoder = fitted(np.array([0, 1, 1], np.float32), feature)
    np.testing.assert_array_equal(
        encode(encoder, {"x": np.array([0, 1], np.float32)})["numeric"][:, 0], [0, 1]
    )


def test_rare_missing_and_unseen_strings_share_the_unknown_position():
    values = np.array(["a"] * 5 + ["b"] * 3 + ["rare", ""], object)
    encoder = fitted(values, [Feature("x", "string")], minimum_count=2)
    assert encoder.vocabulary_sizes == {"x": 3}
    asked = np.array(["a", "b", "rare", "", "unseen"], object)
    assert encode(encoder, {"x": asked})["categorical"][:, 0].tolist() == [1, 2, 0, 0, 0]


def test_the_vocabulary_keeps_to_the_limit_and_to_the_schemas_domain():
    values = np.array(["a", "a", "a", "b", "b", "c"], object)
    feature = [Feature("x", "string")]
    assert fitted(values, feature, vocabulary_limit=2).vocabulary_sizes == {"x": 3}
    encoder = fitted(values, feature, domains={"x": ["b", "z"]})
    assert encode(encoder, {"x": values})["categorical"][:, 0].tolist() == [0, 0, 0, 1, 1, 0]


def test_no_value_of_a_category_at_all_is_all_unknown():
    encoder = fitted(np.array(["", ""], object), [Feature("x", "string")])
    encoded = encode(encoder, {"x": np.array(["", "a"], object)})
    assert encoded["categorical"][:, 0].tolist() == [0, 0]


def test_integer_categories_take_whole_numbers_only():
    encoder = fitted(np.array([3, 3, 4], np.float32), [Feature("x", "int")], categorical={"x"})
    asked = np.array([3, 4, 3.5, np.nan, np.inf, 1e30, -3], np.float32)
    assert encode(encoder, {"x": asked})["categorical"][:, 0].tolist() == [1, 2, 0, 0, 0, 0, 0]


def test_integer_categories_beyond_float32_are_refused():
    with pytest.raises(InputError, match="cast it to a string"):
        fitted(np.array([2**25], np.float32), [Feature("x", "int")], categorical={"x"})


def test_nulls_of_every_type_become_missing():
    table = pa.table(
        {
            "i": pa.array([1, None], pa.int64()),
            "d": pa.array([None, 2], pa.decimal128(10, 2)),
            "s": pa.array(["a", None]).dictionary_encode(),
            "n": pa.nulls(2),
        }
    )
    inputs = model_inputs(
        table,
        [Feature("i", "int"), Feature("d", "float"), Feature("s", "string"), Feature("n", "float")],
    )
    np.testing.assert_array_equal(inputs["i"], np.array([1, np.nan], np.float32))
    np.testing.assert_array_equal(inputs["d"], np.array([np.nan, 2], np.float32))
    assert inputs["s"].tolist() == ["a", ""]
    assert np.isnan(inputs["n"]).all()


def test_a_wrong_or_missing_input_column_is_named():
    table = pa.table({"x": ["text"]})
    with pytest.raises(InputError, match="takes 'x' as float, but the data holds string"):
        model_inputs(table, NUMBER)
    with pytest.raises(InputError, match="needs 'y', which the data lacks"):
        model_inputs(table, [Feature("y", "float")])


def test_batches_shuffle_rows_with_their_labels_and_differ_by_epoch_only():
    numbers = np.arange(100, dtype=np.float32)
    examples = Examples({"numeric": numbers[:, None]}, numbers)
    epoch = tf.Variable(0, dtype=tf.int64)
    dataset = shuffled_batches(examples, 32, 5, epoch, Devices("one"))

    def one_pass():
        seen = [(x["numeric"].numpy()[:, 0], y.numpy()) for x, y in dataset]
        assert [len(y) for _, y in seen] == [32, 32, 32]
        for x, y in seen:
            np.testing.assert_array_equal(x, y)
        return np.concatenate([y for _, y in seen])

    first, again = one_pass(), one_pass()
    epoch.assign(1)
    second = one_pass()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert len(set(first.tolist())) == 96


def test_processes_take_their_share_of_the_same_batches():
    numbers = np.arange(101, dtype=np.float32)
    examples = Examples({"numeric": numbers[:, None]}, numbers)
    epoch = tf.Variable(3, dtype=tf.int64)
    one = Devices("one", count=4)
    both = [Devices("two", count=4, processes=2, process=process) for process in (0, 1)]
    size = batch_rows(101, 35, one)
    assert size == 32
    for batches in (
        lambda devices: shuffled_batches(examples, size, 5, epoch, devices),
        lambda devices: ordered_batches(examples, devices),
    ):
        whole = list(batches(one).as_numpy_iterator())
        shares = [list(batches(devices).as_numpy_iterator()) for devices in both]
        for (_, label), (_, left), (_, right) in zip(whole, *shares, strict=True):
            assert len(left) == len(right)
            np.testing.assert_array_equal(np.concatenate([left, right]), label)
    with pytest.raises(InputError, match="batch of 3 rows cannot be shared by 4 devices"):
        batch_rows(101, 3, one)
