# SPDX-License-Identifier: Apache-2.0
"""A small published model and windows of its traffic, for the tests of monitoring."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.model_package import (
    REFERENCE,
    Feature,
    ModelPackage,
    write_model_json,
)

FEATURES = [
    Feature("load", "float"),
    Feature("age", "float"),
    Feature("visits", "int"),
    Feature("plan", "string"),
    Feature("region", "string"),
    Feature("member", "bool"),
]
PLANS = ["free", "basic", "team", "pro"]
REGIONS = [f"r{number:02d}" for number in range(30)]
START = datetime(2024, 6, 1, tzinfo=UTC)

Columns = dict[str, Any]


def people(rows: int, seed: int) -> Columns:
    """Features, prediction and label of one stable population."""
    rng = np.random.default_rng(seed)
    load = rng.normal(50, 12, rows)
    age = rng.gamma(6, 7, rows)
    logit = (load - 50) / 10 - 1
    prediction = 1 / (1 + np.exp(-logit))
    weights = 1 / np.arange(1, len(REGIONS) + 1)
    return {
        "load": load,
        "age": age,
        "visits": rng.poisson(3, rows),
        "plan": rng.choice(PLANS, rows, p=[0.55, 0.3, 0.1, 0.05]),
        "region": rng.choice(REGIONS, rows, p=weights / weights.sum()),
        "member": rng.random(rows) < 0.4,
        "prediction": prediction,
        "churned": rng.random(rows) < prediction,
    }


def publish(
    path: Path,
    reference: Columns | None = None,
    evaluation: dict[str, dict[str, float]] | None = None,
    **changes: Any,
) -> str:
    """Writes what monitoring reads of a published package; returns its URI."""
    path.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {
        "name": "churn",
        "task": "binary",
        "label": "churned",
        "features": FEATURES,
        "version": "1",
        "training_window": {"since": "2024-01-01", "until": "2024-06-01", "rows": 5000},
    }
    write_model_json(ModelPackage(**described | changes), path)
    if reference is not None:
        (path / REFERENCE).parent.mkdir(parents=True, exist_ok=True)
        kept = {name: column for name, column in reference.items() if name != "churned"}
        pq.write_table(pa.table(kept), path / REFERENCE)
    if evaluation is not None:
        (path / "evaluation.json").write_text(json.dumps({"metrics": evaluation}))
    return str(path)


def log(path: Path, columns: Columns, version: str = "1", failed: int = 0) -> Path:
    """Writes rows as the inference log has them; the first `failed` ones are failed requests."""
    rows = len(next(iter(columns.values())))
    status = np.where(np.arange(rows) < failed, 500, 200).astype(np.int32)
    times = [START + timedelta(minutes=number) for number in range(rows)]
    table = pa.table(
        {
            **columns,
            "status": status,
            "model_version": [version] * rows,
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    write_dataset(table, path)
    return path
