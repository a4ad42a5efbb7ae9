# SPDX-License-Identifier: Apache-2.0
"""InferenceGraphs: an experiment of two services, in either mode."""

from doubles import ApiServer, KServe
from doubles.tests.conftest import isvc
from doubles.tests.test_doubles_standard import ask


def test_a_splitter_shares_out_the_requests(api: ApiServer, kserve: KServe, mode: str) -> None:
    steps = [{"serviceName": "m", "weight": 30}, {"serviceName": "n", "weight": 70}]
    graph = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "ab", "namespace": "ml"},
        "spec": {"nodes": {"root": {"routerType": "Splitter", "steps": steps}}},
    }
    api.create(graph)
    api.create(isvc("m", uri="s3://b/v1"))
    kserve.settle()
    found = api.get("inferencegraphs", "ab", "ml")
    assert found["status"]["conditions"][0]["message"] == "service 'n' is not ready"
    api.create(isvc("n", uri="s3://b/v2"))
    kserve.settle()
    found = api.get("inferencegraphs", "ab", "ml")
    assert found["status"]["conditions"][0]["status"] == "True"
    for _ in range(200):
        assert ask(found["status"]["url"])[0] == 200
    assert 35 <= kserve.answered["1"] <= 85


def test_other_routers_are_refused(api: ApiServer) -> None:
    with KServe(api) as kserve:
        root = {"routerType": "Switch", "steps": []}
        api.create(
            {
                "apiVersion": "serving.kserve.io/v1alpha1",
                "kind": "InferenceGraph",
                "metadata": {"name": "sw", "namespace": "ml"},
                "spec": {"nodes": {"root": root}},
            }
        )
        kserve.settle()
        events = [event["message"] for event in api.list("events", "ml")]
        assert events == ["the double routes Splitter nodes only, not Switch"]
