from kfp import dsl

from kfloop.components import export_data, score_data


@dsl.pipeline(name="score")
def score(
    model_uri: str = "/mnt/shared/models/bikes/3",
    rows_uri: str = "/mnt/shared/trips/today",
    export_to: str = "gs://bucket/predictions",
):
    """Score a dataset with a published model and write the predictions where others read them."""
    rows = dsl.importer(artifact_uri=rows_uri, artifact_class=dsl.Dataset)
    scored = score_data(model_uri=model_uri, dataset=rows.output)
    export_data(
        dataset=scored.outputs["predictions"], uri=export_to, partition_by=["model_version"]
    ).set_caching_options(False)
