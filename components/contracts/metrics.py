# SPDX-License-Identifier: Apache-2.0
"""The names of the evaluation metrics: what a loop file may name, and which way is better."""

METRICS = {
    "binary": (
        "auc", "pr_auc", "log_loss", "brier", "accuracy", "precision", "recall", "f1", "ece",
    ),
    "multiclass": ("accuracy", "log_loss", "macro_f1", "macro_auc", "macro_pr_auc", "ece"),
    "regression": ("mae", "rmse", "r2", "mean_error"),
}  # fmt: skip
HIGHER_IS_BETTER = {
    "auc", "pr_auc", "accuracy", "precision", "recall", "f1", "macro_f1", "macro_auc",
    "macro_pr_auc", "r2",
}  # fmt: skip
LOWER_IS_BETTER = {"log_loss", "brier", "ece", "mae", "rmse"}
# mean_error is neither: it is best at 0.
# The metric by which two models are compared unless another one is named.
MAIN_METRIC = {"binary": "auc", "multiclass": "macro_auc", "regression": "rmse"}
# What monitoring measures on the labels that arrived, and how a loop file may limit it.
PERFORMANCE_METRICS = {
    "binary": ("auc", "log_loss", "brier", "accuracy", "ece"),
    "multiclass": ("accuracy", "macro_f1"),
    "regression": ("mae", "rmse"),
}
PERFORMANCE_LIMITS = ("maximum_drop", "maximum_relative_drop", "minimum", "maximum")
# What may choose the probability from which a row is called positive.
THRESHOLD_RULES = ("f1", "accuracy", "youden", "cost")
# Rates whose gap between groups can be limited.
FAIRNESS_RATES = ("selection_rate", "true_positive_rate", "false_positive_rate")
