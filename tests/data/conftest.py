# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback: object stores, and PostgreSQL where Debian's package is there."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import s3_server
from botocore.loaders import create_loader
from postgresql_server import Database, server_binaries, serving
from storage_server import Server


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server, _running(server):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3_server.Server]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    # No files of whoever runs this, and no question whether this is a machine at AWS.
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # The client's descriptions of AWS are read once, and a pause need not be long to be one.
    monkeypatch.setattr("botocore.session.create_loader", _loader)
    monkeypatch.setattr("kfloop.components.data.s3_storage.FIRST_PAUSE_SECONDS", 0.01)
    with s3_server.Server() as server, _running(server):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_REGION", server.region)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield server


_loader = cache(create_loader)


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server here; on Debian: apt-get install postgresql")
    with serving(binaries) as database:
        yield database
