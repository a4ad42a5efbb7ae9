# SPDX-License-Identifier: Apache-2.0
"""Pipelines as Kubernetes objects, held against KFP's own rules for them."""

import re

import pytest
import yaml

from kfloop.pipelines.catalogue import PIPELINES, compiled_path
from kfloop.pipelines.local.pipeline_spec import load_documents
from kfloop.pipelines.native import pipeline_objects, write_manifests

# Of the resource definitions of KFP 2.17.
SPEC_KEYS = {
    "Pipeline": {"displayName", "description", "tags"},
    "PipelineVersion": {
        *("displayName", "description", "tags", "codeSourceURL", "pipelineName", "versionName"),
        *("pipelineSpec", "pipelineSpecURI", "platformSpec"),
    },
}
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("manifests")
    assert len(list(write_manifests(directory, "ml"))) == len(PIPELINES) + 1
    return directory


def test_a_kustomization_names_every_pipeline(directory):
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert kustomization["resources"] == [f"{name}.yaml" for name in PIPELINES]


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_a_version_follows_its_pipeline_and_holds_what_was_compiled(directory, name, compiled):
    pipeline, version = yaml.safe_load_all((directory / f"{name}.yaml").read_text())
    for one in (pipeline, version):
        assert one["apiVersion"] == "pipelines.kubeflow.org/v2beta1"
        assert set(one["spec"]) <= SPEC_KEYS[one["kind"]]
        assert NAME.fullmatch(one["metadata"]["name"]) and len(one["metadata"]["name"]) <= 128
        assert one["metadata"]["namespace"] == "ml"
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert [version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]] == compiled(name)


def test_another_spec_is_another_object(compiled):
    documents = compiled("rollback")
    _, before = pipeline_objects(documents, "about")
    _, same = pipeline_objects(documents, "about")
    documents[0]["pipelineInfo"]["description"] = "another"
    _, after = pipeline_objects(documents, "about")
    assert before["metadata"]["name"] == same["metadata"]["name"]
    assert before["metadata"]["name"] != after["metadata"]["name"]
    assert "namespace" not in after["metadata"]


@pytest.fixture
def compiled():
    return lambda name: load_documents(compiled_path(name))
