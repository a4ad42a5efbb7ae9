"""A client of the KFP API whose failures are sentences, and lists that come in pages."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kfloop.components.contracts.errors import InputError

if TYPE_CHECKING:
    from kfp import Client

TOKEN_VARIABLE = "KFLOOP_KFP_TOKEN"
PAGE_SIZE = 100
HINTS = {
    401: f"it wants you to log in; put a token into {TOKEN_VARIABLE}",
    403: "you are not allowed to; ask for a role in that namespace",
    404: "there is no such thing there",
}


def connect(host: str = "") -> "Client":
    """Returns a KFP client.

    Args:
        host: URL of the KFP API. Empty takes KF_PIPELINES_ENDPOINT, else the cluster that this
            process runs in, else the one of the kubeconfig.

    Raises:
        InputError: If the API does not answer.
    """
    import kfp  # 2 s: only once a command needs it
    from kfp_server_api import ApiClient, Configuration, HealthzServiceApi

    endpoint = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    token = os.environ.get(TOKEN_VARIABLE, "")
    what = f"The KFP API {endpoint or 'of this cluster or kubeconfig'} cannot be used"
    with warnings.catch_warnings(), api_errors(what):
        warnings.filterwarnings("ignore", category=FutureWarning)
        if endpoint:
            # Asked before the client is made: it would try for 25 s and log five tracebacks.
            authorization = {"authorization": f"Bearer {token}"} if token else {}
            configuration = Configuration(endpoint.rstrip("/"), api_key=authorization)
            HealthzServiceApi(ApiClient(configuration)).healthz_service_get_healthz()
        try:
            return kfp.Client(host=endpoint or None, existing_token=token or None)
        except TimeoutError as error:
            raise InputError(f"{what}: {error}") from error


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
        hint = HINTS.get(error.status or 0) or f"{error.status} {_first_line(error.body)}"
        raise InputError(f"{what}: {hint.strip()}.") from error
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{what}: no answer ({_first_line(str(reason))}).") from error


def _first_line(body: Any) -> str:
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
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
