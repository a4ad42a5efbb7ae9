# SPDX-License-Identifier: Apache-2.0
import copy
import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kfloop.components.contracts.deployment_record import (
    RECORD_ANNOTATION,
    Rollout,
    Step,
    Target,
    parse_record,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, ModelPackage
from kfloop.components.deployment.manifest import (
    Manifest,
    new_service,
    promoted,
    record_of,
    restored,
    restoring,
    traffic_of,
    with_canary,
    with_log,
    with_rollout,
    without_canary,
)
from kfloop.components.deployment.resources import predictor_options
from kfloop.components.deployment.targets import MASKED, target_of
from kfloop.serving.local_state import predictor_specs


def version(number: int) -> Target:
    package = ModelPackage("m", "binary", "y", [Feature("a", "float")], version=str(number))
    return target_of(package, f"/repo/m/{number}")


def service() -> Manifest:
    return new_service("s", "local", version(1), {}, "2026-01-01T00:00:00+00:00")


class Rollouts(RuleBasedStateMachine):
    """Any order of edits; `live` and `before` say what must serve and what must be kept."""

    @initialize()
    def create(self) -> None:
        self.manifest = with_log(service(), "/log")
        self.newest = 1
        self.live, self.before, self.candidate = "1", None, None

    def edit(self, function, *arguments) -> None:
        given = copy.deepcopy(self.manifest)
        edited = function(self.manifest, *arguments)
        assert self.manifest == given, "an edit changed the manifest it was given"
        # What a backend stores and gives back.
        self.manifest = json.loads(json.dumps(edited))

    @rule(percent=st.integers(0, 100), again=st.booleans())
    def deploy(self, percent: int, again: bool) -> None:
        if not (again and self.candidate):
            self.newest += 1
            self.candidate = str(self.newest)
        self.edit(with_canary, version(int(self.candidate)), percent, "now")
        assert traffic_of(self.manifest)[f"v{self.candidate}"] == percent

    @precondition(lambda self: self.candidate)
    @rule()
    def promote(self) -> None:
        self.edit(promoted, "now")
        self.before, self.live, self.candidate = self.live, self.candidate, None

    @precondition(lambda self: self.candidate)
    @rule()
    def take_away(self) -> None:
        self.edit(without_canary, "why", "now")
        self.candidate = None

    @precondition(lambda self: self.before)
    @rule()
    def restore(self) -> None:
        self.edit(restored, "why", "now")
        self.live, self.before, self.candidate = self.before, None, None

    @precondition(lambda self: not self.before)
    @rule()
    def restore_without_a_version_before(self) -> None:
        with pytest.raises(InputError, match="nothing to roll back to"):
            restored(self.manifest, "why", "now")

    @precondition(lambda self: not self.candidate)
    @rule()
    def promote_without_a_candidate(self) -> None:
        with pytest.raises(InputError, match="no candidate"):
            promoted(self.manifest, "now")

    @invariant()
    def holds(self) -> None:
        record = record_of(self.manifest)
        assert record.stable.version == self.live
        assert (record.previous.version if record.previous else None) == self.before
        assert (record.candidate.version if record.candidate else None) == self.candidate
        specs = predictor_specs(self.manifest)
        assert [uri for _, uri, _ in specs] == [
            f"/repo/m/{number}" for number in (self.live, self.candidate) if number
        ]
        shares = traffic_of(self.manifest)
        assert {name: percent for name, _, percent in specs} == shares
        assert sum(shares.values()) == 100
        assert all(0 <= share <= 100 for share in shares.values())
        assert self.manifest["metadata"]["annotations"]["kfloop.org/inference-log"] == "/log"


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("percent", [-1, 101, 150])
def test_a_share_that_is_no_percentage_is_refused(percent: int) -> None:
    with pytest.raises(InputError, match="from 0 to 100"):
        with_canary(service(), version(2), percent, "now")


def test_a_dark_candidate_keeps_a_replica() -> None:
    canary = with_canary(service(), version(2), 0, "now")["spec"]["canary"][0]
    assert canary["predictor"]["minReplicas"] == 1


@pytest.mark.parametrize("name", ["", "Flights", "1st", "a_b", "a-", "x" * 41, "../up"])
def test_a_name_that_no_service_can_have_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        new_service(name, "local", version(1), {}, "now")


def test_a_package_that_was_not_published_cannot_be_deployed() -> None:
    package = ModelPackage("m", "binary", "y", [Feature("a", "float")])
    with pytest.raises(InputError, match="has no version"):
        target_of(package, "/somewhere")


def test_a_spec_edited_by_hand_is_believed_and_what_served_before_is_kept() -> None:
    manifest = service()
    manifest["spec"]["predictor"] = version(7).predictor
    record = record_of(manifest)
    assert (record.stable.version, record.previous.version) == ("7", "1")
    del manifest["metadata"]["annotations"][RECORD_ANNOTATION]
    record = record_of(manifest)
    assert (record.stable.storage_uri, record.previous) == ("/repo/m/7", None)


def scaled(number: int) -> Target:
    package = ModelPackage("m", "binary", "y", [Feature("a", "float")], version=str(number))
    settings = {
        "autoscaling": {"class": "keda", "min_replicas": 2, "max_replicas": 5},
        "resources": {"requests": {"cpu": 1}},
        "storage_secret": "keys",
    }
    return target_of(package, f"/repo/m/{number}", predictor_options(settings))


def test_autoscaling_comes_with_the_promotion_and_goes_with_the_roll_back() -> None:
    canary = with_canary(service(), scaled(2), 10, "now")
    candidate = canary["spec"]["canary"][0]["predictor"]
    assert candidate["model"]["resources"] == {"requests": {"cpu": "1"}}
    assert not {"minReplicas", "maxReplicas", "autoScaling"} & set(candidate)
    assert "serving.kserve.io/autoscalerClass" not in canary["metadata"]["annotations"]
    live = promoted(canary, "now")
    assert live["spec"]["predictor"]["maxReplicas"] == 5
    assert live["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    assert live["metadata"]["annotations"]["serving.kserve.io/storageSecretName"] == "keys"
    back = restored(live, "why", "now")
    assert "maxReplicas" not in back["spec"]["predictor"]
    assert "serving.kserve.io/autoscalerClass" not in back["metadata"]["annotations"]


def test_in_knative_mode_the_annotations_come_with_the_candidate() -> None:
    manifest = service()
    manifest["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Knative"
    key = "serving.kserve.io/storageSecretName"
    canary = with_canary(manifest, scaled(2), 10, "now")
    assert canary["metadata"]["annotations"][key] == "keys"
    assert key not in without_canary(canary, "", "")["metadata"]["annotations"]
    live = promoted(canary, "now")
    assert live["metadata"]["annotations"][key] == "keys"
    assert key not in with_canary(live, version(3), 10, "now")["metadata"]["annotations"]


def test_a_candidate_without_a_record_goes_on_with_the_autoscaling_of_the_live_version() -> None:
    manifest = with_canary(
        promoted(with_canary(service(), scaled(2), 1, ""), ""), version(3), 5, ""
    )
    del manifest["metadata"]["annotations"][RECORD_ANNOTATION]
    assert promoted(manifest, "now")["spec"]["predictor"]["maxReplicas"] == 5


def test_the_annotations_that_change_never_reach_the_pods() -> None:
    annotations = version(1).predictor["annotations"]
    manifest = with_log(service(), "/log")
    changing = set(manifest["metadata"]["annotations"])
    # A predictor's own annotations win in the template.
    assert changing <= set(MASKED) <= set(annotations)
    shifted = with_canary(manifest, version(2), 30, "later")
    assert shifted["spec"]["predictor"] == manifest["spec"]["predictor"]


def test_every_key_of_the_lineage_is_there_also_where_nothing_is_known() -> None:
    package = ModelPackage(
        "m", "binary", "y", [], version="3", git_commit="abc", dataset_fingerprint="d" * 64
    )
    annotations = target_of(package, "s3://b/m/3", run_id="run-1", gate_decision="pass").predictor[
        "annotations"
    ]
    lineage = {key: value for key, value in annotations.items() if key not in MASKED}
    assert lineage == {
        "kfloop.org/model-version": "3",
        "kfloop.org/model": "m",
        "kfloop.org/dataset-fingerprint": "d" * 64,
        "kfloop.org/schema-fingerprint": "none",
        "kfloop.org/feature-service": "none",
        "kfloop.org/git-commit": "abc",
        "kfloop.org/pipeline-run": "run-1",
        "kfloop.org/gate-decision": "pass",
    }


def test_a_payload_logger_is_told_the_version() -> None:
    package = ModelPackage("m", "binary", "y", [], version="3")
    logger = target_of(package, "s3://b/m/3", log="http://logger.ml").predictor["logger"]
    assert logger["metadataAnnotations"] == ["kfloop.org/model-version"]
    assert "logger" not in target_of(package, "s3://b/m/3", log="/var/log").predictor


@pytest.mark.parametrize("uri", ["s3://bucket/m", "s3://bucket/m/latest", "s3://bucket/m/31"])
def test_a_uri_that_is_not_of_one_version_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="does not end in its version, 3"):
        target_of(ModelPackage("m", "binary", "y", [], version="3"), uri)


def test_bringing_the_version_before_back_takes_two_writes_and_forgets_nothing() -> None:
    live = promoted(with_canary(service(), version(2), 10, "now"), "now")
    beside = restoring(live, "complaints", "now")
    record = record_of(beside)
    assert (record.state, record.stable.version, record.candidate.version) == (
        "restoring",
        "2",
        "1",
    )
    assert traffic_of(beside) == {"v2": 100, "v1": 0}
    back = record_of(restored(beside, record.reason, "now"))
    assert (back.state, back.stable.version, back.undone) == ("rolled_back", "1", "/repo/m/2")
    assert (back.reason, back.candidate, back.previous) == ("complaints", None, None)


def test_a_record_of_an_older_release_is_read() -> None:
    old = {
        "service": "s",
        "namespace": "ml",
        "state": "deployed",
        "stable": {"version": "1", "storage_uri": "/m/1", "predictor": {"name": "v1"}},
        "candidate": None,
        "previous": None,
        "reason": "",
        "changed_at": "2026-01-01T00:00:00+00:00",
    }
    record = parse_record(json.dumps(old))
    assert (record.rollout, record.undone, record.stable.annotations) == (None, "", {})


def test_how_far_a_rollout_is_is_kept_and_ends_with_what_became_of_it() -> None:
    rollout = Rollout("/repo/m/2", "run", "now", 60.0, [Step(5, "now", "pass", "fine"), Step(25)])
    manifest = with_canary(service(), version(2), 5, "then", rollout)
    noted = with_rollout(manifest, rollout)
    assert record_of(noted).rollout == rollout
    assert record_of(noted).changed_at == "then"
    assert noted["spec"] == manifest["spec"]
    assert record_of(promoted(noted, "")).rollout.outcome == "promoted"
    assert record_of(without_canary(noted, "", "")).rollout.outcome == "rolled_back"
    # The rollout of another model is over.
    assert record_of(with_canary(noted, version(3), 5, "now")).rollout is None


def test_annotations_stay_below_what_the_server_takes() -> None:
    record = record_of(without_canary(with_canary(service(), version(2), 1, ""), "x" * 9999, ""))
    assert len(record.reason) == 500
    huge = version(2)
    huge.predictor["nodeSelector"] = {"zone": "z" * 300_000}
    with pytest.raises(InputError, match="more than the 262,144 that Kubernetes takes"):
        with_canary(service(), huge, 1, "")


def test_two_versions_of_one_name_cannot_be_told_apart() -> None:
    package = ModelPackage("m", "binary", "y", [Feature("a", "float")], version="1")
    with pytest.raises(InputError, match="publish the candidate again"):
        with_canary(service(), target_of(package, "/elsewhere/m/1"), 10, "now")
