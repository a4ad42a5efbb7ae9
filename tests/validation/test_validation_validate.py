# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2

from kfloop.components.contracts.decision import Decision, read_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.require import require_pass
from kfloop.components.validation.schema import read_schema_file
from kfloop.components.validation.tfdv import tfdv


def whys(decision: Decision, passed: bool) -> str:
    return "\n".join(reason.why for reason in decision.reasons if reason.passed == passed)


def test_data_like_the_baseline_passes(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of(seed=1), rules=["rows >= 1000", "price.mean < 3"])
    assert decision.decision == "pass"
    assert "all 6 columns are as the schema expects" in whys(decision, passed=True)
    assert not any(reason.check.endswith("(reported)") for reason in decision.reasons)
    assert read_decision(bench.path("decision")) == decision
    require_pass(bench.path("decision"))


def test_a_sample_of_two_hundred_rows_passes(bench: Any, sales_of: Any) -> None:
    for seed in range(1, 6):
        decision = bench.judge(sales_of(200, seed), drift="fail")
        assert decision.decision == "pass", decision.summary


@pytest.mark.parametrize("environment", ["TRAINING", "SERVING"])
def test_a_dropped_column_fails(bench: Any, sales_of: Any, environment: str) -> None:
    columns = sales_of()
    del columns["shop"]
    decision = bench.judge(columns, environment=environment)
    assert decision.decision == "fail"
    assert whys(decision, passed=False) == "column 'shop' is missing"


def test_an_emptied_column_fails(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of() | {"stock": pa.nulls(2000, pa.int64())})
    assert whys(decision, passed=False) == "column 'stock' is empty in all 2,000 rows"


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ({"stock": ["3"] * 2000}, "column 'stock' holds string, the schema expects int"),
        ({"shop": [3] * 2000}, "column 'shop' holds int, the schema expects string"),
        ({"at": ["2020"] * 2000}, "column 'at' holds string, the schema expects timestamp"),
        ({"at": [0.5] * 2000}, "column 'at' holds float, the schema expects timestamp"),
    ],
)
def test_a_wrong_type_fails(bench: Any, sales_of: Any, column: Any, told: str) -> None:
    decision = bench.judge(sales_of() | column)
    assert decision.decision == "fail"
    assert told in whys(decision, passed=False)


def test_whole_numbers_that_became_fractions_are_only_reported(bench: Any, sales_of: Any) -> None:
    columns = sales_of(seed=1)
    decision = bench.judge(columns | {"stock": columns["stock"].cast(pa.float64())})
    assert decision.decision == "pass"
    assert "'stock' holds float, the schema expects int" in decision.summary


def test_a_jump_of_the_missing_rate_fails(bench: Any, sales_of: Any) -> None:
    columns = sales_of(seed=1)
    columns["price"] = pa.array(np.ones(2000), mask=np.arange(2000) % 2 == 0)
    decision = bench.judge(columns)
    assert decision.decision == "fail"
    assert "column 'price' is missing in 50.0% of the rows" in whys(decision, passed=False)
    assert len([reason for reason in decision.reasons if reason.check == "missing"]) == 1


def test_the_missing_rate_is_held_against_the_baseline_when_the_schema_allows_it(
    bench: Any, sales_of: Any
) -> None:
    schema = read_schema_file(bench.path("schema"))
    for feature in schema.feature:
        feature.presence.Clear()
    bench.path("schema").write_text(str(schema))
    columns = sales_of(seed=1)
    columns["price"] = pa.array(np.ones(2000), mask=np.arange(2000) % 2 == 0)
    told = whys(bench.judge(columns), passed=False)
    assert "'price' is missing in 50.0% of the rows, in 5." in told


def test_new_values_of_a_listed_column_are_reported_until_they_are_many(
    bench: Any, sales_of: Any
) -> None:
    shops = sales_of(seed=1)["shop"].to_pylist()
    few = bench.judge(sales_of(seed=1) | {"shop": ["west"] * 100 + shops[100:]})
    assert few.decision == "pass"
    assert "column 'shop' has new values in 5.00% of the rows: west" in few.summary
    many = bench.judge(sales_of(seed=1) | {"shop": [shop.upper() for shop in shops]})
    assert many.decision == "fail"
    assert "column 'shop': unexpected string values" in whys(many, passed=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [(["no", "yes"], ["no", "maybe"]), ([0, 1], [0, 2]), ([False, True], [0, 2])],
)
def test_a_new_value_of_the_label_fails(empty_bench: Any, before: Any, after: Any) -> None:
    x = list(range(400))
    empty_bench.measure({"x": x, "y": before * 200}, "before")
    empty_bench.infer(label="y")
    decision = empty_bench.judge({"x": x, "y": after * 200}, label="y")
    assert decision.decision == "fail"
    assert "'y'" in whys(decision, passed=False)


def test_a_constant_label_fails_in_one_sentence(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of() | {"sold": [False] * 2000})
    assert whys(decision, passed=False) == (
        "label 'sold' has a single value (0) in all 2,000 rows that have one, so there is nothing "
        "to learn"
    )
    with pytest.raises(InputError, match=r"^Data validation failed: label 'sold' has a single"):
        require_pass(bench.path("decision"))


def test_a_constant_text_label_fails(empty_bench: Any) -> None:
    empty_bench.measure({"x": list(range(50)), "y": ["no"] * 50}, "before")
    empty_bench.infer(label="y")
    assert "label 'y' has a single value (no)" in empty_bench.validate("before", label="y").summary


def test_a_label_is_needed_in_training_and_not_in_serving(bench: Any, sales_of: Any) -> None:
    columns = sales_of(seed=1)
    del columns["sold"]
    training = bench.judge(columns)
    assert whys(training, passed=False).startswith("label 'sold' is missing; the data has at,")
    assert bench.validate("now", "before", environment="SERVING").decision == "pass"


def test_an_empty_label_fails(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of() | {"sold": pa.nulls(2000, pa.bool_())})
    assert whys(decision, passed=False) == "label 'sold' is empty in all 2,000 rows"


def test_a_new_column_is_reported(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of(seed=1) | {"weight": list(range(2000))})
    assert decision.decision == "pass"
    assert "column 'weight' is not in the schema" in decision.summary


def test_infinite_values_fail(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of(seed=1) | {"price": [float("inf")] * 100 + [1.0] * 1900})
    assert "column 'price': invalid values" in whys(decision, passed=False)
    assert "not drawn: infinite values" in bench.path("page.html").read_text()


# Trap: an empty frame has no anomalies.
def test_infinite_values_have_no_mean_on_the_page(empty_bench: Any) -> None:
    rows = {"x": [1.0, float("inf")] * 100, "y": [0, 1] * 100}
    empty_bench.measure(rows, "before")
    empty_bench.infer(label="y")
    empty_bench.validate("before", label="y")
    page = (empty_bench.root / "page.html").read_text()
    assert "no mean: infinite values" in page
    assert "nan" not in page


def test_data_that_is_its_own_baseline_is_compared_with_nothing(bench: Any) -> None:
    decision = bench.validate("before", baseline="before")
    assert decision.baseline is None
    assert not [reason for reason in decision.reasons if "drift" in reason.check]
    assert "the baseline" not in (bench.root / "page.html").read_text()


def test_statistics_of_no_rows_are_no_data(bench: Any) -> None:
    empty = statistics_pb2.DatasetFeatureStatisticsList()
    empty.datasets.add(num_examples=0)
    bench.path("now").write_bytes(empty.SerializeToString())
    decision = bench.validate("now", "before")
    assert decision.decision == "no_data"
    assert tfdv().load_anomalies_text(str(bench.path("anomalies"))).data_missing
    with pytest.raises(InputError, match="Data validation found no data: the data has no rows"):
        require_pass(bench.path("decision"))


# Trap: one row validates clean.
def test_one_row_fails_where_more_are_needed(bench: Any, sales_of: Any) -> None:
    decision = bench.judge(sales_of(1), environment="SERVING", minimum_rows=100)
    assert decision.decision == "fail"
    assert "the data has 1 rows, fewer than the 100" in whys(decision, passed=False)
    assert "single value" in whys(bench.judge(sales_of(1)), passed=False)


# Trap: TFDV's L-infinity does not see a numeric column move.
@pytest.mark.parametrize(("drift", "outcome"), [("report", "pass"), ("fail", "fail")])
def test_drift_of_a_number_is_seen(bench: Any, sales_of: Any, drift: str, outcome: str) -> None:
    moved = sales_of(seed=1)
    moved["stock"] = pa.array(np.random.default_rng(1).poisson(6, 2000))
    decision = bench.judge(moved, drift=drift)
    assert decision.decision == outcome
    assert "column 'stock' drifted (psi" in decision.summary


def test_drift_of_a_string_is_seen_and_measured_as_tfdv_does(bench: Any, sales_of: Any) -> None:
    random = np.random.default_rng(1)
    moved = sales_of(seed=1)
    moved["shop"] = pa.array(random.choice(["north", "south", "east"], 2000, p=[0.8, 0.1, 0.1]))
    decision = bench.judge(moved, drift="fail")
    found = next(r for r in decision.reasons if r.check == "drift l_infinity" and not r.passed)
    assert "most at 'north'" in found.why
    schema = read_schema_file(bench.path("schema"))
    shop = next(feature for feature in schema.feature if feature.name == "shop")
    shop.drift_comparator.infinity_norm.threshold = 0.01
    anomalies = tfdv().validate_statistics(
        tfdv().load_stats_binary(str(bench.path("now"))),
        schema,
        environment="TRAINING",
        previous_statistics=tfdv().load_stats_binary(str(bench.path("before"))),
    )
    assert found.value == pytest.approx(anomalies.drift_skew_info[0].drift_measurements[0].value)


def test_drift_can_be_switched_off(bench: Any, sales_of: Any) -> None:
    moved = sales_of(seed=1) | {"stock": [100] * 2000}
    assert "drift" not in json.dumps([r.check for r in bench.judge(moved, drift="off").reasons])


def test_time_and_identifiers_move_on_without_drift(bench: Any, sales_of: Any) -> None:
    later = sales_of(seed=1)
    later["at"] = pa.array(np.array(later["at"]) + np.timedelta64(90, "D"))
    decision = bench.judge(later, drift="fail")
    assert decision.decision == "pass"


def test_a_comparator_in_a_hand_written_schema_is_obeyed(bench: Any, sales_of: Any) -> None:
    schema = read_schema_file(bench.path("schema"))
    shop = next(feature for feature in schema.feature if feature.name == "shop")
    shop.drift_comparator.infinity_norm.threshold = 0.05
    bench.path("schema").write_text(str(schema))
    decision = bench.judge(sales_of(seed=1) | {"shop": ["north"] * 2000}, drift="off")
    assert "high linfty distance between current and previous" in whys(decision, passed=False)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("rows >= 5000", "rule 'rows >= 5000' is broken: it is 2000"),
        ("shop.unique <= 2", "is broken: it is 3"),
        ("price.missing < 0.01", "is broken: it is 0.0"),
        ("cost.mean < 3", "cannot be checked: the data has no column 'cost'"),
        ("shop.mean < 3", "cannot be checked: a string column has no mean"),
    ],
)
def test_a_broken_rule_fails(bench: Any, rule: str, told: str) -> None:
    decision = bench.validate("before", rules=[rule])
    assert decision.decision == "fail"
    assert told in whys(decision, passed=False)


def test_an_ignored_column_is_not_judged(bench: Any, sales_of: Any) -> None:
    columns = sales_of(seed=1) | {"stock": ["many"] * 2000, "request_id": ["x"] * 2000}
    del columns["shop"]
    decision = bench.judge(columns, ignore=["stock", "shop", "request_id"])
    assert decision.decision == "pass"
    assert "request_id" not in decision.summary


def test_a_log_is_held_against_a_reference_sample(empty_bench: Any, sales_of: Any) -> None:
    def features(rows: int, seed: int) -> dict[str, Any]:
        return {name: sales_of(rows, seed)[name] for name in ("price", "stock", "shop")}

    empty_bench.measure(features(500, 0) | {"prediction": np.linspace(0, 1, 500)}, "before")
    empty_bench.infer(label="")
    log = features(200, 1) | {"request_id": [f"q{i}" for i in range(200)], "row": [0] * 200}
    decision = empty_bench.judge(
        log, label="", environment="SERVING", ignore=["prediction", "request_id", "row"]
    )
    assert decision.decision == "pass", decision.summary
    del log["price"]
    broken = empty_bench.judge(log, label="", environment="SERVING", ignore=["prediction"])
    assert whys(broken, passed=False) == "column 'price' is missing"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"environment": "STAGING"}, "no environment 'STAGING'; it has TRAINING, SERVING"),
        ({"drift": "maybe"}, "drift is 'maybe'"),
        ({"skew": "maybe"}, "skew is 'maybe'"),
        ({"minimum_rows": 0}, "minimum_rows is 0"),
        ({"rules": ["price is nice"]}, "Rule 'price is nice' cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(bench: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        bench.validate("before", **settings)


def test_a_schema_without_environments_serves_any(bench: Any, sales_of: Any) -> None:
    bench.path("schema").write_text('feature { name: "stock" type: INT }')
    assert bench.judge(sales_of(), environment="SERVING", label="").decision == "pass"


def test_the_page_shows_every_column_and_needs_no_network(bench: Any, sales_of: Any) -> None:
    columns = sales_of(seed=1) | {"shop": ["<b>north</b>"] * 2000, "empty": pa.nulls(2000)}
    bench.judge(columns)
    page = bench.path("page.html").read_text()
    for name in columns:
        assert f'<span class="name">{name}</span>' in page
    assert page.count("<title>Distribution of") + page.count("<title>Most frequent") == 6
    assert "&lt;b&gt;north" in page
    assert "<b>north</b>" not in page
    assert 'class="then"' in page
    assert "http" not in page
    assert "src=" not in page
    names = [page.index(f'class="name">{name}<') for name in ("shop", "empty", "price")]
    assert names == sorted(names)  # what fails, what is reported, what holds
    assert page.index("What was found") < names[0] < page.index("All ")


def test_skew_between_training_and_serving_is_found(bench: Any, sales_of: Any) -> None:
    served = sales_of(seed=1)
    del served["sold"]
    bench.measure(served, "served")
    assert not any("skew" in why for why in _told(bench.validate("before", serving="served")))
    served["stock"] = pa.array(np.random.default_rng(1).poisson(6, 2000))
    served["shop"] = pa.array([shop.upper() for shop in served["shop"].to_pylist()])
    served["price"] = pa.array(served["price"].to_numpy(False), mask=np.arange(2000) % 3 == 0)
    del served["receipt"]
    bench.measure(served, "served")
    decision = bench.validate("before", serving="served", skew="fail")
    assert decision.decision == "fail"
    assert {reason.metric: reason.check for reason in decision.reasons if not reason.passed} == {
        "stock": "skew psi",
        "shop": "skew l_infinity",
        "price": "skew missing",
        "receipt": "skew column",
    }
    told = whys(decision, passed=False)
    assert "column 'stock' is served differently from training (psi" in told
    assert "column 'receipt' is trained on and not served" in told
    assert bench.validate("before", serving="served").decision == "pass"
    assert not any("skew" in r.check for r in _off(bench).reasons)


def _told(decision: Decision) -> list[str]:
    return [r.check for r in decision.reasons if not r.passed or r.check.endswith("(reported)")]


def _off(bench: Any) -> Decision:
    return bench.validate("before", serving="served", skew="off")


def test_serving_data_without_rows_is_no_proof_of_no_skew(bench: Any) -> None:
    empty = statistics_pb2.DatasetFeatureStatisticsList()
    empty.datasets.add(num_examples=0)
    bench.path("served").write_bytes(empty.SerializeToString())
    decision = bench.validate("before", serving="served")
    assert whys(decision, passed=False) == "the serving data has no rows to compare with"


def test_the_page_of_skew_draws_what_is_served(bench: Any, sales_of: Any) -> None:
    bench.measure(sales_of(seed=1), "served")
    assert bench.validate("before", serving="served").baseline == (
        "the serving data's statistics of 2,000 rows"
    )
    assert "■ the serving data" in bench.path("page.html").read_text()


def test_a_skew_comparator_in_a_hand_written_schema_is_obeyed(bench: Any, sales_of: Any) -> None:
    schema = read_schema_file(bench.path("schema"))
    shop = next(feature for feature in schema.feature if feature.name == "shop")
    shop.skew_comparator.infinity_norm.threshold = 0.05
    bench.path("schema").write_text(str(schema))
    bench.measure(sales_of(seed=1) | {"shop": ["north"] * 2000}, "served")
    told = whys(bench.validate("before", serving="served", skew="off"), passed=False)
    assert "high linfty distance between training and serving" in told
