from kfp import dsl

from kfloop.components import compare_models, evaluate_model, export_onnx, gate_model, train_model


@dsl.pipeline(name="train-and-judge")
def train_and_judge(
    train_uri: str = "/mnt/shared/trips/train",
    evaluation_uri: str = "/mnt/shared/trips/evaluation",
    schema_uri: str = "gs://bucket/schema.pbtxt",
    champion_uri: str = "",
) -> str:
    """Train a model, evaluate it, compare it with the champion, and let the gate decide."""
    train = dsl.importer(artifact_uri=train_uri, artifact_class=dsl.Dataset)
    held_out = dsl.importer(artifact_uri=evaluation_uri, artifact_class=dsl.Dataset)
    schema = dsl.importer(artifact_uri=schema_uri, artifact_class=dsl.Artifact)
    trained = train_model(
        train=train.output,
        schema=schema.output,
        name="bikes",
        task="regression",
        label="minutes",
        timestamp="started_at",
        epochs=10,
    )
    trained.set_cpu_limit("4").set_memory_limit("8G")
    model = trained.outputs["model"]
    evaluated = evaluate_model(model=model, dataset=held_out.output, slices=["station"])
    compared = compare_models(model=model, dataset=held_out.output, champion_uri=champion_uri)
    export_onnx(model=model)
    return gate_model(
        evaluation=evaluated.outputs["evaluation"],
        comparison=compared.outputs["comparison"],
        thresholds={"rmse": {"maximum": 6.0}},
    ).outputs["Output"]
