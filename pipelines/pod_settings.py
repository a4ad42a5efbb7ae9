# SPDX-License-Identifier: Apache-2.0
"""What the tasks' pods find on a cluster: variables, Secrets (by name, never by value), volumes."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kfloop.components import FAMILIES
from kfloop.pipelines.resources import RESOURCES, executor_functions, platform_executors

Document = dict[str, Any]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


class _ForComponents(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    components: list[str] = []

    @property
    def unknown(self) -> list[str]:
        """The components that are none."""
        return [name for name in self.components if name not in RESOURCES]

    def is_for(self, function: str) -> bool:
        """Whether the tasks of a component get it."""
        return not self.components or function in self.components


class SecretReference(_ForComponents):
    """Where a variable's value lies.

    Attributes:
        secret: Name of the Secret, in the namespace of the runs.
        key: Key in it.
        components: Components whose tasks get it; all unless given.
    """

    secret: ObjectName
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$")]


class Volume(_ForComponents):
    """Where a PersistentVolumeClaim is mounted.

    Attributes:
        path: Absolute path in the pods.
        components: Components whose tasks get it; all unless given.
    """

    path: Annotated[str, Field(pattern=r"^/.+")]


def apply_pod_settings(
    documents: list[Document],
    environment: Mapping[str, str],
    secrets: Mapping[str, SecretReference],
    volumes: Mapping[str, Volume],
) -> None:
    """Writes variables, references to Secrets and volumes into a compiled pipeline, in place.

    Args:
        documents: The pipeline and, where there are any, its platform settings.
        environment: Values by the variable's name.
        secrets: By the variable's name.
        volumes: By the claim's name.
    """
    if not (environment or secrets or volumes):
        return
    executors = platform_executors(documents)
    for label, function in executor_functions(documents[0]).items():
        container = documents[0]["deploymentSpec"]["executors"][label]["container"]
        for name, value in environment.items():
            container.setdefault("env", []).append({"name": name, "value": value})
        settings = executors.setdefault(label, {})
        for name, reference in secrets.items():
            if reference.is_for(function):
                settings.setdefault("secretAsEnv", []).append(_secret(name, reference))
        for claim, volume in volumes.items():
            if volume.is_for(function):
                mounts = settings.setdefault("pvcMount", [])
                mounts.append({"constant": claim, "mountPath": volume.path})


def tell_images(spec: Document) -> None:
    """Tells the containers that train which image they are, for the lineage of their models."""
    for label, function in executor_functions(spec).items():
        if function in FAMILIES["training"]:
            container = spec["deploymentSpec"]["executors"][label]["container"]
            others = [one for one in container.get("env", []) if one["name"] != "KFLOOP_IMAGE"]
            container["env"] = [{"name": "KFLOOP_IMAGE", "value": container["image"]}, *others]


def _secret(name: str, reference: SecretReference) -> Document:
    return {
        "secretName": reference.secret,
        "keyToEnv": [{"secretKey": reference.key, "envVar": name}],
        # A pod without it would fail later, and less clearly.
        "optional": False,
    }
