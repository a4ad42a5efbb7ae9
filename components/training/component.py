# SPDX-License-Identifier: Apache-2.0
"""KFP components of the training family."""

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
    seed: int = 0,
    validation_fraction: float = 0.1,
    hyperparameters: Dict = {},
    module_uri: str = "",
    reference_rows: int = 5000,
    input: str = "auto",
    checkpoint_uri: str = "",
    require_gpu: bool = False,
    mixed_precision: str = "",
    onnx: bool = True,
    best_parameters: dsl.Input[dsl.Artifact] = None,
):
    """Trains a model with its preprocessing inside the exported graph.

    Args:
        train: Training rows.
        schema: Data schema (TFDV text proto) the rows were validated against.
        model: The model package.
        curves: Loss and metric per epoch.
        metrics: `validation_loss` and the task's metric (`validation_auc`, `validation_accuracy`
            or `validation_rmse`), of the epoch whose weights are kept.
        name: Model name, also the name it is served under.
        task: binary, multiclass or regression.
        label: Column to predict; no nulls.
        timestamp: Event-time column; with one, the latest rows are the validation part.
        entities: Entity key columns; not features unless `features` lists them.
        features: Feature columns; empty for all but label, timestamp and entities.
        feature_service: Feast feature service the features came from.
        epochs: Largest number of passes over the data; training stops early when the validation
            loss no longer falls.
        batch_size: Rows per training step, shared by all GPUs of the task.
        learning_rate: Step size of the Adam optimizer.
        seed: Random seed; the same seed and data give the same weights on a CPU.
        validation_fraction: Share of the rows held out to stop early.
        hyperparameters: hidden, dropout, l2, numeric_bins, embedding_size, categorical,
            minimum_count, vocabulary_limit, patience, finish_epochs, class_weights, schedule,
            warmup_epochs, clip_norm; with a module of your own, also what it reads.
        module_uri: Python file with `build_model(schema, hyperparameters)`; empty for the built-in
            network.
        reference_rows: Rows of training data kept in the package as the drift baseline.
        input: memory, stream (rows are encoded once to local disk and shuffled from there), or
            auto: stream when the data would take more than half of the available memory.
        checkpoint_uri: Directory on a volume that outlives the pod: a killed training goes on
            from its last whole epoch there; empty for none. It is locked: one training at a time
            may use it.
        require_gpu: Fail at once when there is no GPU. All GPUs of the task are used.
        mixed_precision: bfloat16, or empty for float32.
        onnx: Whether the package holds the graph as ONNX too, which the model server then runs. One
            that cannot be converted is left out, and the log says why.
        best_parameters: Of tune_model; win over the arguments and hyperparameters given here.
    """
    from kfloop.components.training import train as core
    from kfloop.components.training.best_parameters import apply_best_parameters
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
        onnx,
    )
    settings = apply_best_parameters(settings, best_parameters and best_parameters.path)
    package = core.train(train.path, schema.path, model.path, curves.path, roles, settings)
    model.metadata.update(core.model_metadata(package))
    metrics.metadata.update(package.metrics)


@dsl.component(base_image=image("training"), install_kfp_package=False)
def tune_model(
    train: dsl.Input[dsl.Dataset],
    schema: dsl.Input[dsl.Artifact],
    best_parameters: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    name: str,
    task: str,
    label: str,
    space: Dict = {},
    trials: int = 20,
    parallel_trials: int = 1,
    timeout_minutes: float = 0.0,
    metric: str = "",
    direction: str = "",
    pruning: str = "median",
    study_uri: str = "",
    timestamp: str = "",
    entities: List[str] = [],
    features: List[str] = [],
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    seed: int = 0,
    validation_fraction: float = 0.1,
    hyperparameters: Dict = {},
    module_uri: str = "",
    input: str = "auto",
    require_gpu: bool = False,
    mixed_precision: str = "",
):
    """Finds the hyperparameters that train the best model, by trying many.

    Args:
        train: Training rows, the ones that train_model is given.
        schema: Data schema (TFDV text proto).
        best_parameters: JSON for train_model: `hyperparameters` and `arguments` of the best trial.
        page: History, parameters, what mattered, every trial.
        metrics: The best trial's metric by its name, `best_trial`, and how many trials ended how.
        name: Model name; the study is named after it.
        task: binary, multiclass or regression.
        label: Column to predict; no nulls.
        space: Per hyperparameter (or learning_rate, batch_size, epochs) `{low, high}` and perhaps
            `log` or `step`, or `{choices}`. Empty passes the given hyperparameters on.
        trials: Trials in all; a study that is run again with more goes on.
        parallel_trials: Trials at the same time, each in a process of its own.
        timeout_minutes: No trial starts after so many minutes; 0 for no limit.
        metric: validation_loss, validation_auc, validation_accuracy or validation_rmse; empty for
            the task's: auc, accuracy, rmse.
        direction: maximize or minimize; empty for the metric's own.
        pruning: median, hyperband or none: whether and how a trial that is worse than others were
            at the same epoch is ended.
        study_uri: Directory on a volume that outlives the pod: a killed tuning goes on there;
            empty for none. One tuning at a time may use it.
        timestamp: As for train_model, like all that follow.
        entities: Entity key columns.
        features: Feature columns.
        epochs: Largest number of passes over the data in a trial.
        batch_size: Rows per training step.
        learning_rate: Step size of the Adam optimizer.
        seed: Of every trial, and of what is tried.
        validation_fraction: Share of the rows that the trials are compared on.
        hyperparameters: What the space does not name.
        module_uri: Python file with `build_model(schema, hyperparameters)`.
        input: memory, stream or auto.
        require_gpu: Fail at once when there is no GPU.
        mixed_precision: bfloat16, or empty for float32.
    """
    from kfloop.components.training.columns import Roles
    from kfloop.components.training.settings import TrainSettings
    from kfloop.components.training.tune import TuneSettings, tune

    roles = Roles(label, timestamp, entities, features)
    settings = TrainSettings(
        name=name,
        task=task,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        validation_fraction=validation_fraction,
        hyperparameters=hyperparameters,
        module_uri=module_uri,
        input=input,
        require_gpu=require_gpu,
        mixed_precision=mixed_precision,
    )
    tuning = TuneSettings(
        space,
        trials,
        parallel_trials,
        timeout_minutes,
        metric,
        direction,
        pruning,
        study_uri,
    )
    logged = tune(train.path, schema.path, best_parameters.path, page.path, roles, settings, tuning)
    metrics.metadata.update(logged)


@dsl.component(base_image=image("training"), install_kfp_package=False)
def export_onnx(model: dsl.Input[dsl.Model], onnx: dsl.Output[dsl.Model]):
    """Writes a model package as ONNX, preprocessing included, and compares their predictions.

    Args:
        model: The model package.
        onnx: Directory with `model.onnx`, which takes raw feature values, and `onnx.json`, whose
            content is the metadata.
    """
    from kfloop.components.training.onnx_export import export_onnx as core

    onnx.metadata.update(core(model.path, onnx.path))


@dsl.component(base_image=image("training"), install_kfp_package=False)
def submit_train_job(
    train: dsl.Input[dsl.Dataset],
    schema: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
    curves: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    name: str,
    task: str,
    label: str,
    job_image: str,
    volume_claim: str,
    volume_path: str,
    nodes: int = 2,
    resources: Dict = {},
    runtime: str = "jax-distributed",
    namespace: str = "",
    timeout_minutes: float = 1440.0,
    dry_run: bool = False,
    timestamp: str = "",
    entities: List[str] = [],
    features: List[str] = [],
    feature_service: str = "",
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    seed: int = 0,
    validation_fraction: float = 0.1,
    hyperparameters: Dict = {},
    module_uri: str = "",
    reference_rows: int = 5000,
    require_gpu: bool = False,
    mixed_precision: str = "",
    best_parameters: dsl.Input[dsl.Artifact] = None,
):
    """Trains on several machines, as train_model on one: a Kubeflow TrainJob with Keras on JAX.

    Args:
        train: Training rows; copied to the volume.
        schema: Data schema (TFDV text proto).
        model: The model package.
        curves: Loss and metric per epoch.
        metrics: `validation_loss` and the task's metric (`validation_auc`, `validation_accuracy`
            or `validation_rmse`), of the epoch whose weights are kept.
        name: Model name.
        task: binary, multiclass or regression.
        label: Column to predict; no nulls.
        job_image: Image of the nodes: the training family's, with its JAX lock.
        volume_claim: ReadWriteMany PersistentVolumeClaim of the nodes.
        volume_path: Where it is mounted, in this step (loop file: `volumes`) and in the nodes.
        nodes: Number of machines.
        resources: Of each node, for example `{"cpu": "8", "nvidia.com/gpu": 1}`.
        runtime: ClusterTrainingRuntime.
        namespace: Empty for this step's own.
        timeout_minutes: The job is ended after so many minutes.
        dry_run: Print the manifest, submit nothing, and fail, as there is no model.
        timestamp: As for train_model, like all that follow.
        entities: Entity key columns.
        features: Feature columns.
        feature_service: Feast feature service the features came from.
        epochs: Largest number of passes over the data.
        batch_size: Rows per training step, over all nodes.
        learning_rate: Step size of the Adam optimizer.
        seed: Random seed.
        validation_fraction: Share of the rows held out to stop early.
        hyperparameters: As for train_model.
        module_uri: Python file with `build_model(schema, hyperparameters)`, on the volume.
        reference_rows: Rows of training data kept in the package.
        require_gpu: Fail at once when a node has no GPU.
        mixed_precision: bfloat16, or empty for float32.
        best_parameters: Of tune_model or tune_with_katib.
    """
    from kfloop.components.training import train_job as core
    from kfloop.components.training.best_parameters import apply_best_parameters
    from kfloop.components.training.columns import Roles
    from kfloop.components.training.settings import TrainSettings
    from kfloop.components.training.shared_volume import Volume

    roles = Roles(label, timestamp, entities, features)
    settings = TrainSettings(
        name=name,
        task=task,
        feature_service=feature_service,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        validation_fraction=validation_fraction,
        hyperparameters=hyperparameters,
        module_uri=module_uri,
        reference_rows=reference_rows,
        require_gpu=require_gpu,
        mixed_precision=mixed_precision,
    )
    settings = apply_best_parameters(settings, best_parameters and best_parameters.path)
    job = core.TrainJobSettings(
        job_image,
        Volume(volume_claim, volume_path),
        nodes,
        resources,
        runtime,
        namespace,
        timeout_minutes,
        dry_run=dry_run,
    )
    package = core.submit_train_job(
        train.path, schema.path, model.path, curves.path, roles, settings, job
    )
    from kfloop.components.training.record import model_metadata  # imports TensorFlow

    model.metadata.update(model_metadata(package))
    metrics.metadata.update(package.metrics)


@dsl.component(base_image=image("training"), install_kfp_package=False)
def tune_with_katib(
    train: dsl.Input[dsl.Dataset],
    schema: dsl.Input[dsl.Artifact],
    best_parameters: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    name: str,
    task: str,
    label: str,
    space: Dict,
    trial_image: str,
    volume_claim: str,
    volume_path: str,
    trials: int = 20,
    parallel_trials: int = 3,
    timeout_minutes: float = 1440.0,
    metric: str = "",
    direction: str = "",
    algorithm: str = "tpe",
    resources: Dict = {},
    namespace: str = "",
    dry_run: bool = False,
    timestamp: str = "",
    entities: List[str] = [],
    features: List[str] = [],
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.001,
    seed: int = 0,
    validation_fraction: float = 0.1,
    hyperparameters: Dict = {},
    module_uri: str = "",
    require_gpu: bool = False,
    mixed_precision: str = "",
):
    """Finds hyperparameters as tune_model does, with a pod per trial: a Katib Experiment.

    Args:
        train: Training rows; copied to the volume.
        schema: Data schema (TFDV text proto).
        best_parameters: JSON for train_model, as of tune_model.
        metrics: The best trial's metric by its name.
        name: Model name.
        task: binary, multiclass or regression.
        label: Column to predict; no nulls.
        space: As for tune_model.
        trial_image: Image of the trials: the training family's.
        volume_claim: ReadWriteMany PersistentVolumeClaim of the trials.
        volume_path: Where it is mounted, in this step (loop file: `volumes`) and in the trials.
        trials: Trials in all.
        parallel_trials: Trials at the same time.
        timeout_minutes: The experiment is deleted after so many minutes.
        metric: As for tune_model.
        direction: As for tune_model.
        algorithm: Katib's name of it: tpe, random, grid, bayesianoptimization, cmaes.
        resources: Of each trial, for example `{"cpu": "4", "memory": "8Gi"}`.
        namespace: Empty for this step's own.
        dry_run: Print the manifest, submit nothing, and fail, as nothing was tuned.
        timestamp: As for train_model, like all that follow.
        entities: Entity key columns.
        features: Feature columns.
        epochs: Largest number of passes over the data in a trial.
        batch_size: Rows per training step.
        learning_rate: Step size of the Adam optimizer.
        seed: Of every trial.
        validation_fraction: Share of the rows that the trials are compared on.
        hyperparameters: What the space does not name.
        module_uri: Python file with `build_model(schema, hyperparameters)`, on the volume.
        require_gpu: Fail at once when a trial has no GPU.
        mixed_precision: bfloat16, or empty for float32.
    """
    from kfloop.components.training import katib as core
    from kfloop.components.training.columns import Roles
    from kfloop.components.training.settings import TrainSettings
    from kfloop.components.training.shared_volume import Volume
    from kfloop.components.training.tune import TuneSettings

    roles = Roles(label, timestamp, entities, features)
    settings = TrainSettings(
        name=name,
        task=task,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        validation_fraction=validation_fraction,
        hyperparameters=hyperparameters,
        module_uri=module_uri,
        require_gpu=require_gpu,
        mixed_precision=mixed_precision,
    )
    tuning = TuneSettings(space, trials, parallel_trials, timeout_minutes, metric, direction)
    katib = core.KatibSettings(
        trial_image,
        Volume(volume_claim, volume_path),
        algorithm,
        resources,
        namespace,
        dry_run=dry_run,
    )
    best = core.tune_with_katib(
        train.path, schema.path, best_parameters.path, roles, settings, tuning, katib
    )
    metrics.metadata[best.metric] = best.value
