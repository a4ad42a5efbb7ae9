# SPDX-License-Identifier: Apache-2.0
"""Serves a model package in the `serving` image, started as the ServingRuntime starts it.

The process needs httpx and pyarrow, as the deployment family's environment has them.
"""

import socket
import subprocess
import time
from pathlib import Path

import yaml

from kfloop.components.images import image

RUNTIME = Path(__file__).parents[2] / "serving" / "manifests" / "runtimes" / "kfloop.yaml"
PACKAGE = "/mnt/models"
READY_SECONDS, STOP_SECONDS = 120.0, 30.0


def check_served(package: Path, name: str, user: str) -> str:
    """Asks the model server in its container for the package's golden rows, and stops it.

    Args:
        package: The package's directory, which the container reads only.
        name: Name of the model.
        user: Whom the container runs as, `UID:GID`.

    Returns:
        What was answered, a sentence.

    Raises:
        AssertionError: If the server does not get ready, answers otherwise than the model did when
            it was trained, or does not end well when it is told to stop.
    """
    port, grpc_port = _free_port(), _free_port()
    server = subprocess.Popen(
        [
            *("podman", "run", "--rm", "--pull=never", "--read-only", "--tmpfs=/tmp:exec"),
            *(f"--user={user}", "--cap-drop=all", "--security-opt=no-new-privileges"),
            *("--network=host", f"--volume={package}:{PACKAGE}:ro", image("serving")),
            *_command(name),
            # The manifest's are for a pod of its own; the last one counts.
            *("--host=127.0.0.1", f"--http_port={port}", f"--grpc_port={grpc_port}"),
        ]
    )
    try:
        answered = _ask(package, name, f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        status = server.wait(STOP_SECONDS)
    assert status == 0, f"the model server ended with status {status}"
    return answered


def _command(name: str) -> list[str]:
    (container,) = yaml.safe_load(RUNTIME.read_text(encoding="utf-8"))["spec"]["containers"]
    return [*container["command"], *(arg.replace("{{.Name}}", name) for arg in container["args"])]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _ask(package: Path, name: str, url: str, server: subprocess.Popen[bytes]) -> str:
    # Not to be had in the driver's own environment.
    from kfloop.components.contracts.model_package import GOLDEN
    from kfloop.components.deployment.client import ServiceClient
    from kfloop.components.deployment.packages import package_rows, read_package
    from kfloop.components.deployment.smoke_test import TOLERANCE, request_columns

    model = read_package(str(package))
    rows, expected = package_rows(str(package), GOLDEN, request_columns(model), 100)
    with ServiceClient(url, name) as client:
        until = time.monotonic() + READY_SECONDS
        while not client.state().ok:
            assert server.poll() is None, "the model server ended before it was ready"
            assert time.monotonic() < until, f"the model server is not ready: {client.state()}"
            time.sleep(0.5)
        for answer in (client.predict(rows), client.infer(rows, model)):
            assert answer.ok, answer
            assert answer.model_version == model.version, answer
            assert len(answer.predictions) == len(expected), answer
            worst = max(abs(a - b) for a, b in zip(answer.predictions, expected, strict=True))
            assert worst <= TOLERANCE * max(1.0, *map(abs, expected)), f"off by {worst}"
    return f"version {model.version} answered {len(rows)} golden rows on V1 and V2 as in training"
