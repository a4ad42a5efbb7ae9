from kfp import dsl

from kfloop.components import compute_statistics, infer_schema, require_pass, validate_data


@dsl.pipeline(name="validate-data")
def check_data(good_uri: str = "/mnt/shared/trips/may", new_uri: str = "/mnt/shared/trips/june"):
    """Measure a dataset, hold it against a schema and rules, and stop when it does not pass."""
    good = dsl.importer(artifact_uri=good_uri, artifact_class=dsl.Dataset)
    new = dsl.importer(artifact_uri=new_uri, artifact_class=dsl.Dataset)
    baseline = compute_statistics(dataset=good.output).outputs["statistics"]
    schema = infer_schema(statistics=baseline, label="minutes")
    judged = validate_data(
        statistics=compute_statistics(dataset=new.output).outputs["statistics"],
        schema=schema.outputs["schema"],
        baseline=baseline,
        label="minutes",
        rules=["rows >= 1000", "minutes.mean < 60"],
        drift="fail",
    )
    require_pass(decision=judged.outputs["decision"])
