# SPDX-License-Identifier: Apache-2.0
"""What no live request changes: both models' task, answers to the same rows, labelled losses."""

import uuid
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import FAIL, PASS
from kfloop.components.contracts.model_package import REFERENCE, ModelPackage
from kfloop.components.deployment.canary_checks import (
    Finding,
    Limits,
    check_agreement,
    check_labels,
    found,
)
from kfloop.components.deployment.canary_evidence import Pairs, read_labelled
from kfloop.components.deployment.canary_sources import Side
from kfloop.components.deployment.client import ServiceClient
from kfloop.components.deployment.packages import Instance, package_rows

AGREEMENT_ROWS = 200
AGREEMENT_BATCH = 50


def compare_models(
    service: str,
    live: Side,
    candidate: Side,
    limits: Limits,
    alpha: float,
    labels: str | Path = "",
) -> list[Finding]:
    """Compares the two models by their packages, by the same rows sent to both, and by labels.

    Args:
        service: Name of the service.
        live: The live version.
        candidate: The candidate.
        limits: What the candidate may differ by.
        alpha: Chance that a check is ever wrong.
        labels: Dataset that join_labels made of the inference log; empty for none.
    """
    before, after = live.package, candidate.package
    same = (before.task, before.classes) == (after.task, after.classes)
    why = f"the candidate is {_task(after)}, live {_task(before)}"
    task = found(PASS if same else FAIL, "task", "task", after.task, before.task, why)
    if not same:
        return [task]
    findings = [_agreement(service, live, candidate, limits.max_disagreement)]
    if labels:
        known, seen = (
            read_labelled(labels, side.target.version, before.label) for side in (live, candidate)
        )
        findings.append(check_labels(known, seen, before.task, limits.max_loss_increase, alpha))
    return [*findings, task]


def _task(package: ModelPackage) -> str:
    return " of ".join(filter(None, [package.task, ", ".join(package.classes)]))


def _agreement(service: str, live: Side, candidate: Side, limit: float) -> Finding:
    columns = list(dict.fromkeys([*candidate.package.feature_names, *live.package.feature_names]))
    rows, _ = package_rows(candidate.target.storage_uri, REFERENCE, columns, AGREEMENT_ROWS)
    answers = []
    for side in (live, candidate):
        predictions, error = _ask(service, side, rows)
        if error:
            why = f"version {side.target.version} does not answer the reference rows: {error}"
            return found(FAIL, "agreement", "prediction", None, limit, why)
        answers.append(predictions)
    if not rows:
        why = "the candidate's package has no reference rows"
        return found(FAIL, "agreement", "prediction", None, limit, why)
    return check_agreement(Pairs(*answers), live.package.task, limit)


def _ask(service: str, side: Side, rows: list[Instance]) -> tuple[list[Any], str]:
    """Returns a version's predictions, or why there are none."""
    predictions: list[Any] = []
    request_id = f"agreement-{uuid.uuid4().hex}"
    with ServiceClient(side.url, service) as client:
        for start in range(0, len(rows), AGREEMENT_BATCH):
            batch = [
                {name: row.get(name) for name in side.package.feature_names}
                for row in rows[start : start + AGREEMENT_BATCH]
            ]
            answer = client.predict(batch, request_id)
            if not answer.ok:
                return [], f"{answer.status} {answer.error}"
            predictions += answer.predictions
    return predictions, ""
