"""The deployment record: what was there before and what is there now.

It travels as an artifact and as the annotation `RECORD_ANNOTATION` of the InferenceService, so
that roll back needs no guess, and no state outside the cluster.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json

RECORD_ANNOTATION = "kfloop.org/deployment-record"


@dataclass
class Target:
    """One deployed model version.

    Attributes:
        version: Model version, as a string.
        storage_uri: Immutable URI of the model package.
        predictor: The predictor spec that served it, enough to apply it again.
    """

    version: str
    storage_uri: str
    predictor: dict[str, Any] = field(default_factory=dict)


@dataclass
class DeploymentRecord:
    """The state of a rollout.

    Attributes:
        service: InferenceService name.
        namespace: Its namespace; `local` at the local inference service.
        state: `deployed` (one version), `canary` (a candidate beside it), `promoted` or
            `rolled_back`.
        stable: What serves now (during a canary: the version beside the candidate).
        candidate: The version being tried, or None.
        previous: The last good version before `stable`, or None.
        reason: Why the last step was taken.
        changed_at: ISO 8601 time of the last step, UTC.
    """

    service: str
    namespace: str
    state: str
    stable: Target
    candidate: Target | None = None
    previous: Target | None = None
    reason: str = ""
    changed_at: str = ""

    def to_json(self) -> str:
        """Returns the record as compact JSON, for the annotation."""
        return json.dumps(asdict(self), separators=(",", ":"))


def parse_record(text: str) -> DeploymentRecord:
    """Parses what `to_json` or `write_record` wrote.

    Raises:
        InputError: If the text is not a deployment record.
    """
    try:
        document = json.loads(text)
        for key in ("stable", "candidate", "previous"):
            if document.get(key) is not None:
                document[key] = Target(**document[key])
        return DeploymentRecord(**document)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The deployment record cannot be read: {error}.") from error


def write_record(record: DeploymentRecord, path: str | Path) -> None:
    """Writes the record as a JSON file."""
    write_json(path, asdict(record))


def read_record(path: str | Path) -> DeploymentRecord:
    """Reads a record file."""
    return parse_record(json.dumps(read_json(path)))
