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
    """Rolls a service back; its deployment record says to what.

    Args:
        service: InferenceService name.
        reason: Why; it is kept in the deployment record.
        namespace: Kubernetes namespace; not used on a laptop.
        model_uri: The version to get away from; empty: the newest one.
        name: Model name.
        registry: As in the loop file.
        dry_run: Print what would change, and change nothing.
    """
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
