# SPDX-License-Identifier: Apache-2.0
"""The closed machine-learning loop as Kubeflow Pipelines components.

`from kfloop.components import train_model` imports one component; nothing else is loaded.
"""

from importlib import import_module
from typing import Any

FAMILIES: dict[str, tuple[str, ...]] = {
    "data": (
        "ingest_data",
        "transform_data",
        "build_feature_tables",
        "split_data",
        "join_labels",
        "collect_inference_log",
        "plan_windows",
        "load_reference",
        "export_data",
    ),
    "validation": (
        "compute_statistics",
        "infer_schema",
        "update_schema",
        "validate_data",
        "require_pass",
    ),
    "features": (
        "apply_feature_repo",
        "retrieve_training_set",
        "materialize_features",
        "push_features",
        "retrieve_online",
        "detect_serving_skew",
    ),
    "training": (
        "train_model",
        "tune_model",
        "export_onnx",
        "submit_train_job",
        "tune_with_katib",
    ),
    "evaluation": ("evaluate_model", "compare_models", "gate_model", "score_data"),
    "deployment": (
        "publish_model",
        "deploy_model",
        "smoke_test_model",
        "shift_traffic",
        "roll_out_model",
        "analyse_canary",
        "promote_model",
        "roll_back_model",
        "register_model",
        "update_champion",
        "find_champion",
        "describe_service",
        "replay_requests",
    ),
    "monitoring": (
        "detect_drift",
        "score_outliers",
        "measure_performance",
        "decide_retraining",
        "export_metrics",
        "notify",
    ),
}
# Whose other side has only been a double in the tests: a cluster with KServe, Trainer or Katib, a
# Pushgateway, a Slack. See docs/versioning.md for what the levels promise.
BETA = frozenset(
    {
        "submit_train_job",
        "tune_with_katib",
        *(set(FAMILIES["deployment"]) - {"publish_model", "register_model"}),
        "export_metrics",
        "notify",
    }
)
_FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}
__all__ = list(_FAMILY_OF)


def stability(name: str) -> str:
    """Returns the level of a component: `stable` or `beta`."""
    return "beta" if name in BETA else "stable"


def __getattr__(name: str) -> Any:
    if name not in _FAMILY_OF:
        raise AttributeError(f"kfloop.components has no component {name!r}; it has {__all__}.")
    return getattr(import_module(f"kfloop.components.{_FAMILY_OF[name]}.component"), name)


def __dir__() -> list[str]:
    return __all__
