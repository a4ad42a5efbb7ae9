# SPDX-License-Identifier: Apache-2.0
"""The local inference service: an InferenceService manifest, obeyed on this machine.

Run as `python -m kfloop.serving.local_service --directory DIR`; `local_state` says what is in the
directory and how to start and stop it. One process routes requests between one model server per
predictor; it never loads TensorFlow.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import uvicorn
import uvloop

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json, write_text
from kfloop.serving.local_state import LOG_ANNOTATION, predictor_specs, read_manifest
from kfloop.serving.log_writer import LogWriter
from kfloop.serving.predictors import Predictor, model_arguments, package_directory
from kfloop.serving.router import Routes, application
from kfloop.serving.shadow import Shadow
from kfloop.serving.traffic import traffic_settings

POLL_SECONDS = 0.2
STATUS_SECONDS = 1.0
LOCK_SECONDS = 2.0
GRACE_SECONDS = 20
Condition = dict[str, str]


class LocalService:
    """Keeps what runs equal to what the manifest asks for, and says how far it is."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.name = directory.name
        self.url = url
        self.routes = Routes(self.name)
        self.log = LogWriter()
        self.shadow = Shadow(self.name, self.log)
        self._changed = asyncio.Event()
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._manifest: dict[str, Any] = {}
        self._seen: object = None
        self._observed = 0
        self._error = ""
        self._predictors: list[Predictor] = []  # the stable one first
        self._percents: list[int] = []
        self._main: Predictor | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._conditions: list[Condition] = []
        self._written: dict[str, Any] = {}

    async def run(self) -> None:
        """Reconciles until it is cancelled."""
        status_due = 0.0
        while True:
            self._changed.clear()
            changed = self._read_manifest()
            self._route()
            if self._turned() or changed or time.monotonic() >= status_due:
                self._write_status()
                status_due = time.monotonic() + STATUS_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)

    async def close(self) -> None:
        """Ends every predictor and writes what is left of the log."""
        running = {*self._predictors, *([self._main] if self._main else [])}
        self._predictors, self._main = [], None
        for predictor in running:
            self._retire(predictor)
        await asyncio.gather(*self._stopping)
        await asyncio.to_thread(self.log.close)
        self._turned()
        self._write_status()

    def _read_manifest(self) -> bool:
        """Takes over the manifest when it changed; a broken one changes nothing but the status."""
        try:
            stat = (self.directory / "manifest.json").stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return False
            self._seen = seen
            manifest = read_manifest(self.directory) or {}
            specs = predictor_specs(manifest)
            for name, _, _ in specs:
                model_arguments(manifest, name)
            sticky, shadow_percent = traffic_settings(manifest)
            log = manifest["metadata"].get("annotations", {}).get(LOG_ANNOTATION, "")
            self.routes.log = str(package_directory(log)) if log else ""
            self.routes.sticky, self.routes.shadow_percent = sticky, shadow_percent
        except (InputError, OSError, ValueError, KeyError) as error:
            if str(error) == self._error:
                return False
            self._error = str(error)
            print(f"the manifest cannot be used: {error}", flush=True)
            return True
        self._manifest, self._error = manifest, ""
        generation = manifest["metadata"]["generation"]
        print(f"generation {generation}: {specs}", flush=True)
        self._take(specs)
        return True

    def _take(self, specs: list[tuple[str, str, int]]) -> None:
        """Matches predictors to specs: same name and model, else same model, else a new process."""
        free = list(self._predictors)
        if self._main is not None and self._main not in free:
            free.append(self._main)
        wanted: dict[str, Predictor] = {}
        for same_name in (True, False):
            for name, uri, _ in specs:
                if name in wanted:
                    continue
                for predictor in free:
                    same_model = (predictor.storage_uri, predictor.arguments) == (
                        uri,
                        model_arguments(self._manifest, name),
                    )
                    if same_model and (predictor.name == name or not same_name):
                        free.remove(predictor)
                        wanted[name] = predictor
                        predictor.name = name
                        break
        for name, uri, _ in specs:
            if name not in wanted:
                wanted[name] = Predictor(
                    self.name,
                    name,
                    uri,
                    self.directory,
                    changed=self._changed.set,
                    arguments=model_arguments(self._manifest, name),
                )
        self._predictors = [wanted[name] for name, _, _ in specs]
        self._percents = [percent for _, _, percent in specs]
        for predictor in free:
            if predictor is not self._main:
                self._retire(predictor)

    def _retire(self, predictor: Predictor) -> None:
        self.routes.remove(predictor)
        task = asyncio.create_task(predictor.stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def _route(self) -> None:
        """Sets the traffic split.

        A canary gets its share once it is ready; until then the stable predictor has it. A new
        stable predictor takes over once it is ready; until then the one before it goes on. When
        the stable one is down its share is answered with 503: a canary never gets more than asked.
        """
        if not self._predictors:
            return
        stable, *canaries = self._predictors
        if self._main is None or (stable.ready and self._main is not stable):
            old, self._main = self._main, stable
            if old is not None and old not in self._predictors:
                self._retire(old)
        shares = [
            (percent, canary)
            for percent, canary in zip(self._percents[1:], canaries, strict=True)
            if canary.ready
        ]
        self.routes.set(self._main, shares)
        self.routes.shadow = canaries[0] if canaries and canaries[0].ready else None
        if all(predictor.ready for predictor in self._predictors) and not self._error:
            self._observed = self._manifest["metadata"]["generation"]

    def _turned(self) -> bool:
        """Updates the conditions and says whether one of them turned."""
        before = [(entry["type"], entry["status"], entry["reason"]) for entry in self._conditions]
        fresh = self._current_conditions()
        since = {
            (entry["type"], entry["status"]): entry["lastTransitionTime"]
            for entry in self._conditions
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for entry in fresh:
            entry["lastTransitionTime"] = since.get((entry["type"], entry["status"]), now)
        self._conditions = fresh
        after = [(entry["type"], entry["status"], entry["reason"]) for entry in fresh]
        return before != after

    def _current_conditions(self) -> list[Condition]:
        if self._error:
            return [_condition("Ready", False, "InvalidSpec", self._error)]
        if not self._predictors:
            return [_condition("Ready", False, "NoManifest", "No manifest was applied.")]
        stable, *canaries = self._predictors
        # As at KServe: Ready says nothing about canaries, and holds while an older one serves.
        serving = self._main is not None and self._main.ready
        conditions = [
            _condition("Ready", serving, stable.state, "" if serving else stable.error),
            _condition("PredictorReady", stable.ready, stable.state, stable.error),
        ]
        if canaries:
            worst = next((canary for canary in canaries if not canary.ready), canaries[0])
            conditions.append(
                _condition("CanaryPredictorReady", worst.ready, worst.state, worst.error)
            )
        return conditions

    def status(self) -> dict[str, Any]:
        """Returns what the service says of itself; see `local_state.read_status`."""
        traffic = self.routes.traffic()
        shown = list(self._predictors)
        if self._main is not None and self._main not in shown:
            shown.append(self._main)
        predictors = {}
        for predictor in shown:
            # The one that only stands in for a new stable predictor may bear the same name.
            key = predictor.name if predictor.name not in predictors else f"{predictor.name} (old)"
            predictors[key] = {
                "url": predictor.url,
                "pid": predictor.pid,
                "model_version": predictor.version,
                "storageUri": predictor.storage_uri,
                "state": predictor.state,
                "ready": predictor.ready,
                "failed": predictor.failed,
                "error": predictor.error,
                "traffic": traffic.get(predictor, 0),
                "restarts": predictor.restarts,
                "requests": predictor.requests,
            }
        failures = [predictor.error for predictor in self._predictors if predictor.failed]
        current = self._observed == self._manifest.get("metadata", {}).get("generation")
        counts = self.log.counts
        return {
            "name": self.name,
            "pid": os.getpid(),
            "startedAt": self._started_at,
            "url": self.url,
            "generation": self._manifest.get("metadata", {}).get("generation", 0),
            "observedGeneration": self._observed,
            "conditions": self._conditions,
            "modelStatus": {
                "transitionStatus": "BlockedByFailedLoad"
                if failures
                else ("UpToDate" if current else "InProgress"),
                "lastFailureInfo": {"reason": "ModelLoadFailed", "message": failures[0]}
                if failures
                else None,
            },
            "predictors": predictors,
            "requests": self.routes.requests,
            "shadow": {"percent": self.routes.shadow_percent, **asdict(self.shadow.counts)},
            "log": {
                "directory": self.routes.log,
                "pending": counts.pending,
                "written": counts.written,
                "dropped": counts.dropped,
                "error": counts.error,
            },
            "dropped": counts.dropped,
        }

    def _write_status(self) -> None:
        status = self.status()
        if status != self._written:
            write_json(self.directory / "status.json", status)
            self._written = json.loads(json.dumps(status))


def _condition(kind: str, holds: bool, reason: str, message: str) -> Condition:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "",
    }


def _lock(directory: Path) -> TextIO | None:
    """Takes the lock that makes this process the one service of the directory, or returns None.

    Those who only ask whether it runs hold the lock for an instant: so it is tried for a while.
    """
    file = (directory / "lock").open("a+")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        else:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file


def _listen(directory: Path) -> socket.socket:
    """Binds the port the service had before, or a free one the first time."""
    path = directory / "port"
    try:
        kept = int(path.read_text()) if path.exists() else 0
        listener = socket.create_server(("127.0.0.1", kept))
    except (OSError, ValueError) as error:
        print(f"the port in {path} cannot be had again ({error}); the URL changes", flush=True)
        listener = socket.create_server(("127.0.0.1", 0))
    # Without it every answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(directory: Path) -> None:
    listener = _listen(directory)
    port = listener.getsockname()[1]
    write_text(directory / "port", f"{port}\n")
    service = LocalService(directory, f"http://127.0.0.1:{port}")
    config = uvicorn.Config(
        application(service.routes, service.log, service.shadow, service.status),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal again once it is done, which must not end the clean-up below.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    reconciling = asyncio.create_task(service.run())
    # A service that obeys no manifest any more must not go on answering.
    reconciling.add_done_callback(lambda _: setattr(server, "should_exit", True))
    print(f"{service.name} listens on {service.url}, process {os.getpid()}", flush=True)
    try:
        await server.serve(sockets=[listener])
        reconciling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reconciling
    finally:
        await service.close()
        print(f"{service.name} has stopped", flush=True)


def main() -> None:
    """Reads the command line and serves until SIGTERM."""
    parser = argparse.ArgumentParser(description="Serves an InferenceService on this machine.")
    parser.add_argument("--directory", required=True, type=Path)
    directory = parser.parse_args().directory.resolve()
    lock = _lock(directory)
    if lock is None:
        print(f"another process serves {directory} already", flush=True)
        return
    try:
        with lock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(directory))
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
