from kfp import dsl

from kfloop.components import compute_statistics, update_schema


@dsl.pipeline(name="propose-schema")
def propose_schema(
    schema_uri: str = "gs://bucket/schema.pbtxt", data_uri: str = "/mnt/shared/trips/june"
):
    """Propose a schema that new, good data fits, for a person to review."""
    schema = dsl.importer(artifact_uri=schema_uri, artifact_class=dsl.Artifact)
    data = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset)
    update_schema(
        schema=schema.output,
        statistics=compute_statistics(dataset=data.output).outputs["statistics"],
    )
