# SPDX-License-Identifier: Apache-2.0
"""The rules of KServe's webhooks, one by one, in their words."""

from typing import Any

import pytest

from doubles import ApiError, ApiServer, KServe
from doubles.tests.conftest import isvc

MODE = "serving.kserve.io/deploymentMode"
DENIED = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '


def service(mode: str = "Standard", **predictor: Any) -> dict[str, Any]:
    manifest = isvc()
    manifest["spec"]["predictor"].update(predictor)
    manifest["metadata"]["annotations"] = {MODE: mode} if mode else {}
    return manifest


def canary(name: str = "v2", percent: int = 10, **predictor: Any) -> dict[str, Any]:
    model = isvc(uri="s3://b/v2")["spec"]["predictor"]
    return {"trafficPercent": percent, "predictor": {"name": name, **model, **predictor}}


def refusal(api: ApiServer, manifest: dict[str, Any]) -> str:
    with pytest.raises(ApiError) as raised:
        api.create(manifest)
    assert (raised.value.code, raised.value.reason) == (403, "Forbidden")
    assert raised.value.message.startswith(DENIED)
    return raised.value.message.removeprefix(DENIED)


@pytest.mark.parametrize(
    "canaries, told",
    [
        ([canary(name="")], "canary[0] predictor.name is required"),
        ([canary("v2"), canary("v2")], 'canary predictor.name "v2" is duplicated'),
        ([canary("v1")], 'canary predictor.name "v1" conflicts with stable predictor name'),
        (
            [canary("v2", 60), canary("v3", 41)],
            "sum of canary trafficPercent values (101) must be <= 100",
        ),
        (
            [canary(maxReplicas=2)],
            'canary "v2" must not set maxReplicas (canary uses fixed replicas)',
        ),
        (
            [canary(scaleTarget=2)],
            'canary "v2" must not set scaleTarget (canary uses fixed replicas)',
        ),
        (
            [canary(scaleMetric="cpu")],
            'canary "v2" must not set scaleMetric (canary uses fixed replicas)',
        ),
        (
            [canary(autoScaling={})],
            'canary "v2" must not set autoScaling (canary uses fixed replicas)',
        ),
        (
            [canary(minReplicas=2)],
            'canary "v2" minReplicas (2) must not exceed stable predictor minReplicas (1)',
        ),
        (
            [canary(workerSpec={"pipelineParallelSize": 2})],
            'canary "v2" must not set workerSpec (multi-node is not yet supported for canary)',
        ),
    ],
)
def test_canaries(api: ApiServer, canaries: list[dict[str, Any]], told: str) -> None:
    manifest = service(name="v1")
    if canaries[0]["predictor"]["name"] == "":
        del canaries[0]["predictor"]["name"]
    manifest["spec"]["canary"] = canaries
    assert refusal(api, manifest) == told


def test_canaries_are_for_standard_mode_only(api: ApiServer) -> None:
    for mode in ("Knative", "Serverless", ""):
        manifest = service(mode, name="v1")
        manifest["spec"]["canary"] = [canary()]
        assert refusal(api, manifest) == "canary is only supported in Standard deployment mode"
    manifest = service("RawDeployment", name="v1")
    manifest["spec"]["canary"] = [canary()]
    assert api.create(manifest)["metadata"]["annotations"][MODE] == "Standard"


def test_the_default_mode_becomes_an_annotation_only_in_its_new_spelling(api: ApiServer) -> None:
    with KServe(api, mode="RawDeployment") as kserve:
        assert MODE not in api.create(service(""))["metadata"]["annotations"]
        kserve.config("deploy", {"defaultDeploymentMode": "Standard"})
        again = service("")
        again["metadata"]["name"] = "other"
        assert api.create(again)["metadata"]["annotations"][MODE] == "Standard"


def test_the_deployment_mode_cannot_change(api: ApiServer) -> None:
    with KServe(api) as kserve:
        api.create(service("Standard"))
        kserve.step()
        with pytest.raises(ApiError) as raised:
            api.patch(
                "inferenceservices", "m", "ml", {"metadata": {"annotations": {MODE: "Knative"}}}
            )
    assert raised.value.message == DENIED + (
        "update rejected: deploymentMode cannot be changed from 'Standard' to 'Knative'"
    )


def test_a_new_predictor_name_needs_a_new_model(api: ApiServer) -> None:
    api.create(service(name="v1"))
    with pytest.raises(ApiError) as raised:
        api.patch("inferenceservices", "m", "ml", {"spec": {"predictor": {"name": "v2"}}})
    told = "predictor.name change requires a model change (e.g. storageUri)"
    assert raised.value.message == DENIED + told
    new = {"name": "v2", "model": {"storageUri": "s3://b/v2"}}
    api.patch("inferenceservices", "m", "ml", {"spec": {"predictor": new}})


def test_names_scalers_and_replicas(api: ApiServer) -> None:
    manifest = service()
    manifest["metadata"]["name"] = "1st"
    assert 'the InferenceService "1st" is invalid' in refusal(api, manifest)
    manifest = service()
    manifest["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] = "mine"
    assert refusal(api, manifest) == "[mine] is not a supported autoscaler class type"
    told = "'MinReplicas' cannot be greater than MaxReplicas"
    assert refusal(api, service(minReplicas=3, maxReplicas=2)) == told
    assert refusal(api, service(minReplicas=-1)) == "'MinReplicas' cannot be less than 0"
    assert refusal(api, service("Knative", scaleMetric="cpu")) == "[cpu] is not a supported metric"
    named = service()
    named["spec"]["predictor"]["model"]["name"] = "x"
    assert refusal(api, named) == "the 'name' field is not allowed in standard predictor"


def test_exactly_one_implementation(api: ApiServer) -> None:
    two = service(containers=[{"name": "kserve-container", "image": "x"}])
    del two["spec"]["predictor"]["model"]
    assert api.create(two)
    none = service()
    none["metadata"]["name"] = "none"
    none["spec"]["predictor"] = {"minReplicas": 1}
    assert refusal(api, none).startswith("exactly one of [")


def test_the_old_spelling_of_a_framework_becomes_a_model(api: ApiServer) -> None:
    manifest = service()
    manifest["spec"]["predictor"] = {"tensorflow": {"storageUri": "s3://b/v1"}}
    made = api.create(manifest)
    model = made["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["storageUri"]) == ("tensorflow", "s3://b/v1")
    assert model["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert "tensorflow" not in made["spec"]["predictor"]
