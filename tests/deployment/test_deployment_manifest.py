import copy
import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kfloop.components.contracts.deployment_record import RECORD_ANNOTATION, Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, ModelPackage
from kfloop.components.deployment.manifest import (
    Manifest,
    new_service,
    promoted,
    record_of,
    restored,
    target_of,
    traffic_of,
    with_canary,
    with_log,
    without_canary,
)
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


def test_two_versions_of_one_name_cannot_be_told_apart() -> None:
    package = ModelPackage("m", "binary", "y", [Feature("a", "float")], version="1")
    with pytest.raises(InputError, match="publish the candidate again"):
        with_canary(service(), target_of(package, "/elsewhere/m/1"), 10, "now")
