# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own, on loopback and in a directory of its own."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Database:
    """A PostgreSQL of this test run, with a password that must not be told."""

    port: int
    user: str
    password: str

    def uri(self, password: str) -> str:
        return f"postgresql+psycopg://{self.user}:{password}@127.0.0.1:{self.port}/postgres"


def server_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(binaries: Path) -> Iterator[Database]:
    # PostgreSQL refuses to run as root; pytest's own directory is closed to anybody else.
    account = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    whom = {"user": account.pw_uid, "group": account.pw_gid} if os.getuid() == 0 else {}
    if whom:
        whom["extra_groups"] = []
    home = Path(tempfile.mkdtemp(prefix="kfloop-postgresql-"))
    database = Database(_free_port(), "reader", f"@/:{secrets.token_hex(8)}%")
    server = None
    try:
        (home / "password").write_text(database.password)
        for path in (home, home / "password"):
            os.chown(path, account.pw_uid, account.pw_gid)
        initdb = [binaries / "initdb", "-D", home / "data", "-U", database.user, "-A"]
        initdb += ["scram-sha-256", f"--pwfile={home / 'password'}", "-E", "UTF8"]
        initdb += ["--locale=C", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=home, **whom)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": database.port,
            "unix_socket_directories": home,
            "fsync": "off",
            # Not UTC, so that a window taken in the server's zone would show.
            "timezone": "America/New_York",
        }
        command = [binaries / "postgres", "-D", home / "data"]
        command += [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, **whom)
        ready = [binaries / "pg_isready", "-q", "-t", "20", "-h", "127.0.0.1"]
        ready += ["-p", str(database.port)]
        for _ in range(200):
            if subprocess.run(ready, check=False).returncode == 0:
                break
            if server.poll() is not None:
                raise RuntimeError((home / "log").read_text())
            threading.Event().wait(0.05)
        yield database
    finally:
        if server is not None:
            server.terminate()
            server.wait(20)
        shutil.rmtree(home)
