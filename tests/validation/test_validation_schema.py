# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import schema_pb2

from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.schema import allowed_values, infer_schema, read_schema_file
from kfloop.components.validation.tfdv import tfdv


def _features(schema: Any) -> dict[str, Any]:
    return {feature.name: feature for feature in schema.feature}


def test_the_schema_is_one_that_tfdv_reads(bench: Any) -> None:
    loaded = tfdv().load_schema_text(str(bench.path("schema")))
    assert [feature.name for feature in loaded.feature] == list(_features(loaded))
    assert loaded == read_schema_file(bench.path("schema"))


# Trap: TFDV's own schema does not bound a column that had missing values.
def test_presence_comes_from_the_baseline_with_a_slack(bench: Any) -> None:
    features = _features(read_schema_file(bench.path("schema")))
    missing = bench.summary("before").columns["price"].missing
    assert features["price"].presence.min_fraction == pytest.approx(1 - missing - 0.1, abs=1e-3)
    assert features["stock"].presence.min_fraction == pytest.approx(0.9)


def test_the_label_is_expected_in_training_and_not_in_serving(bench: Any) -> None:
    schema = read_schema_file(bench.path("schema"))
    assert list(schema.default_environment) == ["TRAINING", "SERVING"]
    assert list(_features(schema)["sold"].not_in_environment) == ["SERVING"]
    assert not _features(schema)["price"].not_in_environment


def test_only_columns_of_few_values_have_a_list_of_them(bench: Any) -> None:
    schema = read_schema_file(bench.path("schema"))
    assert allowed_values(schema, "shop") == {"north", "south", "east"}
    assert allowed_values(schema, "receipt") == set()
    assert [domain.name for domain in schema.string_domain] == ["shop"]


def test_identifiers_of_a_small_sample_are_no_list_of_values(empty_bench: Any) -> None:
    empty_bench.measure({"id": [f"u{i}" for i in range(40)], "y": [0, 1] * 20}, "before")
    empty_bench.infer(label="y")
    assert allowed_values(read_schema_file(empty_bench.path("schema")), "id") == set()


def test_texts_too_long_to_be_counted_are_no_list_of_values(empty_bench: Any) -> None:
    """TFDV counts all of them as one value of its own making, which no row holds."""
    long = [f"{'z' * 1100}{i % 3}" for i in range(100)]
    empty_bench.measure({"long": long, "y": [i % 2 for i in range(100)]}, "before")
    assert "__LARGE_BYTES__" not in empty_bench.infer(label="y")


def test_a_label_of_many_classes_has_all_of_them_listed(empty_bench: Any) -> None:
    classes = [f"class {i % 120}" for i in range(600)]
    empty_bench.measure({"x": list(range(600)), "y": classes}, "before")
    empty_bench.infer(label="y")
    assert allowed_values(read_schema_file(empty_bench.path("schema")), "y") == set(classes)


def test_a_count_that_was_only_zero_or_one_so_far_may_be_two(empty_bench: Any) -> None:
    zero_one = np.random.default_rng(0).integers(0, 2, 500)
    empty_bench.measure({"stops": zero_one, "y": zero_one}, "before")
    features = _features(tfdv().load_schema_text(_infer_path(empty_bench, "y")))
    assert not features["stops"].HasField("bool_domain")
    assert features["y"].HasField("bool_domain")


def _infer_path(bench: Any, label: str) -> str:
    bench.infer(label=label)
    return str(bench.path("schema"))


def test_the_same_statistics_give_the_same_schema(bench: Any) -> None:
    first = infer_schema(bench.path("before"), bench.path("a"), "sold")
    second = infer_schema(bench.path("before"), bench.path("b"), "sold")
    assert first == second
    assert first["features"] == 6
    assert first["source"] == "inferred"


def test_a_schema_written_by_hand_wins(bench: Any) -> None:
    text = '# reviewed\nfeature { name: "sold" type: INT }\n'
    bench.path("mine.pbtxt").write_text(text)
    told = infer_schema(
        bench.path("before"), bench.path("out"), "sold", str(bench.path("mine.pbtxt"))
    )
    assert bench.path("out").read_text() == text
    assert told["features"] == 1
    uri = bench.path("mine.pbtxt").as_uri()
    assert infer_schema(bench.path("before"), bench.path("out"), "sold", uri)["source"] == uri


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("feature { nom: 'x' }", "cannot be read: 1:11"),
        ("", "describes no feature"),
        ('feature { name: "price" type: FLOAT }', "Label 'sold' is not in the schema"),
    ],
)
def test_a_hand_written_schema_that_cannot_serve_is_refused(
    bench: Any, text: str, told: str
) -> None:
    bench.path("mine.pbtxt").write_text(text)
    with pytest.raises(InputError, match=told):
        infer_schema(bench.path("before"), bench.path("o"), "sold", str(bench.path("mine.pbtxt")))
    assert not bench.path("o").exists()


# Trap: TFDV finds the L-infinity distance of a numeric column to be 0, whatever the data.
def test_l_infinity_on_a_numeric_column_is_refused(bench: Any) -> None:
    schema = read_schema_file(bench.path("schema"))
    _features(schema)["stock"].drift_comparator.infinity_norm.threshold = 0.1
    bench.path("mine.pbtxt").write_text(str(schema))
    with pytest.raises(InputError, match="'stock' by infinity_norm"):
        infer_schema(bench.path("before"), bench.path("o"), "", str(bench.path("mine.pbtxt")))


@pytest.mark.parametrize("uri", ["nowhere/schema.pbtxt", "file:///nowhere.pbtxt", "odd://x/y"])
def test_a_missing_schema_is_named(bench: Any, uri: str) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        infer_schema(bench.path("before"), bench.path("o"), "sold", uri)


def test_a_label_that_is_not_in_the_data_is_named(bench: Any) -> None:
    with pytest.raises(InputError, match="Label 'bought' is not in the data; it has at, price"):
        infer_schema(bench.path("before"), bench.path("o"), "bought")


def test_statistics_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("{}")
    with pytest.raises(InputError, match="does not hold statistics"):
        infer_schema(tmp_path / "s", tmp_path / "o")


def test_a_column_that_was_always_empty_may_stay_so_or_be_filled(empty_bench: Any) -> None:
    columns = {"x": list(range(100)), "later": pa.nulls(100), "y": [0, 1] * 50}
    empty_bench.measure(columns, "before")
    empty_bench.infer(label="y")
    feature = _features(read_schema_file(empty_bench.path("schema")))["later"]
    assert feature.presence.min_count == 0
    assert feature.type == schema_pb2.BYTES
    assert empty_bench.judge(columns, label="y").decision == "pass"
    filled = empty_bench.judge(columns | {"later": [1.5] * 100}, label="y")
    assert filled.decision == "pass"
    assert "it was empty in the schema's data" in filled.summary
