# SPDX-License-Identifier: Apache-2.0
"""Training/serving skew: do requests carry the feature values that training would have used?

The rows of the inference log are joined again with the features as known at each one's time, the
way a training set is made, and compared value by value.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.dataset import read_dataset, require_columns
from kfloop.components.contracts.decision import (
    NO_DATA,
    Decision,
    Reason,
    decision_metadata,
    outcome_of,
    write_decision,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import STATUS
from kfloop.components.features.repository import at_home, open_store
from kfloop.components.features.steps import is_repo
from kfloop.components.features.training_set import feature_names, features_at, find_service

GATE = "serving_skew"
# Log, store and model have floats of other widths.
RELATIVE_TOLERANCE = 1e-5
OK = 200


def detect_serving_skew(
    log: str | Path,
    feature_repo: str | Path,
    decision: str | Path,
    page: str | Path,
    timestamp: str,
    feature_service: str = "",
    maximum_share: float = 0.01,
    limit: int = 5000,
) -> tuple[str, dict[str, str]]:
    """Compares logged feature values with the feature store's, as known at the requests' times.

    Args:
        log: Dataset of inference-log rows, with the entity keys.
        feature_repo: Artifact of `apply`, with tables that reach the log's window.
        decision: Where the decision goes: `fail` when a feature differs in more than
            `maximum_share` of the rows, `no_data` when there was nothing to compare.
        page: Where its page goes.
        timestamp: Column of the log: the moment each row is about.
        feature_service: The features; empty for a loop without any.
        maximum_share: Largest share of rows, 0 to 1, in which a feature may differ; late data makes
            a few differ.
        limit: Most rows, from the newest; 0 compares all.

    Returns:
        The decision, and its artifact's metadata.

    Raises:
        InputError: If a column is missing, or the repository cannot be used.
    """
    if not 0 <= maximum_share < 1:
        raise InputError(f"maximum_share is {maximum_share}; it is at least 0 and below 1.")
    why = "there is no feature service: requests bring every feature along"
    made = Decision(GATE, NO_DATA, [Reason("feature_service", "", "", None, False, why)])
    if feature_service:
        if not is_repo(feature_repo):
            raise InputError(
                f"The feature service {feature_service!r} needs a feature repository; there is "
                "none."
            )
        made = _judge(log, Path(feature_repo), timestamp, feature_service, maximum_share, limit)
    write_decision(made, decision, page)
    print(made.summary, flush=True)
    return made.decision, decision_metadata(made)


def _judge(
    log: str | Path, repo: Path, timestamp: str, service_name: str, maximum: float, limit: int
) -> Decision:
    require_columns(log, [timestamp])
    rows = read_dataset(log)
    if STATUS in rows.column_names:
        rows = rows.filter(pc.equal(rows[STATUS], OK))
    rows = rows.sort_by(timestamp)
    rows = rows.slice(max(len(rows) - limit, 0)) if limit else rows
    with at_home(repo.absolute()):
        store = open_store(repo.absolute())
        service = find_service(store, service_name)
        names = [name for name in feature_names(service) if name in rows.column_names]
        if not names or not len(rows):
            why = f"the log has {len(rows)} answered rows and {len(names)} of the features"
            reason = Reason("rows", "log", len(rows), None, False, why)
            return Decision(GATE, NO_DATA, [reason])
        asked = rows.drop_columns(names)
        expected = features_at(store, service, asked, asked[timestamp])
    reasons = [_compare(name, expected[name], rows[name], maximum) for name in names]
    reasons.sort(key=lambda reason: -float(reason.value or 0))
    return Decision(
        GATE, outcome_of(reasons), reasons, baseline=f"the feature service {service_name}"
    )


def _compare(
    name: str, expected: pa.ChunkedArray, served: pa.ChunkedArray, maximum: float
) -> Reason:
    different = _different(expected, served)
    count = int(different.sum())
    why = f"{name} is the same in all {len(different)} rows"
    if count:
        place = int(different.argmax())
        why = (
            f"{name} differs in {count} of {len(different)} rows, for example "
            f"{served[place].as_py()} in a request and {expected[place].as_py()} in the store"
        )
    share = count / len(different)
    return Reason("different", name, share, maximum, share <= maximum, why)


def _different(expected: pa.ChunkedArray, served: pa.ChunkedArray) -> Any:
    if pa.types.is_string(served.type) or pa.types.is_string(expected.type):
        pairs = zip(expected.to_pylist(), served.to_pylist(), strict=True)
        return np.array([one != other for one, other in pairs])
    one, other = (
        pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
        for column in (expected, served)
    )
    # A missing number and NaN are the same: a log does not tell them apart.
    return ~np.isclose(one, other, rtol=RELATIVE_TOLERANCE, atol=1e-9, equal_nan=True)
