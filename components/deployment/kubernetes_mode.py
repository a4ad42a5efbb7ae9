# SPDX-License-Identifier: Apache-2.0
"""How a cluster's KServe runs services: its mode, and whether it splits traffic."""

import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.backend import KNATIVE, STANDARD
from kfloop.components.deployment.kubernetes_api import (
    CONFIG_MAPS,
    HTTP_ROUTES,
    Cluster,
    DeniedError,
)

MODE = "KFLOOP_KSERVE_MODE"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
CONFIG_MAP = "inferenceservice-config"
# KServe's own manifests use the first, Kubeflow's the second.
NAMESPACES = ("kserve", "kubeflow")
KNATIVE_GROUP = "serving.knative.dev"
# The second spelling is KServe's before 0.17; it still accepts it.
SPELLINGS = {
    "Standard": STANDARD,
    "RawDeployment": STANDARD,
    "Knative": KNATIVE,
    "Serverless": KNATIVE,
}
# What KServe's storage initializer reads.
STORAGE_SCHEMES = (
    "gs",
    "s3",
    "https",
    "http",
    "pvc",
    "oci",
    "hf",
    "hdfs",
    "webhdfs",
)


@dataclass(frozen=True)
class Settings:
    """What KServe's configuration says, as far as it can be read.

    Attributes:
        default_mode: Mode of services that name none, as it is spelled there; empty if unknown.
        gateway_api: Whether the Gateway API is used, or None if unknown.
        unread: Why it could not be read, or empty.
    """

    default_mode: str = ""
    gateway_api: bool | None = None
    unread: str = ""


def read_settings(cluster: Cluster) -> Settings:
    """Reads KServe's configuration; an account that may not read it gets the reason instead."""
    unread = f"there is no ConfigMap {CONFIG_MAP} in {' or '.join(NAMESPACES)}"
    for namespace in NAMESPACES:
        try:
            found = cluster.get(CONFIG_MAPS, CONFIG_MAP, namespace)
        except DeniedError:
            unread = f"this account may not read the ConfigMap {CONFIG_MAP} in {namespace!r}"
            continue
        if found:
            data = found.get("data") or {}
            deploy, ingress = (_json(data, key) for key in ("deploy", "ingress"))
            return Settings(
                deploy.get("defaultDeploymentMode") or STANDARD,
                bool(ingress.get("enableGatewayApi")),
            )
    return Settings(unread=unread)


def default_mode(cluster: Cluster, settings: Settings) -> str:
    """Returns how a new service is to run, in the cluster's spelling.

    `KFLOOP_KSERVE_MODE` decides, else KServe's configuration; where that cannot be read, what is
    installed, if it leaves no choice.

    Raises:
        InputError: If the mode is none of KServe's, or cannot be told.
    """
    said = os.environ.get(MODE, "")
    mode, source = (said, MODE) if said else (settings.default_mode, CONFIG_MAP)
    if mode and mode not in SPELLINGS:
        raise InputError(
            f"{source} asks for the deployment mode {mode!r}; it must be {STANDARD} or {KNATIVE}."
        )
    if mode:
        return mode
    if not cluster.has_group(KNATIVE_GROUP):
        return STANDARD
    raise InputError(
        f"KServe's default deployment mode is unknown ({settings.unread}), and the cluster has "
        f"Knative too; set {MODE} to {STANDARD} or {KNATIVE}."
    )


def mode_of(manifest: dict[str, Any], fallback: str) -> str:
    """Returns the mode of an existing service."""
    said = (manifest["metadata"].get("annotations") or {}).get(MODE_ANNOTATION, "")
    status = (manifest.get("status") or {}).get("deploymentMode", "")
    return SPELLINGS.get(said) or SPELLINGS.get(status) or SPELLINGS[fallback]


def splits_traffic(cluster: Cluster, service: str, settings: Settings) -> bool:
    """Whether a service in Standard mode can be split: only the Gateway API can.

    A service that has a route is proof enough, whoever may read KServe's configuration.
    """
    return bool(settings.gateway_api) or cluster.get(HTTP_ROUTES, service) is not None


def require_storage(uri: str) -> str:
    """Returns a URI that KServe's storage initializer can read.

    Raises:
        InputError: If it is a path of this machine, or has a scheme that KServe does not know.
    """
    scheme = urlsplit(uri).scheme
    if scheme in STORAGE_SCHEMES:
        return uri
    if scheme in ("", "file"):
        raise InputError(
            f"The model {uri!r} is a path of this machine, which a cluster cannot read; publish it "
            "to a model_repository with gs://, s3:// or pvc://."
        )
    raise InputError(
        f"The model {uri!r} has the scheme {scheme!r}; KServe reads {', '.join(STORAGE_SCHEMES)}."
    )


def _json(data: dict[str, str], key: str) -> dict[str, Any]:
    try:
        # The examples that KServe ships in this ConfigMap have comments.
        found = json.loads(re.sub(r"^\s*#.*$", "", data.get(key) or "{}", flags=re.MULTILINE))
    except ValueError as error:
        raise InputError(
            f"{key} in KServe's ConfigMap {CONFIG_MAP} is not JSON: {error}."
        ) from error
    return found if isinstance(found, dict) else {}
