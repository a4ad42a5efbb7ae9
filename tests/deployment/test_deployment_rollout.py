# SPDX-License-Identifier: Apache-2.0
"""The rollout on the real local service, with real (tiny) TensorFlow models."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rollout_bench import SERVICE, Bench, run_and_kill

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.deployment_record import read_record
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import log_files
from kfloop.components.contracts.model_package import REFERENCE
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.manifest import record_of, with_canary
from kfloop.components.deployment.replay import replay_requests
from kfloop.components.deployment.roll_back import roll_back_model
from kfloop.components.deployment.service import describe_service
from kfloop.serving import local_state


@pytest.fixture(scope="module")
def module_bench(
    state: Path, packages: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    bench = Bench(state, packages, evaluation, tmp_path_factory.mktemp("work"))
    assert bench.deploy(bench.good) == "live"
    return bench


@pytest.fixture
def bench(module_bench: Bench) -> Bench:
    """The service with version 1 live and alone."""
    if module_bench.record.candidate:
        module_bench.roll_back()
    if module_bench.record.stable.version != "1":
        module_bench.roll_back(module_bench.record.stable.storage_uri)
    assert module_bench.record.stable.storage_uri == module_bench.good
    return module_bench


@pytest.fixture(scope="module")
def requests(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with a column that no model knows, and with an entity key and times."""
    table = pq.read_table(packages / "good" / REFERENCE).slice(0, 60)
    times = [datetime(2013, 7, 1) + timedelta(hours=hour) for hour in range(60)]
    table = table.append_column("at", pa.array(times, pa.timestamp("us")))
    table = table.append_column("tail", pa.array([f"N{i}" for i in range(60)]))
    table = table.append_column("label", pa.array([i % 2 for i in range(60)]))
    path = tmp_path_factory.mktemp("requests") / "dataset"
    write_dataset(table, path)
    return path


def log_rows(log: str) -> list[dict]:
    return [row for _, file in log_files(log) for row in pq.ParquetFile(file).read().to_pylist()]


def test_a_model_goes_from_first_deployment_over_canary_to_promotion_and_back(
    bench: Bench, requests: Path
) -> None:
    assert bench.smoke_test(bench.good).decision == "pass"
    assert bench.deploy(bench.good) == "live"

    sent = replay_requests(requests, SERVICE, limit=50, batch_size=7)
    assert (sent.sent, sent.requests, sent.failed.total()) == (50, 8, 0)
    local_state.wait_logged(bench.directory)
    rows = log_rows(describe_service(SERVICE).inference_log)
    # Exactly what was sent, spread over the dataset: neither probes nor smoke tests are logged.
    expected = [f"N{number * 60 // 50}" for number in range(50)]
    assert sorted(row["tail"] for row in rows) == sorted(expected)
    assert min(row["event_time"] for row in rows).isoformat() == "2013-07-01T00:00:00+00:00"

    assert bench.deploy(bench.better) == "canary"
    record = read_record(bench.record_file)
    assert (record.state, record.stable.version, record.candidate.version) == ("canary", "1", "2")
    assert bench.smoke_test(bench.better).decision == "pass"
    assert bench.answering() == {"1", "2"}

    assert bench.analyse(replay=False).decision == "no_data"
    decision = bench.analyse(replay=True)
    assert decision.decision == "pass", decision.summary
    assert {"error_rate", "latency", "shift", "agreement"} < {r.check for r in decision.reasons}
    assert "<svg" in (bench.work / "page.html").read_text()
    replayed = log_rows(describe_service(SERVICE).inference_log)
    assert any(row["request_id"].startswith("replay-") for row in replayed)

    with pytest.raises(InputError, match="neither the candidate nor the live"):
        bench.promote("/some/other/model")
    assert bench.promote(bench.better) == bench.better
    assert bench.promote(bench.better) == bench.better
    assert bench.answering() == {"2"}
    assert bench.record.previous.storage_uri == bench.good

    assert bench.roll_back() == bench.good
    assert bench.outcome == "restored"
    assert bench.answering() == {"1"}
    assert (bench.record.reason, bench.record.undone) == ("a test", bench.better)
    # A second time nothing happens: the record says that it was done.
    assert bench.roll_back() == bench.good
    assert bench.outcome == "already_rolled_back"
    assert bench.roll_back(bench.better) == bench.good
    assert bench.outcome == "not_serving"
    with pytest.raises(InputError, match="nothing to roll back to"):
        bench.roll_back(bench.good)
    with pytest.raises(InputError, match="rolled back \\(a test\\)"):
        bench.promote()
    with pytest.raises(InputError, match="has no candidate to analyse"):
        bench.analyse(replay=False)


def test_a_first_version_that_is_not_wanted_is_removed(bench: Bench) -> None:
    assert bench.deploy(bench.good, "unwanted") == "live"
    done = roll_back_model("unwanted", bench.record_file, "smoke test", bench.good)
    assert done == ("", "service_removed")
    assert read_record(bench.record_file).state == "rolled_back"
    with pytest.raises(InputError, match="There is no service 'unwanted'"):
        describe_service("unwanted")


def test_a_candidate_that_answers_differently_fails_the_analysis(bench: Bench) -> None:
    inverted = bench.publish("inverted")
    assert bench.deploy(inverted) == "canary"
    decision = bench.analyse(replay=True)
    assert decision.decision == "fail"
    assert "agreement" in {reason.check for reason in decision.reasons if not reason.passed}
    # The next candidate replaces it, as after a run that crashed before it could roll back.
    classes = bench.publish("classes")
    assert bench.deploy(classes) == "canary"
    assert bench.smoke_test(classes).decision == "pass"
    assert bench.analyse(replay=False).decision == "fail"
    assert bench.roll_back(classes) == bench.good
    assert bench.answering() == {"1"}
    with pytest.raises(InputError, match="does not serve"):
        bench.smoke_test(classes)


def test_a_smoke_test_fails_when_the_answers_are_not_those_of_training(bench: Bench) -> None:
    golden = Path(bench.good) / "reference" / "golden.parquet"
    kept = golden.read_bytes()
    table = pq.read_table(golden)
    wrong = pa.array([value + 0.001 for value in table["prediction"].to_pylist()])
    try:
        pq.write_table(table.set_column(4, "prediction", wrong), golden)
        decision = bench.smoke_test(bench.good)
        pq.write_table(table.slice(0, 0), golden)
        nothing = bench.smoke_test(bench.good)
    finally:
        golden.write_bytes(kept)
    assert decision.decision == "fail"
    assert "differs from the expected prediction by at most 0.001" in decision.summary
    assert nothing.decision == "no_data"


def test_a_candidate_that_cannot_load_is_taken_away_and_the_live_version_goes_on(
    bench: Bench,
) -> None:
    with pytest.raises(InputError, match=r"stays live: .*saved_model") as raised:
        bench.deploy(bench.publish_damaged())
    assert "\n" not in str(raised.value)
    assert bench.record.candidate is None
    assert "did not come up" in bench.record.reason
    assert bench.answering() == {"1"}


def test_a_first_version_that_cannot_load_leaves_no_service(bench: Bench) -> None:
    with pytest.raises(InputError, match="could not be deployed as the first version of 'other'"):
        bench.deploy(bench.publish_unservable(), service="other")
    with pytest.raises(InputError, match=r"no service 'other' .*\(there is: tiny\)"):
        describe_service("other")


def test_a_first_version_that_never_worked_is_no_obstacle(bench: Bench) -> None:
    # As a deployment that was killed while its model failed to load would leave it.
    unservable = bench.publish_unservable()
    run_and_kill(
        "from kfloop.components.deployment.rollout import deploy_model\n"
        f"deploy_model({unservable!r}, 'fresh', {str(bench.record_file)!r})",
        lambda: (bench.state / "services" / "fresh" / "manifest.json").exists(),
    )
    assert bench.deploy(bench.good, service="fresh") == "live"
    local_state.stop(local_state.service_directory(bench.state, "fresh"))


def test_steps_that_were_killed_are_completed_by_running_them_again(bench: Bench) -> None:
    record = str(bench.record_file)
    run_and_kill(
        "from kfloop.components.deployment.rollout import deploy_model\n"
        f"deploy_model({bench.better!r}, {SERVICE!r}, {record!r}, 50)",
        lambda: bench.record.state == "canary",
    )
    assert bench.deploy(bench.better) == "canary"
    assert bench.smoke_test(bench.better).decision == "pass"
    run_and_kill(
        "from kfloop.components.deployment.rollout import promote_model\n"
        f"promote_model({SERVICE!r}, {record!r})",
        lambda: bench.record.state == "promoted",
    )
    assert bench.promote() == bench.better
    assert bench.answering() == {"2"}
    run_and_kill(
        "from kfloop.components.deployment.roll_back import roll_back_model\n"
        f"roll_back_model({SERVICE!r}, {record!r}, 'killed')",
        lambda: bench.record.state == "rolled_back",
    )
    assert bench.roll_back() == bench.good
    assert bench.answering() == {"1"}


def test_a_service_whose_processes_were_killed_is_started_again(bench: Bench) -> None:
    pid = local_state.running_pid(bench.directory)
    os.kill(pid, signal.SIGKILL)
    assert describe_service(SERVICE).model_uri == bench.good
    assert bench.answering() == {"1"}


def test_a_change_by_somebody_else_is_not_overwritten(bench: Bench) -> None:
    backend = connect()
    mine, theirs = backend.get(SERVICE), backend.get(SERVICE)
    theirs["metadata"]["annotations"]["owner"] = "somebody else"
    backend.apply(theirs)
    target = record_of(mine).stable
    target.storage_uri, target.predictor = "/x", {**target.predictor, "name": "v9"}
    with pytest.raises(InputError, match="changed by somebody else"):
        backend.apply(with_canary(mine, target, 10, "now"))


def test_a_replay_that_mostly_fails_is_an_error_and_a_missing_column_is_named(
    bench: Bench, requests: Path, tmp_path: Path
) -> None:
    table = pq.read_table(requests / "part-00000.parquet")
    write_dataset(table.drop_columns("stops"), tmp_path / "lacking")
    with pytest.raises(InputError, match="'stops' is missing"):
        replay_requests(tmp_path / "lacking", SERVICE)
    texts = pa.array(["many"] * table.num_rows)
    write_dataset(table.set_column(1, "stops", texts), tmp_path / "wrong")
    with pytest.raises(InputError, match=r"3 of 3 requests .*'stops' must be a whole number"):
        replay_requests(tmp_path / "wrong", SERVICE)


def test_a_replay_keeps_to_its_rate_and_its_time(bench: Bench, requests: Path) -> None:
    started = time.monotonic()
    sent = replay_requests(requests, SERVICE, limit=6, batch_size=2, requests_per_second=5)
    assert (sent.requests, sent.sent) == (3, 6)
    assert time.monotonic() - started >= 0.4
    sent = replay_requests(requests, SERVICE, batch_size=1, requests_per_second=20, seconds=0.5)
    assert 1 <= sent.requests <= 11


def test_replay_runs_as_a_program(bench: Bench, requests: Path) -> None:
    module = "kfloop.components.deployment.replay"
    options = ["--dataset", str(requests), "--service", SERVICE, "--limit", "10"]
    done = subprocess.run(
        [sys.executable, "-m", module, *options], capture_output=True, text=True, check=True
    )
    assert "10 rows answered in 1 requests" in done.stdout
    failed = subprocess.run(
        [sys.executable, "-m", module, "--dataset", str(requests), "--service", "nobody"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("InputError: There is no service 'nobody'")


@pytest.mark.parametrize("percent", [-1, 100])
def test_a_candidate_cannot_have_all_the_traffic(bench: Bench, percent: int) -> None:
    with pytest.raises(InputError, match="0 to 99"):
        bench.deploy(bench.better, percent=percent)
