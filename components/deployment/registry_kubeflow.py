"""Kubeflow Model Registry as the registry, by its REST API (v1alpha3)."""

from typing import Any

import httpx

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.registry import Version

API = "/api/model_registry/v1alpha3"
# The registry has no aliases: the model carries the URI and the version that an alias stands for.
_ALIAS_URI, _ALIAS_VERSION = "kfloop.alias.{}.uri", "kfloop.alias.{}.version"
_TIMEOUT_SECONDS = 30.0
_NOT_FOUND = 404


class KubeflowRegistry:
    """A Kubeflow Model Registry.

    Args:
        url: Its address, without the path of the API.
        token: Bearer token; empty for none.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS)

    def register(self, version: Version, alias: str) -> str:
        """Makes the registered model, its version and the version's artifact, each once."""
        model = self._model(version.name)
        if model is None:
            fields = {"name": version.name, "state": "LIVE"}
            model = self._call("POST", "/registered_models", json=fields)
        found = self._find("/model_version", version.version, parentResourceId=model["id"])
        if found is None:
            found = self._call(
                "POST",
                "/model_versions",
                json={
                    "name": version.version,
                    "registeredModelId": model["id"],
                    "state": "LIVE",
                    "customProperties": {
                        **_properties(version.tags),
                        **_properties(version.metrics),
                        **_properties({k: str(v) for k, v in version.parameters.items()}),
                    },
                },
            )
        artifact = {
            "artifactType": "model-artifact",
            "name": f"{version.name}-{version.version}",
            "uri": version.uri,
            "modelFormatName": "tensorflow",
            "state": "LIVE",
        }
        place = f"/model_versions/{found['id']}/artifacts"
        # A run that was killed after making the version comes back here.
        if not self._call("GET", place)["items"]:
            self._call("POST", place, json=artifact)
        if alias:
            named = {_ALIAS_URI: version.uri, _ALIAS_VERSION: version.version}
            properties = _properties({key.format(alias): value for key, value in named.items()})
            known = model.get("customProperties") or {}
            self._call(
                "PATCH",
                f"/registered_models/{model['id']}",
                json={"customProperties": {**known, **properties}},
            )
        return f"{version.name}/{version.version}"

    def find(self, name: str, alias: str) -> str:
        """Returns the URI that the model carries for the alias."""
        properties = (self._model(name) or {}).get("customProperties") or {}
        return str(properties.get(_ALIAS_URI.format(alias), {}).get("string_value", ""))

    def _model(self, name: str) -> dict[str, Any] | None:
        return self._find("/registered_model", name)

    def _find(self, path: str, name: str, **query: str) -> dict[str, Any] | None:
        response = self._send("GET", path, params={"name": name, **query})
        return None if response.status_code == _NOT_FOUND else self._read(response)

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._read(self._send(method, path, **options))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._client.request(method, f"{self.url}{API}{path}", **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputError(
                f"The model registry {self.url} cannot be reached: {error}; check registry_uri."
            ) from error

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            document = response.json()
        except ValueError as error:
            raise self._refusal(response, "it is not a Kubeflow Model Registry") from error
        if response.is_error or not isinstance(document, dict):
            raise self._refusal(response, str(document)[:200])
        return document

    def _refusal(self, response: httpx.Response, why: str) -> InputError:
        request = response.request
        return InputError(
            f"The model registry answered {request.method} {request.url.path} with "
            f"{response.status_code}: {why}."
        )


def _properties(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns values as the API's typed properties."""
    return {
        name: {"metadataType": "MetadataDoubleValue", "double_value": value}
        if isinstance(value, float)
        else {"metadataType": "MetadataStringValue", "string_value": str(value)}
        for name, value in values.items()
    }
