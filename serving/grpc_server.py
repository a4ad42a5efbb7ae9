# SPDX-License-Identifier: Apache-2.0
"""KServe's gRPC server on one address, observed and strict like the REST server."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kserve
from grpc import StatusCode, aio
from kserve import InferRequest
from kserve.errors import InferenceError, InvalidInput, ModelNotFound, ModelNotReady
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.utils.utils import to_headers

from kfloop.serving import tracing
from kfloop.serving.metrics import observe_request
from kfloop.serving.package_model import ModelError, PackageModel

MESSAGE_BYTES = 8 * 2**20  # as KServe's default
# Errors in the metrics' `status`, which is HTTP's for both protocols.
STATUSES = ((InvalidInput, 400), (ModelNotFound, 404), (ModelNotReady, 503))


class Servicer(InferenceServicer):
    """KServe's service, with metrics, version and request id on every answer."""

    def __init__(self, server: kserve.ModelServer, model: PackageModel) -> None:
        super().__init__(server.dataplane, server.model_repository_extension)
        self._model = model

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> Any:
        """Answers one request."""
        started = time.perf_counter()
        status = 500
        headers = to_headers(context)
        headers["x-request-id"] = tracing.request_id(headers)
        told = (("x-model-version", self._model.version), ("x-request-id", headers["x-request-id"]))
        context.set_trailing_metadata(told)
        try:
            answer = await self._infer(request, headers)
            status = 200
            return answer
        except ModelError as error:
            await context.abort(StatusCode.INTERNAL, error.reason)
        except Exception as error:
            status = next((code for kind, code in STATUSES if isinstance(error, kind)), 500)
            raise
        finally:
            seconds = time.perf_counter() - started
            observe_request(self._model.labels, "grpc", status, seconds)

    async def _infer(self, request: pb.ModelInferRequest, headers: dict[str, str]) -> Any:
        self.validate_grpc_request(request)
        try:
            parsed = InferRequest.from_grpc(request)
        except (AttributeError, InferenceError, LookupError, TypeError, ValueError) as error:
            raise InvalidInput(f"The message is not a V2 request: {error!r}.") from error
        answer, _ = await self._data_plane.infer(
            request=parsed, headers=headers, model_name=request.model_name
        )
        return answer.to_grpc()


class BoundGRPCServer(GRPCServer):
    """KServe's gRPC server on one address; the original listens on every interface."""

    def __init__(self, address: str, server: kserve.ModelServer, model: PackageModel) -> None:
        super().__init__(0, server.dataplane, server.model_repository_extension, kwargs={})
        self._address = address
        self._servicer = Servicer(server, model)

    async def start(self, max_workers: int) -> None:
        """Serves until it is stopped."""
        limits = [(f"grpc.max_{way}_message_length", MESSAGE_BYTES) for way in ("send", "receive")]
        self._server = aio.server(
            ThreadPoolExecutor(max_workers),
            interceptors=(ExceptionToStatusInterceptor(),),
            options=limits,
        )
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            self._servicer, self._server
        )
        self._server.add_insecure_port(self._address)
        await self._server.start()
        await self._server.wait_for_termination()
