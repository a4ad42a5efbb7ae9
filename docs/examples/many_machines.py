from kfp import dsl

from kfloop.components import submit_train_job, tune_with_katib


@dsl.pipeline(name="many-machines")
def many_machines(
    train_uri: str = "/mnt/shared/trips/train", schema_uri: str = "gs://bucket/schema.pbtxt"
):
    """Tune with a pod per trial (Katib), then train on four machines (Kubeflow Trainer)."""
    train = dsl.importer(artifact_uri=train_uri, artifact_class=dsl.Dataset)
    schema = dsl.importer(artifact_uri=schema_uri, artifact_class=dsl.Artifact)
    # Both steps need the volume: `volumes: {shared: {path: /mnt/shared}}` in the loop file with
    # which `kfloop submit many_machines.yaml --config loop.yaml` submits this.
    tuned = tune_with_katib(
        train=train.output,
        schema=schema.output,
        name="bikes",
        task="regression",
        label="minutes",
        space={"learning_rate": {"low": 0.0003, "high": 0.03, "log": True}},
        trials=60,
        parallel_trials=10,
        trial_image="registry.example.com/kfloop/training:0.1.0",
        volume_claim="shared",
        volume_path="/mnt/shared",
    )
    submit_train_job(
        train=train.output,
        schema=schema.output,
        name="bikes",
        task="regression",
        label="minutes",
        job_image="registry.example.com/kfloop/training:0.1.0-jax",
        volume_claim="shared",
        volume_path="/mnt/shared",
        nodes=4,
        resources={"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 1},
        best_parameters=tuned.outputs["best_parameters"],
    )
