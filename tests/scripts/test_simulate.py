# SPDX-License-Identifier: Apache-2.0
"""What a simulation makes of a loop file, before anything runs."""

from datetime import date
from types import SimpleNamespace

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.scripts.simulate import _first_month, _months, _train_window, _trained_before
from kfloop.scripts.simulate_page import simulation_page


def described(since: str = "2013-01-15", timestamp: str = "at") -> SimpleNamespace:
    retraining = SimpleNamespace(train_days=60, evaluation_days=10)
    return SimpleNamespace(
        examples=SimpleNamespace(timestamp=timestamp),
        split=SimpleNamespace(since=since),
        monitoring=SimpleNamespace(retraining=retraining),
    )


def test_it_begins_three_months_after_the_data_and_goes_over_the_new_year():
    first = _first_month(described("2013-10-15"), None)
    assert first == date(2014, 1, 1)
    assert list(_months(date(2013, 12, 1), 2)) == [
        (date(2013, 12, 1), date(2014, 1, 1)),
        (date(2014, 1, 1), date(2014, 2, 1)),
    ]


def test_it_trains_on_what_the_monitoring_would_train_on():
    assert _train_window(described(), date(2013, 6, 1)) == {
        "since": "2013-03-23",
        "split_at": "2013-05-22",
        "until": "2013-06-01",
    }


def test_no_month_is_trained_twice():
    lived = [SimpleNamespace(model_uri=uri) for uri in ("/1", "/1", "/2", "/2", "/2", "/3")]
    assert _trained_before(lived) == ["/1", "", "/2", "", "", "/3"]


@pytest.mark.parametrize(
    ("loop", "since", "sentence"),
    [
        (described(timestamp=""), None, "its past has no months"),
        (described(since=""), None, "say with --since"),
        (described(), "spring", "write a month like 2013-04"),
    ],
)
def test_a_loop_without_a_past_is_told_so(loop, since, sentence):
    with pytest.raises(InputError, match=sentence):
        _first_month(loop, since)


def test_the_page_tells_each_month_and_escapes_what_it_is_told():
    score = {"value": 0.75, "low": 0.7, "high": 0.8}
    month = {
        "since": "2013-04-01",
        "until": "2013-05-01",
        "model_uri": "/m/1",
        "version": "1",
        "drift": "fail",
        "performance": "pass",
        "action": "retrain",
        "promoted": "",
        "measured": 0.74,
        "estimated": None,
        "why": "drift <b>",
    }
    page = simulation_page(
        "flights",
        {
            "metric": "auc",
            "months": [month, {**month, "since": "2013-05-01", "promoted": "2"}],
            "scores": {"kfloop": [score, score], "never": [score, score]},
            "means": {"kfloop": 0.75, "never": 0.75},
            "trainings": {"kfloop": 2, "never": 0},
        },
    )
    assert "retrain → not promoted" in page
    assert "retrain → version 2" in page
    assert "drift &lt;b&gt;" in page
    assert "<svg" in page
