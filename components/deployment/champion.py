# SPDX-License-Identifier: Apache-2.0
"""Which model a candidate must beat, and the alias that says so in the registry."""

import os

from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.manifest import record_of
from kfloop.components.deployment.registry import OFF, find_registered, open_existing

CHAMPION = "champion"


def find_champion(name: str, service: str, registry_uri: str = "", namespace: str = "") -> str:
    """Returns the URI of the model that a candidate must beat; empty when there is none.

    It is the live version of the service. Only where there is none yet, or no cluster to ask, it is
    the version with the alias `champion` in the registry.

    Args:
        name: Model name.
        service: Name of the service.
        registry_uri: See `open_registry`.
        namespace: Kubernetes namespace; empty for the current one.

    Raises:
        InputError: If the registry cannot be reached.
    """
    # Outside of a laptop's loop and of a cluster there are no services to ask.
    somewhere = os.environ.get("KFLOOP_STATE") or os.environ.get("KUBERNETES_SERVICE_HOST")
    manifest = connect(namespace).get(service) if somewhere else None
    if manifest is not None:
        found, place = record_of(manifest).stable.storage_uri, f"live in {service}"
    else:
        found, place = find_registered(registry_uri, name, CHAMPION), "in the registry"
    told = f"{found}, {place}" if found else "none yet"
    print(f"The champion of {name}: {told}.", flush=True)
    return found


def update_champion(
    service: str, registry_uri: str = "", namespace: str = "", name: str = ""
) -> str:
    """Moves the alias `champion` to the live version of a service; to none when there is none.

    So the alias follows promotions and roll backs alike, however often it is run.

    Args:
        service: Name of the service.
        registry_uri: See `open_registry`.
        namespace: Kubernetes namespace; empty for the current one.
        name: Model name; needed only where the service may be gone.

    Returns:
        `<name>/<version>` of the registry; empty when the live version is not registered, or
        nothing is live; `none` when the registry is off.

    Raises:
        InputError: If the registry cannot be reached.
    """
    if registry_uri == OFF:
        print("The registry is off (registry_uri is 'none'): there is no champion.", flush=True)
        return OFF
    manifest = connect(namespace).get(service)
    live = record_of(manifest).stable.storage_uri if manifest else ""
    model = read_package(live).name if live else name
    registry = open_existing(registry_uri) if model else None
    champion = registry.set_alias(model, CHAMPION, live) if registry else ""
    why = f"{live} is not registered" if live else f"nothing is live in {service}"
    told = f"is {champion}, live in {service}" if champion else f"is none: {why}"
    print(f"The champion of {model or 'the model'} {told}.", flush=True)
    return champion
