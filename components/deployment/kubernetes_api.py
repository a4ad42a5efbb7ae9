# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as plain dicts, through the official client: what is retried, what is said.

Reading is tried again while the server is busy or gone. Writing is not: whether a write whose
answer was lost took place is for the caller to find out by reading (see `UnsureError`).
"""

import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.connection import register_api_server
from kfloop.components.images import VERSION

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAMESPACE = "KFLOOP_NAMESPACE"
# Seconds for the connection and for the answer.
REQUEST_TIMEOUT = (5, 30)
RETRIES = 8
BACK_OFF, LONGEST_BACK_OFF, LONGEST_RETRY_AFTER = 0.1, 5.0, 10
BUSY = (429, 500, 502, 503, 504)
CONFLICT = 409
ROLE = "serving/manifests/rbac"

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of object: its API group (empty for the core), version and plural."""

    group: str
    version: str
    plural: str

    @property
    def root(self) -> str:
        """Path of its API."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


CONFIG_MAPS = Kind("", "v1", "configmaps")
SERVICES = Kind("", "v1", "services")
PODS = Kind("", "v1", "pods")
EVENTS = Kind("", "v1", "events")
DEPLOYMENTS = Kind("apps", "v1", "deployments")
HTTP_ROUTES = Kind("gateway.networking.k8s.io", "v1", "httproutes")
INFERENCE_SERVICES = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
KNATIVE_SERVICES = Kind("serving.knative.dev", "v1", "services")
REVISIONS = Kind("serving.knative.dev", "v1", "revisions")


class DeniedError(InputError):
    """This account may not do it."""


class UnsureError(InputError):
    """A write was refused as outdated, or its answer was lost: read again and decide again."""


class Cluster:
    """One namespace of a cluster.

    Attributes:
        namespace: The namespace.
        server: Address of the API server.
        inside: Whether this process runs in a pod, where the cluster's own names resolve.
    """

    def __init__(self, configuration: Any, namespace: str, inside: bool) -> None:
        self.namespace = namespace
        self.server: str = configuration.host.rstrip("/")
        self.inside = inside
        configuration.retries = urllib3.Retry(
            total=RETRIES,
            allowed_methods={"GET"},
            status_forcelist=BUSY,
            backoff_factor=BACK_OFF,
            backoff_max=LONGEST_BACK_OFF,
            retry_after_max=LONGEST_RETRY_AFTER,
            raise_on_status=False,
        )
        self._configuration = configuration
        self._client = client.ApiClient(configuration)
        # The name under which the server notes who changed what.
        self._client.user_agent = f"kfloop/{VERSION}"
        register_api_server(self.server, self._http_options)

    def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """Returns an object, or None when there is none, or no such kind."""
        found: Object | None = self._call("GET", kind, name, namespace=namespace)
        return found

    def list(self, kind: Kind, **selectors: str) -> list[Object]:
        """Returns the objects that selectors (`labelSelector`, `fieldSelector`) choose."""
        answer = self._call("GET", kind, query=sorted(selectors.items()))
        return list(answer["items"]) if answer else []

    def create(self, kind: Kind, body: Object, dry_run: bool = False) -> Object:
        """Creates an object and returns it as stored; unknown fields are refused."""
        return self._write("POST", kind, "", body, dry_run)

    def replace(self, kind: Kind, body: Object, dry_run: bool = False) -> Object:
        """Replaces an object, if it is still the one that was read; unknown fields are refused."""
        return self._write("PUT", kind, body["metadata"]["name"], body, dry_run)

    def replace_status(self, kind: Kind, body: Object) -> Object:
        """Replaces an object's status, if the object is still the one that was read."""
        return self._write("PUT", kind, f"{body['metadata']['name']}/status", body, dry_run=False)

    def delete(self, kind: Kind, name: str) -> None:
        """Deletes an object; that there is none is fine."""
        self._call("DELETE", kind, name)

    def read(self, path: str) -> Object | None:
        """Returns what the API server answers at a path, or None when there is nothing."""
        found: Object | None = self._call("GET", Kind("", "", ""), path=path)
        return found

    def may(self, verb: str, kind: Kind) -> bool:
        """Whether this account may do something with a kind of object in the namespace."""
        plural, _, subresource = kind.plural.partition("/")
        asked = {
            "namespace": self.namespace,
            "verb": verb,
            "group": kind.group,
            "resource": plural,
            "subresource": subresource,
        }
        answer = self._call(
            "POST",
            kind,
            path="/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            },
        )
        return bool(answer and answer["status"].get("allowed"))

    def has_group(self, group: str) -> bool:
        """Whether the cluster serves an API group."""
        answer = self._call("GET", Kind("", "", ""), path="/apis")
        return any(entry["name"] == group for entry in (answer or {}).get("groups", []))

    def proxied(self, service: str, port: int | str = 80) -> str:
        """Returns the address of a Service through the API server, for use outside the cluster."""
        return f"{self.server}/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy"

    def _write(self, method: str, kind: Kind, name: str, body: Object, dry_run: bool) -> Object:
        query = [("fieldValidation", "Strict"), *([("dryRun", "All")] if dry_run else [])]
        stored = self._call(method, kind, name, query=query, body=body)
        if stored is None:
            raise InputError(self._why_not_found(method, kind, name))
        return dict(stored)

    def _why_not_found(self, method: str, kind: Kind, name: str) -> str:
        if not self.read(kind.root):
            return (
                f"The cluster at {self.server} does not know {kind.plural}.{kind.group}; install "
                "KServe there first."
            )
        if method == "POST":
            return f"There is no namespace {self.namespace!r} at {self.server}; make it first."
        return f"The {kind.plural} {name!r} was deleted meanwhile; run the step again."

    def _call(
        self,
        method: str,
        kind: Kind,
        name: str = "",
        namespace: str = "",
        query: Any = (),
        body: Object | None = None,
        path: str = "",
    ) -> Any:
        """Sends one request; None for 404.

        Raises:
            DeniedError: If this account may not do it.
            UnsureError: If a write may or may not have taken place, or came too late.
            InputError: If the server refuses it, or does not answer.
        """
        namespace = namespace or self.namespace
        path = path or f"{kind.root}/namespaces/{namespace}/{kind.plural}"
        try:
            answer, _, _ = self._client.call_api(
                f"{path}/{name}" if name else path,
                method,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _request_timeout=REQUEST_TIMEOUT,
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            what = f"{method} {kind.plural or 'API groups'} {name}".strip() + f" in {namespace!r}"
            raise self._told(error, method, what) from error
        except urllib3.exceptions.HTTPError as error:
            told = f"The API server {self.server} does not answer ({type(error).__name__})."
            raise (InputError if method == "GET" else UnsureError)(told) from error
        return answer

    def _told(self, error: Any, method: str, what: str) -> InputError:
        message = _message(error)
        if "denied the request" in message:
            return InputError(f"The cluster refuses it: {message}.")
        if error.status in (401, 403):
            return DeniedError(
                f"This account may not do it ({what}: {message}); give it the Role of {ROLE}."
            )
        if method != "GET" and (error.status == CONFLICT or error.status in BUSY):
            return UnsureError(f"The API server answers {error.status} to {what}: {message}.")
        return InputError(f"The API server answers {error.status} to {what}: {message}.")

    def _http_options(self) -> dict[str, Any]:
        """Credentials of this connection, for an httpx client."""
        settings = self._configuration
        headers = {}
        if token := settings.get_api_key_with_prefix("authorization"):
            headers["Authorization"] = token
        if settings.username:
            headers["Authorization"] = settings.get_basic_auth_token()
        verify: Any = settings.verify_ssl and self.server.startswith("https:")
        if verify:
            verify = ssl.create_default_context(cafile=settings.ssl_ca_cert)
            if settings.cert_file:
                verify.load_cert_chain(settings.cert_file, settings.key_file)
        return {"headers": headers, "verify": verify, "proxy": settings.proxy or None}


def connect_cluster(namespace: str = "") -> Cluster:
    """Returns the cluster of this process: the pod's own, else the kubeconfig's current context.

    Args:
        namespace: The namespace; empty takes `KFLOOP_NAMESPACE`, else the current one.

    Raises:
        InputError: If there is neither, or the kubeconfig cannot be used.
    """
    settings = client.Configuration()
    inside = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists()
    namespace = namespace or os.environ.get(NAMESPACE, "")
    try:
        if inside:
            config.load_incluster_config(settings)
            namespace = namespace or (SERVICE_ACCOUNT / "namespace").read_text().strip()
        else:
            # Named, since the client reads the variable only when it is imported.
            files = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(files, client_configuration=settings)
            _, context = config.list_kube_config_contexts(files)
            namespace = namespace or context["context"].get("namespace", "")
    except (ConfigException, OSError) as error:
        raise InputError(
            f"There is nothing to deploy to ({str(error).rstrip('.')}): run the pipeline with "
            "`kfloop run` for the laptop, or set KUBECONFIG to a kubeconfig file."
        ) from error
    return Cluster(settings, namespace or "default", inside)


def _message(error: Any) -> str:
    """Returns the sentence of a Status, else what the server wrote."""
    try:
        text = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        text = error.body or error.reason or "no reason given"
    return str(text).strip().rstrip(".")
