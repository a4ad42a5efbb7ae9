# SPDX-License-Identifier: Apache-2.0
"""A server to probe: always the double, and a real one where KFLOOP_TEST_KUBECONFIG names it."""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the kubernetes client is not in this environment")
from kubernetes import client, config

from doubles import ApiServer, KServe

REAL = "KFLOOP_TEST_KUBECONFIG"
G = ("serving.kserve.io", "v1beta1")


@dataclass
class Cluster:
    """A server and its client.

    Attributes:
        api: The client.
        namespace: Where a test may write.
        double: The double, or None at a real server.
    """

    api: Any
    namespace: str
    double: ApiServer | None

    @property
    def custom(self) -> Any:
        return client.CustomObjectsApi(self.api)

    @property
    def core(self) -> Any:
        return client.CoreV1Api(self.api)

    @property
    def where(self) -> tuple[str, str, str, str]:
        return (*G, self.namespace, "inferenceservices")

    def create(self, name: str = "m", uri: str = "s3://b/v1", **options: Any) -> dict[str, Any]:
        return self.custom.create_namespaced_custom_object(
            *self.where, isvc(name, self.namespace, uri), **options
        )

    def settled(self) -> dict[str, Any]:
        """Creates a service; at a real server returns it once KServe's controller has written."""
        made = self.create()
        while self.double is None:
            time.sleep(3)
            found = self.get()
            if found["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]:
                break
            made = found
        return made

    def get(self, name: str = "m") -> dict[str, Any]:
        return self.custom.get_namespaced_custom_object(*self.where, name)

    def patch(self, patch: Any, name: str = "m", **options: Any) -> dict[str, Any]:
        return self.custom.patch_namespaced_custom_object(*self.where, name, patch, **options)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """A request that the client's methods do not make; returns status and JSON."""
        answer = self.api.rest_client.pool_manager.request(
            method,
            self.api.configuration.host + path,
            body=body,
            headers={"Accept": "application/json", **self._auth(), **headers},
        )
        return answer.status, answer.json()

    def _auth(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        self.api.update_params_for_auth(headers, [], ["BearerToken"])
        return headers


def isvc(
    name: str = "m", namespace: str = "ml", uri: str = "s3://b/v1", **predictor: Any
) -> dict[str, Any]:
    model = {"modelFormat": {"name": "tensorflow"}, "storageUri": uri}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": {"model": model, **predictor}},
    }


@pytest.fixture
def api(tmp_path: Any) -> Iterator[ApiServer]:
    with ApiServer(namespaces=["ml"]) as server:
        yield server


@pytest.fixture
def double(api: ApiServer, tmp_path: Any) -> Cluster:
    """The double with a client."""
    path = api.kubeconfig(tmp_path / "kubeconfig", "ml")
    return Cluster(config.new_client_from_config(str(path)), "ml", api)


@pytest.fixture(params=["double", *(["real"] if os.environ.get(REAL) else [])])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The double, and a real server with KServe's resource definitions if there is one."""
    if request.param == "double":
        yield request.getfixturevalue("double")
        return
    found = Cluster(config.new_client_from_config(os.environ[REAL]), "", None)
    found.namespace = f"kfloop-doubles-{uuid.uuid4().hex[:8]}"
    found.core.create_namespace({"metadata": {"name": found.namespace}})
    yield found
    found.core.delete_namespace(found.namespace)


@pytest.fixture(params=["Standard", "Knative"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kserve(api: ApiServer, mode: str) -> Iterator[KServe]:
    with KServe(api, mode=mode) as simulated:
        yield simulated
