"""Trains a model on a dataset and writes its package."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import tee
from pathlib import Path
from typing import Any

# Before TensorFlow is imported: its notices bury the progress lines, and oneDNN lets results depend
# on how rows are batched, so that training, evaluation and serving would differ in the last digits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from kfloop.components.contracts.dataset import (
    describe,
    fingerprint,
    read_dataset,
    read_schema,
    row_count,
)
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import local_path, new_directory, write_text
from kfloop.components.contracts.model_io import model_inputs
from kfloop.components.contracts.model_package import Feature, ModelPackage
from kfloop.components.training.checkpoint import Checkpoint
from kfloop.components.training.columns import (
    Label,
    Roles,
    SchemaHints,
    choose_features,
    class_weights,
    read_label,
    read_schema_hints,
)
from kfloop.components.training.curves import curves_page
from kfloop.components.training.devices import describe_devices, require_gpu
from kfloop.components.training.encoder import (
    Arrays,
    Encoder,
    EncoderFitter,
    encode,
    encode_pieces,
    fit_encoder,
)
from kfloop.components.training.fit import Examples, FitResult, FitSettings, fit
from kfloop.components.training.hyperparameters import (
    BUILT_IN_NETWORK,
    Hyperparameters,
    parse_hyperparameters,
)
from kfloop.components.training.network import NetworkSchema, build_from_module, build_network
from kfloop.components.training.package import write_package
from kfloop.components.training.stored import (
    StoredExamples,
    read_tables,
    require_disk,
    streams,
)


@dataclass
class TrainSettings:
    """How to train.

    Attributes:
        name: Model name.
        task: `binary`, `multiclass` or `regression`.
        feature_service: Feast feature service that gave the features, or empty.
        epochs: Largest number of passes over the data; early stopping may end before.
        batch_size: Rows per training step.
        learning_rate: Adam's step size.
        seed: Of weights, shuffle, validation split and reference sample. The same seed, data and
            settings give bit-identical weights on a CPU.
        validation_fraction: Share of the rows held out to say when to stop: the latest ones when
            there is a timestamp, else drawn at random.
        hyperparameters: See `Hyperparameters`; with a module of your own, whatever it reads.
        module_uri: Your own network, see `network`; empty for the built-in one.
        reference_rows: Rows of the reference sample.
        input: `memory`, `stream` (rows are encoded once to local disk and shuffled from there), or
            `auto`: stream when the data would take more than half of the available memory.
        checkpoint_uri: Directory, outside of what dies with this process, that is written after
            every epoch, gone on from when it is of the same data and settings, and emptied at the
            end; empty for none. One training at a time may use it.
        require_gpu: Fail when there is no GPU.
        mixed_precision: `bfloat16` computes in it and keeps weights and outputs in float32;
            empty computes in float32.
    """

    name: str
    task: str
    feature_service: str = ""
    epochs: int = 20
    batch_size: int = 1024
    learning_rate: float = 0.001
    seed: int = 7
    validation_fraction: float = 0.1
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    module_uri: str = ""
    reference_rows: int = 5000
    input: str = "auto"
    checkpoint_uri: str = ""
    require_gpu: bool = False
    mixed_precision: str = ""


@dataclass
class Prepared:
    """Data that is ready to train on."""

    encoder: Encoder
    training: Examples | StoredExamples
    validation: Examples | StoredExamples
    reference: pa.Table


def train(
    dataset: str | Path,
    schema: str | Path,
    model: str | Path,
    curves: str | Path,
    roles: Roles,
    settings: TrainSettings,
) -> ModelPackage:
    """Trains a model and writes its package and its training curves.

    Args:
        dataset: The training dataset.
        schema: Data schema (TFDV text proto): deprecated features and those without the
            environment SERVING stay out, categorical integers and string domains are respected.
        model: Directory of the model package to write.
        curves: HTML file of the training curves to write.
        roles: What the columns are for.
        settings: How to train.

    Returns:
        The content of the package's `model.json`.

    Raises:
        InputError: If a setting, a column or the label cannot be used.
    """
    _check(settings)
    own = parse_hyperparameters(settings.hyperparameters, open_ended=bool(settings.module_uri))
    hints = read_schema_hints(schema)
    if not row_count(dataset):
        raise InputError(f"The training dataset {dataset} has no rows; check its window.")
    features = choose_features(read_schema(dataset), roles, hints.unavailable)
    categorical = _categorical(features, own, hints)
    streamed = streams(settings.input, dataset, features)
    whole = [name for name in (roles.label, roles.timestamp) if name]
    table = read_dataset(dataset, whole if streamed else None)
    label = read_label(table[roles.label], roles.label, settings.task)

    keras.utils.clear_session()
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if settings.mixed_precision else "float32")
    learn, hold = _validation_split(table, roles, settings)
    target, shift, scale = _target(label, learn, roles.label, settings.task)
    fitting = (features, categorical, hints.domains, own.minimum_count, own.vocabulary_limit)
    with ExitStack() as stack:
        if streamed:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kfloop-")))
            fitter = EncoderFitter(*fitting)
            data = _streamed(dataset, fitter, features, roles, settings, target, hold, scratch)
        else:
            inputs = model_inputs(table, features)
            encoder = fit_encoder(_rows(inputs, learn), *fitting)
            encoded = encode(encoder, inputs)
            data = Prepared(
                encoder,
                Examples(_rows(encoded, learn), target[learn]),
                Examples(_rows(encoded, hold), target[hold]),
                _reference(table, features, roles, settings),
            )
        network = _network(data.encoder, label, settings, own)
        _announce(data, features, network)

        checkpoint = _checkpoint(dataset, schema, roles, settings, streamed)
        started = time.monotonic()
        result = fit(
            network,
            data.training,
            data.validation,
            FitSettings(
                settings.task,
                settings.epochs,
                settings.batch_size,
                settings.learning_rate,
                own.patience,
                settings.seed,
                scale,
                tuple(class_weights(label, own.class_weights, learn)),
                own.schedule,
                own.warmup_epochs,
                own.clip_norm,
            ),
            checkpoint,
        )
    print(
        f"Kept the weights of epoch {result.best + 1} after {time.monotonic() - started:.0f} s.",
        flush=True,
    )
    package = _describe(dataset, schema, roles, settings, own, features, label, result)
    with new_directory(model) as directory:
        write_package(directory, package, data.encoder, network, shift, scale, data.reference)
    write_text(curves, curves_page(package, result))
    if checkpoint:
        checkpoint.remove()
    return package


def _checkpoint(
    dataset: str | Path, schema: str | Path, roles: Roles, settings: TrainSettings, streamed: bool
) -> Checkpoint | None:
    """Returns the checkpoint of exactly this training."""
    if not settings.checkpoint_uri:
        return None
    shaping = asdict(settings) | {"checkpoint_uri": "", "require_gpu": False}
    shaping |= {"input": streamed, "roles": asdict(roles), "data": fingerprint(dataset)}
    shaping |= {"schema": _sha256(schema), "tensorflow": tf.__version__, "keras": keras.__version__}
    if settings.module_uri:
        shaping["module"] = _sha256(local_path(settings.module_uri, "module_uri"))
    identity = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
    return Checkpoint(local_path(settings.checkpoint_uri, "checkpoint_uri"), identity)


def _streamed(
    dataset: str | Path,
    fitter: EncoderFitter,
    features: list[Feature],
    roles: Roles,
    settings: TrainSettings,
    target: np.ndarray,
    hold: np.ndarray,
    scratch: Path,
) -> Prepared:
    """Reads the features twice, to fit the encoder and to store the encoded rows."""
    held = np.zeros(len(target), bool)
    held[hold] = True
    position = 0
    for table in read_tables(dataset, [feature.name for feature in features]):
        learned = ~held[position : position + table.num_rows]
        fitter.update(_rows(model_inputs(table, features), learned))
        position += table.num_rows
    encoder = fitter.encoder()

    schema = read_schema(dataset)
    index = _reference_index(len(target), settings)
    wanted = np.sort(index)
    # One copy to encode, one for the reference; they are read in step, so one table is held.
    tables, again = tee(read_tables(dataset, _kept_columns(schema.names, features, roles)))
    stored: list[StoredExamples] = []
    sampled: list[pa.Table] = []
    position = 0
    pieces = encode_pieces(encoder, (model_inputs(table, features) for table in tables))
    for encoded, table in zip(pieces, again, strict=True):
        if not stored:
            stored = [
                StoredExamples(scratch / "training", target[~held], encoded),
                StoredExamples(scratch / "validation", target[held], encoded),
            ]
            require_disk(scratch, len(target) * stored[0].bytes_per_row)
        part = held[position : position + table.num_rows]
        stored[0].append(_rows(encoded, ~part))
        stored[1].append(_rows(encoded, part))
        first, last = np.searchsorted(wanted, (position, position + table.num_rows))
        sampled.append(table.take(pa.array(wanted[first:last] - position)))
        position += table.num_rows
    reference = pa.concat_tables(sampled).take(pa.array(np.searchsorted(wanted, index)))
    return Prepared(encoder, stored[0], stored[1], reference)


def _check(settings: TrainSettings) -> None:
    if not settings.name:
        raise InputError("The model has no name; set `name`.")
    if settings.mixed_precision not in ("", "bfloat16"):
        raise InputError(
            f"mixed_precision is {settings.mixed_precision!r}; it must be 'bfloat16' or empty."
        )
    if settings.require_gpu:
        require_gpu()
    for name in ("epochs", "batch_size", "reference_rows"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}; it must be at least 1.")
    if not settings.learning_rate > 0:
        raise InputError(f"learning_rate is {settings.learning_rate}; it must be above 0.")
    if not 0 < settings.validation_fraction < 1:
        raise InputError(
            f"validation_fraction is {settings.validation_fraction}; it must be between 0 and 1."
        )


def _categorical(features: list[Feature], own: Hyperparameters, hints: SchemaHints) -> set[str]:
    integers = {feature.name for feature in features if feature.type == "int"}
    strings = {feature.name for feature in features if feature.type == "string"}
    wrong = [name for name in own.categorical if name not in integers | strings]
    if wrong:
        raise InputError(
            f"The hyperparameter categorical names {', '.join(map(repr, wrong))}, which is not an "
            f"integer feature; those are {', '.join(sorted(integers)) or 'none'}."
        )
    return (set(own.categorical) | hints.categorical) & integers


def _validation_split(
    table: pa.Table, roles: Roles, settings: TrainSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers to learn from and to hold out."""
    rows = table.num_rows
    held = round(rows * settings.validation_fraction)
    if held < 1 or held >= rows:
        raise InputError(
            f"{rows} training rows cannot be split with validation_fraction "
            f"{settings.validation_fraction}; give more rows."
        )
    if roles.timestamp:
        column = table[roles.timestamp]
        if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
            raise InputError(
                f"The timestamp {roles.timestamp!r} holds {column.type}; cast it in the query."
            )
        if column.null_count:
            raise InputError(
                f"The timestamp {roles.timestamp!r} is null in {column.null_count} rows; "
                "filter them out in the query."
            )
        order = pc.sort_indices(table, [(roles.timestamp, "ascending")]).to_numpy()
    else:
        order = np.random.default_rng(settings.seed).permutation(rows)
    # In the data's own order: neighbours stay neighbours in memory.
    return np.sort(order[: rows - held]), np.sort(order[rows - held :])


def _rows(arrays: Arrays, index: np.ndarray) -> Arrays:
    return {name: values[index] for name, values in arrays.items()}


def _target(
    label: Label, learn: np.ndarray, name: str, task: str
) -> tuple[np.ndarray, float, float]:
    """Returns what the network learns, with the label's shift and scale (0 and 1 for classes)."""
    seen = label.values[learn]
    if (seen == seen[0]).all():
        raise InputError(
            f"The label {name!r} is constant in the {len(learn)} rows before the validation part; "
            "give more rows, or check that they are not sorted by the label."
        )
    if task != "regression":
        return label.values, 0.0, 1.0
    shift, scale = float(seen.mean()), float(seen.std())
    return ((label.values - shift) / scale).astype(np.float32), shift, scale


def _network(
    encoder: Encoder, label: Label, settings: TrainSettings, own: Hyperparameters
) -> keras.Model:
    schema = NetworkSchema(
        settings.task,
        max(1, len(label.classes)),
        tuple(encoder.numeric_names),
        encoder.vocabulary_sizes,
    )
    if settings.module_uri:
        return build_from_module(settings.module_uri, schema, settings.hyperparameters)
    return build_network(schema, own)


def _announce(data: Prepared, features: list[Feature], network: keras.Model) -> None:
    categories = ", ".join(
        f"{name} ({size})" for name, size in data.encoder.vocabulary_sizes.items()
    )
    print(
        f"{len(data.training):,} rows to learn from, {len(data.validation):,} to validate on.\n"
        f"{len(features)} features; categories with their vocabularies: {categories or 'none'}.\n"
        f"{network.count_params():,} weights; devices: {describe_devices()}.",
        flush=True,
    )


def _describe(
    dataset: str | Path,
    schema: str | Path,
    roles: Roles,
    settings: TrainSettings,
    own: Hyperparameters,
    features: list[Feature],
    label: Label,
    result: FitResult,
) -> ModelPackage:
    data = describe(dataset, roles.timestamp)
    best = result.epochs[result.best]
    return ModelPackage(
        name=settings.name,
        task=settings.task,
        label=roles.label,
        features=features,
        classes=label.classes,
        entities=roles.entities,
        timestamp=roles.timestamp,
        feature_service=settings.feature_service,
        schema_fingerprint=_sha256(schema),
        dataset_fingerprint=data["fingerprint"],
        training_window={key: data[key] for key in ("since", "until", "rows") if key in data},
        trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=os.environ.get("KFLOOP_GIT_COMMIT", ""),
        metrics={
            name.replace("val_", "validation_"): value
            for name, value in best.items()
            if name.startswith("val_")
        },
        hyperparameters=_recorded(settings, own, result),
        framework={
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "trained_on": describe_devices(),
        },
    )


def _recorded(settings: TrainSettings, own: Hyperparameters, result: FitResult) -> dict[str, Any]:
    """Returns everything that shaped the weights, as JSON values."""
    recorded = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(own).items()
        if not (settings.module_uri and name in BUILT_IN_NETWORK)
    }
    for name in ("epochs", "batch_size", "learning_rate", "seed", "validation_fraction"):
        recorded[name] = getattr(settings, name)
    recorded |= {"mixed_precision": settings.mixed_precision}
    recorded["best_epoch"] = result.best + 1
    if settings.module_uri:
        source = local_path(settings.module_uri, "module_uri").read_bytes()
        recorded |= dict(settings.hyperparameters)
        recorded["module_uri"] = settings.module_uri
        recorded["module_sha256"] = hashlib.sha256(source).hexdigest()
    return recorded


def _reference(
    table: pa.Table, features: list[Feature], roles: Roles, settings: TrainSettings
) -> pa.Table:
    """Returns a random sample of the rows, in random order, with the columns that matter."""
    columns = _kept_columns(table.column_names, features, roles)
    return table.select(columns).take(pa.array(_reference_index(table.num_rows, settings)))


def _reference_index(rows: int, settings: TrainSettings) -> np.ndarray:
    size = min(settings.reference_rows, rows)
    return np.random.default_rng(settings.seed).choice(rows, size, replace=False)


def _kept_columns(names: list[str], features: list[Feature], roles: Roles) -> list[str]:
    kept = {feature.name for feature in features} | {roles.label, roles.timestamp, *roles.entities}
    return [name for name in names if name in kept]


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def model_metadata(package: ModelPackage) -> dict[str, Any]:
    """Returns what the component writes into the model artifact's metadata."""
    return {
        "framework": "tensorflow",
        "name": package.name,
        "task": package.task,
        "label": package.label,
        "features": package.feature_names,
        "dataset_fingerprint": package.dataset_fingerprint,
        "training_window": package.training_window,
        "trained_on": package.framework["trained_on"],
    }
