# SPDX-License-Identifier: Apache-2.0
"""Kubeflow Model Registry as the registry, by its REST API (v1alpha3)."""

from typing import Any

import httpx

from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment.registry import URI_TAG, Version

API = "/api/model_registry/v1alpha3"
# The registry has no aliases: the model carries the URI and the version that an alias stands for.
_ALIAS_URI, _ALIAS_VERSION = "kfloop.alias.{}.uri", "kfloop.alias.{}.version"
_TIMEOUT_SECONDS = 30.0
_NOT_FOUND, _CONFLICT = 404, 409
_PAGE = "100"


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

    def register(self, version: Version) -> str:
        """Makes the registered model, its version and the version's artifact, each once."""
        model = self._make_once(
            "registered_model", {"name": version.name, "state": "LIVE"}, self._model(version.name)
        )
        properties = {
            **version.tags,
            **{f"kfloop.{use}_data": digest for use, digest in version.datasets.items()},
            **version.metrics,
            **{key: str(value) for key, value in version.parameters.items()},
        }
        found = self._make_once(
            "model_version",
            {
                "name": version.version,
                "registeredModelId": model["id"],
                "state": "LIVE",
                "customProperties": _properties(properties),
            },
            self._version(model, version.version),
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
            response = self._send("POST", place, json=artifact)
            if response.status_code != _CONFLICT:  # another process made it just now
                self._read(response)
        return f"{version.name}/{version.version}"

    def set_alias(self, name: str, alias: str, uri: str) -> str:
        """Writes what the alias stands for into the registered model's properties."""
        model = self._model(name)
        if model is None:
            return ""
        version = self._version_at(model, uri) if uri else None
        known = dict(model.get("customProperties") or {})
        keys = _ALIAS_URI.format(alias), _ALIAS_VERSION.format(alias)
        for key in keys:
            known.pop(key, None)
        if version is not None:
            known |= _properties(dict(zip(keys, (uri, version["name"]), strict=True)))
        # The properties of a PATCH replace all that were there.
        place = f"/registered_models/{model['id']}"
        self._call("PATCH", place, json={"customProperties": known})
        return f"{name}/{version['name']}" if version else ""

    def find(self, name: str, alias: str) -> str:
        """Returns the URI that the model carries for the alias."""
        properties = (self._model(name) or {}).get("customProperties") or {}
        return str(properties.get(_ALIAS_URI.format(alias), {}).get("string_value", ""))

    def _model(self, name: str) -> dict[str, Any] | None:
        return self._find("/registered_model", name)

    def _version(self, model: dict[str, Any], name: str) -> dict[str, Any] | None:
        return self._find("/model_version", name, parentResourceId=model["id"])

    def _version_at(self, model: dict[str, Any], uri: str) -> dict[str, Any] | None:
        """Returns the version that was published at the URI, from the pages of all of them."""
        place, query = f"/registered_models/{model['id']}/versions", {"pageSize": _PAGE}
        while True:
            page = self._call("GET", place, params=query)
            for version in page["items"]:
                told = (version.get("customProperties") or {}).get(URI_TAG) or {}
                if told.get("string_value") == uri:
                    return dict(version)
            if not page.get("nextPageToken"):
                return None
            query["nextPageToken"] = page["nextPageToken"]

    def _make_once(
        self, kind: str, fields: dict[str, Any], found: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Returns what was found, else makes it; another process may have done so just now."""
        if found is not None:
            return found
        response = self._send("POST", f"/{kind}s", json=fields)
        if response.status_code == _CONFLICT:
            parent = (
                {"parentResourceId": fields["registeredModelId"]} if kind == "model_version" else {}
            )
            made = self._find(f"/{kind}", fields["name"], **parent)
            if made is not None:
                return made
        return self._read(response)

    def _find(self, path: str, name: str, **query: str) -> dict[str, Any] | None:
        response = self._send("GET", path, params={"name": name, **query})
        # Another server answers 404, too, but not in JSON.
        told_in_json = "json" in response.headers.get("content-type", "")
        if response.status_code == _NOT_FOUND and told_in_json:
            return None
        return self._read(response)

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
