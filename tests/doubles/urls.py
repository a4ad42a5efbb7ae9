# SPDX-License-Identifier: Apache-2.0
"""Public addresses of services: by host name as KServe makes them, or reachable without DNS."""

from dataclasses import dataclass

from .isvc import Config


@dataclass(frozen=True)
class Urls:
    """How status.url is written.

    Attributes:
        gateway: Address of the gateway on loopback.
        by_path: Whether addresses are paths of the gateway, which a client reaches as they are;
            else they are host names, and a client sends them as Host to the gateway.
    """

    gateway: str
    by_path: bool

    def host(self, name: str, namespace: str, config: Config) -> str:
        """Returns a host name by KServe's domainTemplate."""
        return f"{name}-{namespace}.{config.domain}"

    def public(self, name: str, namespace: str, config: Config) -> str:
        """Returns an address by KServe's domainTemplate, or its path."""
        if self.by_path:
            return f"{self.gateway}/serving/{namespace}/{name}"
        return f"{config.scheme}://{self.host(name, namespace, config)}"

    def knative_host(self, name: str, namespace: str, config: Config) -> str:
        """Returns a host name by Knative's default template."""
        return f"{name}.{namespace}.{config.domain}"

    def knative(self, name: str, namespace: str, config: Config) -> str:
        """Returns an address by Knative's default template, or its path."""
        if self.by_path:
            return f"{self.gateway}/serving/{namespace}/{name}"
        return f"{config.scheme}://{self.knative_host(name, namespace, config)}"
