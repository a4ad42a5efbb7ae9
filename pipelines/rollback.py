# SPDX-License-Identifier: Apache-2.0
"""The rollback pipeline: back to the last good version, by one command."""

from kfp import dsl

from kfloop.components import roll_back_model, update_champion
from kfloop.pipelines.steps import always


@dsl.pipeline(
    name="rollback",
    description="Take a canary away, or put the version before the live one back; the registry's "
    "champion is what is live then.",
)
def rollback(
    service: str,
    reason: str = "",
    namespace: str = "",
    model_uri: str = "",
    name: str = "",
    registry: str = "",
    dry_run: bool = False,
):
    """Rolls a service back; its deployment record says to what."""
    undone = always(
        roll_back_model(
            service=service,
            namespace=namespace,
            reason=reason,
            model_uri=model_uri,
            dry_run=dry_run,
        )
    )
    with dsl.If(dry_run == False, name="not-a-dry-run"):  # noqa: E712
        always(
            update_champion(service=service, registry_uri=registry, namespace=namespace, name=name)
        ).after(undone)
