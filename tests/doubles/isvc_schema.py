# SPDX-License-Identifier: Apache-2.0
"""The fields of KServe's InferenceService (v1beta1) and of Trainer's TrainJob, as tables.

Types, bounds and enumerations are those that the resource definitions have: the share of a canary
is bounded, `canaryTrafficPercent` is not. Deep parts of pods that no test looks into are `any`.
"""

from typing import Any

ENV = [{"!": "name", "name": "string", "value": "string", "valueFrom": "any"}]
RESOURCES = {"limits": {"*": "quantity"}, "requests": {"*": "quantity"}, "claims": ["any"]}
PROBE = {
    "httpGet": "any",
    "exec": "any",
    "grpc": "any",
    "tcpSocket": "any",
    "initialDelaySeconds": "integer",
    "periodSeconds": "integer",
    "timeoutSeconds": "integer",
    "successThreshold": "integer",
    "failureThreshold": "integer",
    "terminationGracePeriodSeconds": "integer",
}
CONTAINER: dict[str, Any] = {
    "name": "string",
    "image": "string",
    "command": ["string"],
    "args": ["string"],
    "workingDir": "string",
    "ports": [
        {
            "!": "containerPort",
            "containerPort": "integer",
            "name": "string",
            "protocol": "string",
            "hostPort": "integer",
            "hostIP": "string",
        }
    ],
    "env": ENV,
    "envFrom": ["any"],
    "resources": RESOURCES,
    "resizePolicy": ["any"],
    "restartPolicy": "string",
    "volumeMounts": [
        {
            "!": "name mountPath",
            "name": "string",
            "mountPath": "string",
            "readOnly": "boolean",
            "subPath": "string",
            "subPathExpr": "string",
            "mountPropagation": "string",
            "recursiveReadOnly": "string",
        }
    ],
    "volumeDevices": ["any"],
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "startupProbe": PROBE,
    "lifecycle": "any",
    "terminationMessagePath": "string",
    "terminationMessagePolicy": "string",
    "imagePullPolicy": "string",
    "securityContext": "any",
    "stdin": "boolean",
    "stdinOnce": "boolean",
    "tty": "boolean",
}
POD: dict[str, Any] = {
    "activeDeadlineSeconds": "integer",
    "affinity": "any",
    "automountServiceAccountToken": "boolean",
    "containers": [{"!": "name", **CONTAINER}],
    "dnsConfig": "any",
    "dnsPolicy": "string",
    "enableServiceLinks": "boolean",
    "hostAliases": ["any"],
    "hostIPC": "boolean",
    "hostNetwork": "boolean",
    "hostPID": "boolean",
    "hostname": "string",
    "imagePullSecrets": [{"name": "string"}],
    "initContainers": [{"!": "name", **CONTAINER}],
    "nodeName": "string",
    "nodeSelector": {"*": "string"},
    "os": "any",
    "overhead": {"*": "quantity"},
    "preemptionPolicy": "string",
    "priority": "integer",
    "priorityClassName": "string",
    "readinessGates": ["any"],
    "resourceClaims": ["any"],
    "restartPolicy": "string",
    "runtimeClassName": "string",
    "schedulerName": "string",
    "schedulingGates": ["any"],
    "securityContext": "any",
    "serviceAccount": "string",
    "serviceAccountName": "string",
    "setHostnameAsFQDN": "boolean",
    "shareProcessNamespace": "boolean",
    "subdomain": "string",
    "terminationGracePeriodSeconds": "integer",
    "tolerations": [
        {
            "key": "string",
            "operator": "string",
            "value": "string",
            "effect": "string",
            "tolerationSeconds": "integer",
        }
    ],
    "topologySpreadConstraints": ["any"],
    "volumes": ["any"],
}
STORAGE_URIS = [{"!": "uri", "uri": "string", "mountPath": "string =/mnt/models"}]
EXTENSION: dict[str, Any] = {
    "minReplicas": "integer",
    "maxReplicas": "integer",
    "scaleTarget": "integer",
    "scaleMetric": "string cpu|memory|concurrency|rps",
    "scaleMetricType": "string Utilization|Value|AverageValue",
    "autoScaling": {"metrics": ["any"], "behavior": "any"},
    "containerConcurrency": "integer",
    "timeout": "integer",
    # No bounds: KServe takes 150.
    "canaryTrafficPercent": "integer",
    "logger": {
        "url": "string",
        "mode": "string all|request|response",
        "metadataHeaders": ["string"],
        "metadataAnnotations": ["string"],
        "storage": "any",
        "batchSize": "integer",
        "batchInterval": "string",
        "marshallerUrl": "string",
    },
    "batcher": {"maxBatchSize": "integer", "maxLatency": "integer", "timeout": "integer"},
    "labels": {"*": "string"},
    "annotations": {"*": "string"},
    "deploymentStrategy": "any",
}
FRAMEWORK = {
    **CONTAINER,
    "storageUri": "string",
    "runtimeVersion": "string",
    "protocolVersion": "string",
    "storage": {
        "key": "string",
        "path": "string",
        "schemaPath": "string",
        "parameters": {"*": "string"},
    },
    "confidential": "any",
}
MODEL = {
    "!": "modelFormat",
    **FRAMEWORK,
    "modelFormat": {"!": "name", "name": "string", "version": "string"},
    "runtime": "string",
}
# `name` without a pattern in FRAMEWORK is the container's; here it is the variant's.
PREDICTOR: dict[str, Any] = {
    **POD,
    **EXTENSION,
    "name": "string /^[a-z]([-a-z0-9]*[a-z0-9])?$/",
    "model": MODEL,
    **dict.fromkeys(
        [
            "sklearn",
            "xgboost",
            "tensorflow",
            "pytorch",
            "triton",
            "onnx",
            "huggingface",
            "pmml",
            "lightgbm",
            "paddle",
        ],
        FRAMEWORK,
    ),
    "storageUris": STORAGE_URIS,
    "storageContainerName": "string",
    "workerSpec": {
        **POD,
        "pipelineParallelSize": "integer",
        "tensorParallelSize": "integer",
    },
}
COMPONENT = {**POD, **EXTENSION, "storageUris": STORAGE_URIS}
CONDITION = {
    "!": "type status",
    "type": "string",
    "status": "string",
    "reason": "string",
    "message": "string",
    "severity": "string",
    "lastTransitionTime": "string",
    "observedGeneration": "integer",
}
MODEL_STATUS = {
    "transitionStatus": "string |UpToDate|InProgress|BlockedByFailedLoad|InvalidSpec",
    "states": {
        "activeModelState": "string |Pending|Standby|Loading|Loaded|FailedToLoad",
        "targetModelState": "string |Pending|Standby|Loading|Loaded|FailedToLoad",
    },
    "lastFailureInfo": {
        "location": "string",
        "reason": "string ModelLoadFailed|RuntimeUnhealthy|RuntimeDisabled|NoSupportingRuntime"
        "|RuntimeNotRecognized|InvalidPredictorSpec",
        "message": "string",
        "modelRevisionName": "string",
        "time": "string",
        "exitCode": "integer",
    },
    "copies": {"failedCopies": "integer", "totalCopies": "integer"},
}
INFERENCE_SERVICE: dict[str, Any] = {
    "spec": {
        "!": "predictor",
        "predictor": PREDICTOR,
        "transformer": COMPONENT,
        "explainer": {**COMPONENT, "art": "any"},
        "canary": [
            {"!": "predictor trafficPercent", "trafficPercent": "integer 0..100"}
            | {"predictor": PREDICTOR}
        ],
    },
    "status": {
        "observedGeneration": "integer",
        "annotations": {"*": "string"},
        "conditions": [CONDITION],
        "address": "any",
        "url": "string",
        "components": {
            "*": {
                "latestReadyRevision": "string",
                "latestCreatedRevision": "string",
                "previousRolledoutRevision": "string",
                "latestRolledoutRevision": "string",
                "traffic": [
                    {
                        "configurationName": "string",
                        "latestRevision": "boolean",
                        "percent": "integer",
                        "revisionName": "string",
                        "tag": "string",
                        "url": "string",
                    }
                ],
                "url": "string",
                "restUrl": "string",
                "grpcUrl": "string",
                "address": "any",
            }
        },
        "modelStatus": MODEL_STATUS,
        "canaryStatuses": [
            {
                "!": "name ready trafficPercent",
                "name": "string",
                "ready": "boolean",
                "trafficPercent": "integer",
                "modelStatus": MODEL_STATUS,
            }
        ],
        "deploymentMode": "string",
        "servingRuntimeName": "string",
        "clusterServingRuntimeName": "string",
    },
}
INITIALIZER = {"storageUri": "string", "env": ENV, "secretRef": {"name": "string"}}
TRAIN_JOB: dict[str, Any] = {
    "spec": {
        "!": "runtimeRef",
        "runtimeRef": {"!": "name", "name": "string", "apiGroup": "string", "kind": "string"},
        "initializer": {"dataset": INITIALIZER, "model": INITIALIZER},
        "trainer": {
            "image": "string",
            "command": ["string"],
            "args": ["string"],
            "env": ENV,
            "numNodes": "integer",
            "resourcesPerNode": RESOURCES,
            "numProcPerNode": "integer",
        },
        "runtimePatches": [{"!": "manager", "manager": "string", "*": "any"}],
        "suspend": "boolean",
        "activeDeadlineSeconds": "integer 1..",
        "managedBy": "string",
    },
    "status": {
        "conditions": [CONDITION],
        "jobsStatus": [
            {
                "!": "name",
                "name": "string",
                **dict.fromkeys(["ready", "succeeded", "failed", "active", "suspended"], "integer"),
            }
        ],
        "trainerStatus": "any",
    },
}
