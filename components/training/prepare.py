# SPDX-License-Identifier: Apache-2.0
"""From a dataset to encoded rows: read three times in pieces, never held as a whole.

First the label is checked and the split found, then the encoder is fitted to the rows that are
learned from, then all rows are encoded into memory or onto disk. The result is the same for both.
"""

from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
import pyarrow as pa

from kfloop.components.contracts.dataset import read_schema, row_count
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import Feature
from kfloop.components.training.batches import AnyExamples
from kfloop.components.training.columns import (
    Roles,
    categorical_features,
    choose_features,
    read_schema_hints,
)
from kfloop.components.training.encoder import Arrays, Encoder, EncoderFitter, encode_pieces
from kfloop.components.training.examples import Examples
from kfloop.components.training.hyperparameters import Hyperparameters
from kfloop.components.training.label import Label, LabelFitter, LabelReader
from kfloop.components.training.reading import read_tables, require_disk, streams
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.split import LatestRows, RandomRows, split_rows
from kfloop.components.training.stored import StoredExamples


@dataclass
class Prepared:
    """Data that is ready to train on.

    Attributes:
        features: The model's features.
        label: The label, with what was learned about it.
        encoder: Fitted to the rows that are learned from.
        training: Rows to learn from.
        validation: Rows that say when to stop.
        reference: A random sample of all rows, as they came.
        window: `rows` and, with a timestamp, `since` and `until` of all rows.
    """

    features: list[Feature]
    label: Label
    encoder: Encoder
    training: AnyExamples
    validation: AnyExamples
    reference: pa.Table
    window: dict[str, int | str]


def prepare(
    dataset: str | Path,
    schema: str | Path,
    roles: Roles,
    settings: TrainSettings,
    own: Hyperparameters,
    scratch: Path,
) -> Prepared:
    """Reads, splits and encodes a dataset.

    Args:
        dataset: The training dataset.
        schema: Data schema (TFDV text proto).
        roles: What the columns are for.
        settings: How to train.
        own: Its hyperparameters, checked.
        scratch: Directory for rows that do not fit in memory; they are read from there as long as
            the result is used.

    Raises:
        InputError: If a column or the label cannot be used.
    """
    hints = read_schema_hints(schema)
    rows = row_count(dataset)
    if not rows:
        raise InputError(f"The training dataset {dataset} has no rows; check its window.")
    columns = read_schema(dataset)
    features = choose_features(columns, roles, hints.unavailable)
    categorical = categorical_features(features, own.categorical, hints.categorical)
    streamed = streams(settings.input, dataset, features)

    reader = LabelReader(roles.label, settings.task)
    for table in read_tables(dataset, [roles.label]):
        reader.update(table[roles.label])
    label = reader.label()
    split = split_rows(dataset, roles.timestamp, settings.validation_fraction, settings.seed)
    fitter = EncoderFitter(
        features,
        categorical,
        hints.domains,
        own.minimum_count,
        own.vocabulary_limit,
        own.numeric_bins,
    )
    _fit(dataset, split, fitter, label, features)
    encoder = fitter.encoder()
    kept = {feature.name for feature in features} | {roles.label, roles.timestamp, *roles.entities}
    training, validation, reference = _encode(
        dataset,
        [name for name in columns.names if name in kept],
        split,
        encoder,
        label,
        features,
        np.random.default_rng(settings.seed).choice(
            rows, min(settings.reference_rows, rows), replace=False
        ),
        scratch if streamed else None,
    )
    window: dict[str, int | str] = {"rows": rows}
    if isinstance(split, LatestRows):
        window |= {"since": split.since, "until": split.until}
    return Prepared(features, label, encoder, training, validation, reference, window)


def _fit(
    dataset: str | Path,
    split: LatestRows | RandomRows,
    fitter: EncoderFitter,
    label: Label,
    features: list[Feature],
) -> None:
    """Learns encoder and label from the rows that are not held out."""
    learned = LabelFitter(label)
    timestamp = [split.column] if isinstance(split, LatestRows) else []
    columns = [*(feature.name for feature in features), label.name, *timestamp]
    for table, held in split.parts(read_tables(dataset, columns)):
        seen = table.filter(pa.array(~held))
        if seen.num_rows:
            fitter.update(model_inputs(seen, features))
            learned.update(seen[label.name])
    learned.finish()


def _encode(
    dataset: str | Path,
    columns: list[str],
    split: LatestRows | RandomRows,
    encoder: Encoder,
    label: Label,
    features: list[Feature],
    sample: np.ndarray,
    scratch: Path | None,
) -> tuple[AnyExamples, AnyExamples, pa.Table]:
    """Returns the rows to learn from, those to validate on, and the rows numbered in `sample`."""
    wanted = np.sort(sample)
    # One copy to encode, one to sample; they are read in step, so one table is held.
    parts, again = tee(split.parts(read_tables(dataset, columns)))
    both: list[AnyExamples] = []
    sampled: list[pa.Table] = []
    position = 0
    pieces = encode_pieces(encoder, (model_inputs(table, features) for table, _ in parts))
    for encoded, (table, held) in zip(pieces, again, strict=True):
        target = label.target(table[label.name])
        if not both:
            both = _room(split, encoded, target, scratch)
        for examples, mask in zip(both, (~held, held), strict=True):
            chosen = {name: values[mask] for name, values in encoded.items()}
            examples.append(chosen, target[mask])
        first, last = np.searchsorted(wanted, (position, position + table.num_rows))
        sampled.append(table.take(pa.array(wanted[first:last] - position)))
        position += table.num_rows
    reference = pa.concat_tables(sampled).take(pa.array(np.searchsorted(wanted, sample)))
    return both[0], both[1], reference


def _room(
    split: LatestRows | RandomRows, encoded: Arrays, target: np.ndarray, scratch: Path | None
) -> list[AnyExamples]:
    """Returns empty examples for both parts: in memory, or on disk when there is `scratch`."""
    if scratch is None:
        learned = split.rows - split.held
        return [Examples.with_room(rows, encoded, target) for rows in (learned, split.held)]
    stored = [StoredExamples(scratch / part, encoded, target) for part in ("learn", "validate")]
    require_disk(scratch, split.rows * stored[0].bytes_per_row)
    return list(stored)
