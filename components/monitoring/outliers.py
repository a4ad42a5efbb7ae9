# SPDX-License-Identifier: Apache-2.0
"""How unlike the training data each single request is: an isolation forest's score per row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import read_dataset, write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import EVENT_TIME, REQUEST_ID, ROW
from kfloop.components.contracts.package_storage import read_package
from kfloop.components.monitoring.multivariate import matrices
from kfloop.components.monitoring.package import read_reference
from kfloop.components.monitoring.window import answered, sample

SCORE, OUTLIER = "outlier_score", "outlier"
REFERENCE_ROWS = 20_000
FEWEST_ROWS = 200


def score_outliers(
    current: str | Path,
    model_uri: str,
    scores: str | Path,
    contamination: float = 0.01,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores the answered requests of a window.

    The forest (Liu, Ting and Zhou, ICDM 2008) is grown on the reference inside the model package;
    the threshold is where `contamination` of the reference itself lies above.

    Args:
        current: Dataset of inference-log rows, or of any rows with the model's features.
        model_uri: Published model package.
        scores: Dataset to write: `request_id`, `row` and `event_time` where the window has them,
            `outlier_score` (higher is stranger) and `outlier`.
        contamination: Share of the reference, above 0 and at most 0.5, that counts as outliers.
        seed: Of the forest and the sample it is grown on.

    Returns:
        The dataset's metadata, with `outliers` (rows) and `outlier_share`.

    Raises:
        InputError: If a setting, the package or the window cannot be used.
    """
    # Slow to import, and only here.
    from alibi_detect.od import IForest

    if not 0 < contamination <= 0.5:
        raise InputError(f"contamination is {contamination}; it lies above 0 and at most at 0.5.")
    package, reference = read_package(model_uri), read_reference(model_uri)
    if reference is None or reference.num_rows < FEWEST_ROWS:
        raise InputError(
            f"The model {model_uri} has no reference of {FEWEST_ROWS} rows to learn from; train "
            "it on more rows."
        )
    rows = answered(read_dataset(current)).rows
    reference = sample(reference, REFERENCE_ROWS, seed)
    before, now = matrices(reference, rows, package.features)
    forest = IForest(n_estimators=100)
    forest.isolationforest.set_params(random_state=seed)
    forest.fit(before)
    limit = float(np.quantile(forest.score(before), 1 - contamination))
    found = forest.score(now) if len(now) else np.array([])
    kept = [name for name in (REQUEST_ID, ROW, EVENT_TIME) if name in rows.column_names]
    written = rows.select(kept).append_column(SCORE, pa.array(found, pa.float64()))
    written = written.append_column(OUTLIER, pa.array(found > limit, pa.bool_()))
    outliers = int((found > limit).sum())
    share = outliers / max(len(found), 1)
    print(f"{outliers:,} of {len(found):,} rows are outliers ({share:.1%})", flush=True)
    return write_dataset(written, scores) | {"outliers": outliers, "outlier_share": share}
