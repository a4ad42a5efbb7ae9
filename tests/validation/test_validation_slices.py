# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_data_validation.utils import slicing_util

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.validation import slices as module
from kfloop.components.validation.columns import clean
from kfloop.components.validation.schema import infer_schema
from kfloop.components.validation.slices import cut, parse_slices
from kfloop.components.validation.statistics import compute_statistics
from kfloop.components.validation.summary import read_statistics, summarize
from kfloop.components.validation.tfdv import canonical, tfdv

KINDS = {"at": "timestamp", "price": "float", "shop": "string", "stock": "int"}


def whys(decision: Any) -> list[str]:
    return [r.why for r in decision.reasons if not r.passed or r.check.endswith("(reported)")]


# Trap: TFDV ignores slicing of data frames and answers with one dataset.
def test_every_slice_is_measured_like_a_dataset_of_its_rows(empty_bench: Any) -> None:
    random = np.random.default_rng(0)
    shop, x = random.choice(["north", "south"], 3000), random.normal(size=3000)
    whole = empty_bench.measure({"shop": shop, "x": x}, slices=["shop"])
    assert list(whole.slices) == ["shop_north", "shop_south"]
    for name, part in whole.slices.items():
        rows = shop == name.removeprefix("shop_")
        alone = empty_bench.measure({"shop": shop[rows], "x": x[rows]}, "alone")
        assert part.rows == alone.rows
        assert part.columns["shop"] == alone.columns["shop"]
        one, other = part.columns["x"], alone.columns["x"]
        assert (one.count, one.min, one.max) == (other.count, other.min, other.max)
        assert (one.mean, one.std) == pytest.approx((other.mean, other.std))
        assert one.quantile(0.5) == pytest.approx(other.quantile(0.5), abs=0.05)


def test_slices_have_the_names_and_rows_that_tfdv_gives_them() -> None:
    batch = clean(
        pa.record_batch(
            {
                "shop": ["north", None, "south", "north"],
                "stock": pa.array([1, 2, None, 1]),
                "big": [True, False, True, False],
            }
        )
    )
    for columns in (("shop",), ("stock",), ("big",), ("big", "shop"), ("shop", "stock")):
        slicer = slicing_util.get_feature_value_slicer({name: None for name in columns})
        expected = {name: part.num_rows for name, part in slicer(canonical(batch))}
        assert {name: part.num_rows for name, part in cut(batch, columns)} == expected
        assert {name: part.num_rows for name, part in cut(canonical(batch), columns)} == expected


def test_slices_over_many_batches_are_merged_and_small_ones_are_counted(
    empty_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kfloop.components.validation.batches.BATCH_ROWS", 500)
    monkeypatch.setattr(module, "WAITING_ROWS", 700)
    table = pa.table({"k": ["a"] * 1500 + ["b"] * 450 + ["c"] * 50, "x": list(range(2000))})
    write_dataset(table, empty_bench.path("data"))
    told = compute_statistics(empty_bench.path("data"), empty_bench.path("s"), slices=["k"])
    assert (told["slices"], told["small_slices"]) == (["k_a", "k_b"], 1)
    found = empty_bench.summary("s")
    assert found.rows == 2000
    assert {name: part.rows for name, part in found.slices.items()} == {"k_a": 1500, "k_b": 450}
    assert found.slices["k_b"].columns["x"].min == 1500


def test_tfdv_reads_sliced_statistics_as_those_of_all_rows(empty_bench: Any, sales_of: Any) -> None:
    empty_bench.measure(sales_of(), "before", slices=["shop"])
    loaded = tfdv().load_stats_binary(str(empty_bench.path("before")))
    assert loaded.datasets[0].name == "All Examples"
    assert len(tfdv().infer_schema(loaded).feature) == 6
    infer_schema(empty_bench.path("before"), empty_bench.path("schema"), "sold")
    assert empty_bench.validate("before", "before").decision == "pass"


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        (["town"], "'town' of the slice 'town' is missing; the dataset has at, price"),
        (["shop,price"], "'price' of the slice 'shop,price' holds float"),
        (["at"], "holds timestamp; slice by a column of string, int, bool"),
        ([""], "'' of the slice '' is missing"),
    ],
)
def test_what_cannot_be_sliced_by_is_named(slices: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_slices(slices, KINDS)


def test_the_order_and_repetition_of_columns_do_not_matter() -> None:
    assert parse_slices(["stock, shop", "shop,stock", "shop"], KINDS) == [
        ("shop", "stock"),
        ("shop",),
    ]


@pytest.mark.parametrize("rows_per_file", [1000, 100])
def test_too_many_slices_are_refused_before_they_fill_the_memory(
    tmp_path: Path, rows_per_file: int
) -> None:
    (tmp_path / "data").mkdir()
    ids = pa.table({"id": [f"u{i}" for i in range(1000)]})
    for part, start in enumerate(range(0, 1000, rows_per_file)):
        write_dataset(ids.slice(start, rows_per_file), tmp_path / "part")
        target = tmp_path / "data" / f"part-{part:05d}.parquet"
        (tmp_path / "part" / "part-00000.parquet").rename(target)
    with pytest.raises(InputError, match=r"more than 200 slices.*columns of fewer values"):
        compute_statistics(tmp_path / "data", tmp_path / "s", slices=["id"])
    assert not (tmp_path / "s").exists()


def test_two_slices_of_one_name_are_refused(empty_bench: Any) -> None:
    columns = {"a": ["b_c"] * 5, "a_b": ["c"] * 5}
    with pytest.raises(InputError, match="Two slices are named 'a_b_c', by a_b and by a;"):
        empty_bench.measure(columns, slices=["a", "a_b"])


def test_a_minimum_size_of_nothing_is_refused(empty_bench: Any) -> None:
    with pytest.raises(InputError, match="minimum_slice_size is 0; it is at least 1"):
        empty_bench.measure({"a": ["b"]}, slices=["a"], minimum_slice_size=0)


def test_drift_in_one_slice_is_found_where_all_rows_look_alike(
    empty_bench: Any, sales_of: Any
) -> None:
    before, after = sales_of(6000), sales_of(6000, seed=1)
    shops = np.array(after["shop"].to_pylist())
    stock = after["stock"].to_numpy().copy()
    stock[shops == "east"] = stock[shops == "north"].max() - stock[shops == "east"]
    # What one shop gained the others lost, so that the whole is as before.
    others = np.flatnonzero(shops != "east")
    stock[others] = np.random.default_rng(2).permutation(before["stock"].to_numpy())[others]
    empty_bench.measure(before, "before", slices=["shop"])
    empty_bench.infer()
    empty_bench.measure(after | {"stock": stock}, "now", slices=["shop"])
    decision = empty_bench.validate("now", "before", drift="fail", maximum_psi=2)
    found = [reason for reason in decision.reasons if not reason.passed]
    assert [(reason.metric, reason.slice) for reason in found] == [("stock", "shop_east")]
    assert found[0].why.endswith(", in slice shop_east")
    page = empty_bench.path("page.html").read_text()
    assert "<h2>Slices</h2>" in page
    assert "shop_east" in page


def test_missing_values_of_one_slice_fail(empty_bench: Any, sales_of: Any) -> None:
    before, after = sales_of(), sales_of(seed=1)
    east = np.array(after["shop"].to_pylist()) == "east"
    gone = east & (np.arange(2000) % 5 == 0)
    after["stock"] = pa.array(after["stock"].to_numpy(), mask=gone)
    empty_bench.measure(before, "before", slices=["shop"])
    empty_bench.infer()
    empty_bench.measure(after, "now", slices=["shop"])
    decision = empty_bench.validate("now", "before")
    assert decision.decision == "fail"
    assert len(whys(decision)) == 1
    assert "'stock' is missing in" in whys(decision)[0]
    assert whys(decision)[0].endswith("in slice shop_east")


def test_a_slice_that_is_gone_is_reported(empty_bench: Any, sales_of: Any) -> None:
    empty_bench.measure(sales_of(), "before", slices=["shop"])
    empty_bench.infer()
    after = sales_of(seed=1)
    after["shop"] = ["north" if shop == "east" else shop for shop in after["shop"].to_pylist()]
    empty_bench.measure(after, "now", slices=["shop"])
    decision = empty_bench.validate("now", "before", drift="off")
    assert decision.decision == "pass"
    assert "slice shop_east of the baseline has no rows now, or too few" in whys(decision)[0]


def test_statistics_of_slices_alone_are_refused(bench: Any) -> None:
    statistics = read_statistics(bench.path("before"))
    statistics.datasets.add(name="other")
    bench.path("two").write_bytes(statistics.SerializeToString())
    with pytest.raises(InputError, match="2 datasets and none of all rows"):
        summarize(read_statistics(bench.path("two")))
