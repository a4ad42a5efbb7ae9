from kfp import dsl

from kfloop.components import (
    find_champion,
    publish_model,
    register_model,
    roll_out_model,
    update_champion,
)


@dsl.pipeline(name="roll-out")
def roll_out(
    model_uri: str = "/mnt/shared/candidate/model",
    evaluation_uri: str = "/mnt/shared/candidate/evaluation.json",
    repository: str = "pvc://shared/models",
    registry_uri: str = "http://mlflow.mlflow:5000",
    service: str = "bikes",
) -> str:
    """Publish and register a model, then roll it out in steps; it stays only if it serves well."""
    model = dsl.importer(artifact_uri=model_uri, artifact_class=dsl.Model)
    evaluation = dsl.importer(artifact_uri=evaluation_uri, artifact_class=dsl.Artifact)
    find_champion(name="bikes", service=service, registry_uri=registry_uri).set_caching_options(
        False
    )
    published = publish_model(
        model=model.output, evaluation=evaluation.output, model_repository=repository
    ).set_caching_options(False)
    registered = register_model(
        model_uri=published.output,
        evaluation=evaluation.output,
        registry_uri=registry_uri,
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    ).set_caching_options(False)
    rolled_out = (
        roll_out_model(
            model_uri=published.output,
            service=service,
            steps=[5, 25, 50, 100],
            bake_seconds=600.0,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        )
        .after(registered)
        .set_caching_options(False)
    )
    update_champion(service=service, registry_uri=registry_uri).after(
        rolled_out
    ).set_caching_options(False)
    return rolled_out.outputs["Output"]
