from kfp import dsl

from kfloop.components import describe_service, replay_requests


@dsl.pipeline(name="replay-traffic")
def replay_traffic(service: str = "bikes", rows_uri: str = "/mnt/shared/trips/june"):
    """Say what a service is, and send it rows as requests."""
    described = describe_service(service=service).set_caching_options(False)
    rows = dsl.importer(artifact_uri=rows_uri, artifact_class=dsl.Dataset)
    replay_requests(
        requests=rows.output, service=service, limit=500, requests_per_second=5.0
    ).after(described).set_caching_options(False)
