# SPDX-License-Identifier: Apache-2.0
"""Makes real artifacts: what the contracts say, on disk, with metadata."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kfloop.components.contracts.decision import (
    PASS,
    Decision,
    Reason,
    decision_metadata,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_text
from kfloop.components.contracts.inference_log import EVENT_TIME
from kfloop.testing import parquet
from kfloop.testing.artifact import Artifact
from kfloop.testing.parquet import Rows

TFDV_TYPES = {bool: "INT", int: "INT", float: "FLOAT", str: "BYTES"}


def dataset(path: str | Path, rows: Rows, timestamp: str = "") -> Artifact:
    """Makes a dataset, as `transform_data` would.

    Args:
        path: Its directory; an existing one is replaced.
        rows: One mapping per row, of None, bool, int, float, str, date or datetime; a column's
            type is that of its values.
        timestamp: Column whose range goes into the metadata.

    Raises:
        InputError: If there are no rows, or a column holds values of several types.
    """
    metadata = parquet.write(Path(path), rows, timestamp)
    return Artifact(Path(path), "system.Dataset", metadata)


def tables(path: str | Path, rows: Mapping[str, Rows]) -> Artifact:
    """Makes tables, as `ingest_data` would: one dataset per name.

    Args:
        path: Their directory.
        rows: The rows of each table, as for `dataset`.
    """
    made = {name: parquet.write(Path(path) / name, each) for name, each in rows.items()}
    counts = {name: metadata["rows"] for name, metadata in made.items()}
    return Artifact(Path(path), "system.Dataset", {"tables": counts})


def schema(path: str | Path, rows: Rows, label: str = "") -> Artifact:
    """Makes a TFDV schema that the rows fit: the type of each column, and whether it may miss.

    Args:
        path: The file.
        rows: As for `dataset`; a column of times has no place in a schema and is left out.
        label: Column that requests will not have.
    """
    features = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if row.get(name) is not None]
        kind = TFDV_TYPES.get(type(values[0])) if values else "BYTES"
        if kind is None:
            continue
        presence = "min_fraction: 1 min_count: 1" if len(values) == len(rows) else "min_count: 0"
        serving = ' not_in_environment: "SERVING"' if name == label else ""
        features.append(
            f'feature {{ name: "{name}" type: {kind}{serving} '
            f"presence {{ {presence} }} shape {{ dim {{ size: 1 }} }} }}\n"
        )
    environments = 'default_environment: "TRAINING"\ndefault_environment: "SERVING"\n'
    write_text(path, "".join(features) + environments)
    return Artifact(Path(path), metadata={"features": len(features), "label": label})


def decision(
    path: str | Path,
    outcome: str = PASS,
    gate: str = "evaluation",
    reasons: Iterable[Reason] = (),
) -> Artifact:
    """Makes the decision of a gate.

    Args:
        path: The file.
        outcome: `pass`, `fail`, `no_baseline` or `no_data`.
        gate: Whose it is.
        reasons: Its checks.
    """
    made = Decision(gate, outcome, list(reasons))
    write_decision(made, path)
    return Artifact(Path(path), metadata=decision_metadata(made))


def inference_log(path: str | Path, rows: Rows, model_version: str = "1") -> Artifact:
    """Makes an inference log, as the model server writes it.

    Args:
        path: Its directory; rows of another version can be added to it.
        rows: One mapping per answered instance: `event_time` (a datetime; without a zone it is
            UTC), features, entity keys and `prediction`. Other columns of the log are as in a
            request that went well, unless given.
        model_version: The version that answered.

    Raises:
        InputError: If there are no rows, or one has no `event_time`.
    """
    if any(EVENT_TIME not in row for row in rows):
        raise InputError(f"A row for {path} has no {EVENT_TIME}; give each the time it is about.")
    return Artifact(Path(path), metadata=parquet.write_log(Path(path), rows, model_version))


def model_package(
    path: str | Path,
    rows: Rows,
    label: str,
    task: str = "regression",
    name: str = "model",
    **training: Any,
) -> Artifact:
    """Trains a small model on the rows and makes its package; some 10 s, so once per session.

    Args:
        path: Directory of the package; it must not exist.
        rows: As for `dataset`; some 50 or more.
        label: Column to predict.
        task: `regression`, `binary` or `multiclass`.
        name: Model name.
        **training: Other inputs of `train_model`, for example `entities`; one epoch unless given.

    Raises:
        InputError: If `path` exists.
        ComponentFailed: If the rows cannot be trained on.
    """
    from kfloop.components import train_model
    from kfloop.testing.components import run_component  # compiles, so not above

    target = Path(path)
    if target.exists():
        raise InputError(f"{target} exists; give the path of a new directory.")
    work = target.parent / f".{target.name}"
    done = run_component(
        train_model,
        work,
        train=dataset(work / "train", rows),
        schema=schema(work / "schema", rows, label),
        **{"name": name, "task": task, "label": label, "epochs": 1, **training},
    )
    made = done.artifacts["model"]
    made.path.rename(target)
    shutil.rmtree(work)
    return Artifact(target, made.type, made.metadata)
