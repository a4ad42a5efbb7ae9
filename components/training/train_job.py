# SPDX-License-Identifier: Apache-2.0
"""Training on several machines: a TrainJob of Kubeflow Trainer, with Keras on JAX.

Keras does not train across machines with TensorFlow (keras-team/keras#20585), and Trainer has no
runtime for it. Its runtime `jax-distributed` starts one process per node.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import new_directory, write_text
from kfloop.components.contracts.model_package import ModelPackage, read_model_json
from kfloop.components.training.cluster import Cluster, Kind, run_to_end
from kfloop.components.training.columns import Roles
from kfloop.components.training.settings import TrainSettings
from kfloop.components.training.shared_volume import (
    CURVES,
    MODEL,
    SPEC,
    Volume,
    job_name,
    share,
    specification,
)

TRAIN_JOB = Kind(
    "trainer.kubeflow.org",
    "v1alpha1",
    "trainjobs",
    "TrainJob",
    "Complete",
    "jobset.sigs.k8s.io/jobset-name",
    "Kubeflow Trainer 2.3 or newer",
)
# The runtime's name for its only group of pods, and for the container in them.
NODE = "node"
# The cluster ends a job that runs too long; this is for it to say so.
GRACE_SECONDS = 60.0


@dataclass
class TrainJobSettings:
    """Where and on what to train.

    Attributes:
        image: With the JAX lock of the training family.
        volume: Seen by this process and by every node.
        nodes: Number of machines, one process each.
        resources: Of each node, for example `{"cpu": "8", "nvidia.com/gpu": 1}`.
        runtime: ClusterTrainingRuntime.
        namespace: Empty for the current one.
        timeout_minutes: The job is ended after so many minutes.
        poll_seconds: Time between two looks at it.
        dry_run: Print the manifest and submit nothing.
    """

    image: str
    volume: Volume
    nodes: int = 2
    resources: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "jax-distributed"
    namespace: str = ""
    timeout_minutes: float = 24 * 60.0
    poll_seconds: float = 5.0
    dry_run: bool = False


def submit_train_job(
    dataset: str | Path,
    schema: str | Path,
    model: str | Path,
    curves: str | Path,
    roles: Roles,
    settings: TrainSettings,
    job: TrainJobSettings,
) -> ModelPackage:
    """Trains as `train` does, in a TrainJob.

    Args:
        dataset: The training dataset; copied to the volume once.
        schema: Data schema (TFDV text proto).
        model: Directory of the model package to write.
        curves: HTML file of the training curves to write.
        roles: What the columns are for.
        settings: How to train.
        job: Where and on what.

    Returns:
        The content of the package's `model.json`.

    Raises:
        InputError: If a setting cannot be used, the job fails or takes too long, or `dry_run` is
            set: then nothing was trained.
    """
    _check(job)
    lasting = replace(job, poll_seconds=0.0, dry_run=False)
    content = [asdict(each) for each in (settings, roles, lasting)]
    name = job_name(settings.name, content, dataset)
    directory = Path(job.volume.path) / name
    manifest = train_job(name, job)
    if job.dry_run:
        print(json.dumps(manifest, indent=2), flush=True)
        raise InputError("dry_run is set: the TrainJob above was not submitted.")
    share(job.volume, name, dataset, schema, specification(directory, roles, settings))
    cluster = Cluster(job.namespace)
    seconds = job.timeout_minutes * 60 + GRACE_SECONDS
    run_to_end(cluster, TRAIN_JOB, manifest, seconds, job.poll_seconds)
    package = read_model_json(directory / MODEL)
    with new_directory(model) as beside:
        shutil.copytree(directory / MODEL, beside, dirs_exist_ok=True)
    write_text(curves, (directory / CURVES).read_text(encoding="utf-8"))
    return package


def train_job(name: str, job: TrainJobSettings) -> dict[str, Any]:
    """Returns the manifest of a TrainJob that reads its specification from the volume."""
    spec = Path(job.volume.path) / name / SPEC
    mounted = {
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": job.volume.claim}},
        ],
        "containers": [
            {"name": NODE, "volumeMounts": [{"name": "shared", "mountPath": job.volume.path}]}
        ],
    }
    resources = {key: str(value) for key, value in job.resources.items()}
    trainer: dict[str, Any] = {
        "image": job.image,
        "command": ["python", "-m", "kfloop.components.training.distributed"],
        "args": ["--spec", str(spec)],
        "env": [{"name": "KFLOOP_IMAGE", "value": job.image}],
        "numNodes": job.nodes,
    }
    if resources:
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    return {
        "apiVersion": f"{TRAIN_JOB.group}/{TRAIN_JOB.version}",
        "kind": TRAIN_JOB.name,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "kfloop"}},
        "spec": {
            "runtimeRef": {"name": job.runtime},
            "activeDeadlineSeconds": max(1, round(job.timeout_minutes * 60)),
            "trainer": trainer,
            "runtimePatches": [
                {
                    "manager": "kfloop.org/train-job",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {
                                "replicatedJobs": [
                                    {
                                        "name": NODE,
                                        "template": {"spec": {"template": {"spec": mounted}}},
                                    }
                                ]
                            }
                        }
                    },
                }
            ],
        },
    }


def _check(job: TrainJobSettings) -> None:
    if not job.image or not job.volume.claim:
        missing = "image" if not job.image else "volume claim"
        raise InputError(f"The TrainJob has no {missing}; set it.")
    if not Path(job.volume.path).is_absolute():
        raise InputError(f"The volume path is {job.volume.path!r}; it must be an absolute path.")
    if job.nodes < 1:
        raise InputError(f"nodes is {job.nodes}; it must be at least 1.")
    if not job.timeout_minutes > 0:
        raise InputError(f"timeout_minutes is {job.timeout_minutes}; it must be above 0.")
