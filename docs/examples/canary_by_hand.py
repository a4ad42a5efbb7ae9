from kfp import dsl

from kfloop.components import (
    analyse_canary,
    deploy_model,
    promote_model,
    roll_back_model,
    shift_traffic,
    smoke_test_model,
)


@dsl.pipeline(name="canary-by-hand")
def canary_by_hand(model_uri: str = "pvc://shared/models/bikes/4", service: str = "bikes"):
    """Deploy beside the live model, test, shift, judge, and promote or roll back."""
    deployed = deploy_model(model_uri=model_uri, service=service, traffic_percent=0)
    tested = smoke_test_model(service=service, model_uri=model_uri).after(deployed)
    with dsl.If(tested.outputs["Output"] == "pass", "it answers rightly"):
        shifted = shift_traffic(service=service, percent=20, model_uri=model_uri)
        judged = analyse_canary(service=service, wait_seconds=600.0).after(shifted)
        with dsl.If(judged.outputs["Output"] == "pass", "it serves well"):
            promote_model(service=service, model_uri=model_uri).set_caching_options(False)
        with dsl.Else("it does not"):
            roll_back_model(
                service=service, model_uri=model_uri, reason="canary"
            ).set_caching_options(False)
        for task in (shifted, judged):
            task.set_caching_options(False)
    with dsl.Else("it does not"):
        roll_back_model(
            service=service, model_uri=model_uri, reason="smoke test"
        ).set_caching_options(False)
    for task in (deployed, tested):
        task.set_caching_options(False)
