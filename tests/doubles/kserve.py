# SPDX-License-Identifier: Apache-2.0
"""KServe on the API server double: controllers in steps or in a thread, and model servers.

with ApiServer(namespaces=["ml"]) as api, KServe(api) as kserve:
    ...                     # create an InferenceService with any client
    kserve.settle()         # until nothing changes any more
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from .admission import KNATIVE, STANDARD
from .cluster import DEPLOYMENTS, ISVCS, KSERVICES, ROUTES
from .data_plane import Backend, DataPlane
from .errors import ApiError
from .failures import Failures
from .graph import GRAPHS, Graphs
from .isvc import RUNTIME_IMAGES, Config, mode_of, read_config
from .knative import KnativeMode
from .knative_serving import KnativeServing
from .kubelet import Kubelet
from .models import Factory, Model, model_for
from .server import ApiServer
from .standard import Standard
from .store import Object
from .urls import Urls
from .verbs import MERGE, Options
from .workloads import Deployments, Endpoints, Gateway

FINALIZER = "inferenceservice.finalizers"
SETTLED_WITH_SKIPS = 25


class KServe:
    """A cluster with KServe, as far as a client can see it.

    Args:
        api: Where it keeps its state.
        mode: The cluster's default, `Standard` or `Knative`; a service's annotation wins.
        gateway_api: Whether Standard mode uses the Gateway API: without it canaries run, and get
            no requests.
        splits: False: as KServe 0.20, which writes no share of a canary into its routes.
        formats: Model formats that a ServingRuntime of the cluster serves, beside KServe's own.
        urls: `path`: status.url is a path of the gateway that a client reaches as it is; `host`:
            a host name, to be sent as Host to `gateway_url`.
        domain: Of the host names.
        factory: Makes what answers for a storageUri that `serve` was not told about, from it and
            the annotations of the pod.
        gateway_lag: By how many ticks the gateway follows a changed HTTPRoute later: meanwhile
            requests go where they went, even to a Service that is gone.
        seed: Of all draws: the traffic split and skipped steps.
        skip: Probability with which a controller leaves an object alone in a tick: orders of
            events that a test would not think of.

    Attributes:
        models: What answers, by storageUri; filled as pods get ready.
        paused: Whether KServe's controller is down. The rest of the cluster goes on.
        lag: KServe's controller acts only on every (lag+1)th tick.
        ticks: How many there were.
    """

    def __init__(
        self,
        api: ApiServer,
        *,
        mode: str = STANDARD,
        gateway_api: bool = True,
        splits: bool = True,
        formats: Iterable[str] = ("kfloop",),
        urls: str = "path",
        domain: str = "example.com",
        factory: Factory = model_for,
        gateway_lag: int = 0,
        seed: int = 0,
        skip: float = 0.0,
    ) -> None:
        if urls not in ("path", "host"):
            raise ValueError(f"urls is {urls!r}; use 'path' or 'host'")
        self.api = api
        self.models: dict[str, Model] = {}
        self.paused, self.lag, self.skip, self.ticks = False, 0, skip, 0
        self._random = random.Random(seed)
        self._failures = Failures()
        self._plane = DataPlane(seed)
        self._lock = threading.RLock()
        self._quiet: tuple[int, bool, int, int] | None = None
        addresses = Urls(self._plane.url, urls == "path")
        self._gateway = Gateway(api, self._plane, gateway_lag)
        self._endpoints = Endpoints(api, self._plane, self.models, factory)
        self._kubelet = Kubelet(api, self._failures)
        self._deployments = Deployments(api, self._failures)
        self._standard = Standard(api, self._failures, addresses, splits)
        self._knative_mode = KnativeMode(api, self._failures, addresses)
        self._knative = KnativeServing(api, self._failures, addresses, self._gateway)
        self._graphs = Graphs(api, addresses, self._gateway)
        self._install(mode, gateway_api, domain, formats)
        api.proxies.append(self._plane.proxy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the model servers."""
        if self._plane.proxy in self.api.proxies:
            self.api.proxies.remove(self._plane.proxy)
            self._plane.close()

    @property
    def gateway_url(self) -> str:
        """Address of the public gateway."""
        return self._plane.url

    @property
    def answered(self) -> Counter[str]:
        """How many predictions each model version has answered, at the gateway or by proxy."""
        return self._plane.answered

    def config(self, key: str, document: dict[str, Any]) -> None:
        """Merges values into one document of the ConfigMap inferenceservice-config."""
        old = self.api.get("configmaps", "inferenceservice-config", "kserve") or {}
        known = json.loads((old.get("data") or {}).get(key, "{}"))
        data = {"data": {key: json.dumps({**known, **document})}}
        self.api.patch("configmaps", "inferenceservice-config", "kserve", data)

    def fail(self, storage_uri: str, failure: str, ticks: int = 3) -> None:
        """Lets a storageUri (or fnmatch pattern) fail; see `failures.FAILURES`.

        Raises:
            ValueError: If there is no such failure.
        """
        with self._lock:
            self._failures.set(storage_uri, failure, ticks)
            self._quiet = None

    def heal(self, storage_uri: str) -> None:
        """Ends a failure."""
        with self._lock:
            self._failures.heal(storage_uri)
            self._quiet = None

    def serve(self, storage_uri: str, model: Model) -> Model:
        """Says what answers for a storageUri, and returns it."""
        with self._lock:
            self.models[storage_uri] = model
            self._quiet = None
        return model

    def step(self, ticks: int = 1) -> bool:
        """Lets every controller act once, the lower ones first; returns whether anything changed.

        A change therefore takes several ticks downwards (service, Deployment, pod, container) and
        one upwards, so the status lags behind the spec as in a cluster.
        """
        changed = False
        for _ in range(ticks):
            with self._lock:
                changed = self._tick() or changed
        return changed

    def settle(self, limit: int = 300) -> int:
        """Steps until nothing changes any more; returns how many ticks that took.

        Raises:
            TimeoutError: If it does not settle within `limit` ticks.
        """
        quiet = 0
        enough = 1 + self.lag + (SETTLED_WITH_SKIPS if self.skip else 0)
        for taken in range(1, limit + 1):
            quiet = 0 if self.step() else quiet + 1
            if quiet >= enough:
                return taken
        raise TimeoutError(f"the cluster still changes after {limit} ticks")

    @contextmanager
    def running(self, interval: float = 0.01) -> Iterator[None]:
        """Steps in a thread while the block runs, for code that waits over HTTP.

        Raises:
            BaseException: What a controller raised, after the block.
        """
        stop, raised = threading.Event(), []

        def run() -> None:
            try:
                while not stop.is_set():
                    self.step()
                    time.sleep(interval)
            except Exception as error:  # noqa: BLE001  # raised again in the test's thread
                raised.append(error)

        thread = threading.Thread(target=run, name="controllers", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if raised:
            raise raised[0]

    def _tick(self) -> bool:
        self.ticks += 1
        before = self.api.store.version
        state = (before, self.paused, self.lag, len(self.models))
        if state == self._quiet and not self.skip:
            return False  # a tick over the same state changed nothing
        self._kubelet.busy = self._deployments.busy = False
        self._gateway.busy = self._knative.busy = False
        config = read_config(self.api)
        pods = self.api.list("pods")
        self._kubelet.forget({pod["metadata"]["uid"] for pod in pods})
        for pod in self._some(pods):
            _unless_changed(self._kubelet.tick, pod)
        for deployment in self._some(self._all(DEPLOYMENTS)):
            _unless_changed(self._deployments.tick, deployment)
        for service in self._some(self._all(KSERVICES)):
            _unless_changed(self._knative.tick, service, config)
        self._route(config)
        self._endpoints.tick()
        acted = not self.paused and self.ticks % (self.lag + 1) == 0
        if acted:
            for isvc in self._some(self._all(ISVCS)):
                _unless_changed(self._reconcile, isvc, config)
            for graph in self._some(self._all(GRAPHS)):
                _unless_changed(self._graphs.tick, graph, config)
        parts = (self._kubelet, self._deployments, self._gateway, self._knative)
        busy = any(part.busy for part in parts)
        changed = self.api.store.version != before or busy
        if not changed and (self.paused or acted):
            self._quiet = state
        return changed

    def _all(self, name: str) -> list[Object]:
        """Returns the objects of a kind; none where its operator is not installed."""
        return self.api.list(name) if self.api.registry.has(name) else []

    def _some(self, items: list[Object]) -> list[Object]:
        """Leaves some objects out of this tick, at random, when that is asked for."""
        if not self.skip:
            return items
        return [item for item in items if self._random.random() >= self.skip]

    def _route(self, config: Config) -> None:
        alive: set[tuple[str, str]] = set()
        routes = self._all(ROUTES)
        for route in routes:
            alive.add((route["metadata"]["namespace"], route["metadata"]["name"]))
        for route in self._some(routes):
            _unless_changed(self._gateway.tick_route, route)
        for service in self._all(KSERVICES):
            alive |= self._knative.sites(service)
        for graph in self._all(GRAPHS):
            alive.add((graph["metadata"]["namespace"], graph["metadata"]["name"]))
        for ingress in self.api.list("ingresses"):
            metadata, rules = ingress["metadata"], ingress["spec"]["rules"]
            alive.add((metadata["namespace"], metadata["name"]))
            backend = rules[0]["http"]["paths"][0]["backend"]["service"]["name"]
            hosts = [rule["host"] for rule in rules]
            site = (metadata["namespace"], metadata["name"], hosts, [Backend(backend)])
            self._gateway.publish(*site)
        self._gateway.withdraw(alive)

    def _reconcile(self, isvc: Object, config: Config) -> None:
        metadata = isvc["metadata"]
        finalizers = metadata.get("finalizers") or []
        if metadata.get("deletionTimestamp"):
            if FINALIZER in finalizers:
                kept = [name for name in finalizers if name != FINALIZER]
                self._patch(isvc, {"metadata": {"finalizers": kept}})
            return
        if FINALIZER not in finalizers:
            patch = {"metadata": {"finalizers": [*finalizers, FINALIZER]}}
            self._patch(isvc, patch)
            found = self.api.get(ISVCS, metadata["name"], metadata["namespace"])
            if found is None:
                return
            isvc = found
        mode = mode_of(isvc, config)
        controller = self._knative_mode if mode == KNATIVE else self._standard
        controller.tick(isvc, config)

    def _patch(self, isvc: Object, patch: Object) -> None:
        metadata = isvc["metadata"]
        kind = self.api.registry.find(ISVCS)
        options = Options(manager="kserve-controller")
        where = (metadata["namespace"], metadata["name"])
        self.api.verbs.patch(kind, *where, patch, MERGE, options)

    def _install(self, mode: str, gateway_api: bool, domain: str, formats: Iterable[str]) -> None:
        ingress = {
            "enableGatewayApi": gateway_api,
            "kserveIngressGateway": "kserve/kserve-ingress-gateway",
            "ingressDomain": domain,
            "domainTemplate": "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}",
            "urlScheme": "http",
        }
        documents = {"deploy": {"defaultDeploymentMode": mode}, "ingress": ingress}
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "inferenceservice-config", "namespace": "kserve"},
                "data": {key: json.dumps(value) for key, value in documents.items()},
            }
        )
        runtimes = {
            **RUNTIME_IMAGES,
            **{name: (f"{name}-runtime", f"{name}/server:1") for name in formats},
        }
        for name, (runtime, image) in runtimes.items():
            self.api.create(
                {
                    "apiVersion": "serving.kserve.io/v1alpha1",
                    "kind": "ClusterServingRuntime",
                    "metadata": {"name": runtime},
                    "spec": {
                        "supportedModelFormats": [{"name": name, "autoSelect": True}],
                        "containers": [{"name": "kserve-container", "image": image}],
                    },
                }
            )


def _unless_changed(act: Callable[..., None], *arguments: Any) -> None:
    """Lets a controller act; when somebody wrote or deleted meanwhile, the next tick sees it."""
    try:
        act(*arguments)
    except ApiError as error:
        if error.code not in (404, 409):
            raise
