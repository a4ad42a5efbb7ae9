# SPDX-License-Identifier: Apache-2.0
"""A published model version as something to deploy: its predictor spec, with its lineage."""

from typing import Any

from kfloop.components.contracts.deployment_record import RECORD_ANNOTATION, Target
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.deployment.autoscaling import STANDARD
from kfloop.components.deployment.manifest import LOG_ANNOTATION, VERSION_ANNOTATION
from kfloop.components.deployment.resources import (
    PredictorOptions,
    model_fields,
    predictor_fields,
    secret_annotation,
    service_annotations,
)

MODEL_ANNOTATION = "kfloop.org/model"
NONE = "none"
# KServe copies the annotations of the service into the pods' template, where each change would
# restart them. A predictor's own annotations win there, so these stand in the way of the ones that
# change while a version runs.
MASKED = (RECORD_ANNOTATION, LOG_ANNOTATION, "kfloop.org/shadow", "kfloop.org/sticky-key")
MASK = "see the InferenceService"


def target_of(
    package: ModelPackage,
    storage_uri: str,
    options: PredictorOptions | None = None,
    mode: str = STANDARD,
    log: str = "",
    run_id: str = "",
    gate_decision: str = "",
) -> Target:
    """Describes a published model version as something to deploy.

    The predictor's name comes from the version: KServe's Standard mode keeps the name of a
    promoted canary for good and wants a new one for each candidate.

    Args:
        package: What the version's `model.json` says.
        storage_uri: Where it lies, as KServe reads it.
        options: Resources, autoscaling, runtime and the like.
        mode: Deployment mode of the service.
        log: The inference log; an http(s) address is a payload logger, which KServe itself feeds.
        run_id: The pipeline run that deploys it, for its lineage.
        gate_decision: What the gate said of it, for its lineage.

    Raises:
        InputError: If the package was never published, so it has no version, or the URI does not
            end in the version.
    """
    if not package.version:
        raise InputError(
            f"The model package {storage_uri} has no version; deploy what publish_model returned."
        )
    # The same URI with new bytes is never loaded again, so each version has a URI of its own.
    if storage_uri.rstrip("/").rsplit("/", 1)[-1] != package.version:
        raise InputError(
            f"{storage_uri} does not end in its version, {package.version}: a model that is "
            "replaced in its place is never loaded again; deploy what publish_model returned."
        )
    options = options or PredictorOptions()
    model = model_fields(options)
    predictor: dict[str, Any] = {
        "name": f"v{package.version}",
        # The Secret is named on the pods, too: a candidate may need another one.
        "annotations": {
            **lineage(package, run_id, gate_decision),
            **dict.fromkeys(MASKED, MASK),
            **secret_annotation(options),
        },
        "model": {**model, "storageUri": storage_uri},
        **predictor_fields(options),
    }
    if log.startswith(("http://", "https://")):
        # The event's own attributes do not say which version answered; this one does.
        predictor["logger"] = {
            "mode": "all",
            "url": log,
            "metadataAnnotations": [VERSION_ANNOTATION],
        }
    return Target(package.version, storage_uri, predictor, service_annotations(options, mode))


def lineage(package: ModelPackage, run_id: str = "", gate_decision: str = "") -> dict[str, str]:
    """Returns where a version comes from, as annotations.

    Every key is there, `none` where nothing is known: in Standard mode a candidate inherits the
    annotations of the live version that it does not set itself.
    """
    known = {
        VERSION_ANNOTATION: package.version,
        MODEL_ANNOTATION: package.name,
        "kfloop.org/dataset-fingerprint": package.dataset_fingerprint,
        "kfloop.org/schema-fingerprint": package.schema_fingerprint,
        "kfloop.org/feature-service": package.feature_service,
        "kfloop.org/git-commit": package.git_commit,
        "kfloop.org/pipeline-run": run_id,
        "kfloop.org/gate-decision": gate_decision,
    }
    return {key: value or NONE for key, value in known.items()}
