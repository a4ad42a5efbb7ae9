"""The rollback pipeline: back to the last good version, by one command."""

from kfp import dsl

from kfloop.components import roll_back_model
from kfloop.pipelines.steps import always


@dsl.pipeline(
    name="rollback",
    description="Take a canary away, or put the version before the live one back.",
)
def rollback(service: str, reason: str, namespace: str = ""):
    """Rolls a service back; its deployment record says to what.

    Args:
        service: InferenceService name.
        reason: Why; it is kept in the deployment record.
        namespace: Kubernetes namespace; not used on a laptop.
    """
    always(roll_back_model(service=service, namespace=namespace, reason=reason))
