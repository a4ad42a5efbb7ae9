# SPDX-License-Identifier: Apache-2.0
"""How a model version can fail to come up, and what the cluster then shows."""

import fnmatch
from dataclasses import dataclass

FAILURES = (
    "image_pull",
    "crash_loop",
    "failed_to_load",
    "unschedulable",
    "quota",
    "deadline",
    "never_ready",
    "ready_then_crash",
    "slow",
    "no_runtime",
    # The same, and its Event is dropped: the controller made more than 25 of this service before,
    # as it does without Istio where `disableIstioVirtualHost` is not set.
    "no_runtime_untold",
    # Knative's webhook refuses the service, for a field that its config-features leaves out.
    "refused",
)
LOAD_MESSAGE = (
    "Traceback (most recent call last):\n"
    '  File "/storage-initializer/scripts/initializer-entrypoint", line 16, in <module>\n'
    "RuntimeError: Failed to fetch model. The path or model {uri} does not exist."
)
CRASH_MESSAGE = "RuntimeError: the model cannot be loaded: Op type not registered"


@dataclass(frozen=True)
class Failure:
    """One way to fail.

    Attributes:
        kind: One of `FAILURES`.
        ticks: `slow`: how many ticks later it is ready; `ready_then_crash`: how many it is well.
    """

    kind: str
    ticks: int = 3


class Failures:
    """Which storageUris fail; nothing at first."""

    def __init__(self) -> None:
        self._known: dict[str, Failure] = {}

    def set(self, storage_uri: str, kind: str, ticks: int = 3) -> None:
        """Lets a storageUri, or a pattern of them, fail from now on.

        Raises:
            ValueError: If there is no such failure.
        """
        if kind not in FAILURES:
            raise ValueError(f"{kind!r} is no failure; use one of {', '.join(FAILURES)}")
        self._known[storage_uri] = Failure(kind, ticks)

    def heal(self, storage_uri: str) -> None:
        """Ends the failure of a storageUri or pattern."""
        self._known.pop(storage_uri, None)

    def of(self, storage_uri: str) -> Failure:
        """Returns how a storageUri fails; its kind is empty when it does not."""
        for pattern, failure in self._known.items():
            if storage_uri == pattern or fnmatch.fnmatchcase(storage_uri, pattern):
                return failure
        return Failure("")
