# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from monitoring_world import Columns, log, people, publish

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.decision import Reason, read_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature
from kfloop.components.monitoring.drift import Report, detect_drift


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(tmp_path_factory.mktemp("model"), people(5000, seed=0))


def detect(tmp_path: Path, model: str, columns: Columns, **settings: Any) -> Report:
    window = log(tmp_path / "window", columns)
    return detect_drift(window, model, tmp_path / "d.json", tmp_path / "p.html", **settings)


def failed(report: Report) -> set[tuple[str, str]]:
    return {(r.metric, r.check) for r in report.decision.reasons if not r.passed}


def reason(report: Report, metric: str, check: str) -> Reason:
    return next(r for r in report.decision.reasons if (r.metric, r.check) == (metric, check))


def test_the_same_population_passes_and_every_check_is_listed(tmp_path: Path, model: str) -> None:
    report = detect(tmp_path, model, people(3000, seed=1))
    assert report.decision.decision == "pass"
    assert report.metadata["rows"] == 3000
    assert report.metadata["until"].startswith("2024-06-03")
    assert {r.metric for r in report.decision.reasons} >= {"load", "plan", "member", "prediction"}
    assert read_decision(tmp_path / "d.json") == report.decision


def test_a_column_with_a_third_missing_is_drift(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["age"] = np.where(np.arange(3000) % 3 == 0, np.nan, columns["age"])
    report = detect(tmp_path, model, columns)
    assert report.decision.decision == "fail"
    assert failed(report) == {("features", "drifted_features"), ("age", "missing")}
    # the values that are left were still compared
    assert reason(report, "age", "missing").value == pytest.approx(1 / 3, abs=0.01)
    assert any(c.name == "age" and c.p_value is not None for c in report.comparisons)


def test_a_column_that_turns_all_missing_is_drift(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["plan"] = pa.nulls(3000, pa.string())
    del columns["visits"]
    report = detect(tmp_path, model, columns)
    assert {("plan", "missing"), ("visits", "missing")} <= failed(report)


def test_an_empty_window_is_no_data(tmp_path: Path, model: str) -> None:
    report = detect(tmp_path, model, people(0, seed=1))
    assert report.decision.decision == "no_data"
    assert report.metadata["until"] == ""


def test_too_few_answers_are_no_data_and_failed_requests_do_not_count(
    tmp_path: Path, model: str
) -> None:
    window = log(tmp_path / "window", people(1000, seed=1), failed=900)
    report = detect_drift(window, model, tmp_path / "d.json", tmp_path / "p.html")
    assert report.decision.decision == "no_data"
    assert report.metadata["failed_requests"] == 900
    assert "100 answered requests and 900 failed" in report.decision.summary


def test_failed_requests_do_not_look_like_drift(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["prediction"] = np.where(np.arange(3000) < 1000, np.nan, columns["prediction"])
    window = log(tmp_path / "window", columns, failed=1000)
    report = detect_drift(window, model, tmp_path / "d.json", tmp_path / "p.html")
    assert report.decision.decision == "pass"


def test_a_model_without_reference_is_no_baseline(tmp_path: Path) -> None:
    model = publish(tmp_path / "model")
    assert detect(tmp_path, model, people(3000, seed=1)).decision.decision == "no_baseline"


@pytest.mark.parametrize("maximum_rows", [20_000, 50_000])
def test_a_meaningless_shift_at_50000_rows_is_not_drift(tmp_path: Path, maximum_rows: int) -> None:
    model = publish(tmp_path / "model", people(50_000, seed=0))
    columns = people(50_000, seed=1)
    columns["load"] = columns["load"] + 0.02 * 12
    report = detect(tmp_path, model, columns, maximum_rows=maximum_rows)
    assert report.decision.decision == "pass"


def test_significance_without_effect_is_not_drift(tmp_path: Path) -> None:
    model = publish(tmp_path / "model", people(50_000, seed=0))
    columns = people(50_000, seed=1)
    columns["load"] = columns["load"] + 0.06 * 12
    report = detect(tmp_path, model, columns, maximum_rows=50_000)
    load = next(c for c in report.comparisons if c.name == "load")
    assert load.adjusted is not None and load.adjusted < 0.01
    assert not load.drifted
    assert "differs by too little to matter" in load.reasons[0].why


@pytest.mark.parametrize(("shift", "drifted"), [(0.1, False), (0.35, True)])
def test_a_shift_is_drift_when_it_matters(
    tmp_path: Path, model: str, shift: float, drifted: bool
) -> None:
    columns = people(3000, seed=1)
    columns["age"] = columns["age"] + shift * np.std(columns["age"])
    report = detect(tmp_path, model, columns)
    assert (report.decision.decision == "fail") is drifted


@pytest.mark.parametrize("gone", ["basic", "pro"])
def test_one_vanished_category_is_drift(tmp_path: Path, model: str, gone: str) -> None:
    columns = people(3000, seed=1)
    columns["plan"] = np.where(columns["plan"] == gone, "free", columns["plan"])
    report = detect(tmp_path, model, columns)
    assert ("plan", "vanished") in failed(report)
    assert gone in reason(report, "plan", "vanished").why


def test_unseen_categories_are_drift(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["plan"] = np.where(np.arange(3000) % 25 == 0, "enterprise", columns["plan"])
    report = detect(tmp_path, model, columns)
    assert ("plan", "unseen") in failed(report)
    assert reason(report, "plan", "unseen").value == pytest.approx(0.04, abs=0.001)


def test_values_outside_of_the_range_are_drift(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["age"] = np.where(np.arange(3000) % 30 == 0, -1.0, columns["age"])
    assert ("age", "out_of_range") in failed(detect(tmp_path, model, columns))


def test_a_changed_prediction_alone_is_drift(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["prediction"] = np.sqrt(columns["prediction"])
    report = detect(tmp_path, model, columns, minimum_drifted=99)
    assert report.decision.decision == "fail"
    assert {metric for metric, _ in failed(report)} == {"prediction"}


def test_the_prediction_of_another_version_is_not_compared(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["prediction"] = np.sqrt(columns["prediction"])
    window = log(tmp_path / "window", columns, version="2")
    report = detect_drift(window, model, tmp_path / "d.json", tmp_path / "p.html")
    assert report.decision.decision == "pass"
    assert "0 answers of this model version" in reason(report, "prediction", "minimum_rows").why


def test_predicted_classes_are_compared_as_categories(tmp_path: Path) -> None:
    def classes(seed: int, shares: list[float]) -> Columns:
        drawn = np.random.default_rng(seed).choice(["a", "b", "c"], 3000, p=shares)
        return people(3000, seed) | {"prediction": drawn}

    model = publish(
        tmp_path / "model", classes(0, [0.5, 0.3, 0.2]), task="multiclass", classes=["a", "b", "c"]
    )
    assert detect(tmp_path, model, classes(1, [0.5, 0.3, 0.2])).decision.decision == "pass"
    assert detect(tmp_path, model, classes(1, [0.2, 0.3, 0.5])).metadata["drifted"] == [
        "prediction"
    ]


def test_booleans_are_compared_however_they_were_logged(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["member"] = columns["member"].astype(np.float64)
    assert detect(tmp_path, model, columns).decision.decision == "pass"
    columns["member"] = 1 - columns["member"]
    assert "member" in detect(tmp_path, model, columns).metadata["drifted"]


def test_minimum_drifted_features_decide(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["age"] = columns["age"] + 20
    assert detect(tmp_path, model, columns, minimum_drifted=2).decision.decision == "pass"
    columns["visits"] = columns["visits"] + 3
    report = detect(tmp_path, model, columns, minimum_drifted=2)
    assert report.decision.decision == "fail"
    assert set(report.metadata["drifted"]) == {"age", "visits"}


def test_reasons_are_sorted_by_effect(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["visits"] = columns["visits"] + 1
    columns["age"] = columns["age"] + 40
    report = detect(tmp_path, model, columns)
    assert [c.name for c in report.comparisons][1:3] == ["age", "visits"]


def test_random_halves_alarm_in_at_most_5_of_100_seeds(tmp_path: Path) -> None:
    everyone = people(6000, seed=7)
    alarms = 0
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(6000)
        first = {name: column[order[:3000]] for name, column in everyone.items()}
        second = {name: column[order[3000:]] for name, column in everyone.items()}
        model = publish(tmp_path / "model", first)
        report = detect(tmp_path, model, second, calibration_splits=5)
        alarms += report.decision.decision != "pass"
    assert alarms <= 5


def test_a_slice_that_drifts_is_named(tmp_path: Path, model: str) -> None:
    columns = people(6000, seed=1)
    pro = columns["plan"] == "team"
    columns["age"] = np.where(pro, columns["age"] + 40, columns["age"])
    assert detect(tmp_path, model, columns, minimum_drifted=2).decision.decision == "pass"
    report = detect(tmp_path, model, columns, minimum_drifted=2, slices=["plan"])
    assert report.decision.decision == "fail"
    drifted = {r.slice for r in report.decision.reasons if not r.passed and r.slice}
    assert drifted == {"plan=team"}


def test_a_joint_change_is_found_by_the_multivariate_test(tmp_path: Path, model: str) -> None:
    columns = people(5000, seed=1)
    columns["age"] = np.sort(columns["age"])[np.argsort(np.argsort(columns["load"]))]
    assert detect(tmp_path, model, columns).decision.decision == "pass"
    report = detect(tmp_path, model, columns, multivariate=True)
    assert failed(report) == {("all features", "classifier")}
    calm = detect(tmp_path, model, people(5000, seed=2), multivariate=True)
    assert calm.decision.decision == "pass"


def test_a_constant_reference_column_is_compared(tmp_path: Path) -> None:
    constant = people(3000, seed=0) | {"load": np.full(3000, 5.0)}
    model = publish(tmp_path / "model", constant)
    same = people(3000, seed=1) | {"load": np.full(3000, 5.0)}
    assert detect(tmp_path, model, same).decision.decision == "pass"
    other = people(3000, seed=1) | {"load": np.full(3000, 6.0)}
    assert detect(tmp_path, model, other).metadata["drifted"] == ["load"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, model: str) -> None:
    detect(tmp_path, model, people(30_000, seed=1))
    first = (tmp_path / "d.json").read_bytes(), (tmp_path / "p.html").read_bytes()
    detect(tmp_path, model, people(30_000, seed=1))
    assert first == ((tmp_path / "d.json").read_bytes(), (tmp_path / "p.html").read_bytes())


def test_the_page_opens_offline_and_escapes_what_clients_send(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["plan"] = np.where(np.arange(3000) % 5 == 0, "<script>alert(1)</script>", "free")
    detect(tmp_path, model, columns)
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://", page)
    assert page.count("<svg") == 7


def test_50000_rows_of_10_features_are_judged_whole(tmp_path: Path) -> None:
    def wide(rows: int, seed: int) -> Columns:
        rng = np.random.default_rng(seed)
        numbers = {f"number{i}": rng.normal(size=rows) for i in range(6)}
        texts = {f"text{i}": rng.integers(0, size, rows).astype(str) for i, size in sizes}
        return numbers | texts | {"prediction": rng.random(rows)}

    sizes = list(enumerate((2, 5, 20, 100)))
    features = [Feature(f"number{i}", "float") for i in range(6)]
    features += [Feature(f"text{i}", "string") for i in range(4)]
    model = publish(tmp_path / "model", wide(5000, 0), features=features)
    window = log(tmp_path / "window", wide(50_000, 1))
    report = detect_drift(window, model, tmp_path / "d.json", tmp_path / "p.html")
    judged = {reason.metric for reason in report.decision.reasons}
    assert judged >= {"prediction", *(feature.name for feature in features)}
    assert report.decision.decision == "pass"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"thresholds": {"kl": 0.1}}, "threshold 'kl' is not known"),
        ({"significance": 0.0}, "between 0 and 1"),
        ({"minimum_drifted": 0}, "at least 1"),
        ({"slices": ["planet"]}, "Slice column 'planet' is not in the window"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(
    tmp_path: Path, model: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        detect(tmp_path, model, people(3000, seed=1), **settings)


def test_a_window_of_another_model_gets_one_sentence(tmp_path: Path, model: str) -> None:
    write_dataset(pa.table({"height": [1.0, 2.0]}), tmp_path / "window")
    with pytest.raises(InputError, match="none of the model's features"):
        detect_drift(tmp_path / "window", model, tmp_path / "d.json", tmp_path / "p.html")


def test_text_in_a_number_gets_one_sentence(tmp_path: Path, model: str) -> None:
    columns = people(3000, seed=1)
    columns["age"] = np.full(3000, "old")
    with pytest.raises(InputError, match="'age' is a number to the model"):
        detect(tmp_path, model, columns)


def test_the_page_shows_the_windows_so_far(tmp_path: Path, model: str) -> None:
    history = tmp_path / "history.jsonl"
    for number in range(3):
        columns = people(3000 + number, seed=number)
        columns["load"] = columns["load"] + 6 * number
        remembered = {"history_uri": str(history), "run": f"run{number}"}
        detect(tmp_path, model, columns, **remembered)
    page = (tmp_path / "p.html").read_text()
    table = page[page.index("Windows so far") :]
    first_row = table[table.index("<tr><th>load") :].partition("</tr>")[0]
    assert first_row.count("<td") == 3, "the strongest column comes first, one cell per window"
    # A retry of a run replaces its window.
    detect(tmp_path, model, columns, **remembered)
    assert len(history.read_text().splitlines()) == 3


def test_a_file_that_is_no_drift_history_is_named(tmp_path: Path, model: str) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"x": 1}\n')
    with pytest.raises(InputError, match=r"drift history .* cannot be read"):
        detect(tmp_path, model, people(3000, seed=1), history_uri=str(other))
