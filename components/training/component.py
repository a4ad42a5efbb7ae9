"""KFP interface of the training family."""

from typing import Dict, List

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("training"), install_kfp_package=False)
def train_model(
    train: dsl.Input[dsl.Dataset],
    schema: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    curves: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    name: str,
    task: str,
    label: str,
    timestamp: str = "",
    entities: List[str] = [],
    features: List[str] = [],
    feature_service: str = "",
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    seed: int = 7,
    validation_fraction: float = 0.1,
    hyperparameters: Dict = {},
    module_uri: str = "",
    reference_rows: int = 5000,
    input: str = "auto",
    checkpoint_uri: str = "",
    require_gpu: bool = False,
    mixed_precision: str = "",
):
    """Trains a model with its preprocessing inside the exported graph.

    Args:
        train: Training rows.
        schema: Data schema (TFDV text proto) the rows were validated against.
        model: The model package.
        curves: Loss and metric per epoch.
        metrics: Loss and metric on the validation part.
        name: Model name, also the name it is served under.
        task: binary, multiclass or regression.
        label: Column to predict; no nulls.
        timestamp: Event-time column; with one, the latest rows are the validation part.
        entities: Entity key columns; not features unless `features` lists them.
        features: Feature columns; empty for all but label, timestamp and entities.
        feature_service: Feast feature service the features came from.
        epochs: Largest number of passes over the data; training stops early when the validation
            loss no longer falls.
        batch_size: Rows per training step.
        learning_rate: Step size of the Adam optimizer.
        seed: Random seed; the same seed and data give the same weights on a CPU.
        validation_fraction: Share of the rows held out to stop early.
        hyperparameters: hidden, dropout, l2, embedding_size, categorical, minimum_count,
            vocabulary_limit, patience, class_weights, schedule, warmup_epochs, clip_norm; or what
            your module reads.
        module_uri: Python file with `build_model(schema, hyperparameters)`; empty for the built-in
            network.
        reference_rows: Rows of training data kept in the package as the drift baseline.
        input: memory, stream (rows are encoded once to local disk and shuffled from there), or
            auto: stream when the data would take more than half of the available memory.
        checkpoint_uri: Directory on a volume that outlives the pod: a killed training goes on
            from its last whole epoch there; empty for none. One training at a time may use it.
        require_gpu: Fail at once when there is no GPU.
        mixed_precision: bfloat16, or empty for float32.
    """
    from kfloop.components.training import train as core
    from kfloop.components.training.columns import Roles

    roles = Roles(label, timestamp, entities, features)
    settings = core.TrainSettings(
        name,
        task,
        feature_service,
        epochs,
        batch_size,
        learning_rate,
        seed,
        validation_fraction,
        hyperparameters,
        module_uri,
        reference_rows,
        input,
        checkpoint_uri,
        require_gpu,
        mixed_precision,
    )
    package = core.train(train.path, schema.path, model.path, curves.path, roles, settings)
    model.metadata.update(core.model_metadata(package))
    metrics.metadata.update(package.metrics)
