# SPDX-License-Identifier: Apache-2.0
"""The model server: a model package behind KServe's V1 and V2 protocols.

Run as `python -m kfloop.serving.model_server --model_name NAME --model_dir PACKAGE`. On SIGTERM it
says that it is not ready, goes on answering for `--drain_seconds`, then takes no new connections
and ends when the last request is answered.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

# TensorFlow reads it if it is imported; its start-up chatter tells a user nothing.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kserve
import uvloop

from kfloop.components.contracts.errors import InputError
from kfloop.serving import event_sender, json_logs
from kfloop.serving.grpc_server import BoundGRPCServer
from kfloop.serving.package_model import PackageModel
from kfloop.serving.rest import Draining, Plane, prepare

# Exit status of a package that can never be served; a supervisor must not try again.
UNUSABLE = 2
SWITCH_SECONDS = 0.001


class Server(kserve.ModelServer):
    """KServe's model server on a socket that was bound before the model was loaded.

    It reaches into `_serve` and `_rest_server`, because KServe knows no host and no socket, and
    unloads the models before requests in flight have found them; kserve is pinned exactly, and the
    tests run the real thing.
    """

    def __init__(
        self,
        model: PackageModel,
        listener: socket.socket,
        grpc_address: str,
        draining: Draining,
        drain_seconds: float,
    ) -> None:
        super().__init__(
            workers=1, enable_grpc=False, enable_latency_logging=False, access_log_format=None
        )
        self.dataplane = Plane(self.registered_models, draining)
        self._model = model
        self._listener = listener
        self._grpc_address = grpc_address
        self._draining = draining
        self._drain_seconds = drain_seconds
        self._ending: asyncio.Task[None] | None = None

    def setup_event_loop(self) -> None:
        """Chooses the faster event loop; KServe configures one that it does not use."""
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

    def register_signal_handler(self) -> None:
        """Leaves signals to `_serve`."""

    async def _serve(self) -> None:
        for unused in self.servers:
            unused.close()
        # KServe's timing of every route, for a log that is switched off here.
        self._rest_server._add_middlewares = lambda app: None
        self._rest_server.create_application()
        web = self._rest_server._server
        loop = asyncio.get_running_loop()
        # uvicorn installs this as the handler of SIGTERM and SIGINT.
        web.handle_exit = lambda *_: loop.call_soon_threadsafe(self._end)
        serving: list[Coroutine[Any, Any, None]] = [web.serve(sockets=[self._listener])]
        if self._grpc_address:
            self._grpc_server = BoundGRPCServer(self._grpc_address, self, self._model)
            serving.append(self._grpc_server.start(self.max_threads))
        await asyncio.gather(*serving)

    def _end(self) -> None:
        """Begins to drain; a second signal changes nothing."""
        if self._ending is None:
            self._draining.begun = True
            self._ending = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        self._rest_server._server.should_exit = True
        if self._grpc_address:
            await self._grpc_server.stop(signal.SIGTERM)


def _exit_with_stdin() -> None:
    """Ends this process when its standard input is closed, which is when its parent has died."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise InputError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error


def serve(arguments: argparse.Namespace) -> None:
    """Loads the package and serves it until SIGTERM; requests in flight are answered first."""
    started = time.monotonic()
    json_logs.set_up()
    model = PackageModel(
        arguments.model_name, arguments.model_dir, arguments.feature_repo, arguments.runtime
    )
    if arguments.http_fd >= 0:
        listener = socket.socket(fileno=arguments.http_fd)
    else:
        listener = _bind(arguments.host, arguments.http_port)
    model.load()
    grpc_address = f"{arguments.host}:{arguments.grpc_port}" if arguments.grpc_port else ""
    draining = Draining()
    server = Server(model, listener, grpc_address, draining, arguments.drain_seconds)
    prepare(model, server.dataplane, draining, arguments.slow_seconds)
    if arguments.payload_logger:
        event_sender.install(kserve.model_server.app, model.name, arguments.payload_logger)
    host, port = listener.getsockname()[:2]
    looked_up = f", features from {arguments.feature_repo}" if arguments.feature_repo else ""
    print(
        f"Serving {model.name} version {model.version} by {model.runtime} on "
        f"http://{host}:{port}{looked_up}, loaded in {time.monotonic() - started:.1f} s.",
        flush=True,
    )
    # What is loaded by now stays; a full collection would look through it for 0.1 s and more.
    gc.collect()
    gc.freeze()
    # The event loop waits for at most this long when a worker computes in Python.
    sys.setswitchinterval(SWITCH_SECONDS)
    server.start([model])


def main() -> None:
    """Reads the command line and serves; a package that cannot be served exits with `UNUSABLE`."""
    parser = argparse.ArgumentParser(description="Serves a kfloop model package.")
    parser.add_argument("--model_name", required=True, help="name on the endpoint path")
    parser.add_argument("--model_dir", required=True, help="the model package")
    parser.add_argument(
        "--feature_repo",
        default=os.environ.get("KFLOOP_FEATURE_REPO", ""),
        help="applied Feast repository: looks features up that requests leave out "
        "(default: $KFLOOP_FEATURE_REPO)",
    )
    parser.add_argument(
        "--runtime",
        default=os.environ.get("KFLOOP_RUNTIME", ""),
        help="onnx or tensorflow; onnx where the package holds it, if not given "
        "(default: $KFLOOP_RUNTIME)",
    )
    parser.add_argument(
        "--payload_logger",
        default=os.environ.get("KFLOOP_PAYLOAD_LOGGER", ""),
        help="URL of a payload logger that gets requests and answers "
        "(default: $KFLOOP_PAYLOAD_LOGGER)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--grpc_port", type=int, default=0, help="0: no gRPC")
    parser.add_argument("--http_fd", type=int, default=-1, help="a bound socket, inherited")
    parser.add_argument(
        "--drain_seconds",
        type=float,
        default=0.0,
        help="how long to go on answering after SIGTERM while not ready; in Kubernetes as long as "
        "it takes until no one sends here any more, for example 5",
    )
    parser.add_argument(
        "--slow_seconds", type=float, default=1.0, help="requests that take longer are logged"
    )
    parser.add_argument(
        "--exit_with_stdin", action="store_true", help="end when standard input is closed"
    )
    arguments = parser.parse_args()
    if arguments.exit_with_stdin:
        _exit_with_stdin()
    try:
        serve(arguments)
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr, flush=True)
        sys.exit(UNUSABLE)


if __name__ == "__main__":
    main()
