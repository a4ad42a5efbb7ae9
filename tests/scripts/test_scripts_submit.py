# SPDX-License-Identifier: Apache-2.0
"""`kfloop submit` and `kfloop status` against a double of the KFP API, with the unmodified client.

With KFLOOP_TEST_KFP_HOST the first tests ask that API too.
"""

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner
from kfp import compiler

from kfloop.components import FAMILIES
from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.catalogue import compiled_path
from kfloop.pipelines.kfp_client import api_errors, connect
from kfloop.pipelines.submit import last_runs, run_status, submit_pipeline, wait_for_run
from kfloop.scripts.status import duration, status
from kfloop.scripts.submit import submit

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
BIKES = """\
name: bikes
task: regression
sources: {trips: {uri: gs://bikes/trips.csv}}
examples: {query: SELECT * FROM trips, label: minutes, timestamp: at}
serving: {model_repository: gs://bikes/models, inference_log: gs://bikes/log}
resources:
  train_model: {cpu: 8, memory: 32Gi, gpu: 1, retries: 1, timeout_minutes: 90}
  evaluate_model: {cache: false}
secrets:
  WAREHOUSE_URL: {secret: warehouse, key: url, components: [ingest_data]}
volumes:
  state: {path: /state}
environment: {KFLOOP_KSERVE_MODE: Standard}
"""
# A roll back of nothing: it can be submitted anywhere, and fails there.
ROLLBACK = {"service": "kfloop-test", "reason": "test", "dry_run": True}


@pytest.fixture
def bikes(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text(BIKES)
    return path


def run(command, *arguments: str) -> str:
    """Runs a command; returns what it printed, or raises what it raised."""
    done = CliRunner().invoke(command, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def spec_of(sent: dict) -> tuple[dict, dict]:
    """Returns spec and platform settings of a run that was sent."""
    return sent["pipeline_spec"]["pipeline_spec"], sent["pipeline_spec"]["platform_spec"]


def test_a_submitted_run_is_there_and_among_the_last_runs(host):
    run_id = submit_pipeline("rollback", parameters=ROLLBACK, host=host, run_name="kfloop test")
    found = run_status(run_id, host=host)
    assert (found.id, found.name) == (run_id, "kfloop test")
    assert found.state in ("PENDING", "RUNNING")
    assert found.seconds >= 0
    assert run_id in [one.id for one in last_runs(5, host=host, experiment="kfloop")]


def test_an_unknown_run_is_one_sentence(host):
    with pytest.raises(InputError, match=r"run 6d0d0a3c-.* cannot be read: there is no such"):
        run_status("6d0d0a3c-0000-4000-8000-000000000000", host=host)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({}, "service is not optional, yet has neither default value nor"),
        ({"service": 1}, "service requires type string"),
        ({"service": "a", "dry_run": "yes"}, "dry_run requires type bool"),
        ({"service": "a", "servise": "b"}, "not required by pipeline: servise"),
    ],
)
def test_a_server_that_refuses_parameters_is_heard(host, parameters, why):
    client = connect(host)
    experiment = client.create_experiment("kfloop").experiment_id
    with (
        pytest.raises(InputError, match=f"^It cannot start: 400 [^{{]*{why}"),
        api_errors("It cannot start"),
    ):
        # The client itself checks nothing.
        client.run_pipeline(
            experiment,
            "refused",
            pipeline_package_path=str(compiled_path("rollback")),
            params=parameters,
        )


def test_the_loop_file_gives_parameters_and_resources(api, bikes):
    told = run(submit, "training", "-c", str(bikes), "--host", api.url, "--set", "epochs=3")
    (sent,) = api.runs()
    assert sent["run_id"] in told
    parameters = sent["runtime_config"]["parameters"]
    assert (parameters["name"], parameters["epochs"]) == ("bikes", 3)
    assert parameters["model_repository"] == "gs://bikes/models"
    spec, platform = spec_of(sent)
    assert spec["deploymentSpec"]["executors"]["exec-train-model"]["container"]["resources"] == {
        "resourceCpuRequest": "8",
        "resourceCpuLimit": "8",
        "resourceMemoryRequest": "32Gi",
        "resourceMemoryLimit": "32Gi",
        "accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": "1"},
    }
    tasks = spec["components"]["comp-train-candidate"]["dag"]["tasks"]
    assert tasks["train-model"]["retryPolicy"]["maxRetryCount"] == 1
    assert tasks["train-model"]["cachingOptions"] == {"enableCache": True}
    assert not tasks["evaluate-model"].get("cachingOptions")
    limits = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = [{"constant": "state", "mountPath": "/state"}]
    assert limits["exec-train-model"] == {"activeDeadlineSeconds": "5400", "pvcMount": mounts}
    container = spec["deploymentSpec"]["executors"]["exec-train-model"]["container"]
    assert {"name": "KFLOOP_KSERVE_MODE", "value": "Standard"} in container["env"]
    assert limits["exec-ingest-data"]["secretAsEnv"] == [
        {
            "secretName": "warehouse",
            "keyToEnv": [{"secretKey": "url", "envVar": "WAREHOUSE_URL"}],
            "optional": False,
        }
    ]


def test_no_cache_reaches_nested_tasks(api, bikes):
    run(submit, "training", "-c", str(bikes), "--host", api.url, "--no-cache")
    assert "enableCache" not in str(api.runs()[0]["pipeline_spec"])


def test_images_come_from_another_registry_when_asked_for(api, monkeypatch, tmp_path):
    digests = tmp_path / "digests.json"
    digests.write_text(json.dumps({"deployment": f"sha256:{'a' * 64}"}))
    monkeypatch.setenv("KFLOOP_IMAGE_PREFIX", "registry.example.com/ml")
    monkeypatch.setenv("KFLOOP_IMAGE_DIGESTS", str(digests))
    submit_pipeline("rollback", parameters=ROLLBACK, host=api.url, service_account="ml")
    (sent,) = api.runs()
    executors = spec_of(sent)[0]["deploymentSpec"]["executors"].values()
    assert {one["container"]["image"] for one in executors} == {
        f"registry.example.com/ml/deployment@sha256:{'a' * 64}"
    }
    assert sent["service_account"] == "ml"


def test_a_pipeline_of_ones_own_gets_the_volumes_of_the_loop_file(api, bikes, tmp_path):
    compiled = tmp_path / "many_machines.yaml"
    example = runpy.run_path(str(EXAMPLES / "many_machines.py"))["many_machines"]
    compiler.Compiler().compile(example, str(compiled))
    bikes.write_text(BIKES.replace("state: {path: /state}", "shared: {path: /mnt/shared}"))
    submit_pipeline(str(compiled), bikes, host=api.url)
    _, platform = spec_of(api.runs()[0])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = [{"constant": "shared", "mountPath": "/mnt/shared"}]
    for name in ("exec-submit-train-job", "exec-tune-with-katib"):
        assert executors[name]["pvcMount"] == mounts


def test_the_trained_model_is_told_the_image_by_its_digest(api, monkeypatch, tmp_path, bikes):
    digests = tmp_path / "digests.json"
    digests.write_text(json.dumps({family: f"sha256:{'a' * 64}" for family in FAMILIES}))
    monkeypatch.setenv("KFLOOP_IMAGE_DIGESTS", str(digests))
    submit_pipeline("training", bikes, host=api.url)
    (sent,) = api.runs()
    told = {
        one["value"]
        for executor in spec_of(sent)[0]["deploymentSpec"]["executors"].values()
        for one in executor.get("container", {}).get("env", [])
        if one["name"] == "KFLOOP_IMAGE"
    }
    assert told == {f"kfloop/training@sha256:{'a' * 64}"}


def test_a_roll_back_needs_no_loop_file(api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(submit, "rollback", "--host", api.url, "-s", "service=bikes", "-s", "reason=a test")
    assert api.runs()[0]["runtime_config"]["parameters"]["service"] == "bikes"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trainin"], "There is no pipeline 'trainin'; there is training"),
        (["training", "-s", "epoch=3"], "has no parameter 'epoch'"),
        (["training", "-s", "epochs=many"], "'epochs' is 'many', which is not a whole number"),
        (["absent.yaml"], "There is no compiled pipeline at absent.yaml"),
        (["training", "-s", f"examples_query={'x' * 140_000}"], "KFP can hand on 131,071; the la"),
    ],
)
def test_a_mistake_is_named_before_anything_is_asked(api, bikes, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        run(submit, *arguments, "--host", api.url, "-c", str(bikes))
    assert not api.requests


def test_paths_of_this_machine_are_refused(api, bikes):
    (bikes.parent / "trips.csv").write_text("at,minutes\n")
    bikes.write_text(BIKES.replace("gs://bikes/trips.csv", "trips.csv").replace("gs://b", "b"))
    with pytest.raises(InputError) as caught:
        run(submit, "training", "-c", str(bikes), "--host", api.url)
    told = str(caught.value)
    assert "sources.0.uri is" in told and "model_repository is" in told
    assert "a path on this machine" in told and "s3:// URI" in told
    assert not api.requests


def test_wait_tells_each_task_and_ends_with_the_run(api, bikes, monkeypatch):
    monkeypatch.setattr("kfloop.pipelines.submit.POLL_SECONDS", 0.01)
    run_id = submit_pipeline("training", bikes, host=api.url)
    states = []

    def changed(found):
        states.append({task.name: task.state for task in found.tasks})
        if not found.tasks:
            api.advance(run_id, "ingest-data", "RUNNING")
            # A gateway that restarts is no reason to stop waiting.
            api.fault(503, path="/runs/", times=3)
        elif states[-1] == {"ingest-data": "RUNNING"}:
            api.advance(run_id, "ingest-data", "SUCCEEDED", seconds=90)
            api.finish_run(run_id)

    found = wait_for_run(run_id, host=api.url, changed=changed, poll_seconds=0.01)
    assert states == [{}, {"ingest-data": "RUNNING"}, {"ingest-data": "SUCCEEDED"}]
    assert [(task.name, task.seconds) for task in found.tasks] == [("ingest-data", 90)]


def test_a_task_whose_end_kfp_did_not_hear_of_is_unknown(api):
    run_id = submit_pipeline("rollback", parameters=ROLLBACK, host=api.url)
    api.advance(run_id, "roll-back-model", "RUNNING")
    assert [task.state for task in run_status(run_id, host=api.url).tasks] == ["RUNNING"]
    api.finish_run(run_id)
    (task,) = run_status(run_id, host=api.url).tasks
    assert (task.name, task.state, task.seconds) == ("roll-back-model", "UNKNOWN", None)


def test_a_task_that_was_over_at_once_took_no_time(api):
    run_id = submit_pipeline("rollback", parameters=ROLLBACK, host=api.url)
    api.advance(run_id, "roll-back-model", "SUCCEEDED", seconds=0)
    (task,) = run_status(run_id, host=api.url).tasks
    assert (task.state, task.seconds) == ("SUCCEEDED", 0)


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_wait_ends_for_a_run_that_does_not_succeed(api, state):
    run_id = submit_pipeline("rollback", parameters=ROLLBACK, host=api.url, run_name="drill")
    api.advance(run_id, "roll-back-model", state)
    api.finish_run(run_id, state)
    failed = f"roll-back-model failed.* -l pipeline/runid={run_id} --field-selector"
    failed = failed if state == "FAILED" else "no task"
    with pytest.raises(InputError, match=f"'drill' ended {state}: {failed}"):
        wait_for_run(run_id, host=api.url, poll_seconds=0.01)


def test_status_shows_tasks_times_and_errors_and_not_the_engine(api):
    run_id = submit_pipeline("rollback", parameters=ROLLBACK, host=api.url)
    api.advance(run_id, "roll-back-model", "SUCCEEDED", seconds=75)
    api.advance(run_id, "update-champion", "FAILED", seconds=5)
    api.finish_run(run_id, "FAILED")
    done = CliRunner().invoke(status, [run_id, "--host", api.url])
    assert done.exit_code == 1
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert "roll-back-model succeeded 1 min 15 s" in lines
    assert "update-champion failed 5 s" in lines
    assert [line.split()[0] for line in lines if "succeeded" in line or "running" in line] == [
        "roll-back-model"
    ]
    assert "update-champion failed." in lines[-1]


def test_status_alone_lists_the_newest_runs_of_many_pages(api):
    submit_pipeline("rollback", parameters=ROLLBACK, host=api.url, run_name="first")
    for index in range(130):
        body = {**api.runs()[0], "display_name": f"run {index}"}
        api.answer("POST", "/apis/v2beta1/runs", {}, body)
    found = last_runs(130, host=api.url)
    assert [one.name for one in found] == [f"run {index}" for index in reversed(range(130))]
    told = run(status, "--host", api.url, "--limit", "3")
    assert told.count("pending") == 3
    with pytest.raises(InputError, match="There is no experiment 'none'"):
        run(status, "--host", api.url, "--experiment", "none")


def test_a_refused_run_says_why(api):
    api.fault(400, method="POST", path="/runs")
    with pytest.raises(InputError, match=r"rollback: it cannot start: 400 .*injected"):
        submit_pipeline("rollback", parameters=ROLLBACK, host=api.url)


def test_ways_to_log_in(api, monkeypatch, tmp_path):
    api.token = "secret"
    with pytest.raises(InputError, match="KFLOOP_KFP_TOKEN"):
        last_runs(host=api.url)
    file = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    with pytest.raises(InputError, match=r"KF_PIPELINES_SA_TOKEN_PATH names .*No such file"):
        last_runs(host=api.url)
    file.write_text("secret\n")
    assert last_runs(host=api.url) == []
    api.token, api.cookie = "", "authservice_session=abc"
    with pytest.raises(InputError, match=r"web page.*KFLOOP_KFP_COOKIE"):
        last_runs(host=api.url)
    monkeypatch.setenv("KFLOOP_KFP_COOKIE", "authservice_session=abc")
    assert last_runs(host=api.url) == []


def test_no_server_is_one_sentence():
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 cannot be used: no answer"):
        submit_pipeline("rollback", parameters=ROLLBACK, host="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, ""), (59.4, "59 s"), (61, "1 min 1 s"), (7380, "2 h 3 min")]
)
def test_durations_as_people_say_them(seconds, told):
    assert duration(seconds) == told
