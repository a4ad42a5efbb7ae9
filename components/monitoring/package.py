# SPDX-License-Identifier: Apache-2.0
"""What monitoring reads from a published model package."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json
from kfloop.components.contracts.model_package import EVALUATION, REFERENCE
from kfloop.components.contracts.package_storage import package_directory
from kfloop.components.monitoring.metrics import Estimate

DEFAULT_THRESHOLD = 0.5


def read_reference(model_uri: str) -> pa.Table | None:
    """Returns the reference sample of training features and predictions, or None without one."""
    path = package_directory(model_uri) / REFERENCE
    return pq.read_table(path) if path.is_file() else None


@dataclass(frozen=True)
class Release:
    """The evaluation that a model was released with.

    Attributes:
        metrics: By name; empty when there is no evaluation.
        threshold: Binary models: a probability of at least this counts as positive.
    """

    metrics: dict[str, Estimate]
    threshold: float


def read_release(model_uri: str) -> Release:
    """Reads the evaluation in a published package; metrics without a value are left out.

    Raises:
        InputError: If the evaluation does not hold `metrics` of `value`, `low` and `high`.
    """
    path = package_directory(model_uri) / EVALUATION
    if not path.is_file():
        return Release({}, DEFAULT_THRESHOLD)
    document: Any = read_json(path)
    try:
        metrics = {
            name: Estimate(float(entry["value"]), float(entry["low"]), float(entry["high"]))
            for name, entry in document["metrics"].items()
            if None not in (entry["value"], entry["low"], entry["high"])
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not an evaluation with metrics of value, low and high: {error!r}."
        ) from error
    threshold = document.get("threshold")
    return Release(metrics, DEFAULT_THRESHOLD if threshold is None else float(threshold))
