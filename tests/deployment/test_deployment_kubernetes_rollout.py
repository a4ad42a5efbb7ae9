# SPDX-License-Identifier: Apache-2.0
"""Rollouts on KServe in both modes: the same steps as on the laptop, and what can go wrong."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_bench import MODES, NAMESPACE, REAL, ROW, SERVICE, TIMEOUT, Bench, bench

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import kubernetes_failures
from kfloop.components.deployment.backend import ConflictError, connect
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import record_of, with_canary, without_canary
from kfloop.components.deployment.wait import RolloutError, wait_for_version

double_only = pytest.mark.skipif(bool(REAL), reason="a real cluster does not fail on demand")


@pytest.fixture(params=MODES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with bench(request.param, tmp_path) as made:
        yield made


def test_a_model_goes_from_first_deployment_over_canary_to_promotion_and_back(
    cluster: Bench,
) -> None:
    assert cluster.deploy(1) == "live"
    assert cluster.smoke_test(1) == "pass"
    assert cluster.deploy(1) == "live"

    assert cluster.deploy(2) == "canary"
    assert cluster.live == "1+2"
    assert cluster.smoke_test(2) == "pass"
    assert cluster.answering() == {"1": 40}

    before = set() if REAL else cluster.pods()
    cluster.shift(25)
    split = cluster.answering(100)
    assert 8 < split["2"] < 50, split
    cluster.shift(50)

    assert cluster.promote(2) == cluster.model(2)
    assert cluster.promote(2) == cluster.model(2)
    assert cluster.live == "2"
    assert cluster.answering() == {"2": 40}
    # Neither shares, nor notes in the record, nor the promotion restarts a pod.
    assert REAL or cluster.pods() < before

    assert cluster.roll_back() == cluster.model(1)
    assert cluster.live == "1"
    assert cluster.answering() == {"1": 40}
    assert cluster.roll_back(2) == cluster.model(1)

    assert cluster.deploy(3, 30) == "canary"
    assert cluster.roll_back(3) == cluster.model(1)
    assert cluster.live == "1"
    assert cluster.answering() == {"1": 40}
    assert cluster.smoke_test(1) == "pass"


@pytest.mark.parametrize("mode", MODES)
def test_no_request_fails_while_versions_change(tmp_path: Path, mode: str) -> None:
    with bench(mode, tmp_path, gateway_lag=2) as cluster:
        cluster.deploy(1)
        stop, failed, answered = threading.Event(), [], Counter()

        def ask() -> None:
            with ServiceClient(connect().status(SERVICE).url, SERVICE) as client:
                while not stop.is_set():
                    answer = client.predict([ROW])
                    answered[answer.model_version] += 1
                    if not answer.ok:
                        failed.append(answer)
                    time.sleep(0.005)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            cluster.deploy(2, 20)
            cluster.promote(2)
            cluster.roll_back()
            cluster.deploy(3, 20)
            cluster.roll_back(3)
        finally:
            stop.set()
            asking.join()
        assert not failed, failed[:3]
        assert set(answered) == {"1", "2", "3"}


REASONS = {
    "image_pull": "ImagePullBackOff",
    "crash_loop": "CrashLoopBackOff.*Op type not registered",
    "failed_to_load": "Failed to fetch model",
    "unschedulable": "fits on no node",
    "quota": "exceeded quota",
    "deadline": "ProgressDeadlineExceeded",
    "no_runtime": "NoSupportingRuntime|[Nn]o .*runtime",
}


@double_only
@pytest.mark.parametrize(
    ("cluster", "failure"),
    # The double has no progress deadline of revisions.
    [pair for pair in itertools.product(MODES, REASONS) if pair != ("Knative", "deadline")],
    indirect=["cluster"],
)
def test_a_candidate_that_cannot_come_up_is_told_and_taken_away(
    cluster: Bench, failure: str
) -> None:
    cluster.deploy(1)
    cluster.kserve.fail(cluster.model(2), failure)
    with pytest.raises(InputError, match=f"(?s)stays live: .*({REASONS[failure]})") as raised:
        cluster.deploy(2, 10)
    assert "\n" not in str(raised.value)
    assert "not ready after" not in str(raised.value), "it must not have waited for the timeout"
    assert cluster.live == "1"
    assert cluster.answering() == {"1": 40}
    # The next one is not blamed for it.
    assert cluster.deploy(3, 10) == "canary"


@double_only
@pytest.mark.parametrize("failure", ["image_pull", "no_runtime"])
def test_a_first_version_that_cannot_come_up_leaves_no_service(
    cluster: Bench, failure: str
) -> None:
    cluster.kserve.fail(cluster.model(1), failure)
    with pytest.raises(InputError, match=REASONS[failure]):
        cluster.deploy(1)
    assert cluster.api.get("inferenceservices", SERVICE, NAMESPACE) is None


@double_only
@pytest.mark.parametrize("cluster", ["Standard"], indirect=True)
def test_a_candidate_of_which_nothing_is_made_is_told_without_an_event(
    cluster: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_failures, "UNMADE_SECONDS", 0.6)
    cluster.deploy(1)
    cluster.kserve.fail(cluster.model(2), "no_runtime_untold")
    with pytest.raises(InputError, match=r"makes no Deployment of v2 .* does a ServingRuntime"):
        cluster.deploy(2, 10)
    assert cluster.live == "1"


@double_only
def test_a_version_that_never_gets_ready_ends_the_wait(cluster: Bench) -> None:
    cluster.deploy(1)
    cluster.kserve.fail(cluster.model(2), "never_ready")
    with pytest.raises(InputError, match=r"not ready after 0\.5 s"):
        cluster.deploy(2, 10, timeout_seconds=0.5)


@double_only
def test_a_kserve_that_splits_nothing_is_told_and_promotes_without_shares(tmp_path: Path) -> None:
    with bench("Standard", tmp_path, splits=False) as cluster:
        cluster.deploy(1)
        with pytest.raises(InputError, match=r"the 25 % of v2 .* no route, as KServe 0\.20"):
            cluster.deploy(2, 25)
        assert cluster.live == "1"
        assert cluster.deploy(2) == "canary"
        with pytest.raises(InputError, match=r"steps \[\]"):
            cluster.shift(50)
        started = time.monotonic()
        cluster.promote(2)
        assert time.monotonic() - started < TIMEOUT / 2, "it waited for a share that never comes"
        assert cluster.answering() == {"2": 40}


@double_only
def test_a_slow_version_is_waited_for(cluster: Bench) -> None:
    cluster.deploy(1)
    cluster.kserve.fail(cluster.model(2), "slow", ticks=40)
    assert cluster.deploy(2, 10) == "canary"


@double_only
def test_what_a_controller_has_not_done_yet_is_not_believed(cluster: Bench) -> None:
    cluster.deploy(1)
    cluster.deploy(2, 20)
    backend = connect()
    cluster.kserve.paused = True
    # Everything is ready still, but for the old manifest.
    manifest = backend.get(SERVICE)
    generation = backend.apply(without_canary(manifest, "a test", "2026-01-01T00:00:00+00:00"))
    stable = record_of(manifest).stable
    with pytest.raises(RolloutError, match="not ready after 1 s"):
        wait_for_version(backend, SERVICE, generation, stable, 1.0, alone=True)
    cluster.kserve.paused = False
    cluster.kserve.lag = 5
    wait_for_version(backend, SERVICE, generation, stable, 20.0, alone=True)
    assert cluster.answering() == {"1": 40}


@double_only
def test_a_share_that_is_not_in_effect_is_not_believed(cluster: Bench) -> None:
    cluster.deploy(1)
    cluster.deploy(2, 20)
    backend = connect()
    candidate = record_of(backend.get(SERVICE)).candidate
    cluster.kserve.paused = True
    manifest = with_canary(backend.get(SERVICE), candidate, 60, "2026-01-01T00:00:00+00:00")
    generation = backend.apply(manifest)
    with pytest.raises(RolloutError, match="split"):
        wait_for_version(backend, SERVICE, generation, candidate, 1.0, traffic=60)
    cluster.kserve.paused = False
    wait_for_version(backend, SERVICE, generation, candidate, 20.0, traffic=60)
    assert cluster.answering(100)["2"] > 40


@double_only
def test_an_unreliable_api_server_changes_nothing(cluster: Bench) -> None:
    faults = cluster.api.faults
    faults.storm(0.2, [429, 500, 503, "drop", "drop_after"], seed=3)
    faults.storm(0.3, [409, "conflict_write"], seed=4, verb="update")
    assert cluster.deploy(1) == "live"
    assert cluster.deploy(2, 20) == "canary"
    cluster.shift(50)
    cluster.promote(2)
    assert cluster.roll_back(2) == cluster.model(1)
    faults.clear()
    assert cluster.live == "1"
    assert cluster.answering() == {"1": 40}
    faults.storm(0.4, [429, "drop", "drop_after"], seed=5)
    connect().delete(SERVICE)
    assert len(faults.happened) > 10
    assert cluster.api.get("inferenceservices", SERVICE, NAMESPACE) is None


@double_only
def test_a_change_by_somebody_else_is_not_overwritten(cluster: Bench) -> None:
    cluster.deploy(1)
    backend = connect()
    manifest = backend.get(SERVICE)
    now = "2026-01-01T00:00:00+00:00"
    edited = with_canary(manifest, _target(cluster, 2), 0, now)

    # A note of somebody else is kept, and is no obstacle.
    note = {"metadata": {"annotations": {"example.com/note": "kept"}}}
    cluster.api.patch("inferenceservices", SERVICE, NAMESPACE, note)
    backend.apply(edited)
    assert connect().get(SERVICE)["metadata"]["annotations"]["example.com/note"] == "kept"

    # Another spec is one.
    manifest = backend.get(SERVICE)
    patch = {"spec": {"predictor": {"timeout": 77}}}
    cluster.api.patch("inferenceservices", SERVICE, NAMESPACE, patch)
    with pytest.raises(ConflictError, match="changed by somebody else"):
        backend.apply(without_canary(manifest, "a test", now))
    assert cluster.live == "1+2"

    # So is another record, and a service that was deleted.
    manifest = backend.get(SERVICE)
    cluster.deploy(3, 10)
    with pytest.raises(ConflictError, match="changed by somebody else"):
        backend.apply(without_canary(manifest, "a test", now))
    manifest = backend.get(SERVICE)
    backend.delete(SERVICE)
    with pytest.raises(ConflictError, match="deleted by somebody else"):
        backend.apply(without_canary(manifest, "a test", now))


def _target(cluster: Bench, version: int):
    from kfloop.components.deployment import acts
    from kfloop.components.deployment.resources import predictor_options

    return acts.describe_target(
        connect(), cluster.model(version), predictor_options({}), "", "", ""
    )


@double_only
def test_a_dry_run_writes_nothing(cluster: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.deploy(1, dry_run=True) == "dry_run"
    assert connect().get(SERVICE) is None
    cluster.deploy(1)
    before = cluster.api.get("inferenceservices", SERVICE, NAMESPACE)
    assert cluster.deploy(2, 20, dry_run=True) == "dry_run"
    after = cluster.api.get("inferenceservices", SERVICE, NAMESPACE)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert "pvc://models/flights/2" in capsys.readouterr().out


@double_only
def test_a_payload_logger_comes_with_new_versions_and_restarts_none(cluster: Bench) -> None:
    cluster.deploy(1)
    before = cluster.pods()
    cluster.deploy(2, 10, inference_log="http://logger.ml.svc")
    assert before < cluster.pods()
    cluster.promote(2)
    stored = cluster.api.get("inferenceservices", SERVICE, NAMESPACE)
    assert stored["spec"]["predictor"]["logger"]["url"] == "http://logger.ml.svc"
    assert stored["metadata"]["annotations"]["kfloop.org/inference-log"] == "http://logger.ml.svc"
    cluster.deploy(3, 10)
    found = connect().get(SERVICE)["spec"]["canary"][0]["predictor"]["logger"]
    assert found["mode"] == "all"


STEPS = """
from kfloop.components.deployment import kubernetes_backend
kubernetes_backend.POLL_SECONDS = 0.02
kubernetes_backend.DRAIN_SECONDS = 0.1
from kfloop.components.deployment.roll_back import roll_back_model
from kfloop.components.deployment.rollout import deploy_model, promote_model
service, record = "flights", {record!r}
{step}
"""


DEPLOY = "deploy_model('pvc://models/flights/2', service, record, 30)"
PROMOTE = "promote_model(service, record)"
ROLL_BACK = "roll_back_model(service, record, 'a test', 'pvc://models/flights/2')"
DROP = f"{ROLL_BACK}  # as a candidate"


@double_only
@pytest.mark.parametrize(
    ("cluster", "step"),
    # Knative: only the roll back is other writes than in Standard mode.
    [
        ("Standard", DEPLOY),
        ("Standard", PROMOTE),
        ("Standard", ROLL_BACK),
        ("Knative", ROLL_BACK),
        ("Knative", DROP),
    ],
    ids=["deploy", "promote", "roll back", "roll back, Knative", "drop, Knative"],
    indirect=["cluster"],
)
def test_a_step_that_was_killed_is_completed_by_running_it_again(cluster: Bench, step: str) -> None:
    cluster.deploy(1)
    cluster.model(2)
    if step != DEPLOY:
        cluster.deploy(2, 30)
    if step == ROLL_BACK:
        cluster.promote(2)
    code = STEPS.format(record=str(cluster.record_file), step=step)
    kills = 0
    while cluster.run_and_kill(code, 1):
        # Each time it is killed one write later than before.
        kills += 1
        assert kills < 6, "it is not done after five writes"
    assert kills
    live = {DEPLOY: "1+2", PROMOTE: "2", ROLL_BACK: "1", DROP: "1"}[step]
    assert cluster.live == live
    assert set(cluster.answering()) == set(live.split("+"))
