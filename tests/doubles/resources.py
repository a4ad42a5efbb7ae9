# SPDX-License-Identifier: Apache-2.0
"""The kinds that a server knows, and the discovery documents that tell of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .schema import Schema

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True)
class Resource:
    """One kind.

    Attributes:
        group: API group; empty for the core.
        version: The version served and stored.
        plural: Its name in URLs.
        kind: Its name in manifests.
        namespaced: Whether its objects live in namespaces.
        schema: What its objects may hold, by top-level field; None: anything.
        custom: Whether a CustomResourceDefinition makes it: such kinds take no strategic merge
            patch and no replacement without a resourceVersion.
        has_status: Whether status is a subresource, written apart from the rest.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    schema: Schema | None = None
    custom: bool = True
    has_status: bool = True

    @property
    def name(self) -> str:
        """Plural and group, as error messages have it: `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def counts_generations(self) -> bool:
        """Whether metadata.generation is kept; the core kinds have none."""
        return self.custom or self.group in ("apps", "batch", "networking.k8s.io")

    @property
    def api_version(self) -> str:
        """As manifests have it: `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version


def _built_in(group: str, kinds: str, namespaced: bool = True) -> list[Resource]:
    """Kinds written as `plural:Kind`; a `*` after the kind: without status of its own."""
    return [
        Resource(
            group,
            "v1",
            plural,
            kind.rstrip("*"),
            namespaced,
            custom=False,
            has_status=not kind.endswith("*"),
        )
        for plural, kind in (entry.split(":") for entry in kinds.split())
    ]


BUILT_IN = [
    *_built_in("", "namespaces:Namespace nodes:Node persistentvolumes:PersistentVolume", False),
    *_built_in(
        "",
        "pods:Pod services:Service configmaps:ConfigMap* secrets:Secret* events:Event* "
        "serviceaccounts:ServiceAccount* persistentvolumeclaims:PersistentVolumeClaim "
        "resourcequotas:ResourceQuota limitranges:LimitRange* endpoints:Endpoints*",
    ),
    *_built_in("apps", "deployments:Deployment replicasets:ReplicaSet statefulsets:StatefulSet"),
    *_built_in("batch", "jobs:Job cronjobs:CronJob"),
    *_built_in("networking.k8s.io", "ingresses:Ingress networkpolicies:NetworkPolicy*"),
    *_built_in("rbac.authorization.k8s.io", "roles:Role* rolebindings:RoleBinding*"),
    *_built_in(
        "rbac.authorization.k8s.io",
        "clusterroles:ClusterRole* clusterrolebindings:ClusterRoleBinding*",
        False,
    ),
    *_built_in("coordination.k8s.io", "leases:Lease*"),
    *_built_in("storage.k8s.io", "storageclasses:StorageClass*", False),
    *_built_in("apiextensions.k8s.io", "customresourcedefinitions:CustomResourceDefinition", False),
]
# Custom kinds of Kubeflow and its neighbours whose fields are not checked here.
CUSTOM = [
    Resource("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime"),
    Resource(
        "serving.kserve.io", "v1alpha1", "clusterservingruntimes", "ClusterServingRuntime", False
    ),
    Resource("serving.kserve.io", "v1alpha1", "inferencegraphs", "InferenceGraph"),
    Resource("serving.knative.dev", "v1", "services", "Service"),
    Resource("serving.knative.dev", "v1", "revisions", "Revision"),
    Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    Resource("gateway.networking.k8s.io", "v1", "gateways", "Gateway"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime"),
    Resource(
        "trainer.kubeflow.org",
        "v1alpha1",
        "clustertrainingruntimes",
        "ClusterTrainingRuntime",
        False,
    ),
    Resource("kubeflow.org", "v1beta1", "experiments", "Experiment"),
    Resource("kubeflow.org", "v1beta1", "trials", "Trial"),
]


class Registry:
    """The kinds of one server, by group, version and plural."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._kinds: dict[tuple[str, str, str], Resource] = {}
        for resource in resources:
            self.add(resource)

    def add(self, resource: Resource) -> None:
        """Adds a kind, or replaces the one with its group, version and plural."""
        self._kinds[resource.group, resource.version, resource.plural] = resource

    def remove(self, name: str) -> None:
        """Removes every version of a kind, given as `plural.group`."""
        self._kinds = {key: kind for key, kind in self._kinds.items() if kind.name != name}

    def by_path(self, group: str, version: str, plural: str) -> Resource | None:
        """Finds the kind of a URL."""
        return self._kinds.get((group, version, plural))

    def by_manifest(self, manifest: dict[str, Any]) -> Resource:
        """Finds the kind of a manifest.

        Raises:
            KeyError: If there is none.
        """
        wanted = manifest.get("apiVersion"), manifest.get("kind")
        for kind in self._kinds.values():
            if (kind.api_version, kind.kind) == wanted:
                return kind
        raise KeyError(f"the server has no kind {wanted[1]} in {wanted[0]}")

    def find(self, name: str) -> Resource:
        """Finds a kind by `plural` or `plural.group`; the core comes first.

        Raises:
            KeyError: If there is none, or several custom ones and no group.
        """
        exact = [kind for kind in self._kinds.values() if kind.name == name]
        found = exact or [kind for kind in self._kinds.values() if kind.plural == name]
        if len(found) != 1:
            names = ", ".join(kind.name for kind in found) or "none"
            raise KeyError(f"{name!r} names no single kind of this server (found: {names})")
        return found[0]

    def has(self, name: str) -> bool:
        """Whether a kind (`plural.group`) is served."""
        return any(kind.name == name for kind in self._kinds.values())

    def all(self) -> list[Resource]:
        """Every kind."""
        return list(self._kinds.values())

    def groups(self) -> dict[str, Any]:
        """Returns /apis: the groups and their versions."""
        versions: dict[str, list[str]] = {}
        for kind in self._kinds.values():
            if kind.group and kind.version not in versions.setdefault(kind.group, []):
                versions[kind.group].append(kind.version)
        versions.setdefault("authorization.k8s.io", ["v1"])
        groups = []
        for group, known in versions.items():
            entries = [{"groupVersion": f"{group}/{v}", "version": v} for v in known]
            groups.append({"name": group, "versions": entries, "preferredVersion": entries[0]})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def resources(self, group: str, version: str) -> dict[str, Any] | None:
        """Returns /apis/group/version: its kinds and subresources, or None."""
        entries: list[dict[str, Any]] = []
        for kind in self._kinds.values():
            if (kind.group, kind.version) != (group, version):
                continue
            about = {"namespaced": kind.namespaced, "kind": kind.kind}
            one = {"name": kind.plural, "singularName": kind.kind.lower(), "verbs": VERBS}
            entries.append({**one, **about})
            if kind.has_status:
                entries.append(
                    {
                        "name": f"{kind.plural}/status",
                        "singularName": "",
                        "verbs": ["get", "patch", "update"],
                        **about,
                    }
                )
        if not group:
            for name, kind_name, verbs in (
                ("pods/log", "Pod", ["get"]),
                ("services/proxy", "ServiceProxyOptions", ["create", "get"]),
            ):
                one = {"name": name, "singularName": "", "verbs": verbs}
                entries.append({**one, "namespaced": True, "kind": kind_name})
        if not entries:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": entries,
        }
