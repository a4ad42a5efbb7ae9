# SPDX-License-Identifier: Apache-2.0
"""The sections of `loop.yaml`: what each key means, its default, and what it may be."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from kfloop.components.contracts.environment import REFERENCE, holds_password
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.resources import predictor_options
from kfloop.components.deployment.settings import percents_of


def _moment(value: str) -> str:
    if value:
        try:
            datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError("write a date or time like 2013-06-01") from error
    return value


def _repository(value: str) -> str:
    scheme, separator, _ = value.partition("://")
    if separator and scheme not in ("gs", "file"):
        raise ValueError(
            f"a feature repository is not read from {scheme}://; give a directory, also of a "
            "mounted volume, or gs://"
        )
    return value


DATABASES = ("postgresql", "postgres", "sqlite", "mysql", "mariadb", "oracle", "mssql")
Moment = Annotated[str, AfterValidator(_moment)]
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
Limits = dict[str, float | dict[Literal["minimum", "maximum", "maximum_drop"], float]]


class Section(BaseModel):
    """Strict about keys, which are checked by pydantic."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Source(Section):
    """Where one table comes from.

    Attributes:
        uri: A Parquet, CSV or JSON-lines file, or a directory or glob of them, at a path, gs:// or
            s3://; relative paths are relative to the loop file. With `query`, SQLAlchemy's URL of
            a database. `${NAME}` stands for an environment variable of the step that reads it: the
            place for a password, or for the whole URL.
        format: `parquet`, `csv` or `jsonl`; empty means by the file's extension.
        timestamp: Column by which `since` and `until` choose rows; empty for tables without time.
        query: One SELECT in the database's own SQL; empty for files.
    """

    uri: str
    format: Literal["", "parquet", "csv", "jsonl"] = ""
    timestamp: str = ""
    query: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> "Source":
        scheme = self.uri.partition("://")[0].partition("+")[0] if "://" in self.uri else ""
        if holds_password(self.uri):
            raise ValueError(
                "uri holds a password; put it into an environment variable and write ${NAME}"
            )
        if "$" in REFERENCE.sub("", self.uri):
            raise ValueError("uri names an environment variable; write it like ${NAME}")
        if self.query and self.format:
            raise ValueError("a source with a query is rows; leave out format")
        if self.query and (
            scheme in ("gs", "s3", "file") or not (scheme or self.uri.startswith("${"))
        ):
            raise ValueError("query needs the URL of a database, like sqlite:/// or ${NAME}")
        if not self.query and scheme in DATABASES:
            raise ValueError(f"{scheme}:// is a database; give it a query")
        if not self.query and scheme not in ("", "gs", "s3", "file"):
            raise ValueError(
                f"{scheme}:// is not supported; use a path, gs://, s3:// or a database"
            )
        return self


class Examples(Section):
    """What is predicted, one row per prediction.

    Attributes:
        query: DuckDB SQL over the sources, as text or as a path that ends in `.sql`.
        label: Column to predict.
        timestamp: Column with the time of prediction; empty if there is none.
        entities: Key columns: they join features, travel with requests, and are no model inputs
            unless `training.features` names them.
        keys: Columns that identify a row when its label arrives later; the entities and the
            timestamp unless given.
    """

    query: str
    label: str
    timestamp: str = ""
    entities: list[str] = []
    keys: list[str] = []


class Features(Section):
    """The Feast repository that adds features to the examples.

    Attributes:
        repo: Directory of the repository, or its gs:// address.
        service: Name of the feature service.
        tables: SQL (text or path) for each Parquet table its file sources read.
    """

    repo: Annotated[str, AfterValidator(_repository)]
    service: str
    tables: dict[str, str] = {}


class Split(Section):
    """What the model is trained and evaluated on.

    Attributes:
        method: `time`, `hash` (a stable random part) or `group` (no value of `key` on both sides).
        since: Start of the training data; empty means the beginning.
        at: Start of the evaluation data; empty means the last `fraction` of the rows.
        until: End of the evaluation data; empty means the end.
        fraction: Part of the rows used for evaluation when `at` is empty.
        key: Column for `hash` and `group`.
    """

    method: Literal["time", "hash", "group"] = "time"
    since: Moment = ""
    at: Moment = ""
    until: Moment = ""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    key: str = ""


class Validation(Section):
    """When data is refused.

    Attributes:
        minimum_rows: Fewest rows in the training part and in the evaluation part.
        data_schema: A reviewed TFDV schema (text proto) that wins over the inferred one; `schema`
            in the file.
        rules: Rules over the statistics, for example `distance.mean < 3000`.
        drift: Whether drift of the evaluation part is only reported, fails the run, or is off.
    """

    minimum_rows: Annotated[int, Field(ge=1)] = 100
    data_schema: Annotated[str, Field(alias="schema")] = ""
    rules: list[str] = []
    drift: Literal["report", "fail", "off"] = "report"


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

    thresholds: Limits = {}
    slices: Limits = {}
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


def _as_value_error(check: Callable[[Any], object], value: Any) -> None:
    """Lets a check of the components speak about the loop file."""
    try:
        check(value)
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from error


class Canary(Section):
    """How a candidate is tried beside the live model.

    Attributes:
        percent: Its share of the requests, where there is one step.
        steps: Its shares, one after the other, rising; 100 is the promotion, which comes last
            anyway. `[]` promotes what passed the smoke test.
        bake_seconds: How long each step lasts at least, before it is judged.
        minimum_requests: Fewest answers of the candidate at each step before it is judged.
        wait_seconds: Longest wait for them.
        replay: Whether recent requests are sent again when live traffic is too little.
        source: Where its numbers are from: `log`, the inference log, `metrics`, each model
            server's own, or `prometheus`. A payload logger's log cannot be asked.
        prometheus_url: Address of the Prometheus server.
        prometheus_preset: Whose metrics it holds.
        prometheus_queries: PromQL templates in place of the preset's, by name.
    """

    percent: Annotated[int, Field(ge=1, le=99)] = 20
    steps: list[Annotated[int, Field(ge=1, le=100)]] | None = None
    bake_seconds: Annotated[float, Field(ge=0)] = 0
    minimum_requests: Annotated[int, Field(ge=1)] = 200
    wait_seconds: Annotated[float, Field(ge=0)] = 20
    replay: bool = True
    source: Literal["log", "metrics", "prometheus"] = "log"
    prometheus_url: str = ""
    prometheus_preset: Literal["kfloop", "knative", "knative-otel", "istio", "envoy"] = "kfloop"
    prometheus_queries: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> "Canary":
        if self.steps is not None and "percent" in self.model_fields_set:
            raise ValueError("give steps or percent, not both")
        if (self.source == "prometheus") != bool(self.prometheus_url):
            raise ValueError("source: prometheus and prometheus_url go together")
        _as_value_error(percents_of, self.shares)
        return self

    @property
    def shares(self) -> list[int]:
        """The shares of the requests, in order."""
        return [self.percent] if self.steps is None else self.steps


class Serving(Section):
    """Where the model is served.

    Attributes:
        service: InferenceService name; the loop's name unless given.
        namespace: Kubernetes namespace; not used on a laptop.
        model_repository: Where versions are published; on a laptop `.kfloop/models` unless given.
        inference_log: Where requests are logged; on a laptop `.kfloop/inference-log` unless given,
            on a cluster the address of the payload logger.
        canary: How a candidate is tried.
        resources: `requests` and `limits` (`cpu`, `memory`) and `gpu`, the number of GPUs. These
            and those below have no effect on a laptop.
        autoscaling: `class`, `min_replicas`, `max_replicas`, `metric`, `target`.
        node_selector: Labels that a node must have.
        tolerations: Taints that are tolerated, as in a Pod.
        service_account: Kubernetes service account of the model's pods.
        storage_secret: Name of the Secret with the credentials of the model repository.
        timeout_seconds: Longest time for one request.
        runtime: `kfloop`, `tensorflow` (TensorFlow Serving) or a ServingRuntime's name.
        runtime_version: Tag of the runtime's image.
    """

    service: str = ""
    namespace: str = ""
    model_repository: str = ""
    inference_log: str = ""
    canary: Canary = Canary()
    resources: dict[str, Any] = {}
    autoscaling: dict[str, Any] = {}
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    service_account: str = ""
    storage_secret: str = ""
    timeout_seconds: int = 0
    runtime: str = ""
    runtime_version: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> "Serving":
        logger = self.inference_log.startswith(("http://", "https://"))
        if logger and self.canary.shares and self.canary.source == "log":
            raise ValueError(
                f"the payload logger {self.inference_log} tells nothing back, so say by what a "
                "canary is judged: canary.source prometheus, or metrics"
            )
        _as_value_error(predictor_options, self.predictor)
        return self

    @property
    def predictor(self) -> dict[str, Any]:
        """What the predictor gets from the cluster, as the components take it."""
        other = {"service", "namespace", "model_repository", "inference_log", "canary"}
        return self.model_dump(exclude=other, exclude_defaults=True)


class Retraining(Section):
    """When and on what the loop retrains.

    Attributes:
        train_days: Length of the training window before the evaluation window, in days.
        evaluation_days: Length of the newest labelled window, kept for evaluation.
        cooldown_days: Shortest time between two trainings, in days of event time.
        minimum_new_rows: Fewest newly labelled rows.
        consecutive_windows: How many windows in a row must call for it, so that one odd window
            does not.
        budget: Most retrainings in `budget_days`; 0 is no limit.
        budget_days: Days of event time that the budget is for.
        on_drift: Whether drift calls for retraining.
        on_performance: Whether worse performance does.
        history: File that remembers the decisions, on a volume that outlives the pods; on a laptop
            `.kfloop/monitoring` unless given.
    """

    train_days: Annotated[int, Field(ge=1)] = 180
    evaluation_days: Annotated[int, Field(ge=1)] = 14
    cooldown_days: Annotated[float, Field(ge=0)] = 14
    minimum_new_rows: Annotated[int, Field(ge=1)] = 200
    consecutive_windows: Annotated[int, Field(ge=1)] = 1
    budget: Annotated[int, Field(ge=0)] = 0
    budget_days: Annotated[float, Field(gt=0)] = 365
    on_drift: bool = True
    on_performance: bool = True
    history: str = ""


class Notify(Section):
    """Who is told how a monitoring run ended.

    Attributes:
        webhook: Address that gets `{"text": …}`, for example of a Slack incoming webhook. Write
            `${NAME}` for an environment variable of the step: such an address is a secret.
        ui_url: Address of the KFP UI, for the link in the message.
        always: Also tell of runs that kept the model.
    """

    webhook: str = ""
    ui_url: str = ""
    always: bool = False


class Monitoring(Section):
    """What is watched while the model is live.

    Attributes:
        window_days: Length of the window that is judged, in days.
        minimum_rows: Fewest rows in it; fewer is `no_data`.
        performance: Metric to `{maximum_drop: x}`: how much worse than at release is too much.
        label_maturity_days: How many days a label may take; until then a prediction without one
            is not counted as unlabelled.
        inference_log: Where the log is read; `serving.inference_log` unless given. With a payload
            logger, its directory for the service on the volume that it writes.
        retraining: When and on what the loop retrains.
        drift_history: File that remembers how far each window was from the reference, for the
            trend on the page; on a laptop in `.kfloop/monitoring` unless given.
        outlier_scores: Whether each request gets a score of how unlike the training data it is.
        metrics: Where the outcomes go for Prometheus: the URL of a Pushgateway, or a `.prom` file
            for a node exporter's textfile collector; empty is nowhere.
        notify: Who is told.
    """

    window_days: Annotated[int, Field(ge=1)] = 31
    minimum_rows: Annotated[int, Field(ge=1)] = 200
    performance: Limits = {}
    label_maturity_days: Annotated[float, Field(ge=0)] = 0
    inference_log: str = ""
    retraining: Retraining = Retraining()
    drift_history: str = ""
    outlier_scores: bool = False
    metrics: str = ""
    notify: Notify = Notify()


class Replay(Section):
    """Later rows that `kfloop loop` sends as requests, standing in for live traffic.

    Attributes:
        since: First time that is replayed; the end of the evaluation data unless given, and its
            beginning where it has no end.
        until: End; empty means the end of the data.
        limit: Most rows, spread evenly over the window.
        batch_size: Rows per request.
    """

    since: Moment = ""
    until: Moment = ""
    limit: Annotated[int, Field(ge=1)] = 5000
    batch_size: Annotated[int, Field(ge=1)] = 10


class BatchScoring(Section):
    """What becomes of the predictions of `kfloop run batch-scoring`.

    Attributes:
        export_to: Folder they are written to, a path, gs:// or s3://; empty means nowhere but the
            run.
        partition_by: Columns whose values make the folders; the day of `examples.timestamp` unless
            given. A second run replaces the partitions that it has rows for.
    """

    export_to: str = ""
    partition_by: list[str] = []
