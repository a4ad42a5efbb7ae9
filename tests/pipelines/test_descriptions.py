# SPDX-License-Identifier: Apache-2.0
"""A compiled pipeline says what each of its parameters means, in words that are written once."""

import copy

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines import descriptions
from kfloop.pipelines.catalogue import PIPELINES, compiled_path
from kfloop.pipelines.descriptions import describe_parameters
from kfloop.pipelines.local.pipeline_spec import load_documents


def parameters(spec: dict) -> dict:
    return spec["root"]["inputDefinitions"]["parameters"]


def undescribed(pipeline: str) -> dict:
    """Returns a compiled pipeline as kfp leaves it: without descriptions at the root."""
    spec = copy.deepcopy(load_documents(compiled_path(pipeline))[0])
    for about in parameters(spec).values():
        del about["description"]
    return spec


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_every_parameter_of_every_pipeline_is_described(pipeline):
    for name, about in parameters(load_documents(compiled_path(pipeline))[0]).items():
        words = about["description"]
        assert words.endswith(".") and "\n" not in words and len(words) > 3, name
        assert not words.startswith(("As for", "The same")), name
        assert ("JSON" in words) == (about["parameterType"] in ("LIST", "STRUCT")), name


def test_the_words_are_those_of_the_component_under_the_pipelines_names():
    spec = undescribed("monitoring")
    for only_here in ("outlier_scores", "accelerator_type", "accelerator_count"):
        parameters(spec)[only_here]["description"] = "Said by the pipeline."
    describe_parameters(spec)
    said = {name: about["description"] for name, about in parameters(spec).items()}
    assert said["accelerator_type"] == "Said by the pipeline."
    # decide_retraining knows them as budget, budget_days and history_uri.
    assert "`retraining_budget_days`" in said["retraining_budget"]
    assert "`history`" in said["retraining_budget"] and "history_uri" not in str(said)
    # Through two sub-pipelines, where train_model and tune_model take it.
    assert said["batch_size"] == "Rows per training step, shared by all GPUs of the task."


def test_a_reference_to_another_component_is_followed():
    spec = undescribed("rollback")
    taker = spec["components"]["comp-update-champion"]["inputDefinitions"]["parameters"]
    assert taker["registry_uri"]["description"] == "As for register_model."
    describe_parameters(spec)
    assert parameters(spec)["registry"]["description"].startswith("MLflow tracking URI, or")


def test_a_parameter_that_nothing_describes_stops_the_compilation():
    with pytest.raises(InputError, match="nothing describes the parameter models of the pipeline"):
        spec = undescribed("backtest")
        parameters(spec)["trainings"]["description"] = "Windows."
        describe_parameters(spec)


def test_components_that_disagree_stop_the_compilation_unless_one_goes_first(monkeypatch):
    monkeypatch.setattr(descriptions, "SPEAKERS", ())
    with pytest.raises(InputError, match="ingest_data, transform_data say different things about"):
        spec = undescribed("replay")
        parameters(spec)["feature_service"]["description"] = "Features to join."
        parameters(spec)["timestamp"]["description"] = "A column."
        describe_parameters(spec)
