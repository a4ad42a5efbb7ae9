# SPDX-License-Identifier: Apache-2.0
"""KServe in Knative mode: revisions, the split by percent, and its pitfalls."""

import json
from typing import Any

import pytest
import urllib3

from doubles import ApiServer, KServe
from doubles.tests.conftest import isvc
from doubles.tests.test_doubles_standard import ask, condition, status

HTTP = urllib3.PoolManager(retries=False)
TAGGED = {"serving.kserve.io/enable-tag-routing": "true"}


@pytest.fixture
def mode() -> str:
    return "Knative"


def service(**predictor: Any) -> dict[str, Any]:
    manifest = isvc()
    manifest["spec"]["predictor"].update(predictor)
    manifest["metadata"]["annotations"] = dict(TAGGED)
    return manifest


def edit(api: ApiServer, version: str = "", **predictor: Any) -> None:
    if version:
        predictor["model"] = {"storageUri": f"s3://b/{version}"}
    api.patch("inferenceservices", "m", "ml", {"spec": {"predictor": predictor}})


def revisions(api: ApiServer) -> dict[str, str]:
    component = status(api)["components"]["predictor"]
    return {
        key.removesuffix("Revision"): component[key].rpartition("-")[2].lstrip("0")
        for key in component
        if key.endswith("Revision")
    }


def shares(api: ApiServer) -> list[tuple[str, int, str]]:
    traffic = status(api)["components"]["predictor"]["traffic"]
    return [(t["revisionName"][-1], t["percent"], t.get("tag", "")) for t in traffic]


def test_the_whole_way_of_a_canary(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    assert revisions(api) == {"latestCreated": "1", "latestReady": "1", "latestRolledout": "1"}
    edit(api, "v2", canaryTrafficPercent=20)
    kserve.settle()
    assert shares(api) == [("2", 20, "latest"), ("1", 80, "prev")]
    assert revisions(api) == {"latestCreated": "2", "latestReady": "2", "latestRolledout": "1"}
    traffic = status(api)["components"]["predictor"]["traffic"]
    assert ask(traffic[0]["url"]) == (200, "2")
    assert ask(traffic[1]["url"]) == (200, "1")
    kserve.answered.clear()
    for _ in range(300):
        ask(status(api)["url"])
    assert 30 <= kserve.answered["2"] <= 90
    edit(api, canaryTrafficPercent=None)
    kserve.settle()
    assert shares(api) == [("2", 100, "latest")]
    assert revisions(api) == {
        "latestCreated": "2",
        "latestReady": "2",
        "latestRolledout": "2",
        "previousRolledout": "1",
    }
    assert ask(status(api)["url"]) == (200, "2")


def test_the_first_revision_ignores_the_percentage(api: ApiServer, kserve: KServe) -> None:
    api.create(service(canaryTrafficPercent=10))
    kserve.settle()
    # Once it was rolled out the percentage counts, but both shares are of the same revision.
    assert shares(api) == [("1", 10, "latest"), ("1", 90, "prev")]
    assert revisions(api)["latestRolledout"] == "1"
    assert ask(status(api)["url"]) == (200, "1")


def test_nothing_for_the_candidate_and_an_address_of_its_own(
    api: ApiServer, kserve: KServe
) -> None:
    api.create(service())
    kserve.settle()
    edit(api, "v2", canaryTrafficPercent=0)
    kserve.settle()
    for _ in range(20):
        assert ask(status(api)["url"]) == (200, "1")
    assert ask(status(api)["components"]["predictor"]["traffic"][0]["url"]) == (200, "2")
    # The revision's public Service leads to the activator, a pod of another namespace.
    proxy = f"{api.url}/api/v1/namespaces/ml/services/m-predictor-00002"
    assert ask(f"{proxy}/proxy")[0] == 503
    assert ask(f"{proxy}-private/proxy") == (200, "2")


def test_a_roll_back_by_zero_is_undone_by_the_next_edit(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    edit(api, "v2", canaryTrafficPercent=10)
    kserve.settle()
    edit(api, canaryTrafficPercent=0)
    kserve.settle()
    assert ask(status(api)["url"]) == (200, "1")
    edit(api, canaryTrafficPercent=None)
    kserve.settle()
    assert ask(status(api)["url"]) == (200, "2")


def test_the_old_model_again_is_a_new_revision(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    edit(api, "v2", canaryTrafficPercent=None)
    kserve.settle()
    edit(api, "v1")
    kserve.settle()
    assert revisions(api)["latestReady"] == "3"
    assert ask(status(api)["url"]) == (200, "1")


def test_zero_after_promotion_goes_back_to_the_revision_before(
    api: ApiServer, kserve: KServe
) -> None:
    api.create(service())
    kserve.settle()
    edit(api, "v2")
    kserve.settle()
    assert revisions(api)["previousRolledout"] == "1"
    edit(api, canaryTrafficPercent=0)
    kserve.settle()
    assert revisions(api)["latestRolledout"] == "1"
    assert ask(status(api)["url"]) == (200, "1")


def test_a_split_that_is_there_before_its_revision_is_taken_for_a_roll_back(
    api: ApiServer, kserve: KServe
) -> None:
    """Seen on KServe 0.20 with Knative 0.50: the live version loses its share to the one before."""
    api.create(service())
    kserve.settle()
    edit(api, "v2")
    kserve.settle()
    edit(api, "v3", canaryTrafficPercent=20)
    kserve.settle()
    assert shares(api) == [("3", 20, "latest"), ("1", 80, "prev")]
    assert revisions(api)["latestRolledout"] == "1"


def test_ready_flips_during_a_rollout_and_requests_go_on(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    edit(api, "v2")
    seen, codes = [], set()
    for _ in range(15):
        kserve.step()
        seen.append(condition(api, "Ready"))
        codes.add(ask(status(api)["url"])[0])
    assert seen[0] == "True"
    assert "Unknown" in seen
    assert seen[-1] == "True"
    assert codes == {200}


def test_an_annotation_of_the_service_makes_a_revision(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    api.patch("inferenceservices", "m", "ml", {"metadata": {"annotations": {"note": "1"}}})
    kserve.settle()
    assert revisions(api)["latestReady"] == "2"


@pytest.mark.parametrize(
    "failure, told",
    [
        ("image_pull", "Back-off pulling image"),
        ("crash_loop", "Op type not registered"),
        ("failed_to_load", "Failed to fetch model"),
        ("unschedulable", "Insufficient nvidia.com/gpu"),
        ("quota", "exceeded quota"),
        ("deadline", "Initial scale was never achieved"),
    ],
)
def test_a_candidate_that_fails_leaves_the_requests_where_they_were(
    api: ApiServer, kserve: KServe, failure: str, told: str
) -> None:
    api.create(service())
    kserve.settle()
    kserve.fail("s3://b/v2", failure)
    edit(api, "v2", canaryTrafficPercent=50)
    kserve.settle()
    assert revisions(api) == {"latestCreated": "2", "latestReady": "1", "latestRolledout": "1"}
    assert condition(api, "LatestDeploymentReady") == "False"
    found = next(c for c in status(api)["conditions"] if c["type"] == "PredictorReady")
    assert (found["status"], found["reason"]) == ("False", "RevisionFailed")
    assert told in found["message"]
    # A pod without a container that ended has nothing to look at.
    untold = failure in ("unschedulable", "image_pull", "deadline")
    expected = "InProgress" if untold else "BlockedByFailedLoad"
    assert status(api)["modelStatus"]["transitionStatus"] == expected
    for _ in range(10):
        assert ask(status(api)["url"]) == (200, "1")


def test_what_was_never_ready_has_no_address(api: ApiServer, kserve: KServe) -> None:
    kserve.fail("*", "never_ready")
    api.create(service())
    kserve.settle()
    assert "url" not in status(api)
    assert condition(api, "Ready") == "Unknown"
    assert json.dumps(status(api)["modelStatus"]["transitionStatus"]) == '"InProgress"'


def test_a_cluster_without_knative_says_so(api: ApiServer, kserve: KServe) -> None:
    for kind in ("services", "revisions"):
        api.unregister(f"{kind}.serving.knative.dev")
    api.create(service())
    kserve.settle()
    assert condition(api, "Ready") == "Unknown"
    assert [event["reason"] for event in api.list("events", "ml")] == ["ServerlessModeRejected"]


def test_deletion_leaves_nothing(api: ApiServer, kserve: KServe) -> None:
    api.create(service())
    kserve.settle()
    url = status(api)["url"]
    api.delete("inferenceservices", "m", "ml")
    kserve.settle()
    kinds = ("pods", "services", "services.serving.knative.dev", "revisions")
    assert [api.list(kind, "ml") for kind in kinds] == [[], [], [], []]
    assert HTTP.request("GET", url).status == 404
