# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server on loopback, for tests: real HTTP, unmodified clients, no cluster.

with ApiServer() as api:
    api.kubeconfig(path)          # point a client here
    api.create(manifest)          # or act as somebody else, past HTTP
    api.faults.next(409)          # and let things go wrong
"""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from . import admission
from .auth import Gate, Rule, User
from .documents import copied
from .faults import Faults
from .http_handler import Handler, Server
from .isvc_schema import INFERENCE_SERVICE, TRAIN_JOB
from .resources import BUILT_IN, CUSTOM, Registry, Resource
from .routes import Route
from .schema import from_openapi
from .selectors import Selector
from .store import Event, Object, Store
from .verbs import MERGE, Admission, Options, Verbs
from .watching import Lists

NAMESPACES = ("default", "kube-system", "kserve")
# method, path, headers, body -> status, headers, body
Answer = tuple[int, dict[str, str], bytes]
Objects = list[Object]
Proxy = Callable[[str, str, str, str, str, dict[str, str], bytes], Answer]


@dataclass(frozen=True)
class Request:
    """A request that was answered.

    Attributes:
        verb: For example `patch`.
        resource: Plural.
        namespace: Empty for the whole cluster.
        name: Empty for all objects.
        subresource: For example `status`.
        code: HTTP status of the answer; 0 when there was none.
        body: What was sent, parsed; None when it was nothing.
        user: Who asked.
    """

    verb: str
    resource: str
    namespace: str
    name: str
    subresource: str
    code: int
    body: Any
    user: str


class ApiServer:
    """A Kubernetes API server.

    Args:
        strict: Refuse unknown fields of the kinds with a schema even when the client does not ask
            for it. A real server drops them silently, which hides typing errors.
        namespaces: Made at the start, beside `default`, `kube-system` and `kserve`.
        port: 0 takes a free one.
        version: What /version tells.

    Attributes:
        faults: What goes wrong with requests.
        requests: Every request that was answered, in order.
        logs: What pods/log answers: text by namespace and pod, or namespace, pod and container.
        proxies: What answers the service proxy: called with namespace, service, port, method,
            path, headers and body.
    """

    def __init__(
        self,
        *,
        strict: bool = True,
        namespaces: Iterable[str] = (),
        port: int = 0,
        version: str = "1.33",
    ) -> None:
        self.strict, self.version = strict, version
        self.store = Store()
        self.verbs = Verbs(self.store)
        self.registry = Registry([*BUILT_IN, *CUSTOM])
        self.faults = Faults()
        self.gate = Gate()
        self.lists = Lists(self.store)
        self.requests: list[Request] = []
        self.logs: dict[tuple[str, ...], str] = {}
        self.proxies: list[Proxy] = []
        self.stopping = False
        for resource in self.registry.all():
            if resource.custom:
                self._announce(resource)
        group = "serving.kserve.io"
        self.register(
            Resource(
                group, "v1beta1", "inferenceservices", "InferenceService", schema=INFERENCE_SERVICE
            ),
            Admission(admission.mutate(self._config), admission.validate),
        )
        group = "trainer.kubeflow.org"
        self.register(
            Resource(group, "v1alpha1", "trainjobs", "TrainJob", schema=TRAIN_JOB),
            Admission(admission.default_train_job, admission.validate_train_job),
        )
        for name in (*NAMESPACES, *namespaces):
            self.namespace(name)
        self.store.listeners.append(self._read_definition)
        handler = type("BoundHandler", (Handler,), {"api": self})
        self._server = Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="api-server", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops serving."""
        if not self.stopping:
            self.stopping = True
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, path: str | Path, namespace: str = "default", token: str = "") -> Path:
        """Writes a kubeconfig for this server (as JSON, which is YAML) and returns its path."""
        user = {"token": token} if token else {}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "contexts": [
                {
                    "name": "double",
                    "context": {"cluster": "double", "user": "double", "namespace": namespace},
                }
            ],
            "clusters": [{"name": "double", "cluster": {"server": self.url}}],
            "users": [{"name": "double", "user": user}],
        }
        path = Path(path)
        path.write_text(json.dumps(document, indent=1))
        return path

    def namespace(self, name: str) -> None:
        """Creates a namespace that is not there yet."""
        if self.get("namespaces", name) is None:
            manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            self.create({**manifest, "status": {"phase": "Active"}})

    def register(self, resource: Resource, webhooks: Admission | None = None) -> None:
        """Adds a kind, with its webhooks when it has any."""
        self.registry.add(resource)
        if webhooks:
            self.verbs.admission[resource.name] = webhooks
        if resource.custom:
            self._announce(resource)

    def unregister(self, name: str) -> None:
        """Takes a kind (`plural.group`) away, as if its operator was never installed."""
        self.registry.remove(name)
        key = ("customresourcedefinitions.apiextensions.k8s.io", "", name)
        with self.store.lock:
            if self.store.get(key) is not None:
                self.store.remove(key)

    def allow(
        self, token: str, user: str, rules: Sequence[Rule], namespaces: Sequence[str] = ()
    ) -> None:
        """Lets a token in with these rules; from the first one on, every request needs a token."""
        self.gate.users[token] = User(user, rules, namespaces)

    def create(self, manifest: Object) -> Object:
        """Creates an object past HTTP; schema and webhooks are asked as usual.

        Raises:
            ApiError: As a client would see it.
        """
        kind = self.registry.by_manifest(manifest)
        namespace = (manifest.get("metadata") or {}).get("namespace", "default")
        return self.verbs.create(kind, namespace if kind.namespaced else "", manifest, self._me())

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """Returns an object, or None; `resource` is `plural` or `plural.group`."""
        kind = self.registry.find(resource)
        with self.store.lock:
            return self.store.get((kind.name, namespace, name))

    def list(
        self, resource: str, namespace: str = "", labels: dict[str, str] | None = None
    ) -> Objects:
        """Returns the objects of a kind, of one namespace or all."""
        kind = self.registry.find(resource)
        selector = Selector(",".join(f"{k}={v}" for k, v in (labels or {}).items()))
        with self.store.lock:
            items = self.store.items(kind.name, namespace)
            return [copied(item) for item in items if selector.matches(item)]

    def patch(self, resource: str, name: str, namespace: str, patch: Object) -> Object:
        """Merge-patches an object past HTTP, as somebody else would.

        Raises:
            ApiError: As a client would see it.
        """
        kind = self.registry.find(resource)
        return self.verbs.patch(kind, namespace, name, patch, MERGE, self._me())[0]

    def set_status(self, resource: str, name: str, namespace: str, status: Object) -> Object:
        """Replaces an object's status, as a controller does.

        Raises:
            ApiError: 404, or 422 when the status does not fit the kind.
        """
        kind = self.registry.find(resource)
        with self.store.lock:
            document = self.verbs.get(kind, namespace, name)
            document["status"] = status
            options = Options(strict=True, manager="controller", status=True)
            return self.verbs.replace(kind, namespace, name, document, options)

    def delete(self, resource: str, name: str, namespace: str = "", policy: str = "") -> None:
        """Deletes an object past HTTP.

        Raises:
            ApiError: 404.
        """
        kind = self.registry.find(resource)
        wishes = {"propagationPolicy": policy} if policy else {}
        self.verbs.delete(kind, namespace, name, wishes, dry_run=False)

    def on_write(self, callback: Callable[[str, str, Object], None]) -> None:
        """Calls back after each write with its type, the kind's `plural.group` and the object.

        The server waits meanwhile: do not talk to it over HTTP from there.
        """
        self.store.listeners.append(
            lambda event: callback(event.type, event.key[0], copied(event.object))
        )

    def compact(self) -> None:
        """Forgets the past: watches and pages from before now get 410."""
        with self.store.lock:
            self.store.compact()

    def set_clock(self, clock: Callable[[], datetime]) -> None:
        """Takes the time of stamps from `clock`."""
        self.store.clock = clock

    def count(self, verb: str, resource: str = "", name: str = "") -> int:
        """Returns how many requests were answered so far."""
        return sum(
            request.verb == verb
            and resource in ("", request.resource)
            and name in ("", request.name)
            for request in self.requests
        )

    def disturb(self, route: Route) -> None:
        """Lets somebody else write the object of a request, so that its version is stale."""
        kind = self.registry.by_path(route.group, route.version, route.plural)
        with self.store.lock:
            if kind and self.store.get((kind.name, route.namespace, route.name)):
                note = {
                    "metadata": {"annotations": {"doubles/disturbed-at": str(self.store.version)}}
                }
                self.patch(kind.name, route.name, route.namespace, note)

    def _me(self) -> Options:
        return Options(strict=self.strict, manager="somebody-else")

    def _config(self) -> Object | None:
        with self.store.lock:
            return self.store.get(("configmaps", "kserve", "inferenceservice-config"))

    def _announce(self, resource: Resource) -> None:
        """Stores the CustomResourceDefinition of a kind, so that clients can look for it."""
        scope = "Namespaced" if resource.namespaced else "Cluster"
        version = {"name": resource.version, "served": True, "storage": True}
        document = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": resource.name},
            "spec": {
                "group": resource.group,
                "scope": scope,
                "names": {"plural": resource.plural, "kind": resource.kind},
                "versions": [version],
            },
        }
        if self.get("customresourcedefinitions", resource.name) is None:
            self.create(document)
            self._established(resource.name)

    def _established(self, name: str) -> None:
        condition = {"type": "Established", "status": "True", "reason": "InitialNamesAccepted"}
        self.set_status("customresourcedefinitions", name, "", {"conditions": [condition]})

    def _read_definition(self, event: Event) -> None:
        """Serves the kind of a CustomResourceDefinition that a client created."""
        if event.key[0] != "customresourcedefinitions.apiextensions.k8s.io":
            return
        spec, name = event.object["spec"], event.key[2]
        if event.type == "DELETED":
            self.registry.remove(name)
        elif event.type == "ADDED" and name not in {kind.name for kind in self.registry.all()}:
            for version in spec["versions"]:
                document = (version.get("schema") or {}).get("openAPIV3Schema") or {}
                fields = from_openapi(document) if document.get("properties") else None
                resource = Resource(
                    spec["group"],
                    version["name"],
                    spec["names"]["plural"],
                    spec["names"]["kind"],
                    spec["scope"] == "Namespaced",
                    fields if isinstance(fields, dict) else None,
                    has_status="status" in (version.get("subresources") or {}),
                )
                self.registry.add(resource)
            self._established(name)
