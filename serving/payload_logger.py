# SPDX-License-Identifier: Apache-2.0
"""The payload logger: takes CloudEvents of requests and answers, and writes the inference log.

Run as `python -m kfloop.serving.payload_logger --directory DIR`. It answers 202 at once, whatever
the disk does; a thread joins, redacts and writes (`payload_writer`). On SIGTERM it takes no new
events, writes all that it holds, and ends; docs/payload-logger.md tells what `kill -9` loses.
"""

import argparse
import asyncio
import hashlib
import logging
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kfloop.components.contracts.errors import InputError
from kfloop.serving import payload_metrics as metrics
from kfloop.serving.log_lines import AtMost, JsonFormatter
from kfloop.serving.payload_events import PREDICTOR_COMPONENT, events_of
from kfloop.serving.payload_rows import Redaction
from kfloop.serving.payload_writer import PayloadWriter, Settings

# Exit statuses: settings that cannot be used, and rows that could not be written in the end.
UNUSABLE = 2
LOST_ROWS = 3
MAX_BODY = 16 * 2**20
GRACE_SECONDS = 10
LINES_PER_SECOND = 10
LEFT_OVER = timedelta(hours=1)
KEY_VARIABLE = "KFLOOP_REDACTION_KEY"
Number = TypeVar("Number", int, float)
_log = logging.getLogger("kfloop.payload_logger")


def is_sampled(request_id: str, share: float) -> bool:
    """Whether an id is in the sample: the same for a request, its answer, and every replica."""
    # Not the router's hash: the sample must not follow the split of the traffic.
    digest = hashlib.sha256(f"payload:{request_id}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


class PayloadLogger:
    """The HTTP side."""

    def __init__(self, writer: PayloadWriter, share: float = 1.0) -> None:
        self._writer = writer
        self._share = share

    async def receive(self, request: Request) -> Response:
        """Takes the events of a POST: 202, or 400 and a sentence for what is no event."""
        try:
            body = await _body(request)
            events = events_of(request.headers, body)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except InputError as error:
            metrics.EVENTS.labels("unknown", "refused").inc()
            _log.warning("An event was refused: %s", error)
            return JSONResponse({"error": str(error)}, 400)
        for event in events:
            if event.component != PREDICTOR_COMPONENT:
                metrics.EVENTS.labels(event.kind, "ignored").inc()
            elif not is_sampled(event.id, self._share):
                metrics.EVENTS.labels(event.kind, "sampled_out").inc()
            else:
                self._writer.offer(event)
        return Response(status_code=202)

    async def health(self, request: Request) -> Response:
        """Whether the thread that writes runs."""
        alive = self._writer.alive
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    def application(self) -> Starlette:
        """Returns the logger as an ASGI application."""
        return Starlette(
            routes=[
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
                # KServe posts to its logger's URL as it stands, which may have a path.
                Route("/{path:path}", self.receive, methods=["POST"]),
            ]
        )


async def _body(request: Request) -> bytes:
    """Returns a request's body.

    Raises:
        InputError: If it is larger than `MAX_BODY`.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise InputError(
                f"The body is larger than {MAX_BODY // 2**20} MiB, the most a payload may have."
            )
        parts.append(part)
    return b"".join(parts)


def prepare_directory(directory: Path) -> None:
    """Makes the log's directory, and removes what a killed process left half written.

    Raises:
        InputError: If the directory cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file in directory.rglob(".*.parquet"):
            # A younger one may be of another replica that is writing it.
            if time.time() - file.stat().st_mtime > LEFT_OVER.total_seconds():
                file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"The log's directory {directory} cannot be used: {error.strerror}; "
            "give --directory one that this user can write."
        ) from error


def set_up_log() -> None:
    """Sends warnings of all, and from INFO on our own, to standard error as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(AtMost(LINES_PER_SECOND))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    _log.setLevel(logging.INFO)


async def serve(options: argparse.Namespace, writer: PayloadWriter) -> None:
    """Takes events until SIGTERM or SIGINT."""
    application = PayloadLogger(writer, options.sample).application()
    config = uvicorn.Config(
        application,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    # uvicorn would raise the signal again once it is done, before what is held is written.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    if server.started:
        port = server.servers[0].sockets[0].getsockname()[1]
        _log.info("listening", extra={"url": f"http://{options.host}:{port}"})
    await serving


def run(options: argparse.Namespace) -> int:
    """Serves and returns the exit status.

    Raises:
        InputError: If the settings cannot be used.
    """
    key = os.environ.get(KEY_VARIABLE, "").encode()
    redaction = Redaction(frozenset(options.drop), frozenset(options.hash), key)
    if options.models is not None and not options.models.is_dir():
        raise InputError(f"--models is {options.models}, which is no directory.")
    prepare_directory(options.directory)
    writer = PayloadWriter(
        Settings(
            directory=options.directory,
            models=options.models,
            redaction=redaction,
            join_seconds=options.join_seconds,
            flush_seconds=options.flush_seconds,
            flush_rows=options.flush_rows,
            max_queued=options.max_queued,
        )
    )
    try:
        asyncio.run(serve(options, writer))
    finally:
        lost = writer.close()
    if lost or not writer.complete:
        _log.error("stopped; rows could not be written", extra={"rows": lost})
        return LOST_ROWS
    _log.info("stopped; all is written")
    return 0


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return share


def _count(text: str) -> int:
    return _positive(int(text))


def _seconds(text: str) -> float:
    return _positive(float(text))


def _positive(number: Number) -> Number:
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def argument_parser() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    parser = argparse.ArgumentParser(description="Writes the inference log from CloudEvents.")
    parser.add_argument("--directory", required=True, type=Path, help="where the logs go")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--models", type=Path, help="holds SERVICE/VERSION/model.json: the columns' types"
    )
    parser.add_argument("--sample", type=_share, default=1.0, help="share of the requests")
    parser.add_argument("--drop", action="append", default=[], help="field not to log; repeatable")
    parser.add_argument(
        "--hash",
        action="append",
        default=[],
        help=f"field to hash with ${KEY_VARIABLE}; repeatable",
    )
    parser.add_argument(
        "--join_seconds", type=_seconds, default=60.0, help="how long to wait for the other half"
    )
    parser.add_argument("--flush_seconds", type=_seconds, default=10.0)
    parser.add_argument("--flush_rows", type=_count, default=10_000)
    parser.add_argument("--max_queued", type=_count, default=10_000, help="events, then drop")
    return parser


def main() -> None:
    """Reads the command line and serves."""
    set_up_log()
    try:
        sys.exit(run(argument_parser().parse_args()))
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr, flush=True)
        sys.exit(UNUSABLE)


if __name__ == "__main__":
    main()
