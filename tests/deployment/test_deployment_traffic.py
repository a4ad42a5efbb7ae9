# SPDX-License-Identifier: Apache-2.0
import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.traffic import splitter_graph, with_shadow, with_sticky_key
from kfloop.serving.traffic import StickyKey, traffic_settings

MANIFEST = {
    "metadata": {"name": "late", "annotations": {"kfloop.org/inference-log": "/log"}},
    "spec": {"predictor": {"name": "v1"}},
}


def test_settings_are_annotations_that_the_service_reads_and_can_be_taken_out() -> None:
    edited = with_shadow(with_sticky_key(MANIFEST, "field:tailnum"), 25)
    assert traffic_settings(edited) == (StickyKey("field", "tailnum"), 25)
    assert edited["spec"] == MANIFEST["spec"]
    assert with_shadow(with_sticky_key(edited, ""), 0) == MANIFEST
    assert traffic_settings(MANIFEST) == (None, 0)


def test_what_cannot_be_set_is_told() -> None:
    with pytest.raises(InputError, match="whole number from 0 to 100"):
        with_shadow(MANIFEST, 101)
    with pytest.raises(InputError, match="header:NAME or field:NAME"):
        with_sticky_key(MANIFEST, "tailnum")


def test_an_ab_test_is_an_inference_graph_that_splits() -> None:
    graph = splitter_graph("late-ab", "ml", {"late-a": 80, "late-b": 20})
    assert (graph["apiVersion"], graph["kind"]) == (
        "serving.kserve.io/v1alpha1",
        "InferenceGraph",
    )
    assert graph["metadata"] == {"name": "late-ab", "namespace": "ml"}
    (node,) = graph["spec"]["nodes"].values()
    assert list(graph["spec"]["nodes"]) == ["root"]
    assert node["routerType"] == "Splitter"
    assert node["steps"] == [
        {"serviceName": "late-a", "weight": 80},
        {"serviceName": "late-b", "weight": 20},
    ]


@pytest.mark.parametrize("weights", [{"a": 100}, {"a": 50, "b": 40}, {"a": 120, "b": -20}])
def test_weights_that_share_out_something_else_than_all_are_refused(
    weights: dict[str, int],
) -> None:
    with pytest.raises(InputError, match=r"needs two services|make it 100"):
        splitter_graph("graph", "ml", weights)
