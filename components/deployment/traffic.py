# SPDX-License-Identifier: Apache-2.0
"""Sticky assignment and shadow traffic in an InferenceService, and an A/B test as a graph.

Edits are pure: a manifest in, a new one out. On the laptop the service obeys the annotations. On a
cluster KServe shares requests out by weight alone: neither its canary nor an InferenceGraph sends
copies (Sequence and Ensemble steps answer or fail the request, so they cannot mirror), which takes
a mirror filter of the gateway or the mesh.
"""

import copy
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.manifest import Manifest
from kfloop.serving.traffic import (
    SHADOW_ANNOTATION,
    STICKY_ANNOTATION,
    parse_shadow_percent,
    parse_sticky_key,
)


def with_sticky_key(manifest: Manifest, key: str) -> Manifest:
    """Returns the manifest with the key that decides which version answers.

    Args:
        manifest: The service.
        key: `header:NAME` or `field:NAME` (of the first instance); empty takes it out.

    Raises:
        InputError: If it is neither.
    """
    parse_sticky_key(key)
    return _annotated(manifest, STICKY_ANNOTATION, key)


def with_shadow(manifest: Manifest, percent: int) -> Manifest:
    """Returns the manifest with the share of live requests that the candidate gets copies of.

    Its answers to copies are logged and never returned. It applies to whatever is the candidate,
    so it can be set before there is one.

    Args:
        manifest: The service.
        percent: 0 to 100; 0 takes it out.

    Raises:
        InputError: If it is out of range.
    """
    parse_shadow_percent(str(percent))
    return _annotated(manifest, SHADOW_ANNOTATION, str(percent) if percent else "")


def _annotated(manifest: Manifest, name: str, value: str) -> Manifest:
    edited = copy.deepcopy(manifest)
    annotations = edited["metadata"].setdefault("annotations", {})
    annotations.pop(name, None)
    if value:
        annotations[name] = value
    return edited


def splitter_graph(name: str, namespace: str, weights: dict[str, int]) -> dict[str, Any]:
    """Returns an InferenceGraph that shares requests out between whole services.

    Unlike a canary its sides are InferenceServices of their own, in either deployment mode, each
    with its own name, scaling and roll back. KServe draws the side anew for each request: it knows
    no sticky key.

    Args:
        name: Name of the graph, its address.
        namespace: Where it and the services are.
        weights: Percent of the requests by service; they sum to 100.

    Raises:
        InputError: If there are fewer than two services, or the weights do not sum to 100.
    """
    if len(weights) < 2 or any(weight < 0 for weight in weights.values()):
        raise InputError(f"An A/B test needs two services or more with weights, not {weights}.")
    if sum(weights.values()) != 100:
        raise InputError(f"The weights {weights} sum to {sum(weights.values())}; make it 100.")
    steps = [{"serviceName": service, "weight": weight} for service, weight in weights.items()]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodes": {"root": {"routerType": "Splitter", "steps": steps}}},
    }
