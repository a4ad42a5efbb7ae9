# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kfloop.components.contracts.decision import (
    Decision,
    Reason,
    outcome_of,
    read_decision,
    render,
    write_decision,
)
from kfloop.components.contracts.errors import InputError

REASONS = st.builds(
    Reason,
    check=st.text(max_size=9),
    metric=st.text(max_size=9),
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    threshold=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    passed=st.booleans(),
    why=st.text(max_size=20),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reasons=st.lists(REASONS, max_size=6), action=st.none() | st.just("retrain"))
def test_a_decision_reads_back(tmp_path, reasons, action):
    decision = Decision("gate", outcome_of(reasons), reasons, action, forced=None)
    write_decision(decision, tmp_path / "decision", tmp_path / "page.html")
    assert read_decision(tmp_path / "decision") == decision


def test_no_check_is_no_data_and_one_failed_check_fails():
    good = Reason("minimum", "auc", 0.8, 0.7, True, "good")
    bad = Reason("minimum", "auc", 0.6, 0.7, False, "bad")
    assert outcome_of([]) == "no_data"
    assert outcome_of([good]) == "pass"
    assert outcome_of([good, bad]) == "fail"


def test_the_summary_tells_what_failed_first_and_stays_short():
    reasons = [Reason("c", "m", 1.0, 2.0, n == 0, f"reason {n}") for n in range(9)]
    summary = Decision("gate", "fail", reasons).summary
    assert summary == "gate: fail (reason 1; reason 2; reason 3; 5 more)"


def test_values_json_cannot_carry_are_told_as_text(tmp_path):
    reason = Reason("c", "m", float("nan"), float("inf"), False, "why")
    write_decision(Decision("gate", "fail", [reason]), tmp_path / "decision")
    assert read_decision(tmp_path / "decision").reasons[0].value == "nan"


def test_the_page_shows_text_as_text():
    reason = Reason("c", "<script>", "a&b", None, False, "<b>why</b>")
    page = render(Decision("gate", "fail", [reason]))
    assert "<script>" not in page and "<b>why" not in page


def test_a_word_that_is_no_outcome_is_refused():
    with pytest.raises(ValueError, match="A decision is one of"):
        Decision("gate", "maybe")


def test_a_file_that_is_no_decision_is_named(tmp_path):
    (tmp_path / "x").write_text("{}")
    with pytest.raises(InputError, match="is not a decision file"):
        read_decision(tmp_path / "x")
