# SPDX-License-Identifier: Apache-2.0
"""The smoke test: does a deployed version answer the golden rows as it did in training?"""

import statistics
import uuid
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import Decision, Reason, outcome_of, write_decision
from kfloop.components.contracts.deployment_record import Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import GOLDEN, ModelPackage
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.deployment.backend import Backend, connect, require_service
from kfloop.components.deployment.client import Answer, ServiceClient
from kfloop.components.deployment.manifest import Manifest, record_of
from kfloop.components.deployment.packages import Instance, package_rows
from kfloop.components.deployment.resources import KFLOOP
from kfloop.components.deployment.wait import (
    TIMEOUT_SECONDS,
    RolloutError,
    wait_for_version,
)

# A prediction is float32; training and serving may run different kernels for it.
TOLERANCE = 1e-5
MAX_ROWS = 100


def smoke_test_model(
    service: str,
    model_uri: str,
    decision: str | Path,
    namespace: str = "",
    tolerance: float = TOLERANCE,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Decision:
    """Sends the package's golden rows to the version's own address and compares the answers.

    Our model server is asked on V1 and V2. Another runtime, which has no V2, does not know missing
    values and does not say which version it serves, is asked on V1 for the complete rows.

    Args:
        service: Name of the service.
        model_uri: The version to test, live or candidate.
        decision: Where the decision goes, a JSON file.
        namespace: Kubernetes namespace; empty for the current one.
        tolerance: Largest difference to the expected prediction, as a share of it, of the
            predictions' standard deviation or of 1, whichever is largest.
        timeout_seconds: Longest wait until the version is ready.

    Returns:
        `pass`, `fail`, or `no_data` when the package has no golden rows.

    Raises:
        InputError: If the service does not serve this model.
    """
    backend = connect(namespace)
    manifest = require_service(backend, service)
    target = _serving_target(backend, manifest, model_uri)
    package = read_package(target.storage_uri)
    ours = target.predictor.get("model", {}).get("modelFormat", {}).get("name") == KFLOOP
    columns = request_columns(package) if ours else package.feature_names
    rows, expected = package_rows(target.storage_uri, GOLDEN, columns, MAX_ROWS)
    if not ours:
        rows, expected = _complete(rows, expected)
    backend.ensure_running(service)
    try:
        generation = manifest["metadata"]["generation"]
        url = wait_for_version(backend, service, generation, target, timeout_seconds).url
    except RolloutError as error:
        reasons = [Reason("ready", "predictor", None, None, False, str(error))]
    else:
        reasons = _ask(url, service, package, rows, expected, tolerance, ours) if rows else []
    made = Decision("smoke_test", outcome_of(reasons), reasons, baseline=target.storage_uri)
    write_decision(made, decision)
    return made


def _serving_target(backend: Backend, manifest: Manifest, model_uri: str) -> Target:
    """Returns the live version or the candidate, whichever `model_uri` is."""
    record = record_of(manifest)
    uri = backend.storage_uri(model_uri)
    for target in (record.candidate, record.stable):
        if target and target.storage_uri == uri:
            return target
    service = manifest["metadata"]["name"]
    raise InputError(f"The service {service!r} does not serve {uri}; deploy it first.")


def _complete(rows: list[Instance], expected: list[Any]) -> tuple[list[Instance], list[Any]]:
    kept = [
        (row, value) for row, value in zip(rows, expected, strict=True) if None not in row.values()
    ]
    return [row for row, _ in kept], [value for _, value in kept]


def _ask(
    url: str,
    service: str,
    package: ModelPackage,
    rows: list[Instance],
    expected: list[Any],
    tolerance: float,
    ours: bool,
) -> list[Reason]:
    request_id = f"smoke-{uuid.uuid4().hex}"
    with ServiceClient(url, service) as client:
        answers = {"V1": client.predict(rows, request_id, package.classes)}
        if ours:
            answers["V2"] = client.infer(rows, package, request_id)
    version = package.version if ours else ""
    return [
        reason
        for protocol, answer in answers.items()
        for reason in check_answer(protocol, answer, expected, version, tolerance)
    ]


def request_columns(package: ModelPackage) -> list[str]:
    """Returns what an instance may hold: features, entity keys and the timestamp."""
    names = [*package.feature_names, *package.entities, package.timestamp]
    return list(dict.fromkeys(filter(None, names)))


def check_answer(
    protocol: str,
    answer: Answer,
    expected: list[Any],
    version: str,
    tolerance: float,
) -> list[Reason]:
    """Compares an answer with what was expected.

    Args:
        protocol: How it was asked, for the reasons.
        answer: What came back.
        expected: Numbers, or labels, one per instance.
        version: Version that must have answered; empty for any.
        tolerance: Largest difference, see `smoke_test_model`.

    Returns:
        Reasons, each passed or not.
    """
    if not answer.ok:
        why = f"{protocol} is answered {answer.status}: {answer.error}"
        return [Reason("answers", protocol, answer.status, 200, False, why)]
    reasons = []
    if version:
        same = answer.model_version == version
        why = f"{protocol} is answered by version {answer.model_version}"
        reasons = [Reason("model_version", protocol, answer.model_version, version, same, why)]
    if len(answer.predictions) != len(expected):
        why = f"{protocol} gives {len(answer.predictions)} predictions for {len(expected)} rows"
        return [
            *reasons,
            Reason("rows", protocol, len(answer.predictions), len(expected), False, why),
        ]
    unit = _unit(expected)
    worst = max(_difference(*pair, unit) for pair in zip(answer.predictions, expected, strict=True))
    passed = worst <= tolerance  # False for NaN too
    why = (
        f"{protocol} differs from the expected prediction by at most {worst:.3g} "
        f"on {len(expected)} rows"
    )
    return [*reasons, Reason("prediction", protocol, worst, tolerance, passed, why)]


def _unit(expected: list[Any]) -> float:
    """Returns what a difference is small beside: 1, or the spread where that is larger.

    float32 has some seven digits of a label's range; near 0 of a wide one that is no small number.
    """
    numbers = [value for value in expected if not isinstance(value, str)]
    return max(1.0, statistics.pstdev(numbers)) if numbers else 1.0


def _difference(answered: Any, expected: Any, unit: float) -> float:
    if isinstance(expected, str):
        return 0.0 if answered == expected else 1.0
    if not isinstance(answered, int | float):
        return float("inf")
    return abs(answered - expected) / max(unit, abs(expected))
