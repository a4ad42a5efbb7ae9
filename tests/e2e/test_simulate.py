# SPDX-License-Identifier: Apache-2.0
"""The past: a month lived through, and windows that were never lived."""

import json

from conftest import last_run, metadata

from kfloop.serving.local_state import list_services


def test_a_simulated_month_is_scored_three_ways_and_leaves_nothing_running(kfloop, project):
    before = {service["name"] for service in list_services(project / ".kfloop")}
    done = kfloop("simulate", "--since", "2013-06", "--months", "1", "--requests", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    home = project / ".kfloop" / "simulation"
    result = json.loads((home / "simulation.json").read_text())
    (month,) = result["months"]
    assert (month["since"], month["until"], month["version"]) == ("2013-06-01", "2013-07-01", "1")
    assert month["action"] in ("keep", "retrain")
    scores = {name: row[0] for name, row in result["scores"].items()}
    # The first month is served by the first model, whichever way.
    assert scores["kfloop"] == scores["never"] == scores["every month"]
    assert 0 < scores["kfloop"]["value"] < 9
    assert "2013-06" in (home / "simulation.html").read_text()
    assert not any(service["running"] for service in list_services(home))
    assert {service["name"] for service in list_services(project / ".kfloop")} == before


def test_a_backtest_trains_and_evaluates_on_windows_of_the_past(kfloop, project):
    window = {"since": "2013-01-01", "train_until": "2013-05-01"}
    judged = {"at": "2013-05-01", "until": "2013-06-01"}
    trainings = json.dumps([window | judged])
    done = kfloop("run", "backtest", "-s", f"trainings={trainings}", "-s", "until=2013-06-01")
    assert done.returncode == 0, done.stdout + done.stderr
    run = last_run(project, "backtest")
    found = metadata(run, "evaluate-model", "evaluation")["window"]
    assert "2013-05-01" <= found["since"] < found["until"] < "2013-06-01"
    mae = metadata(run, "evaluate-model", "metrics")
    assert mae["mae_low"] <= mae["mae"] <= mae["mae_high"]
