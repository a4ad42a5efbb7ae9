# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.schema import allowed_values, infer_schema, read_schema_file
from kfloop.components.validation.schema_update import update_schema


def propose(bench: Any, columns: Any, **settings: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the changes that new data proposes, by column and field."""
    bench.measure(columns, "new")
    names = ("schema", "new", "proposed", "changes.json", "changes.html")
    bench.told = update_schema(*map(bench.path, names), **settings)
    changes = json.loads(bench.path("changes.json").read_text())["changes"]
    return {(each["column"], each["field"]): each for each in changes}


def feature(bench: Any, name: str) -> Any:
    proposed = read_schema_file(bench.path("proposed"))
    return next(each for each in proposed.feature if each.name == name)


def accept(bench: Any) -> None:
    uri = str(bench.path("proposed"))
    infer_schema(bench.path("before"), bench.path("schema"), "sold", uri)


def test_data_that_fits_proposes_nothing_and_the_schema_stays_byte_for_byte(
    bench: Any, sales_of: Any
) -> None:
    text = "# reviewed by a person\n" + bench.path("schema").read_text()
    bench.path("schema").write_text(text)
    assert propose(bench, sales_of(seed=1)) == {}
    assert bench.path("proposed").read_text() == text
    assert bench.told["status"] == "unchanged"
    assert bench.told["fingerprint"] == bench.told["replaces"]
    assert "nothing to change" in bench.path("changes.html").read_text()


def test_every_change_is_proposed_with_its_reason_and_none_is_made(
    bench: Any, sales_of: Any
) -> None:
    before = bench.path("schema").read_bytes()
    new = sales_of(seed=1) | {"weight": list(range(2000))}
    new["price"] = pa.array([np.inf] + [1.0] * 1999, mask=np.arange(2000) % 2 == 1)
    new["shop"] = ["west"] * 50 + new["shop"].to_pylist()[50:]
    del new["receipt"]
    changes = propose(bench, new)
    assert {key: change["effect"] for key, change in changes.items()} == {
        ("price", "presence.min_fraction"): "accepts more",
        ("price", "float_domain.disallow_inf"): "accepts more",
        ("shop", "string_domain.shop"): "accepts more",
        ("receipt", "lifecycle_stage"): "no longer checked",
        ("weight", "feature"): "new column",
    }
    presence = changes["price", "presence.min_fraction"]
    assert presence["after"] == pytest.approx(0.4, abs=1e-6)
    assert "'price' is missing in 50.0% of the rows" in presence["why"]
    assert changes["shop", "string_domain.shop"]["after"] == ["east", "north", "south", "west"]
    assert bench.path("schema").read_bytes() == before
    assert bench.validate("new").decision == "fail"
    assert bench.told["status"] == "changed"
    assert bench.told["changes"] == 5
    accept(bench)
    assert bench.validate("new").decision == "pass", bench.validate("new").summary


def test_the_difference_in_the_page_is_whole_and_opens_offline(bench: Any, sales_of: Any) -> None:
    propose(bench, sales_of(seed=1) | {"<b>new</b>": [1] * 2000})
    page = bench.path("changes.html").read_text()
    assert "1 change proposed" in page
    assert "Nothing has changed yet" in page
    assert "&lt;b&gt;new&lt;/b&gt;" in page
    assert "<b>new</b>" not in page
    assert '<span class="added">+feature {</span>' in page
    assert "http" not in page
    assert "src=" not in page


# Trap: TFDV marks a column whose type changed as deprecated, and checks it never again.
def test_a_changed_type_is_proposed_as_a_type(bench: Any, sales_of: Any) -> None:
    new = sales_of(seed=1)
    changes = propose(bench, new | {"stock": new["stock"].cast(pa.float64())})
    assert changes["stock", "type"]["before"] == "INT"
    assert changes["stock", "type"]["after"] == "FLOAT"
    assert not feature(bench, "stock").lifecycle_stage
    assert "holds float, the schema expects int" in changes["stock", "type"]["why"]


def test_whole_numbers_in_a_column_of_fractions_narrow_nothing(bench: Any, sales_of: Any) -> None:
    assert propose(bench, sales_of(seed=1) | {"price": [1, 2] * 1000}) == {}


def test_numbers_that_became_words_bring_their_list_of_words(bench: Any, sales_of: Any) -> None:
    changes = propose(bench, sales_of(seed=1) | {"stock": ["few", "many"] * 1000})
    assert changes["stock", "type"]["after"] == "BYTES"
    proposed = read_schema_file(bench.path("proposed"))
    assert allowed_values(proposed, "stock") == {"few", "many"}
    accept(bench)
    assert bench.validate("new").decision == "pass"


def test_serving_data_without_the_label_leaves_the_label_alone(bench: Any, sales_of: Any) -> None:
    new = sales_of(seed=1)
    del new["sold"]
    assert propose(bench, new, environment="SERVING") == {}
    assert propose(bench, new)["sold", "lifecycle_stage"]["after"] == "DEPRECATED"


def test_a_label_of_another_type_keeps_its_environments(bench: Any, sales_of: Any) -> None:
    propose(bench, sales_of(seed=1) | {"sold": ["yes", "no"] * 1000})
    assert list(feature(bench, "sold").not_in_environment) == ["SERVING"]


def test_a_list_that_two_columns_share_names_both(bench: Any, sales_of: Any) -> None:
    schema = read_schema_file(bench.path("schema"))
    other = next(each for each in schema.feature if each.name == "receipt")
    other.domain = "shop"
    other.distribution_constraints.min_domain_mass = 0.0
    bench.path("schema").write_text(str(schema))
    columns = sales_of(seed=1)
    columns["receipt"] = columns["shop"]
    columns["shop"] = ["west"] * 20 + columns["shop"].to_pylist()[20:]
    assert ("shop, receipt", "string_domain.shop") in propose(bench, columns)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"environment": "STAGING"}, "no environment 'STAGING'"),
        ({"missing_slack": 2.0}, "missing_slack is 2.0"),
    ],
)
def test_a_wrong_setting_is_named(
    bench: Any, sales_of: Any, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        propose(bench, sales_of(100), **settings)
