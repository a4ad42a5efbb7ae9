# SPDX-License-Identifier: Apache-2.0
"""KFP components of the deployment family."""

from typing import Dict, List, NamedTuple

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def publish_model(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    model_repository: str,
) -> str:
    """Copies a trained model into the model repository as its next, immutable version.

    Args:
        model: The model package.
        evaluation: Its evaluation; it is kept with the version.
        model_repository: Where published models are kept, one folder per model name: a path, or a
            URI with gs://, s3:// or pvc://.

    Returns:
        URI of the published package.
    """
    from kfloop.components.deployment import publish

    return publish.publish_model(model.path, evaluation.path, model_repository)


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def deploy_model(
    model_uri: str,
    service: str,
    record: dsl.Output[dsl.Artifact],
    traffic_percent: int = 10,
    inference_log: str = "",
    namespace: str = "",
    timeout_seconds: float = 300.0,
    predictor: Dict = {},
    run_id: str = "",
    gate_decision: str = "",
    dry_run: bool = False,
) -> str:
    """Deploys a published model: alone when nothing is live yet, else as a canary.

    A candidate that cannot load is taken away again, and the step fails; the live version is not
    touched.

    Args:
        model_uri: The published model.
        service: Name of the service; it is created when there is none.
        record: The deployment record: what serves, what was there before.
        traffic_percent: Share of the requests for the candidate, 0 to 99; 0 is a dark launch.
        inference_log: Where the service logs; empty keeps the service's own.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait for the model to load and answer.
        predictor: `resources`, `autoscaling`, `node_selector`, `tolerations`, `service_account`,
            `storage_secret`, `timeout_seconds`, `runtime` and `runtime_version`, as in the loop
            file.
        run_id: Id of the pipeline run, for the lineage.
        gate_decision: What the gate said of the model, for the lineage.
        dry_run: Print what would change, and change nothing.

    Returns:
        `live` when the model is the only version, `canary` when it is beside a live one,
        `dry_run`.
    """
    from kfloop.components.contracts.deployment_record import record_metadata
    from kfloop.components.deployment import rollout

    outcome = rollout.deploy_model(
        model_uri,
        service,
        record.path,
        traffic_percent,
        inference_log,
        namespace,
        timeout_seconds,
        predictor=predictor,
        run_id=run_id,
        gate_decision=gate_decision,
        dry_run=dry_run,
    )
    record.metadata.update(record_metadata(record.path))
    return outcome


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def smoke_test_model(
    service: str,
    model_uri: str,
    decision: dsl.Output[dsl.Artifact],
    namespace: str = "",
    tolerance: float = 1e-5,
) -> str:
    """Sends the model's golden rows to its own address and compares the answers, on V1 and V2.

    Args:
        service: Name of the service.
        model_uri: The version to test, live or candidate.
        decision: The decision, with what was compared.
        namespace: Kubernetes namespace; empty for the current one.
        tolerance: Largest difference to the prediction that training saw.

    Returns:
        `pass`, `fail`, or `no_data` when the package has no golden rows.
    """
    from kfloop.components.contracts.decision import decision_metadata
    from kfloop.components.deployment import smoke_test

    made = smoke_test.smoke_test_model(service, model_uri, decision.path, namespace, tolerance)
    decision.metadata.update(decision_metadata(made))
    return made.decision


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def analyse_canary(
    service: str,
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    labels: dsl.Input[dsl.Dataset] = None,
    minimum_requests: int = 200,
    wait_seconds: float = 20.0,
    replay: bool = False,
    max_error_rate_increase: float = 0.05,
    max_latency_ratio: float = 2.0,
    latency_floor_ms: float = 50.0,
    max_prediction_shift: float = 1.0,
    max_disagreement: float = 0.2,
    max_loss_increase: float = 0.05,
    steps: int = 1,
    source: str = "log",
    prometheus_url: str = "",
    prometheus_preset: str = "kfloop",
    prometheus_queries: Dict = {},
    namespace: str = "",
) -> str:
    """Judges the candidate of a service against the live version.

    Its bounds hold however often it looks, so it stops as soon as it can tell: at once when the
    candidate is surely worse.

    Args:
        service: Name of the service.
        decision: The decision, with every check.
        page: The decision as a page, with both versions side by side.
        labels: Rows of the inference log with their labels, from join_labels; with them the loss
            of both versions is compared, too.
        minimum_requests: Requests that each version must have had; more are waited for when the
            error-rate limit cannot be met with so few (97 at a rise of 0.05).
        wait_seconds: Longest wait for enough live requests.
        replay: Whether to send logged requests again while live ones are too few to tell.
        max_error_rate_increase: Largest rise of the error rate (0 to 1) that the evidence must
            exclude with 95 % confidence.
        max_latency_ratio: Largest p50, p95 and p99 latency, as a multiple of the live version's.
        latency_floor_ms: Extra milliseconds that are always allowed.
        max_prediction_shift: Largest distance of the mean predictions, in the live version's
            standard deviations; for classes the largest difference of a class's share.
        max_disagreement: Largest mean difference on the same rows: in probability (binary), as a
            share of the live version's range (regression) or of the rows (multiclass).
        max_loss_increase: Largest rise of the mean loss on labelled rows: Brier score (binary),
            share of wrong classes (multiclass), in multiples of the live version's absolute error
            (regression).
        steps: How many steps of a rollout are judged one after another; each then gets its share
            of the 5 % chance of error.
        source: Where the evidence is from: `log`, the inference log; `metrics`, each model
            server's own, from now on; `prometheus`.
        prometheus_url: Address of the Prometheus server.
        prometheus_preset: Whose metrics it holds: kfloop, knative, knative-otel, istio or envoy.
        prometheus_queries: PromQL templates in place of the preset's: requests, errors, latency
            and latency_unit (s or ms).
        namespace: Kubernetes namespace; empty for the current one.

    Returns:
        `pass`, `fail`, or `no_data` when the evidence does not tell yet.
    """
    from kfloop.components.contracts.decision import decision_metadata
    from kfloop.components.deployment import canary, canary_checks, canary_sources

    limits = canary_checks.Limits(
        minimum_requests,
        max_error_rate_increase,
        max_latency_ratio,
        latency_floor_ms,
        max_prediction_shift,
        max_disagreement,
        max_loss_increase,
    )
    asked = canary_sources.Source(source, prometheus_url, prometheus_preset, prometheus_queries)
    made = canary.analyse_canary(
        service,
        decision.path,
        page.path,
        limits,
        wait_seconds,
        replay,
        namespace,
        steps=steps,
        source=asked,
        labels=labels.path if labels else "",
    )
    decision.metadata.update(decision_metadata(made))
    return made.decision


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def shift_traffic(
    service: str,
    percent: int,
    record: dsl.Output[dsl.Artifact],
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = 300.0,
    force: str = "",
    dry_run: bool = False,
) -> str:
    """Gives the candidate a share of the requests, and proves that it has it.

    Args:
        service: Name of the service.
        percent: The share, 0 to 100. All requests only for a candidate that passed every step of
            its rollout, or with `force`.
        record: The deployment record: what serves, what was there before.
        model_uri: The candidate that is meant; another one is left alone. Empty: whatever it is.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until the share is in effect.
        force: Why a candidate gets all requests that nobody judged; it is kept in the record.
        dry_run: Print what would change, and change nothing.

    Returns:
        URI of the candidate.
    """
    from kfloop.components.contracts.deployment_record import record_metadata
    from kfloop.components.deployment import rollout

    candidate = rollout.shift_traffic(
        service,
        percent,
        record.path,
        model_uri,
        namespace,
        timeout_seconds,
        force=force,
        dry_run=dry_run,
    )
    record.metadata.update(record_metadata(record.path))
    return candidate


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def roll_out_model(
    model_uri: str,
    service: str,
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    record: dsl.Output[dsl.Artifact],
    steps: List[int] = [5, 25, 50, 100],
    bake_seconds: float = 0.0,
    minimum_requests: int = 200,
    wait_seconds: float = 20.0,
    replay: bool = False,
    max_error_rate_increase: float = 0.05,
    max_latency_ratio: float = 2.0,
    latency_floor_ms: float = 50.0,
    max_prediction_shift: float = 1.0,
    max_disagreement: float = 0.2,
    source: str = "log",
    prometheus_url: str = "",
    prometheus_preset: str = "kfloop",
    prometheus_queries: Dict = {},
    inference_log: str = "",
    namespace: str = "",
    timeout_seconds: float = 300.0,
    predictor: Dict = {},
    run_id: str = "",
    gate_decision: str = "",
    dry_run: bool = False,
) -> str:
    """Rolls a published model out by steps and keeps it only if it serves well beside the live one.

    It begins with no requests and a smoke test, gets its shares one after the other, is judged at
    each, and is promoted; what does not pass is rolled back. A first version is deployed alone and
    tested. Killed at any point, it goes on where it was when it is run again.

    Args:
        model_uri: The published model.
        service: Name of the service; it is created when there is none.
        decision: The decision, with every step.
        page: The decision as a page, with the analysis of each step.
        record: The deployment record: what serves, what was there before, how the rollout went.
        steps: Shares of the requests, in percent, rising. 100 is the promotion, which comes last
            whether it is named or not; without any, what passed the smoke test is promoted.
        bake_seconds: How long each share lasts at least, before it is judged.
        minimum_requests: Requests that each version must have had at each step; more are waited
            for when the error-rate limit cannot be met with so few.
        wait_seconds: Longest wait for enough live requests, at each step.
        replay: Whether to send logged requests again when live ones are too few.
        max_error_rate_increase: Largest rise of the error rate (0 to 1) that the evidence must
            exclude with 95 % confidence.
        max_latency_ratio: Largest p50, p95 and p99 latency, as a multiple of the live version's.
        latency_floor_ms: Extra milliseconds that are always allowed.
        max_prediction_shift: Largest distance of the mean predictions, in the live version's
            standard deviations; for classes the largest difference of a class's share.
        max_disagreement: Largest mean difference on the same rows: in probability (binary), as a
            share of the live version's range (regression) or of the rows (multiclass).
        source: Where the evidence is from: `log`, the inference log; `metrics`, each model
            server's own; `prometheus`.
        prometheus_url: Address of the Prometheus server.
        prometheus_preset: Whose metrics it holds: kfloop, knative, knative-otel, istio or envoy.
        prometheus_queries: PromQL templates in place of the preset's.
        inference_log: Where the service logs; empty keeps the service's own.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until a version is ready or a share in effect.
        predictor: `resources`, `autoscaling`, `node_selector`, `tolerations`, `service_account`,
            `storage_secret`, `timeout_seconds`, `runtime` and `runtime_version`, as in the loop
            file.
        run_id: Id of the pipeline run; one that is tried again does not try again what it rolled
            back.
        gate_decision: What the gate said of the model, for the lineage.
        dry_run: Print what would change, and change nothing.

    Returns:
        `pass` when the model is live; `fail`, or `no_data` when there were too few requests to
        judge by, when it is not.
    """
    from kfloop.components.contracts.decision import decision_metadata
    from kfloop.components.contracts.deployment_record import record_metadata
    from kfloop.components.deployment import canary_checks, canary_sources, roll_out

    limits = canary_checks.Limits(
        minimum_requests,
        max_error_rate_increase,
        max_latency_ratio,
        latency_floor_ms,
        max_prediction_shift,
        max_disagreement,
    )
    asked = canary_sources.Source(source, prometheus_url, prometheus_preset, prometheus_queries)
    made = roll_out.roll_out_model(
        model_uri,
        service,
        decision.path,
        page.path,
        record.path,
        steps,
        bake_seconds,
        roll_out.Analysis(limits, wait_seconds, replay, asked),
        inference_log,
        namespace,
        timeout_seconds,
        predictor=predictor,
        run_id=run_id,
        gate_decision=gate_decision,
        dry_run=dry_run,
    )
    decision.metadata.update(decision_metadata(made))
    record.metadata.update(record_metadata(record.path))
    return made.decision


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def promote_model(
    service: str,
    record: dsl.Output[dsl.Artifact],
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = 300.0,
    dry_run: bool = False,
) -> str:
    """Makes the candidate the live version, and proves it by its answer.

    Args:
        service: Name of the service.
        record: The deployment record: what serves, what was there before.
        model_uri: The version that was judged; no other one is promoted. Empty: the candidate.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until it alone answers.
        dry_run: Print what would change, and change nothing.

    Returns:
        URI of the model that is live now.
    """
    from kfloop.components.contracts.deployment_record import record_metadata
    from kfloop.components.deployment import rollout

    live = rollout.promote_model(
        service, record.path, model_uri, namespace, timeout_seconds, dry_run=dry_run
    )
    record.metadata.update(record_metadata(record.path))
    return live


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def roll_back_model(
    service: str,
    record: dsl.Output[dsl.Artifact],
    reason: str = "",
    model_uri: str = "",
    namespace: str = "",
    timeout_seconds: float = 300.0,
    dry_run: bool = False,
) -> str:
    """Takes the candidate away or, when there is none, restores the version before the live one.

    What was rolled back stays so: a second time nothing happens. The record's metadata says what
    was done: `outcome` is `candidate_removed`, `restored`, `service_removed`,
    `already_rolled_back`, `not_serving` or `dry_run`.

    Args:
        service: Name of the service.
        record: The deployment record: what serves, what was taken away, and why.
        reason: Why; it is kept in the record.
        model_uri: The version to get away from. Empty: the newest one.
        namespace: Kubernetes namespace; empty for the current one.
        timeout_seconds: Longest wait until the good version alone answers.
        dry_run: Print what would change, and change nothing.

    Returns:
        URI of the model that is live now.
    """
    from kfloop.components.contracts.deployment_record import record_metadata
    from kfloop.components.deployment import roll_back

    live, outcome = roll_back.roll_back_model(
        service, record.path, reason, model_uri, namespace, timeout_seconds, dry_run=dry_run
    )
    record.metadata.update({**record_metadata(record.path), "outcome": outcome})
    return live


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def register_model(
    model_uri: str,
    evaluation: dsl.Input[dsl.Artifact],
    registry_uri: str = "",
    run_id: str = "",
) -> str:
    """Registers a published version with its metrics and its lineage, once.

    Args:
        model_uri: The published model.
        evaluation: Its evaluation; the metrics are logged with their intervals.
        registry_uri: MLflow tracking URI, or kubeflow+http://host:port for a Kubeflow Model
            Registry; `none` registers nothing. Empty takes MLFLOW_TRACKING_URI, else the laptop's
            own registry.
        run_id: Id of the pipeline run, kept as a tag.

    Returns:
        `<name>/<version>` in the registry, or `none`.
    """
    from kfloop.components.deployment import register

    return register.register_model(model_uri, evaluation.path, registry_uri, run_id)


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def update_champion(
    service: str, registry_uri: str = "", namespace: str = "", name: str = ""
) -> str:
    """Moves the registry's alias `champion` to what is live: after a promotion or a roll back.

    Args:
        service: Name of the service.
        registry_uri: As for register_model.
        namespace: Kubernetes namespace; empty for the current one.
        name: Model name; needed only where the service may be gone.

    Returns:
        `<name>/<version>` in the registry; empty when nothing that is live is registered, `none`
        when the registry is off.
    """
    from kfloop.components.deployment import champion

    return champion.update_champion(service, registry_uri, namespace, name)


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def find_champion(name: str, service: str, registry_uri: str = "", namespace: str = "") -> str:
    """Says which model a candidate must beat: the live one, else the registry's champion.

    Args:
        name: Model name.
        service: Name of the service.
        registry_uri: As for register_model.
        namespace: Kubernetes namespace; empty for the current one.

    Returns:
        URI of its package; empty when there is none yet.
    """
    from kfloop.components.deployment import champion

    return champion.find_champion(name, service, registry_uri, namespace)


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def describe_service(service: str, namespace: str = "") -> NamedTuple(
    "ServiceDescription",
    [("model_uri", str), ("model_version", str), ("inference_log", str), ("url", str)],
):
    """Says what a service is now: its live model, its inference log and its address.

    Args:
        service: Name of the service.
        namespace: Kubernetes namespace; empty for the current one.

    Returns:
        `model_uri`, `model_version`, `inference_log` and `url`.
    """
    from kfloop.components.deployment import service as services

    found = services.describe_service(service, namespace)
    return (found.model_uri, found.model_version, found.inference_log, found.url)


@dsl.component(base_image=image("deployment"), install_kfp_package=False)
def replay_requests(
    requests: dsl.Input[dsl.Dataset],
    service: str,
    limit: int = 0,
    batch_size: int = 10,
    requests_per_second: float = 0.0,
    namespace: str = "",
) -> int:
    """Sends a dataset's rows to a service as requests, in order.

    The step fails when more than half of the requests fail.

    Args:
        requests: The rows; of each only what the live model knows is sent.
        service: Name of the service.
        limit: Largest number of rows; 0 sends all.
        batch_size: Rows in one request.
        requests_per_second: Highest rate; 0 sends as fast as it is answered.
        namespace: Kubernetes namespace; empty for the current one.

    Returns:
        The rows that were answered.
    """
    from kfloop.components.deployment import replay

    return replay.replay_requests(
        requests.path,
        service,
        limit,
        batch_size,
        requests_per_second,
        namespace=namespace,
    ).sent
