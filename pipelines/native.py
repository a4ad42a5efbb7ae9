# SPDX-License-Identifier: Apache-2.0
"""Pipelines as Kubernetes objects, for a KFP that keeps its pipelines in the cluster (GitOps).

Such an API server runs with `--pipelinesStoreKubernetes`. The spec of a PipelineVersion is
immutable, so its name holds the version of kfloop and a hash of the spec: another spec is another
object, and the old ones stay for the runs that name them until somebody deletes them.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from kfloop.components.contracts.files import write_text
from kfloop.components.images import VERSION
from kfloop.pipelines.catalogue import PIPELINES, compile_pipelines
from kfloop.pipelines.local.pipeline_spec import Document, load_documents
from kfloop.pipelines.schedule_file import digest

API_VERSION = "pipelines.kubeflow.org/v2beta1"
PART_OF = {"app.kubernetes.io/part-of": "kfloop"}
# After the Pipeline, which the API server's webhook looks for. By the server: what was applied last
# would be kept in an annotation, and those may hold 256 KiB, which monitoring reaches. Kept when
# another version takes its place in git, for the recurring runs that name it.
ARGO_CD = {
    "argocd.argoproj.io/sync-wave": "1",
    "argocd.argoproj.io/sync-options": "ServerSideApply=true,Prune=false",
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
}


def write_manifests(directory: Path, namespace: str = "") -> Iterator[Path]:
    """Compiles every pipeline and yields the manifests and a kustomization as they are written.

    Args:
        directory: Made if it is not there.
        namespace: Namespace of the objects; empty leaves it to who applies them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, compiled in zip(PIPELINES, compile_pipelines(Path(scratch)), strict=True):
            path = directory / f"{name}.yaml"
            objects = pipeline_objects(load_documents(compiled), PIPELINES[name], namespace)
            write_text(path, yaml.safe_dump_all(objects, sort_keys=False))
            files.append(path.name)
            yield path
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": files,
    }
    write_text(directory / "kustomization.yaml", yaml.safe_dump(kustomization, sort_keys=False))
    yield directory / "kustomization.yaml"


def pipeline_objects(documents: list[Document], about: str, namespace: str = "") -> list[Document]:
    """Returns a Pipeline and its PipelineVersion; the first must be there before the second.

    Args:
        documents: The compiled pipeline and, where there are any, its platform settings.
        about: What it does.
        namespace: Namespace of both, or empty.
    """
    name = documents[0]["pipelineInfo"]["name"]
    version = f"{name}-{VERSION}-{digest(documents)[:10]}"
    place = {"namespace": namespace} if namespace else {}
    pipeline = {
        "apiVersion": API_VERSION,
        "kind": "Pipeline",
        "metadata": {"name": name, **place, "labels": PART_OF},
        "spec": {"displayName": name, "description": about},
    }
    spec = {
        "pipelineName": name,
        "displayName": f"{VERSION} {digest(documents)[:10]}",
        "description": about,
        "pipelineSpec": documents[0],
    }
    if len(documents) > 1:
        spec["platformSpec"] = documents[1]
    return [
        pipeline,
        {
            "apiVersion": API_VERSION,
            "kind": "PipelineVersion",
            "metadata": {
                "name": version,
                **place,
                "labels": PART_OF,
                "annotations": ARGO_CD,
            },
            "spec": spec,
        },
    ]
