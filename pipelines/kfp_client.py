# SPDX-License-Identifier: Apache-2.0
"""A client of the KFP API whose failures are sentences, and lists that come in pages."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfloop.components.contracts.errors import InputError

if TYPE_CHECKING:
    from kfp import Client

TOKEN_VARIABLE = "KFLOOP_KFP_TOKEN"
COOKIE_VARIABLE = "KFLOOP_KFP_COOKIE"
CA_VARIABLE = "KFLOOP_KFP_CA"
# kfp's own: a client id of Google's Identity-Aware Proxy, and the file of a projected token.
IAP_VARIABLE = "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
PAGE_SIZE = 100
HINTS = {
    401: f"it wants you to log in; put a token into {TOKEN_VARIABLE}",
    403: "you are not allowed to; ask for a role in that namespace",
    404: "there is no such thing there",
}


def connect(host: str = "") -> "Client":
    """Returns a KFP client.

    How to log in comes from the environment: KFLOOP_KFP_TOKEN holds a token, KFLOOP_KFP_COOKIE the
    cookie of a browser's session (Dex), KF_PIPELINES_SA_TOKEN_PATH names the file of a token that
    Kubernetes renews, KF_PIPELINES_IAP_OAUTH2_CLIENT_ID the client of Google's IAP.
    KFLOOP_KFP_CA names a file with the certificates to trust.

    Args:
        host: URL of the KFP API. Empty takes KF_PIPELINES_ENDPOINT, else the cluster that this
            process runs in, else the one of the kubeconfig.

    Raises:
        InputError: If the API does not answer, or wants another way to log in.
    """
    import kfp  # 2 s: only once a command needs it

    endpoint = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    token = os.environ.get(TOKEN_VARIABLE, "")
    token_file = "" if token else os.environ.get(TOKEN_FILE_VARIABLE, "")
    what = f"The KFP API {endpoint or 'of this cluster or kubeconfig'} cannot be used"
    with warnings.catch_warnings(), api_errors(what):
        warnings.filterwarnings("ignore", category=FutureWarning)
        if endpoint and IAP_VARIABLE not in os.environ:
            # A client would try for 25 s and log five tracebacks.
            greet(endpoint)
        elif not endpoint:
            # A client would print that, and ask localhost.
            _require_cluster(what)
        credentials = kfp.client.ServiceAccountTokenVolumeCredentials(token_file)
        # Each of its five tries would log a traceback.
        logging.disable(logging.ERROR)
        try:
            return kfp.Client(
                host=endpoint or None,
                existing_token=token or None,
                cookies=os.environ.get(COOKIE_VARIABLE),
                ssl_ca_cert=os.environ.get(CA_VARIABLE),
                credentials=credentials if token_file else None,
            )
        except TimeoutError as error:
            raise InputError(f"{what}: {error}") from error
        finally:
            logging.disable(logging.NOTSET)


def _require_cluster(what: str) -> None:
    from kubernetes import config
    from kubernetes.client import Configuration

    try:
        config.load_incluster_config(Configuration())
    except config.ConfigException:
        try:
            config.list_kube_config_contexts()
        except config.ConfigException as error:
            raise InputError(
                f"{what}: there is none ({str(error).rstrip('.')}); give the API's URL by --host "
                "or KF_PIPELINES_ENDPOINT, or a kubeconfig by KUBECONFIG."
            ) from error


def greet(endpoint: str) -> dict[str, Any]:
    """Returns what the KFP API at a URL says of itself, like `tag_name` and `multi_user`.

    Raises:
        InputError: If it does not answer, or wants another way to log in.
    """
    from kfp_server_api import ApiClient, Configuration, HealthzServiceApi

    what = f"The KFP API {endpoint} cannot be used"
    token = os.environ.get(TOKEN_VARIABLE, "") or _read_token(what)
    authorization = {"authorization": f"Bearer {token}"} if token else {}
    configuration = Configuration(endpoint.rstrip("/"), api_key=authorization)
    configuration.ssl_ca_cert = os.environ.get(CA_VARIABLE)
    client = ApiClient(configuration, cookie=os.environ.get(COOKIE_VARIABLE))
    with api_errors(what):
        HealthzServiceApi(client).healthz_service_get_healthz()
    try:
        return dict(json.loads(client.last_response.data))
    except ValueError as error:
        raise InputError(
            f"{what}: it answers with a web page, which is its login or another address than the "
            f"API's; put a token into {TOKEN_VARIABLE}, or the cookie of a session into "
            f"{COOKIE_VARIABLE}."
        ) from error


def _read_token(what: str) -> str:
    file = os.environ.get(TOKEN_FILE_VARIABLE, "")
    try:
        return Path(file).read_text(encoding="utf-8").strip() if file else ""
    except OSError as error:
        raise InputError(
            f"{what}: {TOKEN_FILE_VARIABLE} names {file}: {error.strerror}."
        ) from error


@contextmanager
def api_errors(what: str) -> Iterator[None]:
    """Turns a failure of the KFP API into one sentence that begins with `what`.

    Raises:
        InputError: If the API refuses, fails or does not answer.
    """
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        hint = HINTS.get(error.status or 0) or f"{error.status} {_message(error.body)}"
        raise InputError(f"{what}: {hint.strip()}.") from error
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{what}: no answer ({_first_line(str(reason))}).") from error


def _message(body: Any) -> str:
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        told = json.loads(text)
    except ValueError:  # a gateway's own answer
        told = None
    return _first_line(str(told.get("message", "")) if isinstance(told, dict) else text)


def _first_line(text: str) -> str:
    # After it the API may tell a stack trace.
    return text.strip().partition("\n")[0][:300].rstrip(".")


def pages(fetch: Callable[..., Any], field: str, **arguments: Any) -> Iterator[Any]:
    """Yields every item of a list that the API gives in pages.

    Args:
        fetch: The client's method, for example `client.list_runs`.
        field: The answer's list, for example `runs`.
        **arguments: Passed on.
    """
    token = ""
    while True:
        answer = fetch(page_token=token, page_size=PAGE_SIZE, **arguments)
        yield from getattr(answer, field) or []
        token = answer.next_page_token or ""
        if not token:
            return
