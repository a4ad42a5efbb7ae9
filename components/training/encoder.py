# SPDX-License-Identifier: Apache-2.0
"""Raw feature values to the numbers a network takes, inside the graph.

The same TensorFlow function encodes the training data once, before the first epoch, and is
exported in front of the network: what is trained on is what is served.

Numbers: a value that is missing or not finite becomes the training mean; then standardised with
the training mean and standard deviation (booleans stay 0 and 1) and clipped to ±`CLIP`. A column
with missing values in training also gets a 0/1 column `<name>_missing`.
Categories: position in the vocabulary of training, counted from 1; `UNKNOWN` for missing, rare
and never seen values, so that the embedding of the unknown is itself trained on the rare ones.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature
from kfloop.components.training.moments import Moments

UNKNOWN = 0
# In standard deviations; a typing error in one request must not saturate the network.
CLIP = 10.0
# float32 holds integers exactly up to here; a category beyond it would be confused with another.
LARGEST_CATEGORY = 2**24
_NO_CATEGORY = LARGEST_CATEGORY
ENCODE_ROWS = 65536
# Values of a number that its quantiles are taken from.
_SAMPLED = 50_000

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class NumericColumn:
    """How one number is encoded: `(value or fill) - shift) / scale`, and an indicator if wanted.

    `edges` are quantiles of the training values, encoded: a network may split the number at them.
    """

    name: str
    fill: float
    shift: float
    scale: float
    indicator: bool
    edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class CategoricalColumn:
    """The vocabulary of one category: strings, or integers."""

    name: str
    vocabulary: tuple[str, ...] | tuple[int, ...]
    is_text: bool


class Encoder(tf.Module):
    """The encoding as a TensorFlow module, fitted by `EncoderFitter`."""

    def __init__(self, numeric: list[NumericColumn], categorical: list[CategoricalColumn]) -> None:
        super().__init__()
        self._numeric = tuple(numeric)
        self._categorical = tuple(categorical)
        # Kept as an attribute so that the SavedModel takes the tables along.
        self._tables = [_lookup_table(column) for column in categorical]

    @property
    def numeric_names(self) -> list[str]:
        """Names of the columns of the encoded `numeric` matrix."""
        indicators = [f"{column.name}_missing" for column in self._numeric if column.indicator]
        return [column.name for column in self._numeric] + indicators

    @property
    def numeric_edges(self) -> list[tuple[float, ...]]:
        """Edges of each column of `numeric_names`, rising; an indicator has none."""
        marked = sum(column.indicator for column in self._numeric)
        return [column.edges for column in self._numeric] + [()] * marked

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Number of positions of each column of `categorical`, `UNKNOWN` included."""
        return {column.name: len(column.vocabulary) + 1 for column in self._categorical}

    @property
    def output_names(self) -> list[str]:
        """Names of the encoded arrays; one without a column is left out."""
        both = (("numeric", self._numeric), ("categorical", self._categorical))
        return [name for name, columns in both if columns]

    def __call__(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes a batch.

        Args:
            inputs: One 1-D tensor per feature, as the model package's signature takes them.

        Returns:
            `numeric` (float32, one column per `numeric_names`) and `categorical` (int32, one
            column per `vocabulary_sizes`), those of `output_names`.
        """
        encoded = {}
        if self._numeric:
            encoded["numeric"] = self._encode_numbers(inputs)
        if self._categorical:
            positions = [
                table.lookup(_category_key(inputs[column.name], column.is_text))
                for column, table in zip(self._categorical, self._tables, strict=True)
            ]
            # A look-up forgets how many columns there are, which a converter to ONNX asks for.
            encoded["categorical"] = tf.ensure_shape(
                tf.cast(tf.stack(positions, axis=1), tf.int32), [None, len(positions)]
            )
        return encoded

    def _encode_numbers(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        raw = tf.stack([inputs[column.name] for column in self._numeric], axis=1)
        present = tf.math.is_finite(raw)
        fill = tf.constant([column.fill for column in self._numeric], tf.float32)
        shift = tf.constant([column.shift for column in self._numeric], tf.float32)
        scale = tf.constant([column.scale for column in self._numeric], tf.float32)
        scaled = (tf.where(present, raw, fill) - shift) / scale
        scaled = tf.clip_by_value(scaled, -CLIP, CLIP)
        marked = [index for index, column in enumerate(self._numeric) if column.indicator]
        if not marked:
            return scaled
        missing = tf.cast(~tf.gather(present, marked, axis=1), tf.float32)
        return tf.concat([scaled, missing], axis=1)


class EncoderFitter:
    """Learns means, deviations and vocabularies from training rows that come in pieces.

    It holds a few numbers per number, and the distinct values of each category with their counts.
    """

    def __init__(
        self,
        features: list[Feature],
        categorical: set[str],
        domains: dict[str, list[str]],
        minimum_count: int,
        vocabulary_limit: int,
        bins: int = 0,
    ) -> None:
        """Starts learning.

        Args:
            features: The model's features.
            categorical: Integer features to treat as categories; strings always are.
            domains: Values that the data schema allows; others count as unknown.
            minimum_count: Rows a value must have to be in the vocabulary.
            vocabulary_limit: Largest vocabulary; the most frequent values are kept.
            bins: Ranges between the edges of a number; 0 for no edges.
        """
        self._bins = bins
        self._features = features
        self._domains = domains
        self._minimum_count = minimum_count
        self._limit = vocabulary_limit
        categories = {f.name for f in features if f.type == "string" or f.name in categorical}
        self._counts: dict[str, Counter[Any]] = {name: Counter() for name in categories}
        self._moments = {f.name: Moments() for f in features if f.name not in categories}
        self._samples = {name: _Sample() for name in self._moments}

    def update(self, inputs: Arrays) -> None:
        """Learns from further rows, as `model_inputs` gives them; validation rows stay out.

        Raises:
            InputError: If a categorical integer is too large for the graph's float32 input.
        """
        for feature in self._features:
            values = inputs[feature.name]
            if feature.name in self._counts:
                _count(self._counts[feature.name], values, feature)
            else:
                self._moments[feature.name].update(values)
                self._samples[feature.name].update(values[np.isfinite(values)])

    def encoder(self) -> "Encoder":
        """Returns the encoder for all rows seen."""
        return Encoder(
            [
                _numeric_column(
                    self._moments[feature.name],
                    feature,
                    self._samples[feature.name].quantiles(self._bins),
                )
                for feature in self._features
                if feature.name in self._moments
            ],
            [
                CategoricalColumn(
                    feature.name,
                    self._vocabulary(feature.name),
                    feature.type == "string",
                )
                for feature in self._features
                if feature.name in self._counts
            ],
        )

    def _vocabulary(self, name: str) -> tuple[str, ...] | tuple[int, ...]:
        allowed = set(self._domains.get(name) or ())
        ranked = sorted(
            (-count, value)
            for value, count in self._counts[name].items()
            if count >= self._minimum_count and (not allowed or value in allowed)
        )
        return tuple(value for _, value in ranked[: self._limit])


def encode_pieces(encoder: Encoder, pieces: Iterable[Arrays]) -> Iterator[Arrays]:
    """Encodes rows piece by piece; at most `ENCODE_ROWS` rows a piece is a good size."""
    function = tf.function(encoder, reduce_retracing=True)
    for piece in pieces:
        encoded = function({name: tf.constant(values) for name, values in piece.items()})
        yield {name: values.numpy() for name, values in encoded.items()}


class _Sample:
    """Every n-th value of a column; n doubles whenever there are too many."""

    def __init__(self) -> None:
        self._kept = np.zeros(0, np.float32)
        self._seen, self._step = 0, 1

    def update(self, values: np.ndarray) -> None:
        """Takes further values; the same ones, however they are cut into pieces."""
        first = -self._seen % self._step
        self._kept = np.concatenate([self._kept, values[first :: self._step]])
        self._seen += len(values)
        while len(self._kept) > _SAMPLED:
            self._kept, self._step = self._kept[::2], 2 * self._step

    def quantiles(self, parts: int) -> np.ndarray:
        """Returns the edges of so many parts with equally many values; none for 0."""
        if not parts or not len(self._kept):
            return np.zeros(0)
        return np.quantile(self._kept.astype(np.float64), np.linspace(0, 1, parts + 1))


def _numeric_column(seen: Moments, feature: Feature, quantiles: np.ndarray) -> NumericColumn:
    if not seen.finite:
        print(
            f"Feature {feature.name!r} has no value in the training rows; it cannot help.",
            flush=True,
        )
        return NumericColumn(feature.name, 0.0, 0.0, 1.0, indicator=False)
    mean, deviation = seen.mean, seen.deviation
    indicator = seen.finite < seen.rows
    if feature.type == "bool":
        return NumericColumn(feature.name, mean, 0.0, 1.0, indicator)
    # A constant column would divide by zero; by 1 it stays 0 and does nothing. The bound is
    # relative, because the mean of equal float64 numbers need not equal them exactly.
    scale = deviation if deviation > 1e-9 * max(1.0, abs(mean)) else 1.0
    edges = np.unique(np.clip((quantiles - mean) / scale, -CLIP, CLIP))
    return NumericColumn(feature.name, mean, mean, scale, indicator, tuple(edges.tolist()))


def _count(counts: Counter[Any], values: np.ndarray, feature: Feature) -> None:
    if feature.type == "string":
        kept = values[values != ""].astype(object)
    else:
        kept = values[np.isfinite(values)]
        if len(kept) and np.abs(kept).max() >= LARGEST_CATEGORY:
            raise InputError(
                f"Feature {feature.name!r} is categorical and holds {np.abs(kept).max():.0f}; "
                f"integers from {LARGEST_CATEGORY} on are not exact in the model's float32 input, "
                "so cast it to a string in the query."
            )
        kept = kept.astype(np.int64)
    found, numbers = np.unique(kept, return_counts=True)
    counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))


def _lookup_table(column: CategoricalColumn) -> tf.lookup.StaticHashTable:
    # The missing value comes first, at position UNKNOWN: a table cannot be empty.
    missing = "" if column.is_text else _NO_CATEGORY
    keys = tf.constant((missing, *column.vocabulary), tf.string if column.is_text else tf.int64)
    positions = tf.range(len(column.vocabulary) + 1, dtype=tf.int64)
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, positions), default_value=UNKNOWN
    )


def _category_key(values: tf.Tensor, is_text: bool) -> tf.Tensor:
    if is_text:
        return values
    # False for NaN and infinity, whose cast to an integer is undefined.
    whole = (values == tf.round(values)) & (tf.abs(values) < float(LARGEST_CATEGORY))
    return tf.cast(tf.where(whole, values, float(_NO_CATEGORY)), tf.int64)
