# SPDX-License-Identifier: Apache-2.0
"""What every loop needs of a cluster: KServe, its mode, rights, accounts, monitoring."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.backend import STANDARD
from kfloop.components.deployment.kubernetes_api import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    KNATIVE_SERVICES,
    PODS,
    REVISIONS,
    SERVICES,
    Cluster,
    DeniedError,
    Kind,
)
from kfloop.components.deployment.kubernetes_mode import (
    CONFIG_MAP,
    NAMESPACES,
    SPELLINGS,
    default_mode,
    read_settings,
)
from kfloop.pipelines.findings import Finding, fix, note, ok
from kfloop.pipelines.loop import Loop

MANIFESTS = "kubectl apply -n {namespace} -k serving/manifests/{folder}"
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts")
ROLE_BINDINGS = Kind("rbac.authorization.k8s.io", "v1", "rolebindings")
RUNTIMES = Kind("serving.kserve.io", "v1alpha1", "servingruntimes")
GATEWAYS = Kind("gateway.networking.k8s.io", "v1", "gateways")
RULES = Kind("monitoring.coreos.com", "v1", "prometheusrules")
ISTIO_GROUP = "networking.istio.io"
CONTROLLER = "kserve-controller-manager"
# The first that writes a canary's share into its route in Standard mode.
SPLITTING = (0, 21)
ROLE, RUNTIME, RULE = "kfloop-deployment", "kfloop", "kfloop"
# kfloop's own, that of a stand-alone KFP, and that of a Kubeflow profile.
ACCOUNTS = ("kfloop-pipeline", "pipeline-runner", "default-editor")
# What the Role in serving/manifests/rbac allows.
RIGHTS = {
    INFERENCE_SERVICES: ("get", "list", "create", "update", "delete"),
    DEPLOYMENTS: ("list",),
    SERVICES: ("list",),
    PODS: ("list",),
    EVENTS: ("list",),
}
MODE_RIGHTS = {
    True: {HTTP_ROUTES: ("get",)},
    False: {
        KNATIVE_SERVICES: ("get",),
        REVISIONS: ("get",),
        Kind("serving.kserve.io", "v1beta1", "inferenceservices/status"): ("update",),
    },
}


@dataclass(frozen=True)
class Case:
    """What is looked at.

    Attributes:
        cluster: The namespace of the runs and services.
        loop: The loop that will run there, if one was named.
        service_account: Account of the pipelines' pods; empty for KFP's own.
    """

    cluster: Cluster
    loop: Loop | None = None
    service_account: str = ""

    def apply(self, folder: str) -> str:
        """Returns the command that applies one of kfloop's manifests."""
        return MANIFESTS.format(namespace=self.cluster.namespace, folder=folder)

    def account(self) -> str:
        """Returns the account of the pipelines' pods; empty when there is none."""
        accounts = (self.service_account,) if self.service_account else ACCOUNTS
        found = (name for name in accounts if self.cluster.get(SERVICE_ACCOUNTS, name))
        return next(found, "")


def check_kserve(case: Case) -> Iterator[Finding]:
    """KServe is there, and its webhooks take an InferenceService: a dry run asks them."""
    if not case.cluster.read(INFERENCE_SERVICES.root):
        yield fix("KServe", "there are no InferenceServices; install KServe 0.21 or later")
        return
    found = version_of(case.cluster)
    told = f" (KServe {found[0]}.{found[1]})" if found else ""
    trial = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "kfloop-doctor", "namespace": case.cluster.namespace},
        "spec": {
            "predictor": {"model": {"modelFormat": {"name": RUNTIME}, "storageUri": "gs://a"}}
        },
    }
    try:
        case.cluster.create(INFERENCE_SERVICES, trial, dry_run=True)
    except DeniedError:
        yield ok("KServe", f"InferenceServices are served{told}")
    except InputError as error:
        yield fix("KServe", f"it takes no InferenceService; does its controller run? {error}")
    else:
        yield ok("KServe", f"it takes InferenceServices{told}")


def version_of(cluster: Cluster) -> tuple[int, int] | None:
    """Returns KServe's version by its controller's image; None where that cannot be seen."""
    for namespace in NAMESPACES:
        try:
            found = cluster.get(DEPLOYMENTS, CONTROLLER, namespace)
        except DeniedError:
            continue
        for container in found["spec"]["template"]["spec"]["containers"] if found else []:
            tag = re.search(r"/kserve-controller:v?(\d+)\.(\d+)\.", container["image"])
            if tag:
                return int(tag[1]), int(tag[2])
    return None


def check_mode(case: Case) -> Iterator[Finding]:
    """KServe's mode is known, and canaries can have a share of the traffic in it."""
    if not case.cluster.read(INFERENCE_SERVICES.root):
        return
    settings = read_settings(case.cluster)
    mode = SPELLINGS[default_mode(case.cluster, settings)]
    if mode != STANDARD:
        yield ok("KServe mode", f"{mode}; canaries split the traffic")
        return
    if settings.gateway_api is None:
        yield note(
            "KServe mode", f"{mode}; whether it splits traffic is unknown: {settings.unread}"
        )
    elif not settings.gateway_api:
        yield fix(
            "KServe mode",
            f"{mode} without the Gateway API gives a canary no traffic; set enableGatewayApi: true "
            f"in `ingress` of the ConfigMap {CONFIG_MAP}, or deploy without canary steps",
        )
    else:
        found = version_of(case.cluster)
        if found and found < SPLITTING:
            yield fix(
                "KServe mode",
                f"KServe {found[0]}.{found[1]} gives a canary no traffic in {mode} mode; update it "
                "to 0.21, or deploy without canary steps",
            )
        elif found:
            yield ok("KServe mode", f"{mode} with the Gateway API; canaries split the traffic")
        else:
            yield ok(
                "KServe mode",
                f"{mode} with the Gateway API; canaries split the traffic from KServe 0.21 on",
            )
        yield from _gateway(case.cluster)


def _gateway(cluster: Cluster) -> Iterator[Finding]:
    named = _ingress(cluster).get("kserveIngressGateway", "kserve/kserve-ingress-gateway")
    namespace, _, name = named.partition("/")
    gateway = cluster.get(GATEWAYS, name, namespace)
    if gateway is None:
        yield fix("Gateway", f"KServe's configuration names {named}, which is not there; create it")
        return
    conditions = (gateway.get("status") or {}).get("conditions") or []
    programmed = next((one for one in conditions if one["type"] == "Programmed"), None)
    if programmed and programmed["status"] != "True":
        yield fix("Gateway", f"{named} is not programmed: {programmed.get('message', '')}")
    else:
        yield ok("Gateway", named)


def check_events(case: Case) -> Iterator[Finding]:
    """KServe's controller does not drown its Events in warnings that Istio is missing."""
    if not case.cluster.read(INFERENCE_SERVICES.root) or case.cluster.has_group(ISTIO_GROUP):
        return
    ingress = _ingress(case.cluster)
    if ingress.get("enableGatewayApi") and not ingress.get("disableIstioVirtualHost"):
        yield note(
            "KServe's events",
            "without Istio it warns of that each time, and Kubernetes drops the events that say "
            "why a model does not come up; set disableIstioVirtualHost: true in `ingress` of the "
            f"ConfigMap {CONFIG_MAP}",
        )


def _ingress(cluster: Cluster) -> dict[str, Any]:
    for namespace in NAMESPACES:
        if found := cluster.get(CONFIG_MAPS, CONFIG_MAP, namespace):
            ingress: dict[str, Any] = json.loads((found.get("data") or {}).get("ingress", "{}"))
            return ingress
    return {}


def check_runtime(case: Case) -> Iterator[Finding]:
    """The ServingRuntime of kfloop's packages is there."""
    clusterwide = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/kfloop"
    if case.cluster.get(RUNTIMES, RUNTIME) or case.cluster.read(clusterwide):
        yield ok("ServingRuntime", RUNTIME)
    else:
        yield fix("ServingRuntime", f"there is no {RUNTIME}: {case.apply('runtimes')}")


def check_account(case: Case) -> Iterator[Finding]:
    """The pipelines' pods have an account, and it is bound to the Role."""
    account = case.account()
    wanted = case.service_account or " or ".join(ACCOUNTS)
    if not account:
        yield fix(
            "service account",
            f"there is no {wanted} in {case.cluster.namespace}; is that the namespace of the runs? "
            f"Else name the account with --service-account, or {case.apply('accounts')}",
        )
        return
    yield ok("service account", account)
    bindings = case.cluster.list(ROLE_BINDINGS)
    bound = [
        one["metadata"]["name"]
        for one in bindings
        if one["roleRef"]["name"].startswith(ROLE)
        and any(
            subject["kind"] == "ServiceAccount" and subject["name"] == account
            for subject in one.get("subjects") or []
        )
    ]
    if bound:
        yield ok("role", f"{account} is bound to it by {', '.join(bound)}")
    else:
        yield fix("role", f"{account} has not the Role {ROLE}: {case.apply('rbac')}")


def check_rights(case: Case) -> Iterator[Finding]:
    """This account may do what the deployment components do."""
    knative = case.cluster.has_group("serving.knative.dev")
    standard = case.cluster.has_group(HTTP_ROUTES.group)
    rights = dict(RIGHTS)
    rights |= MODE_RIGHTS[True] if standard else {}
    rights |= MODE_RIGHTS[False] if knative else {}
    missing = [
        f"{verb} {kind.plural}"
        for kind, verbs in rights.items()
        for verb in verbs
        if not case.cluster.may(verb, kind)
    ]
    if missing:
        yield note(
            "your rights",
            f"you may not {', '.join(missing)} here, as `kfloop run --cluster` does; "
            "a pipeline's pods need no rights of yours",
        )
    else:
        yield ok("your rights", "all that the deployment components use")


def check_prometheus(case: Case) -> Iterator[Finding]:
    """Prometheus' operator is there, with kfloop's rules."""
    if not case.cluster.has_group(RULES.group):
        yield note("Prometheus", "its operator is not installed: no alerts and no dashboard")
    elif case.cluster.get(RULES, RULE):
        yield ok("Prometheus", "kfloop's rules are there")
    else:
        yield fix("Prometheus", f"kfloop's rules are missing: {case.apply('monitoring')}")


CLUSTER_CHECKS: dict[str, Callable[[Case], Iterator[Finding]]] = {
    "KServe": check_kserve,
    "KServe mode": check_mode,
    "KServe's events": check_events,
    "ServingRuntime": check_runtime,
    "service account": check_account,
    "your rights": check_rights,
    "Prometheus": check_prometheus,
}
