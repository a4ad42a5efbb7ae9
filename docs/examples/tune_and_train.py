from kfp import dsl

from kfloop.components import train_model, tune_model


@dsl.pipeline(name="tune-and-train")
def tune_and_train(
    train_uri: str = "/mnt/shared/trips/train", schema_uri: str = "gs://bucket/schema.pbtxt"
):
    """Look for good hyperparameters, then train with the best of them."""
    train = dsl.importer(artifact_uri=train_uri, artifact_class=dsl.Dataset)
    schema = dsl.importer(artifact_uri=schema_uri, artifact_class=dsl.Artifact)
    tuned = tune_model(
        train=train.output,
        schema=schema.output,
        name="bikes",
        task="regression",
        label="minutes",
        timestamp="started_at",
        space={
            "learning_rate": {"low": 0.0003, "high": 0.03, "log": True},
            "hidden": {"choices": [[64], [128, 64]]},
        },
        trials=10,
        parallel_trials=2,
    )
    train_model(
        train=train.output,
        schema=schema.output,
        name="bikes",
        task="regression",
        label="minutes",
        timestamp="started_at",
        best_parameters=tuned.outputs["best_parameters"],
    )
