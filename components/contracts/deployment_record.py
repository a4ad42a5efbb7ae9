# SPDX-License-Identifier: Apache-2.0
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
        annotations: Annotations that the service has while this version is live, for example the
            class of its autoscaler.
    """

    version: str
    storage_uri: str
    predictor: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass
class Step:
    """One step of a rollout.

    Attributes:
        percent: Share of the requests.
        began_at: ISO 8601 time since when the candidate has it; empty before.
        decision: What the analysis said, as in the Decision contract; empty before.
        summary: Its sentence.
    """

    percent: int
    began_at: str = ""
    decision: str = ""
    summary: str = ""


@dataclass
class Rollout:
    """The plan of a rollout, and how far it is.

    Attributes:
        model_uri: The model that is rolled out.
        run_id: Id of the pipeline run that does it, or empty.
        started_at: ISO 8601 time.
        bake_seconds: How long each step lasts at least.
        steps: The steps below 100 %, in order; after the last one the model is promoted.
        smoke_test: What the smoke test said; empty before.
        smoke_summary: Its sentence.
        outcome: `promoted` or `rolled_back`; empty while it lasts.
    """

    model_uri: str
    run_id: str = ""
    started_at: str = ""
    bake_seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    smoke_test: str = ""
    smoke_summary: str = ""
    outcome: str = ""


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
        changed_at: ISO 8601 time of the last change of what serves, UTC.
        undone: URI of the model that the last roll back took away; empty after any other step.
        rollout: The rollout of the candidate, else the last one; None when there was none.
    """

    service: str
    namespace: str
    state: str
    stable: Target
    candidate: Target | None = None
    previous: Target | None = None
    reason: str = ""
    changed_at: str = ""
    undone: str = ""
    rollout: Rollout | None = None

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
        if document.get("rollout") is not None:
            steps = [Step(**step) for step in document["rollout"].pop("steps", [])]
            document["rollout"] = Rollout(**document["rollout"], steps=steps)
        return DeploymentRecord(**document)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The deployment record cannot be read: {error}.") from error


def write_record(record: DeploymentRecord, path: str | Path) -> None:
    """Writes the record as a JSON file."""
    write_json(path, asdict(record))


def read_record(path: str | Path) -> DeploymentRecord:
    """Reads a record file."""
    return parse_record(json.dumps(read_json(path)))


def record_metadata(path: str | Path) -> dict[str, str]:
    """Returns what a component writes into its record artifact's metadata.

    `live` is the model that serves, `undone` the one that was rolled back.
    """
    record = read_record(path)
    told = {
        "service": record.service,
        "state": record.state,
        "live": record.stable.storage_uri,
        "candidate": record.candidate.storage_uri if record.candidate else "",
        "previous": record.previous.storage_uri if record.previous else "",
        "undone": record.undone,
        "reason": record.reason,
    }
    return {key: value for key, value in told.items() if value}
