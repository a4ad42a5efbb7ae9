# SPDX-License-Identifier: Apache-2.0
"""The sections of `loop.yaml` about serving, what is watched there, replay and batch scoring."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.resources import predictor_options
from kfloop.components.deployment.settings import percents_of
from kfloop.pipelines.loop_sections import Moment, Section

# The names are checked in loop_checks, by the task.
PerformanceLimits = dict[str, dict[str, float]]


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
        performance: Metric to `{maximum_drop: x}`: how much worse than at release is too much; also
            `maximum_relative_drop`, `minimum` and `maximum`.
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
    performance: PerformanceLimits = {}
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
