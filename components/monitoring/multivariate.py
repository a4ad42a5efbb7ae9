# SPDX-License-Identifier: Apache-2.0
"""Features that drift together while no single one does: a classifier two-sample test."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kfloop.components.contracts.decision import Reason
from kfloop.components.contracts.model_package import Feature
from kfloop.components.monitoring import significance
from kfloop.components.monitoring.window import Numbers, numbers, sample, texts

# The test takes seconds at this size; it grows with the rows.
ROWS = 5_000
# How well the classifier may tell window and reference apart, as a KS distance of its scores. Two
# random parts of one sample of this size come to about 0.04.
FLOOR = 0.15
CATEGORIES = 10


def classifier_check(
    reference: pa.Table,
    current: pa.Table,
    features: list[Feature],
    allowed: float,
    seed: int,
) -> Reason:
    """Checks whether a classifier can tell the window from the reference.

    Args:
        reference: Reference rows; at most `ROWS` are used.
        current: Rows of the window; at most `ROWS` are used.
        features: The model's features.
        allowed: Significance level.
        seed: Of the samples, the folds and the classifier.
    """
    old, new = sample(reference, ROWS, seed), sample(current, ROWS, seed)
    p_value, distance = significance.classifier(*matrices(old, new, features), seed)
    why = (
        f"a classifier tells the window from the reference with a KS distance of {distance:.3g} "
        f"(p {p_value:.2g})"
    )
    passed = p_value >= allowed or distance <= FLOOR
    return Reason("classifier", "all features", distance, FLOOR, passed, why)


def matrices(old: pa.Table, new: pa.Table, features: list[Feature]) -> tuple[Numbers, Numbers]:
    """Returns both tables as numbers, scaled by the first; texts and gaps become indicators."""
    matrix = np.concatenate([_columns(old, new, feature) for feature in features], axis=1)
    return matrix[: old.num_rows], matrix[old.num_rows :]


def _columns(old: pa.Table, new: pa.Table, feature: Feature) -> Numbers:
    """Returns a feature of both tables as standardised columns, the reference's rows first."""
    if feature.type in ("float", "int"):
        reference = numbers(old, feature.name)
        values = np.concatenate([reference, numbers(new, feature.name)])
        present = reference[~np.isnan(reference)]
        mean, spread = (present.mean(), present.std()) if len(present) else (0.0, 1.0)
        missing = np.isnan(values)
        standard = np.where(missing, 0.0, (values - mean) / (spread or 1.0))
        return np.column_stack([standard, missing.astype(np.float64)])
    boolean = feature.type == "bool"
    reference_texts = texts(old, feature.name, boolean)
    both = pa.chunked_array(
        reference_texts.chunks + texts(new, feature.name, boolean).chunks, pa.string()
    )
    counts = sorted(
        pc.value_counts(reference_texts).to_pylist(), key=lambda entry: -entry["counts"]
    )
    common = [entry["values"] for entry in counts if entry["values"] is not None][:CATEGORIES]
    hits = [pc.fill_null(pc.equal(both, value), False).to_numpy() for value in common]
    missing = pc.is_null(both).to_numpy()
    return np.column_stack([*hits, missing]).astype(np.float64)
