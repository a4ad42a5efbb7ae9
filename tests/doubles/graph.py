# SPDX-License-Identifier: Apache-2.0
"""InferenceGraphs: a Splitter at the root, in front of InferenceServices.

Other routers (Sequence, Ensemble, Switch) are refused with an Event and never become ready.
"""

from typing import Any
from urllib.parse import urlsplit

from .cluster import ISVCS, is_true, set_condition, set_status, tell
from .data_plane import Backend
from .documents import copied
from .isvc import Config
from .server import ApiServer
from .store import Object
from .urls import Urls
from .workloads import Gateway

GRAPHS = "inferencegraphs.serving.kserve.io"


class Graphs:
    """The controller of InferenceGraphs and their router."""

    def __init__(self, api: ApiServer, urls: Urls, gateway: Gateway) -> None:
        self._api, self._urls, self._gateway = api, urls, gateway

    def tick(self, graph: Object, config: Config) -> None:
        """Routes by a graph once all its services are ready.

        The router calls each service at its cluster address, which knows nothing of a canary of
        Standard mode.
        """
        name, namespace = graph["metadata"]["name"], graph["metadata"]["namespace"]
        status: dict[str, Any] = copied(graph.get("status") or {"conditions": []})
        root = graph["spec"]["nodes"].get("root") or {}
        problem, backends = "", []
        if root.get("routerType") != "Splitter":
            problem = f"the double routes Splitter nodes only, not {root.get('routerType')}"
            tell(self._api, graph, "Warning", "InternalError", problem)
        for step in root.get("steps", []):
            isvc = self._api.get(ISVCS, step.get("serviceName", ""), namespace) or {}
            known = isvc.get("status") or {}
            if not is_true(known.get("conditions"), "Ready"):
                problem = problem or f"service {step.get('serviceName')!r} is not ready"
                continue
            host = urlsplit(known["address"]["url"]).netloc.partition(".")[0]
            backends.append(Backend(host, int(step.get("weight", 0)), nested=True))
        if problem:
            told = {"reason": "ServiceNotReady", "message": problem}
            set_condition(self._api, status["conditions"], "Ready", "False", **told)
        else:
            hosts = [self._urls.host(name, namespace, config)]
            self._gateway.publish(namespace, name, hosts, backends)
            status["url"] = self._urls.public(name, namespace, config)
            set_condition(self._api, status["conditions"], "Ready", "True")
        set_status(self._api, GRAPHS, graph, status)
