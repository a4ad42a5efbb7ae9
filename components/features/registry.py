# SPDX-License-Identifier: Apache-2.0
"""One writer at a time for a registry that several repositories or runs share.

Feast rewrites a registry as a whole and in place: of two writers one is lost, and a writer that is
killed leaves half a file. So a writer works on a copy, which takes the place of the registry in one
step when the work is done:

- a file: other writers wait for a lock that the system releases when the process ends;
- `gs://`: the new object replaces exactly the generation that was read, or nothing;
- SQL: rows are written in transactions already; other writers wait for an advisory lock
  (PostgreSQL), or for the lock of the file (SQLite).

A registry inside the repository has no other writer. Readers never wait. Feast's own command line
does not know of these locks.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from feast.repo_config import RepoConfig

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_bytes
from kfloop.components.features.cloud import Blob

WAIT_SECONDS = 300.0
LOOK_SECONDS = 0.2


@contextmanager
def sole_writer(
    config: RepoConfig, repo: Path, wait_seconds: float = WAIT_SECONDS
) -> Iterator[None]:
    """Makes the block the only writer of a repository's registry.

    Inside the block `config` may name a copy of the registry; a block that raises changes nothing
    in a registry that is a file or an object.

    Args:
        config: The repository's configuration, which the block's store must be opened with.
        repo: Where relative paths start.
        wait_seconds: How long to wait for another writer.

    Raises:
        InputError: If another writer takes longer, or has changed the object meanwhile.
    """
    registry = config.registry
    path = registry.path
    if registry.registry_type == "sql":
        with _sql_lock(path, repo, wait_seconds):
            yield
    elif registry.registry_type != "file" or ("://" in path and not path.startswith("gs://")):
        print(
            f"The registry ({registry.registry_type}) is not locked here: "
            "let one step at a time apply or materialize.",
            flush=True,
        )
        yield
    elif path.startswith("gs://"):
        with tempfile.TemporaryDirectory() as scratch:
            blob, copy = Blob(path), Path(scratch) / "registry.db"
            generation = blob.download(copy)
            with _in_place_of(config, copy):
                yield
            blob.replace(copy, generation)
    elif _is_inside(repo / path, repo):
        yield
    else:
        with _file_lock(repo / path, wait_seconds), tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "registry.db"
            if (repo / path).is_file():
                shutil.copyfile(repo / path, copy)
            with _in_place_of(config, copy):
                yield
            write_bytes(repo / path, copy.read_bytes())


def require_shared_online_store(config: RepoConfig, repo: Path) -> None:
    """Checks that a shared registry does not go with an online store that is nobody else's.

    The registry remembers what was materialized; the next copy of the repository would have an
    empty online store, and go on where the last one ended.

    Raises:
        InputError: If it does.
    """
    registry, online = config.registry, config.online_store
    shared = registry.registry_type != "file" or not _is_inside(repo / registry.path, repo)
    if shared and online and online.type == "sqlite" and _is_inside(repo / online.path, repo):
        raise InputError(
            "The registry is shared and remembers what is in the online store, which lies in this "
            "copy of the repository; name an online_store that is shared too, or null for none."
        )


def _is_inside(file: Path, repo: Path) -> bool:
    return file.resolve().is_relative_to(repo.resolve())


@contextmanager
def _in_place_of(config: RepoConfig, copy: Path) -> Iterator[None]:
    path = config.registry.path
    config.registry.path = str(copy)
    try:
        yield
    finally:
        config.registry.path = path


@contextmanager
def _file_lock(file: Path, wait_seconds: float) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("a+") as lock:

        def locked() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        def holder() -> str:
            lock.seek(0)
            return lock.read().strip()

        _wait(locked, holder, str(file), wait_seconds)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        # Closing the file releases the lock, and so does the end of the process.
        yield


@contextmanager
def _sql_lock(url: str, repo: Path, wait_seconds: float) -> Iterator[None]:
    # Only repositories with an SQL registry need it.
    import sqlalchemy

    address = sqlalchemy.make_url(url)
    if address.get_backend_name() == "sqlite":
        file = repo / (address.database or "")
        with contextlib.nullcontext() if _is_inside(file, repo) else _file_lock(file, wait_seconds):
            yield
        return
    if address.get_backend_name() != "postgresql":
        print(
            f"A registry on {address.get_backend_name()} is not locked: "
            "let one step at a time apply or materialize.",
            flush=True,
        )
        yield
        return
    engine = sqlalchemy.create_engine(
        address, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
    )
    told = f"{address.host}/{address.database}"
    try:
        connected = engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        raise InputError(
            f"The feature registry {told} cannot be reached: {' '.join(str(error.orig).split())}."
        ) from error
    # The lock is the session's: it goes with the connection, however that ends.
    with connected as connection:
        take = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtext('kfloop feature registry'))")

        def locked() -> bool:
            return bool(connection.execute(take).scalar())

        _wait(locked, lambda: "", told, wait_seconds)
        yield


def _wait(
    locked: Callable[[], bool], holder: Callable[[], str], registry: str, wait_seconds: float
) -> None:
    end = time.monotonic() + wait_seconds
    said = False
    while not locked():
        who = f" ({holder()})" if holder() else ""
        if time.monotonic() > end:
            raise InputError(
                f"The feature registry {registry} is being written by another step{who} for more "
                f"than {wait_seconds:g} seconds; nothing was changed, run this step again later."
            )
        if not said:
            print(f"Waiting for another writer of the registry {registry}{who}.", flush=True)
            said = True
        time.sleep(LOOK_SECONDS)
