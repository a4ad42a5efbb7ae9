# SPDX-License-Identifier: Apache-2.0
"""The sections of `loop.yaml` about training, evaluation and the gate."""

from typing import Annotated, Any, Literal

from pydantic import Field

from kfloop.pipelines.loop_sections import Section

# The names are checked in loop_checks, by the task.
GateLimits = dict[str, float | dict[str, float]]


class Dimension(Section):
    """What one hyperparameter may be: `choices`, or a range.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether each power of ten is as likely as the next.
        step: Distance between values; any value without it.
        type: `int` or `float`, for a name that only your own module knows.
        choices: The values.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    type: Literal["int", "float"] | None = None
    choices: list[Any] | None = None


class Tuning(Section):
    """How the hyperparameters are searched.

    Attributes:
        space: Per hyperparameter, or `learning_rate`, `batch_size`, `epochs`, what is tried.
        trials: Trials of the study in all.
        parallel_trials: Trials at the same time.
        timeout_minutes: No trial starts after so many minutes; 0 for no limit.
        metric: What is compared; empty for the task's own.
        direction: Which way is better; empty for the metric's own.
        pruning: How trials that are worse than others were are ended early.
        study: Directory on a volume that outlives the pod, for a killed tuning to go on.
    """

    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    trials: Annotated[int, Field(ge=1)] = 20
    parallel_trials: Annotated[int, Field(ge=1)] = 1
    timeout_minutes: Annotated[float, Field(ge=0)] = 0
    metric: Literal[
        "", "validation_loss", "validation_auc", "validation_accuracy", "validation_rmse"
    ] = ""
    direction: Literal["", "maximize", "minimize"] = ""
    pruning: Literal["median", "hyperband", "none"] = "median"
    study: str = ""

    @property
    def given_space(self) -> dict[str, Any]:
        """The space as the file gives it."""
        return {name: each.model_dump(exclude_unset=True) for name, each in self.space.items()}


class Accelerator(Section):
    """What the training task asks the cluster for; a laptop uses what it has.

    Attributes:
        type: Kubernetes resource name, for example `nvidia.com/gpu`.
        count: How many; 0 asks for none.
    """

    type: str = "nvidia.com/gpu"
    count: Annotated[int, Field(ge=0)] = 0


class Training(Section):
    """How the model is trained.

    Attributes:
        features: Model inputs; all columns but label, timestamp and entities unless given.
        module: Path of your own module with `build_model`; empty means the built-in network.
        epochs: Most passes over the data; early stopping may end before.
        batch_size: Rows per step.
        learning_rate: Initial learning rate of Adam.
        validation_fraction: Last part of the training data, used for early stopping.
        seed: Same seed and data give the same weights on a CPU.
        hyperparameters: Passed to the model builder.
        input: `memory`, `stream`, or `auto`: stream what would take more than half of the memory.
        checkpoint: Directory on a volume that outlives the pod, for a killed training to go on.
        require_gpu: Fail when there is no GPU.
        accelerator: What the training task asks the cluster for.
        mixed_precision: `bfloat16`, or empty for float32.
        tuning: How the hyperparameters are searched; not at all unless given.
        onnx: Whether the package holds the graph as ONNX too, which the model server then runs.
    """

    features: list[str] = []
    module: str = ""
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 1024
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0
    hyperparameters: dict[str, Any] = {}
    input: Literal["auto", "memory", "stream"] = "auto"
    checkpoint: str = ""
    require_gpu: bool = False
    accelerator: Accelerator = Accelerator()
    mixed_precision: Literal["", "bfloat16"] = ""
    tuning: Tuning | None = None
    onnx: bool = True


class Evaluation(Section):
    """How the model is judged.

    Attributes:
        slices: Columns whose values are judged apart.
        minimum_slice_size: Slices with fewer rows get no metrics.
        groups: Binary: columns whose values must be treated alike.
        threshold: Binary: probability from which a row is called positive.
        threshold_by: Binary: what chooses the threshold instead; empty keeps `threshold`.
        costs: What a `false_positive` and a `false_negative` cost, for `threshold_by: cost`.
        resamples: Bootstrap resamples behind every interval.
        seed: Of the resamples and of the permutation importance.
        importance_rows: Most rows for the permutation importance; 0 for none.
    """

    slices: list[str] = []
    minimum_slice_size: Annotated[int, Field(ge=1)] = 100
    groups: list[str] = []
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    threshold_by: Literal["", "f1", "accuracy", "youden", "cost"] = ""
    costs: dict[Literal["false_positive", "false_negative"], Annotated[float, Field(gt=0)]] = {}
    resamples: Annotated[int, Field(ge=1)] = 200
    seed: int = 7
    importance_rows: Annotated[int, Field(ge=0)] = 2000


class Gate(Section):
    """What a model must reach to be deployed.

    Attributes:
        thresholds: Metric to `{minimum: x}` or `{maximum: x}`; a bare number is the one that fits
            the metric. Without any, the model must beat a trivial one.
        slices: The same for every slice that is large enough.
        confident: Whether the near bound of the 95 % interval must clear a threshold or a minimum
            improvement, and not only the value.
        metric: The metric in which the champion is compared; the task's main one unless given.
        tolerance: How much worse than the champion in it is always allowed, in its own unit.
        minimum_improvement: Metric to how much better than the champion the model must be. Without
            any, it must not be surely worse.
        maximum_slice_regression: Metric to how much worse than the champion it may be in a slice.
        fairness: Rate to the largest gap between the groups of `evaluation.groups`.
        latency_ms: Most milliseconds for a `row` and for a `batch` of 256, on the machine of the
            evaluation.
        no_baseline: Whether a model passes when there is no champion to compare it with.
        force: Why a model that does not pass is let through; it is recorded.
    """

    thresholds: GateLimits = {}
    slices: GateLimits = {}
    confident: bool = False
    metric: str = ""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    minimum_improvement: dict[str, float] = {}
    maximum_slice_regression: dict[str, Annotated[float, Field(ge=0)]] = {}
    fairness: dict[
        Literal["selection_rate", "true_positive_rate", "false_positive_rate"],
        Annotated[float, Field(ge=0, le=1)],
    ] = {}
    latency_ms: dict[Literal["row", "batch"], Annotated[float, Field(gt=0)]] = {}
    no_baseline: Literal["pass", "fail"] = "pass"
    force: str = ""
