# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.rules import STATISTICS, parse_rule
from kfloop.components.validation.summary import Column, Summary

DATA = Summary(
    100,
    {
        "x": Column("x", "float", 90, 0.1, mean=2.5, cuts=(0.0, 2.0, 5.0), shares=(0.5, 0.5)),
        "a.b c": Column("a.b c", "string", 100, 0.0, unique=3, values=(("v", 100.0),)),
    },
)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("rows >= 100", 100, True),
        ("x.mean < 2.5", 2.5, False),
        ("x.mean<=2.5e0", 2.5, True),
        ("  x.missing == .1 ", 0.1, True),
        ("x.p50 != 2", 2.0, False),
        ("x.p99 > -1", 5.0, True),
        ("a.b c.unique <= 3", 3, True),
    ],
)
def test_a_rule_compares_a_statistic_with_a_number(text: str, value: float, holds: bool) -> None:
    rule = parse_rule(text)
    assert rule.value(DATA) == pytest.approx(value)
    assert rule.holds(value) is holds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("x.mean", "cannot be read"),
        ("x.mean < y.mean", "cannot be read"),
        ("x.mean < 3 or True", "cannot be read"),
        ("__import__('os').x < 1", "is not a statistic"),
        ("mean < 3", "names no column"),
        ("x.average < 3", "'average', which is not a statistic of a column; there is count"),
        ("x.p100 < 3", "not a statistic"),
        ("x.mean < nan", "cannot be read"),
    ],
)
def test_anything_else_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_rule(text)


@given(st.text(max_size=30))
def test_no_text_does_more_than_parse_or_be_refused(text: str) -> None:
    try:
        parse_rule(text)
    except InputError as error:
        assert repr(text) in str(error)


@given(
    st.text(min_size=1, max_size=10).filter(lambda name: name == name.strip() and "\n" not in name),
    st.sampled_from(STATISTICS),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_rule_on_any_column_name_is_understood(
    name: str, statistic: str, comparison: str, number: float
) -> None:
    rule = parse_rule(f"{name}.{statistic} {comparison} {number!r}")
    assert (rule.column, rule.statistic) == (name, statistic)
    assert (rule.comparison, rule.number) == (comparison, number)


def test_nan_fulfils_no_rule() -> None:
    assert not parse_rule("x.mean != 3").holds(float("nan"))
