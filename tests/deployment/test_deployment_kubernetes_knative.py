# SPDX-License-Identifier: Apache-2.0
"""KServe's Knative mode: our manifest to and from it, and its revisions."""

import copy
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_bench import MODES, REAL, ROW, SERVICE, bench

from kfloop.components.contracts.deployment_record import RECORD_ANNOTATION, Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import knative
from kfloop.components.deployment.backend import KNATIVE, connect
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.manifest import (
    Manifest,
    new_service,
    promoted,
    record_of,
    restored,
    restoring,
    traffic_of,
    with_canary,
    without_canary,
)

NOW = "2026-01-01T00:00:00+00:00"


def target(version: int, **fields: object) -> Target:
    uri = f"gs://models/flights/{version}"
    predictor = {
        "name": f"v{version}",
        "annotations": {"kfloop.org/model-version": str(version)},
        "model": {"modelFormat": {"name": "kfloop"}, "storageUri": uri},
        **fields,
    }
    return Target(str(version), uri, predictor)


def service() -> Manifest:
    return new_service("flights", "ml", target(1), {}, NOW)


extras = st.fixed_dictionaries(
    {},
    optional={
        "minReplicas": st.integers(0, 5),
        "maxReplicas": st.integers(5, 9),
        "timeout": st.integers(1, 600),
        "serviceAccountName": st.sampled_from(["models", "gpu"]),
        "nodeSelector": st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=3)),
    },
)


@st.composite
def histories(draw: st.DrawFn) -> list[Manifest]:
    """A service, and what rollouts made of it, step by step."""
    manifest = new_service("flights", "ml", target(1, **draw(extras)), {}, NOW)
    steps = [manifest]
    for version in range(2, 2 + draw(st.integers(0, 6))):
        record = record_of(manifest)
        acts = ["canary"]
        acts += ["promote", "drop", "shift"] if record.candidate else []
        acts += ["restore"] if record.previous and not record.candidate else []
        act = draw(st.sampled_from(acts))
        percent = draw(st.integers(0, 100))
        if act == "canary":
            manifest = with_canary(manifest, target(version, **draw(extras)), percent, NOW)
        elif act == "shift":
            manifest = with_canary(manifest, record.candidate, percent, NOW)
        elif act == "promote":
            manifest = promoted(manifest, NOW)
        elif act == "drop":
            manifest = without_canary(manifest, "a test", NOW)
        else:
            manifest = restored(restoring(manifest, "a test", NOW), "a test", NOW)
        steps.append(manifest)
    return steps


@given(histories())
def test_what_is_stored_for_knative_reads_back_as_what_was_meant(steps: list[Manifest]) -> None:
    stored = None
    for manifest in steps:
        untouched = copy.deepcopy(manifest)
        stored = knative.to_knative(manifest, stored)
        assert manifest == untouched
        read = knative.from_knative(stored)
        assert record_of(read) == record_of(manifest)
        assert traffic_of(read) == traffic_of(manifest)
        assert "canary" not in stored["spec"]
        assert "name" not in stored["spec"]["predictor"]
        assert read["spec"]["predictor"]["model"] == manifest["spec"]["predictor"]["model"]
        # Written again, nothing changes.
        assert knative.to_knative(read, stored)["spec"] == stored["spec"]


@given(histories())
def test_no_step_gives_requests_to_a_version_that_shall_not_have_them(
    steps: list[Manifest],
) -> None:
    """Knative as it is: the newest ready revision gets what the spec does not give to another.

    Each step is looked at before the newest revision is ready, which is when it would go wrong.
    """
    stored = knative.to_knative(steps[0])
    newest_ready = rolled_out = stored["spec"]["predictor"]["model"]["storageUri"]
    for before, manifest in itertools.pairwise(steps):
        allowed = {
            entry["predictor"]["model"]["storageUri"]: entry["trafficPercent"]
            for entry in manifest["spec"].get("canary") or []
        }
        stored = knative.to_knative(manifest, stored)
        predictor = stored["spec"]["predictor"]
        uri, percent = predictor["model"]["storageUri"], predictor.get(knative.PERCENT)
        live = manifest["spec"]["predictor"]["model"]["storageUri"]
        unwanted = {
            entry["predictor"]["model"]["storageUri"]
            for entry in before["spec"].get("canary") or []
        } - {live, *allowed}
        share_of_newest = 100 if percent is None else percent
        if newest_ready in unwanted and uri != newest_ready and not allowed:
            assert share_of_newest == 0, "the rejected candidate would get requests"
        # Then the newest revision is ready, and a rollback takes its second step.
        newest_ready = uri
        if knative.holds(stored):
            stored = knative.released(stored)
            percent = None
        if percent is None:
            rolled_out = uri
        assert rolled_out == live


def test_a_promotion_changes_nothing_but_the_share() -> None:
    canary = with_canary(service(), target(2, maxReplicas=4), 10, NOW)
    tried = knative.to_knative(canary, knative.to_knative(service()))
    live = knative.to_knative(promoted(canary, NOW), tried)
    assert tried["spec"]["predictor"].pop(knative.PERCENT) == 10
    assert live["spec"] == tried["spec"]


def test_a_rollback_holds_the_share_at_zero_until_the_revision_is_ready() -> None:
    canary = knative.to_knative(with_canary(service(), target(2), 25, NOW))
    back = knative.to_knative(without_canary(knative.from_knative(canary), "a test", NOW), canary)
    assert back["spec"]["predictor"][knative.PERCENT] == 0
    assert back["spec"]["predictor"]["model"]["storageUri"].endswith("/1")
    assert knative.holds(back)
    assert "canary" not in knative.from_knative(back)["spec"]
    assert knative.PERCENT not in knative.released(back)["spec"]["predictor"]
    assert not knative.holds(knative.released(back))
    assert not knative.holds(canary)


def test_a_candidate_of_somebody_else_is_not_guessed_about() -> None:
    stored = knative.to_knative(with_canary(service(), target(2), 10, NOW))
    foreign = copy.deepcopy(stored)
    del foreign["metadata"]["annotations"][RECORD_ANNOTATION]
    with pytest.raises(InputError, match="a candidate that kfloop did not deploy"):
        knative.from_knative(foreign)

    # Somebody promoted it by hand: that is what is live now, and what was live is known.
    by_hand = copy.deepcopy(stored)
    del by_hand["spec"]["predictor"][knative.PERCENT]
    record = record_of(knative.from_knative(by_hand))
    assert (record.stable.version, record.candidate, record.previous.version) == ("2", None, "1")

    # Somebody put another model in the candidate's place.
    other = json.loads(json.dumps(stored).replace("flights/2", "flights/9"))
    other["metadata"]["annotations"] = stored["metadata"]["annotations"]
    record = record_of(knative.from_knative(other))
    assert record.stable.version == "1"
    assert record.candidate.storage_uri.endswith("/9")


@pytest.mark.skipif(KNATIVE not in MODES, reason="KFLOOP_TEST_MODES leaves Knative out")
def test_each_version_has_the_address_and_the_name_of_its_revision(tmp_path: Path) -> None:
    with bench(KNATIVE, tmp_path) as cluster:
        cluster.deploy(1)
        cluster.deploy(2, 20)
        found = connect().status(SERVICE).predictors
        for version in (1, 2):
            predictor = found[f"v{version}"]
            assert predictor.workload == f"{SERVICE}-predictor-0000{version}"
            with ServiceClient(predictor.url, SERVICE) as client:
                assert client.predict([ROW]).model_version == str(version)


@pytest.mark.skipif(KNATIVE not in MODES, reason="KFLOOP_TEST_MODES leaves Knative out")
def test_a_split_leaves_the_live_version_its_share_after_a_promotion(tmp_path: Path) -> None:
    with bench(KNATIVE, tmp_path) as cluster:
        cluster.deploy(1)
        cluster.deploy(2)
        cluster.promote(2)
        cluster.deploy(3, 20)
        assert set(cluster.answering()) == {"2", "3"}
        cluster.roll_back(3)
        assert cluster.answering() == {"2": 40}


@pytest.mark.skipif(bool(REAL), reason="a real cluster does not fail on demand")
def test_a_version_that_knative_refuses_is_told_and_taken_away(tmp_path: Path) -> None:
    with bench(KNATIVE, tmp_path) as cluster:
        cluster.deploy(1)
        cluster.kserve.fail(cluster.model(2), "refused")
        with pytest.raises(InputError, match=r"must not set the field\(s\): .*nodeSelector"):
            cluster.deploy(2, 10)
        assert cluster.live == "1"
        assert cluster.answering() == {"1": 40}
