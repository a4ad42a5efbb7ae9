# SPDX-License-Identifier: Apache-2.0
"""What holds whatever a user does, in whatever order the controllers see it."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doubles import ApiError, ApiServer, KServe
from doubles.patches import json_patch, merge, strategic
from doubles.tests.conftest import isvc
from doubles.tests.test_doubles_standard import ask, condition, status

# No deadline: a busy machine is no failure.
ENOUGH = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PURE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VERSIONS = st.integers(1, 4)
PERCENT = st.integers(0, 100)
WAIT = st.integers(0, 6)
LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.booleans())
DOCUMENTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | LEAVES, max_size=3),
    max_leaves=8,
)
OLD_MODE = {"serving.kserve.io/deploymentMode": "Standard"}


def model(version: int) -> dict[str, Any]:
    return {"modelFormat": {"name": "tensorflow"}, "storageUri": f"s3://b/v{version}"}


def difference(old: Any, new: Any) -> Any:
    """The merge patch from one document to another."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    changed = {k: difference(old.get(k), v) for k, v in new.items() if old.get(k, ...) != v}
    return {**dict.fromkeys(set(old) - set(new)), **changed}


@PURE
@given(DOCUMENTS, DOCUMENTS)
def test_a_merge_patch_leads_from_one_document_to_the_other(old: Any, new: Any) -> None:
    patch = difference(old, new)
    assert merge(old, patch) == new
    assert merge(merge(old, patch), patch) == new
    assert strategic(old, patch) == new


@PURE
@given(DOCUMENTS, DOCUMENTS)
def test_a_json_patch_of_whole_fields_leads_there_too(old: Any, new: Any) -> None:
    removed = [{"op": "remove", "path": f"/{key}"} for key in set(old) - set(new)]
    added = [{"op": "add", "path": f"/{key}", "value": value} for key, value in new.items()]
    assert json_patch(old, [*removed, *added]) == new


@ENOUGH
@given(st.lists(st.tuples(VERSIONS, st.none() | PERCENT, WAIT), max_size=5), st.integers(0, 99))
def test_knative_settles_on_a_whole_split_of_ready_revisions(
    edits: list[tuple[int, int | None, int]], seed: int
) -> None:
    with ApiServer(namespaces=["ml"]) as api, KServe(api, mode="Knative", seed=seed) as kserve:
        kserve.skip = 0.3
        api.create(isvc(uri="s3://b/v1"))
        version = 1
        for version, percent, wait in edits:
            spec = {"predictor": {"model": model(version), "canaryTrafficPercent": percent}}
            api.patch("inferenceservices", "m", "ml", {"spec": spec})
            kserve.step(wait)
        kserve.settle(600)
        component = status(api)["components"]["predictor"]
        assert condition(api, "Ready") == "True"
        assert sum(target["percent"] for target in component["traffic"]) == 100
        assert component["latestReadyRevision"] == component["latestCreatedRevision"]
        proxy = f"{component['latestReadyRevision']}-private/proxy"
        assert ask(f"{api.url}/api/v1/namespaces/ml/services/{proxy}") == (200, str(version))


@ENOUGH
@given(st.lists(st.tuples(VERSIONS, PERCENT, st.booleans(), WAIT), max_size=5), st.integers(0, 99))
def test_standard_settles_on_what_the_spec_says(
    edits: list[tuple[int, int, bool, int]], seed: int
) -> None:
    with ApiServer(namespaces=["ml"]) as api, KServe(api, seed=seed, skip=0.3) as kserve:
        manifest = isvc(uri="s3://b/v1")
        manifest["spec"]["predictor"]["name"] = "v1"
        manifest["metadata"]["annotations"] = OLD_MODE
        api.create(manifest)
        for version, percent, promote, wait in edits:
            other = {"name": f"v{version}", "model": model(version)}
            entry = {"trafficPercent": percent, "predictor": other}
            spec = {"predictor": other, "canary": None} if promote else {"canary": [entry]}
            try:
                api.patch("inferenceservices", "m", "ml", {"spec": spec})
            except ApiError as error:  # a canary of the live version
                assert "conflicts with stable" in error.message
            kserve.step(wait)
        kserve.settle(600)
        found = api.get("inferenceservices", "m", "ml")["spec"]
        canaries = found.get("canary") or []
        wanted = {found["predictor"]["name"], *(c["predictor"]["name"] for c in canaries)}
        deployed = {item["metadata"]["name"] for item in api.list("deployments", "ml")}
        assert deployed == {f"m-{name}-predictor" for name in wanted}
        for name in wanted:
            code, version_told = ask(
                f"{api.url}/api/v1/namespaces/ml/services/m-{name}-predictor/proxy"
            )
            running = name == found["predictor"]["name"] or canaries[0]["trafficPercent"] > 0
            assert (code, version_told) == ((200, name[1:]) if running else (503, ""))
        assert ask(status(api)["url"])[0] == 200
