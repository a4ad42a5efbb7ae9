"""Which model a candidate must beat."""

import os

from kfloop.components.deployment.backend import connect
from kfloop.components.deployment.manifest import record_of
from kfloop.components.deployment.registry import find_registered

CHAMPION = "champion"


def find_champion(name: str, service: str, registry_uri: str = "", namespace: str = "") -> str:
    """Returns the URI of the model that a candidate must beat; empty when there is none.

    It is the live version of the service. Only where no service can be asked, or there is none
    yet, it is the version with the alias `champion` in the registry: the alias does not follow a
    rollback.

    Args:
        name: Model name.
        service: Name of the service.
        registry_uri: See `open_registry`.
        namespace: Kubernetes namespace; empty for the current one.

    Raises:
        InputError: If the registry cannot be reached.
    """
    # Only the laptop's services can be asked yet; see `connect`.
    manifest = connect(namespace).get(service) if os.environ.get("KFLOOP_STATE") else None
    if manifest is not None:
        found, place = record_of(manifest).stable.storage_uri, f"live in {service}"
    else:
        found, place = find_registered(registry_uri, name, CHAMPION), "in the registry"
    told = f"{found}, {place}" if found else "none yet"
    print(f"The champion of {name}: {told}.", flush=True)
    return found
