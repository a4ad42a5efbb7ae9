"""The model server: a model package behind KServe's V1 and V2 protocols.

Run as `python -m kfloop.serving.model_server --model_name NAME --model_dir PACKAGE`.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

# TensorFlow reads it when it is imported; its start-up chatter tells a user nothing.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kserve
import kserve.model_server
import numpy as np
import orjson
from fastapi import Request
from fastapi.exceptions import FastAPIDeprecationWarning, RequestValidationError
from fastapi.responses import JSONResponse
from grpc import aio
from kserve import InferOutput, InferRequest, InferResponse
from kserve.errors import InferenceError, InvalidInput
from kserve.logging import configure_logging
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import version_label
from kfloop.components.contracts.model_package import SAVED_MODEL, ModelPackage, read_model_json
from kfloop.serving.inputs import Arrays, from_instances, from_tensors

# Exit status of a package that can never be served; a supervisor must not try again.
UNUSABLE = 2
DATATYPES = {"float": "FP32", "int": "INT64", "bool": "BOOL", "string": "BYTES"}
LABELS = ("model", "version", "protocol", "status")
REQUESTS = Counter("kfloop_requests", "Answered inference requests.", LABELS)
SECONDS = Histogram(
    "kfloop_request_seconds",
    "Time from request to answer, in the model server.",
    LABELS,
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
ROWS = Histogram(
    "kfloop_request_rows",
    "Rows per request that reached the model.",
    ("model", "version"),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)


class PackageModel(kserve.Model):  # type: ignore[misc]  # kserve has no type information
    """A model package as a KServe model.

    Attributes:
        package: What `model.json` says.
        version: Version put into every answer.
    """

    def __init__(self, name: str, directory: str) -> None:
        super().__init__(name)
        self.package: ModelPackage = read_model_json(directory)
        self.version = version_label(self.package.version)
        self._directory = directory
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="model")

    def load(self) -> bool:
        """Loads the SavedModel and runs it once, so that the first request finds it warm.

        Raises:
            InputError: If it is not a SavedModel with the contract's inputs and outputs.
        """
        import tensorflow as tf  # slow: only once the package is known to be readable

        path = f"{self._directory}/{SAVED_MODEL}"
        try:
            # Kept: the signature holds only weak references to the variables.
            self._saved_model = tf.saved_model.load(path)
            self._signature = self._saved_model.signatures["serving_default"]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} cannot be loaded as a SavedModel: {error}.") from error
        inputs = set(self._signature.structured_input_signature[1])
        if inputs != set(self.package.feature_names):
            raise InputError(
                f"The SavedModel {path} takes {sorted(inputs)}, but model.json names the features "
                f"{sorted(self.package.feature_names)}; export the package again."
            )
        if self.package.output not in self._signature.structured_outputs:
            raise InputError(
                f"The SavedModel {path} has no output {self.package.output!r}, which the task "
                f"{self.package.task} needs; export the package again."
            )
        self._tensor = tf.constant
        missing = {name: None for name in self.package.feature_names}
        self.scores(from_instances({"instances": [missing]}, self.package))
        self.ready = True
        return True

    def scores(self, arrays: Arrays) -> Any:
        """Runs the SavedModel on a batch and returns its output as a NumPy array."""
        tensors = {name: self._tensor(array) for name, array in arrays.items()}
        return self._signature(**tensors)[self.package.output].numpy()

    def get_input_types(self) -> list[dict[str, Any]]:
        """Returns V2's metadata of the inputs."""
        return [
            {"name": feature.name, "datatype": DATATYPES[feature.type], "shape": [-1]}
            for feature in self.package.features
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Returns V2's metadata of the outputs."""
        if self.package.task != "multiclass":
            return [{"name": self.package.output, "datatype": "FP32", "shape": [-1]}]
        size = len(self.package.classes)
        return [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, size]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ]

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answers a V1 body or a V2 request, in a thread: KServe runs this on the event loop."""
        request_id = (headers or {}).get("x-request-id", "") or uuid.uuid4().hex
        work = partial(self._answer, payload, request_id)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _answer(self, payload: Any, request_id: str) -> dict[str, Any] | InferResponse:
        try:
            if isinstance(payload, InferRequest):
                arrays = from_tensors(payload.inputs, self.package)
            else:
                if isinstance(payload, bytes):  # a content type that KServe does not parse
                    payload = orjson.loads(payload)
                arrays = from_instances(payload, self.package)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"The body is not JSON: {error}.") from error
        except InputError as error:
            raise InvalidInput(str(error)) from error
        scores = self.scores(arrays)
        ROWS.labels(self.name, self.version).observe(len(scores))
        if broken := np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(1)).tolist():
            raise InferenceError(f"The model's answer is not a finite number for row {broken[0]}.")
        if isinstance(payload, InferRequest):
            return self._v2(payload, scores, request_id)
        return {"predictions": self._v1(scores)}

    def _v1(self, scores: Any) -> list[dict[str, Any]]:
        if self.package.task != "multiclass":
            return [{self.package.output: score} for score in scores.tolist()]
        return [
            {"label": label, "probabilities": dict(zip(self.package.classes, row, strict=True))}
            for label, row in zip(self._labels(scores), scores.tolist(), strict=True)
        ]

    def _v2(self, request: InferRequest, scores: Any, request_id: str) -> InferResponse:
        values = {self.package.output: scores}
        if self.package.task == "multiclass":
            values["label"] = np.array(self._labels(scores), dtype=object)
        outputs = []
        for kind in self.get_output_types():
            array = values[kind["name"]]
            output = InferOutput(kind["name"], list(array.shape), kind["datatype"])
            output.set_data_from_numpy(array, binary_data=request.use_binary_outputs)
            outputs.append(output)
        return InferResponse(
            response_id=request.id or request_id,
            model_name=self.name,
            infer_outputs=outputs,
            model_version=self.version,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _labels(self, scores: Any) -> list[str]:
        return [self.package.classes[index] for index in scores.argmax(1)]


class Observed:
    """Middleware: request id and model version on every answer, counts by version and status."""

    def __init__(self, app: ASGIApp, model: PackageModel) -> None:
        self._app = app
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection; only inference requests are observed."""
        if scope["type"] != "http" or not scope["path"].endswith((":predict", "/infer")):
            await self._app(scope, receive, send)
            return
        protocol = "v1" if scope["path"].endswith(":predict") else "v2"
        headers = MutableHeaders(scope=scope)
        headers.setdefault("x-request-id", uuid.uuid4().hex)
        if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            # What `curl -d` says of any body.
            binary = "inference-header-content-length" in headers
            headers["content-type"] = f"application/{'octet-stream' if binary else 'json'}"
        status = 500
        started = time.perf_counter()

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-model-version"] = self._model.version
                answer["x-request-id"] = headers["x-request-id"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            labels = (self._model.name, self._model.version, protocol, str(status))
            REQUESTS.labels(*labels).inc()
            SECONDS.labels(*labels).observe(time.perf_counter() - started)


class Plane(DataPlane):  # type: ignore[misc]  # kserve has no type information
    """KServe's data plane, which answers 400 instead of 500 to a malformed binary V2 body."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decodes a body; see KServe."""
        try:
            return super().decode(*args, **kwargs)
        except (KeyError, TypeError, ValueError, AttributeError, kserve.errors.InferenceError) as e:
            raise (
                e
                if isinstance(e, InvalidInput)
                else InvalidInput(f"The body is not a V2 request: {e!r}.")
            ) from e


class BoundGRPCServer(GRPCServer):  # type: ignore[misc]  # kserve has no type information
    """KServe's gRPC server on one address; the original listens on every interface."""

    def __init__(self, address: str, server: kserve.ModelServer) -> None:
        super().__init__(0, server.dataplane, server.model_repository_extension, kwargs={})
        self._address = address

    async def start(self, max_workers: int) -> None:
        """Serves until it is stopped."""
        self._server = aio.server(
            ThreadPoolExecutor(max_workers), interceptors=(ExceptionToStatusInterceptor(),)
        )
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(self._data_plane, self._model_repository_extension), self._server
        )
        self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._server.wait_for_termination()


class Server(kserve.ModelServer):  # type: ignore[misc]  # kserve has no type information
    """KServe's model server on a socket that was bound before the model was loaded.

    It reaches into `_serve` and `_rest_server`, because KServe knows no host and no socket; kserve
    is pinned exactly, and the tests run the real thing.
    """

    def __init__(self, listener: socket.socket, grpc_address: str = "") -> None:
        super().__init__(
            workers=1, enable_grpc=False, enable_latency_logging=False, access_log_format=None
        )
        self.dataplane = Plane(model_registry=self.registered_models)
        self._listener = listener
        self._grpc_address = grpc_address

    async def _serve(self) -> None:
        for unused in self.servers:
            unused.close()
        self._rest_server.create_application()
        serving: list[Coroutine[Any, Any, None]] = [
            self._rest_server._server.serve(sockets=[self._listener])
        ]
        if self._grpc_address:
            self._grpc_server = BoundGRPCServer(self._grpc_address, self)
            serving.append(self._grpc_server.start(self.max_threads))
        await asyncio.gather(*serving)


class _NotBadInput(logging.Filter):
    """Drops what KServe logs, with a traceback, for every request that was answered with 400."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], InvalidInput))


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    """Answers a V2 body of the wrong shape with one sentence."""
    assert isinstance(error, RequestValidationError)
    told = "; ".join(
        f"{'.'.join(map(str, entry['loc'][2:])) or 'body'}: {entry['msg']}"
        for entry in error.errors()
        if entry["loc"][1:] != ("bytes",)  # KServe's other way to read a body: binary tensors
    )
    return JSONResponse({"error": f"The body is not a V2 request: {told}."}, 400)


def _quiet_logging() -> None:
    """One line for what needs attention; none per request."""
    configure_logging(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
        }
    )
    logging.getLogger("kserve").addFilter(_NotBadInput())
    # KServe's use of a deprecated response class: nothing that whoever runs the server can change.
    warnings.filterwarnings("ignore", category=FastAPIDeprecationWarning)


def _exit_with_stdin() -> None:
    """Ends this process when its standard input is closed, which is when its parent has died."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error


def serve(arguments: argparse.Namespace) -> None:
    """Loads the package and serves it until SIGTERM; requests in flight are answered first."""
    started = time.monotonic()
    _quiet_logging()
    model = PackageModel(arguments.model_name, arguments.model_dir)
    if arguments.http_fd >= 0:
        listener = socket.socket(fileno=arguments.http_fd)
    else:
        listener = _bind(arguments.host, arguments.http_port)
    model.load()
    grpc_address = f"{arguments.host}:{arguments.grpc_port}" if arguments.grpc_port else ""
    app = kserve.model_server.app
    app.add_middleware(Observed, model=model)
    app.add_exception_handler(RequestValidationError, _malformed)
    host, port = listener.getsockname()[:2]
    print(
        f"Serving {model.name} version {model.version} on http://{host}:{port}, "
        f"loaded in {time.monotonic() - started:.1f} s.",
        flush=True,
    )
    Server(listener, grpc_address).start([model])


def main() -> None:
    """Reads the command line and serves; a package that cannot be served exits with `UNUSABLE`."""
    parser = argparse.ArgumentParser(description="Serves a kfloop model package.")
    parser.add_argument("--model_name", required=True, help="name on the endpoint path")
    parser.add_argument("--model_dir", required=True, help="the model package")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--grpc_port", type=int, default=0, help="0: no gRPC")
    parser.add_argument("--http_fd", type=int, default=-1, help="a bound socket, inherited")
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
