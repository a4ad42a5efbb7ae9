# SPDX-License-Identifier: Apache-2.0
"""One predictor of the local inference service: a model server in a process of its own."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.inference_log import NO_VERSION, RESERVED, version_label
from kfloop.components.contracts.model_package import ModelPackage, read_model_json
from kfloop.serving.local_state import last_error

PROBE_SECONDS = 0.1
LOAD_SECONDS = 300.0
DRAIN_SECONDS = 30.0
STOP_SECONDS = 10.0
FIRST_BACK_OFF, LONGEST_BACK_OFF = 1.0, 30.0
# Exit status of the model server for a package that can never be served.
UNUSABLE = 2
# After so many crashes before it was ever ready, whoever waits for it is told that it failed.
CRASHES_TO_FAIL = 2

LOADING, READY, CRASHED, FAILED, STOPPING = (
    "Loading",
    "Ready",
    "Crashed",
    "FailedToLoad",
    "Stopping",
)


def package_directory(storage_uri: str) -> Path:
    """Returns the local path of a storageUri.

    Raises:
        InputError: If it is not an absolute path or a `file://` URI.
    """
    parts = urlsplit(storage_uri)
    path = Path(url2pathname(parts.path) if parts.scheme == "file" else storage_uri)
    if parts.scheme not in ("", "file") or not path.is_absolute():
        raise InputError(
            f"storageUri {storage_uri} is not on this machine; the local inference service reads "
            "absolute paths and file:// URIs."
        )
    return path


def model_arguments(manifest: dict[str, Any], name: str) -> list[str]:
    """Returns what a manifest adds to a predictor's command line: `args` of its `model`.

    Raises:
        InputError: If they are not a list of texts.
    """
    spec = manifest["spec"]
    predictors = [spec["predictor"], *(entry["predictor"] for entry in spec.get("canary") or [])]
    # The stable predictor may have no name of its own; see `predictor_specs`.
    named = [one for one in predictors if (one.get("name") or "predictor") == name]
    arguments = named[0]["model"].get("args") or [] if named else []
    if not isinstance(arguments, list) or not all(isinstance(one, str) for one in arguments):
        raise InputError(f"model.args of the predictor {name} must be a list of texts.")
    return arguments


class Predictor:
    """Starts a model server, restarts it when it crashes, drains and stops it.

    Attributes:
        name: Predictor name in the manifest; a promotion may change it while it runs.
        storage_uri: The model package it serves; never changes.
        arguments: What the manifest adds to the model server's command line; never changes.
        package: What `model.json` says, or None when it cannot be read.
        state: `Loading`, `Ready`, `Crashed` (waits to be started again), `FailedToLoad` or
            `Stopping`.
        error: Why it is not ready.
        restarts: How often it was started again.
        requests: Requests it answered.
        in_flight: Requests it is answering.
    """

    def __init__(
        self,
        service: str,
        name: str,
        storage_uri: str,
        logs: Path,
        changed: Callable[[], None],
        arguments: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.storage_uri = storage_uri
        self.arguments = list(arguments)
        self.package: ModelPackage | None = None
        self.state = LOADING
        self.error = ""
        self.restarts = 0
        self.requests = 0
        self.in_flight = 0
        self.url = ""
        self._service = service
        self._log = logs / f"predictor-{name}.log"
        self._changed = changed
        self._was_ready = False
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        """Whether it can be sent requests."""
        return self.state == READY

    @property
    def failed(self) -> bool:
        """Whether there is no use in waiting for it."""
        crashed = self.state == CRASHED and not self._was_ready
        return self.state == FAILED or (crashed and self.restarts >= CRASHES_TO_FAIL)

    @property
    def version(self) -> str:
        """Version of the model it serves."""
        return version_label(self.package.version) if self.package else NO_VERSION

    @property
    def pid(self) -> int | None:
        """Process id of its model server while there is one."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process and running else None

    def _enter(self, state: str, error: str = "") -> None:
        self.state, self.error = state, error
        told = f": {error}" if error else ""
        print(f"predictor {self.name} ({self.storage_uri}) is {state}{told}", flush=True)
        self._changed()

    async def _run(self) -> None:
        try:
            # Said here within milliseconds, not after the seconds that TensorFlow takes to load.
            directory = package_directory(self.storage_uri)
            self.package = read_model_json(directory)
            _require_loggable(self.package)
        except InputError as error:
            self._enter(FAILED, str(error))
            return
        back_off = FIRST_BACK_OFF
        while True:
            await self._spawn(directory)
            assert self._process is not None
            if await self._becomes_ready():
                self._was_ready, back_off = True, FIRST_BACK_OFF
                self._enter(READY)
            status = await self._process.wait()
            if status == UNUSABLE:
                self._enter(FAILED, last_error(self._log))
                return
            self._enter(CRASHED, f"it ended with code {status}: {last_error(self._log)}")
            await asyncio.sleep(back_off)
            back_off = min(2 * back_off, LONGEST_BACK_OFF)
            self.restarts += 1
            self._enter(LOADING, self.error)

    async def _spawn(self, directory: Path) -> None:
        # Bound here and inherited, so that nobody can take the port while the model loads.
        with socket.socket() as listener, self._log.open("ab") as log:
            listener.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "kfloop.serving.model_server"),
                *("--model_name", self._service),
                *("--model_dir", str(directory)),
                *("--http_fd", str(listener.fileno())),
                "--exit_with_stdin",
                *self.arguments,
                # Its end closes when this process ends in any way: the model server ends with it.
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        self._changed()

    async def _becomes_ready(self) -> bool:
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + LOAD_SECONDS
        url = f"{self.url}/v2/models/{self._service}/ready"
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while self._process.returncode is None:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(url)).status_code == 200:
                        return True
                if asyncio.get_running_loop().time() > deadline:
                    print(f"predictor {self.name} was not ready within {LOAD_SECONDS:.0f} s")
                    self._process.kill()
                    await self._process.wait()
                await asyncio.sleep(PROBE_SECONDS)
        return False

    async def stop(self) -> None:
        """Waits for the requests in flight, then ends the process."""
        self._task.cancel()
        self._enter(STOPPING)
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while self.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(PROBE_SECONDS / 2)
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def _require_loggable(package: ModelPackage) -> None:
    taken = sorted(RESERVED & {*package.feature_names, *package.entities})
    if taken:
        raise InputError(
            f"The model {package.name} has the feature or entity {', '.join(map(repr, taken))}, "
            "which is a column of the inference log; rename it in the query that makes the dataset."
        )
