"""Real servers on loopback: an object store, and PostgreSQL where Debian's package is there."""

import threading
from collections.abc import Iterator

import pytest
from postgresql_server import Database, server_binaries, serving
from storage_server import Server


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server here; on Debian: apt-get install postgresql")
    with serving(binaries) as database:
        yield database
