# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.deployment.autoscaling import METRICS, MODES, SCALING_KEYS, require_mode
from kfloop.components.deployment.manifest import candidate_predictor
from kfloop.components.deployment.resources import (
    predictor_fields,
    predictor_options,
    quantity,
    service_annotations,
)
from kfloop.components.deployment.targets import target_of


def predictor(settings: dict, **package) -> dict:
    made = ModelPackage("m", "binary", "y", [], version="1", **package)
    return target_of(made, "s3://b/m/1", predictor_options(settings)).predictor


def test_settings_become_the_fields_of_a_predictor() -> None:
    made = predictor(
        {
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"cpu": 2, "memory": "2Gi"},
                "gpu": 1,
            },
            "autoscaling": {"class": "hpa", "min_replicas": 2, "max_replicas": 6, "target": 70},
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "service_account": "models",
            "timeout_seconds": 20,
        }
    )
    assert made["model"] == {
        "modelFormat": {"name": "kfloop"},
        "storageUri": "s3://b/m/1",
        "resources": {
            "requests": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"},
            "limits": {"cpu": "2", "memory": "2Gi", "nvidia.com/gpu": "1"},
        },
    }
    kept = {key: made[key] for key in made if key not in ("name", "annotations", "model")}
    assert kept == {
        "minReplicas": 2,
        "maxReplicas": 6,
        "scaleMetric": "cpu",
        "scaleTarget": 70,
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "models",
        "timeout": 20,
    }


def test_without_settings_everything_is_left_to_kserve() -> None:
    assert set(predictor({})) == {"name", "annotations", "model"}


def test_keda_asks_prometheus() -> None:
    settings = {
        "class": "keda",
        "metric": "prometheus",
        "query": "sum(rate(requests[1m]))",
        "server": "http://prometheus:9090",
        "target": 50,
    }
    metric = predictor({"autoscaling": settings})["autoScaling"]["metrics"][0]
    assert metric["type"] == "External"
    assert metric["external"]["target"] == {"type": "Value", "value": "50"}
    cpu = predictor({"autoscaling": {"class": "keda"}})["autoScaling"]["metrics"][0]
    assert cpu["resource"]["target"] == {"type": "Utilization", "averageUtilization": 80}


def test_tensorflow_serving_is_the_pinned_runtime_of_this_project() -> None:
    runtimes = Path(__file__).parents[2] / "serving/manifests/runtimes"
    shipped = yaml.safe_load((runtimes / "tensorflow.yaml").read_text())
    made = predictor({"runtime": "tensorflow"})["model"]
    assert made["modelFormat"] == {"name": "tensorflow"}
    assert made["runtime"] == shipped["metadata"]["name"]
    assert "runtimeVersion" not in made, "the runtime's own image is pinned"
    other = predictor({"runtime": "tensorflow", "runtime_version": "2.18.0"})["model"]
    assert other["runtimeVersion"] == "2.18.0"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"replicas": 2}, "no predictor setting replicas"),
        ({"resources": {"gpus": 1}}, "no predictor setting resources.gpus"),
        (
            {"resources": {"requests": {"cpu": "two"}}},
            "resources.requests.cpu: 'two' is no quantity",
        ),
        ({"resources": {"requests": {"nvidia.com/gpu": 1}}}, "resources.gpu"),
        (
            {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "500m"}}},
            "more than its limit",
        ),
        ({"resources": {"gpu": 1.5}}, "whole number"),
        ({"resources": {"gpu": float("inf")}}, "whole number"),
        ({"autoscaling": {"class": "vpa"}}, "KServe has hpa"),
        ({"autoscaling": {"min_replicas": 0}}, "cannot scale to zero"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "less than min_replicas"),
        ({"autoscaling": {"class": "none", "max_replicas": 2}}, "needs an autoscaler"),
        ({"autoscaling": {"class": "none", "target": 2}}, "mean nothing"),
        ({"autoscaling": {"metric": "rps"}}, "class hpa knows cpu, memory"),
        ({"autoscaling": {"target": 120}}, "1 to 100"),
        ({"autoscaling": {"class": "keda", "metric": "prometheus"}}, "query, server and target"),
        ({"autoscaling": {"query": "up"}}, "prometheus alone"),
        ({"tolerations": [{"operator": "Like"}]}, "Equal and Exists"),
        ({"tolerations": [{"value": "x"}]}, "without a key"),
        ({"tolerations": ["gpu"]}, "give key, operator"),
        ({"service_account": "Not A Name"}, "names a Kubernetes object"),
        ({"node_selector": ["a"]}, "names with their values"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_one_sentence(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as raised:
        predictor_options(settings)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_a_class_of_the_other_mode_is_refused_and_those_of_this_one_are_named() -> None:
    options = predictor_options({"autoscaling": {"class": "kpa", "min_replicas": 0}})
    require_mode(options.autoscaling, "Knative")
    with pytest.raises(InputError, match="is in Standard mode, which has hpa, keda, external"):
        require_mode(options.autoscaling, "Standard")


def test_each_mode_is_told_its_class_in_its_own_way() -> None:
    def told(kind: str, mode: str) -> dict[str, str]:
        return service_annotations(predictor_options({"autoscaling": {"class": kind}}), mode)

    assert told("hpa", "Standard") == {"serving.kserve.io/autoscalerClass": "hpa"}
    assert told("hpa", "Knative") == {
        "autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"
    }
    # KServe's webhook does not know kpa as a class; it is Knative's own default.
    assert told("kpa", "Knative") == {}


@given(
    kind=st.sampled_from(sorted(METRICS)),
    least=st.integers(0, 5),
    most=st.integers(0, 8),
    target=st.integers(0, 200),
    metric=st.sampled_from(["", "cpu", "memory", "rps", "concurrency"]),
)
def test_what_is_accepted_obeys_the_rules_of_kserves_webhook(
    kind: str, least: int, most: int, target: int, metric: str
) -> None:
    settings = {
        "class": kind,
        "min_replicas": float(least),
        "max_replicas": most,
        "metric": metric,
        "target": target,
    }
    try:
        options = predictor_options({"autoscaling": settings})
    except InputError as error:
        assert str(error).endswith(".")
        return
    fields = predictor_fields(options)
    assert json.loads(json.dumps(fields)) == fields
    assert fields["minReplicas"] <= fields.get("maxReplicas", fields["minReplicas"])
    assert fields["minReplicas"] > 0 or MODES[kind] == ("Knative",)
    if kind == "keda":
        assert "scaleMetric" not in fields
    if kind == "hpa":
        assert fields["scaleMetric"] in ("cpu", "memory")
        assert fields.get("scaleTarget", 1) <= 100
    if kind == "kpa":
        assert fields["scaleMetric"] in ("rps", "concurrency")
    spec = {"name": "v1", "model": {"storageUri": "s3://b/m/1"}, **fields}
    for percent in (0, 40):
        candidate = candidate_predictor(spec, percent)
        assert not set(candidate) & set(SCALING_KEYS) - {"minReplicas"}
        assert candidate.get("minReplicas", 1) == 1


@given(st.integers(1, 10_000))
def test_quantities_are_compared_across_units(number: int) -> None:
    assert quantity(f"{number}m") * 1000 == pytest.approx(number)
    assert quantity(f"{number}Gi") == number * 2**30
    assert quantity(f"{number}Mi") < quantity(f"{number}Gi")
