# SPDX-License-Identifier: Apache-2.0
"""What a service is now, for pipelines that work on live traffic."""

from dataclasses import dataclass

from kfloop.components.deployment.backend import connect, require_service
from kfloop.components.deployment.manifest import LOG_ANNOTATION, record_of
from kfloop.components.deployment.wait import ensure_live


@dataclass(frozen=True)
class ServiceDescription:
    """A service as it is.

    Attributes:
        model_uri: The live model package.
        model_version: Its version.
        inference_log: Where its requests are logged.
        url: Its public address.
    """

    model_uri: str
    model_version: str
    inference_log: str
    url: str


def describe_service(service: str, namespace: str = "") -> ServiceDescription:
    """Describes the live version of a service and starts the service when it is stopped.

    Args:
        service: Name of the service.
        namespace: Kubernetes namespace; empty for the current one.

    Raises:
        InputError: If there is no such service; the message names the ones there are.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    url = ensure_live(backend, manifest)
    live = record_of(manifest).stable
    return ServiceDescription(
        model_uri=live.storage_uri,
        model_version=live.version,
        inference_log=(manifest["metadata"].get("annotations") or {}).get(LOG_ANNOTATION, ""),
        url=url,
    )
