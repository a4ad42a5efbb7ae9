# SPDX-License-Identifier: Apache-2.0
"""Containers of the `serving` image, started as the manifests start them.

The process needs httpx and pyarrow, as the deployment family's environment has them.
"""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kfloop.components.images import image

MANIFESTS = Path(__file__).parents[2] / "serving" / "manifests"
READY_SECONDS, STOP_SECONDS = 120.0, 60.0


@contextmanager
def model_server(
    package: Path, service: str, user: str, payload_logger: str = "", namespace: str = ""
) -> Iterator[str]:
    """Serves a model package as the ServingRuntime does, until the block ends.

    Args:
        package: The package's directory, which the container reads only.
        service: Name of the InferenceService.
        user: Whom the container runs as, `UID:GID`.
        payload_logger: Address of the payload logger that gets requests and answers.
        namespace: Of the service; it is the pod's.

    Yields:
        The server's address, once it is ready.

    Raises:
        AssertionError: If the server does not get ready, or does not end well when it is stopped.
    """
    (container,) = _document("runtimes/kfloop.yaml")["containers"]
    mount = f"--volume={package}:/mnt/models:ro"
    variables = {"KFLOOP_PAYLOAD_LOGGER": payload_logger, "POD_NAMESPACE": namespace}
    port, grpc_port = _free_port(), _free_port()
    command = [
        *_run(user, mount, *(f"--env={key}={value}" for key, value in variables.items())),
        *container["command"],
        *(arg.replace("{{.Name}}", service) for arg in container["args"]),
        # The manifest's are for a pod of its own; the last one counts.
        *("--host=127.0.0.1", f"--http_port={port}", f"--grpc_port={grpc_port}"),
    ]
    with _started(command, port, "/v2/health/ready") as url:
        yield url


@contextmanager
def payload_logger(directory: Path, user: str) -> Iterator[str]:
    """Writes the inference log into a directory as the payload logger does, until the block ends.

    Args:
        directory: The logs' directory, which the user of the container can write.
        user: Whom the container runs as, `UID:GID`.

    Yields:
        The logger's address, once it is ready.

    Raises:
        AssertionError: If it does not get ready, or does not end well when it is stopped.
    """
    pod = _document("payload-logger/deployment.yaml")["template"]["spec"]
    (container,) = pod["containers"]
    port = _free_port()
    command = [
        *_run(user, f"--volume={directory}:/log"),
        *(*container["command"], *container["args"], "--host=127.0.0.1", f"--port={port}"),
    ]
    with _started(command, port, "/healthz") as url:
        yield url


def answers(url: str, service: str, output: str) -> Callable[[list[Any]], list[Any]]:
    """Returns what asks a model server for the predictions of V1 instances.

    Args:
        url: The server's address.
        service: Name of the model.
        output: What the server calls a prediction.
    """
    import httpx

    client = httpx.Client(base_url=url, trust_env=False, timeout=30.0)

    def ask(rows: list[Any]) -> list[Any]:
        response = client.post(f"/v1/models/{service}:predict", json={"instances": rows})
        if response.status_code != httpx.codes.OK:
            raise RuntimeError(response.text)
        return [each[output] for each in response.json()["predictions"]]

    return ask


def check_golden(package: Path, service: str, url: str) -> str:
    """Asks a model server for its package's golden rows, on V1 and on V2.

    Returns:
        What was answered, a sentence.

    Raises:
        AssertionError: If it answers otherwise than the model did when it was trained.
    """
    from kfloop.components.contracts.model_package import GOLDEN
    from kfloop.components.contracts.package_storage import read_package
    from kfloop.components.deployment.client import ServiceClient
    from kfloop.components.deployment.packages import package_rows
    from kfloop.components.deployment.smoke_test import TOLERANCE, request_columns

    model = read_package(str(package))
    rows, expected = package_rows(str(package), GOLDEN, request_columns(model), 100)
    with ServiceClient(url, service) as client:
        for answer in (client.predict(rows), client.infer(rows, model)):
            assert answer.ok, answer
            assert answer.model_version == model.version, answer
            assert len(answer.predictions) == len(expected), answer
            worst = max(abs(a - b) for a, b in zip(answer.predictions, expected, strict=True))
            assert worst <= TOLERANCE * max(1.0, *map(abs, expected)), f"off by {worst}"
    return f"version {model.version} answered {len(rows)} golden rows on V1 and V2 as in training"


def _document(name: str) -> Any:
    return yaml.safe_load((MANIFESTS / name).read_text(encoding="utf-8"))["spec"]


def _run(user: str, *options: str) -> list[str]:
    return [
        *("podman", "run", "--rm", "--pull=never", "--read-only", "--tmpfs=/tmp:exec"),
        *(f"--user={user}", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *("--network=host", *options, image("serving")),
    ]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _started(command: list[str], port: int, ready: str) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command)
    try:
        _wait(process, url + ready)
        yield url
    finally:
        process.terminate()
        status = process.wait(STOP_SECONDS)
    assert status == 0, f"{command[-4:]} ended with status {status}"


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    import httpx

    until = time.monotonic() + READY_SECONDS
    while True:
        assert process.poll() is None, f"what should answer at {url} ended before it was ready"
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < until, f"nothing answers at {url}"
        time.sleep(0.5)
