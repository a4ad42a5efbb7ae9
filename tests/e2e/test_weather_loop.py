# SPDX-License-Identifier: Apache-2.0
"""A loop of another shape than the sample: a regression, one entity, no on-demand views."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
from conftest import kill_during, last_run, metadata

from kfloop.components.contracts.inference_log import log_files
from kfloop.components.contracts.model_package import ONNX_ABOUT, read_model_json
from kfloop.pipelines.local import environments
from kfloop.serving.local_state import read_status, service_directory


@pytest.fixture(scope="module")
def first(kfloop):
    """The whole loop, run once."""
    done = kfloop("loop")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_loop_ends_with_a_second_version_that_was_judged(first, project):
    monitoring = last_run(project, "monitoring")
    gates = {decision["gate"]: decision["decision"] for decision in monitoring.decisions()}
    assert "rollout" in gates, gates
    rolled_out = next(d for d in monitoring.decisions() if d["gate"] == "rollout")
    assert "smoke test" in rolled_out["summary"] or "%" in rolled_out["summary"]
    assert "promoted" in rolled_out["summary"] or "rolled_back" in rolled_out["summary"]


def test_the_summary_says_what_to_do_next(first):
    for part in ("report.html", "curl ", "kfloop services stop weather", "training", "monitoring"):
        assert part in first


def test_the_report_holds_steps_decisions_and_pages(first, project):
    text = (Path(last_run(project, "monitoring").directory) / "report.html").read_text()
    for part in ("detect-drift", "roll-out-model", "srcdoc=", "Lineage"):
        assert part in text
    # It opens offline: nothing is loaded from anywhere.
    assert not re.search(r'(src|href)="https?://', text)


def test_the_curl_line_works_and_v2_gives_the_same(first, project):
    status = read_status(service_directory(project / ".kfloop", "weather"))
    package = Path(next(iter(status["predictors"].values()))["storageUri"])
    body = (package / "reference/request.json").read_bytes()
    url = f"{status['url']}/v1/models/weather:predict"
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        value = json.load(answer)["predictions"][0]["value"]
        assert answer.headers["x-model-version"] == read_model_json(package).version
    instance = json.loads(body)["instances"][0]
    inputs = [
        {
            "name": feature.name,
            "shape": [1],
            "datatype": "BYTES" if feature.type == "string" else "FP64",
            "data": [instance[feature.name]],
        }
        for feature in read_model_json(package).features
    ]
    body = json.dumps({"inputs": inputs}).encode()
    url = f"{status['url']}/v2/models/weather/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        assert json.load(answer)["outputs"][0]["data"][0] == pytest.approx(value, abs=1e-5)


@pytest.fixture(scope="module")
def twin(kfloop, project):
    """The training pipeline for another service, with tuning and, as by default, ONNX."""
    log = project / ".kfloop" / "inference-log" / "twin"
    settings = ["name=twin", "service=twin", f"inference_log={log}"]
    settings += ["tuning_trials=2", 'tuning_space={"dropout": {"low": 0.2, "high": 0.3}}']
    trained = kfloop("run", "training", *(part for each in settings for part in ("-s", each)))
    assert trained.returncode == 0, trained.stdout + trained.stderr
    return last_run(project, "training")


def test_the_model_is_trained_with_what_tuning_found_and_exported(twin):
    outputs = {task: twin.task(task).outputs for task in ("tune-model", "train-model")}
    tuned = json.loads(Path(outputs["tune-model"]["best_parameters"][0]["uri"]).read_text())
    package = read_model_json(outputs["train-model"]["model"][0]["uri"])
    assert 0.2 <= tuned["hyperparameters"]["dropout"] <= 0.3
    assert package.hyperparameters["dropout"] == tuned["hyperparameters"]["dropout"]
    assert package.metrics["validation_rmse"] == pytest.approx(tuned["value"], rel=1e-6)
    about = Path(outputs["train-model"]["model"][0]["uri"]) / ONNX_ABOUT
    assert json.loads(about.read_text())["rows_compared"] > 1000


def test_the_server_runs_the_onnx_copy(twin, project):
    logs = service_directory(project / ".kfloop", "twin").glob("predictor-*.log")
    assert any("Serving twin version 1 by ONNX Runtime" in log.read_text() for log in logs)


def test_serves_what_was_evaluated_on_v1_and_v2(twin, project):
    run = twin
    url = read_status(service_directory(project / ".kfloop", "twin"))["url"]
    environment = environments.environment("deployment")
    done = subprocess.run(
        [
            str(environment.python),
            str(Path(__file__).parent / "compare_served.py"),
            str(run.path),
            url,
            "twin",
        ],
        env=environments.task_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 500
    assert told["largest"] < 1e-5


def test_the_log_holds_exactly_the_requests_that_were_sent(first, project):
    replay = last_run(project, "replay").task("replay-requests")
    assert replay is not None
    collected = metadata(last_run(project, "monitoring"), "collect-inference-log", "dataset")
    assert collected["rows"] == replay.returned["Output"]
    assert log_files(project / ".kfloop" / "inference-log" / "weather")


def test_a_run_after_one_killed_in_its_feature_store_reuses_steps_and_tries_a_new_version(
    kfloop, first, project
):
    before = last_run(project, "training").task("publish-model").returned["Output"]
    kill_during(project, "materialize-features", "run", "training")
    done = kfloop("run", "training")
    assert done.returncode == 0, done.stdout + done.stderr
    run = last_run(project, "training")
    assert run.task("train-model").status == "cached"
    assert run.task("publish-model").returned["Output"] != before
    rolled_out = next(d for d in run.decisions() if d["gate"] == "rollout")
    assert "promoted" in rolled_out["summary"] or "rolled_back" in rolled_out["summary"]


def test_rolls_back_by_one_command(kfloop, first, project):
    # No loop file: the service's own record says to what.
    (project / "loop.yaml").rename(project / "away.yaml")
    done = kfloop("run", "rollback", "--service", "weather", "-s", "reason=complaints")
    (project / "away.yaml").rename(project / "loop.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    run = last_run(project, "rollback")
    status = read_status(service_directory(project / ".kfloop", "weather"))
    live = [predictor["storageUri"] for predictor in status["predictors"].values()]
    assert live == [run.task("roll-back-model").returned["Output"]]


def test_scores_a_batch_with_the_live_model(kfloop, first, project):
    done = kfloop("run", "batch-scoring")
    assert done.returncode == 0, done.stdout + done.stderr
    assert metadata(last_run(project, "batch-scoring"), "score-data", "predictions")["rows"] > 0


def test_services_are_listed_and_stopped(kfloop, first, project):
    assert "weather" in kfloop("services", "list").stdout
    assert "stopped" in kfloop("services", "stop", "weather").stdout
    assert not read_status(service_directory(project / ".kfloop", "weather"))["running"]
