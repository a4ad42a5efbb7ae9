# SPDX-License-Identifier: Apache-2.0
"""One virtual environment per family, made once from the family's lock and reused by every run.

The families' packages exclude each other, so no single environment can hold them all. An
environment is named after what is in it (the lock, the Python, the platform), so a changed lock
makes a new one and an unchanged one is never made twice. kfloop itself is not installed in it:
its code is on `PYTHONPATH` (see `code_path`), so that two checkouts share environments and never
code.

Only the standard library is imported here: asking for environments that are there costs
milliseconds. Making them is the matter of `environment_build`.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError

FAMILIES = (
    "data",
    "validation",
    "features",
    "training",
    "evaluation",
    "deployment",
    "monitoring",
    "serving",
)
# TFDV 1.17 and later publish Linux wheels for this glibc and newer only.
TFDV_GLIBC = (2, 39)
MARKER = "kfloop-environment.json"
Say = Callable[[str], None]

# Shared locks on the environments this process uses; held until it ends, so that nobody removes
# an environment under a running pipeline.
_held: dict[Path, int] = {}


@dataclass(frozen=True)
class Environment:
    """A virtual environment, made or not.

    Attributes:
        name: What it is for: a family, or `tests`.
        locks: Requirement files it is made from; those after the first are installed without
            their dependencies.
        path: Where it is, or will be.
        note: What a user should know about the choice of the lock, or empty.
        overlay: A plain directory of packages laid behind another environment's own, not a
            virtual environment.
    """

    name: str
    locks: tuple[Path, ...]
    path: Path
    note: str = ""
    overlay: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter; for an overlay, the interpreter it was made with."""
        return Path(sys.executable) if self.overlay else self.path / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether it is complete: the marker is written last, and its Python still exists."""
        return (self.path / MARKER).is_file() and self.python.exists()

    @property
    def lock_file(self) -> Path:
        """The file whose lock is shared by users and exclusive while it is made or removed."""
        return cache_directory() / "locks" / f"{self.path.name}.lock"

    @property
    def log(self) -> Path:
        """What uv said when it was made."""
        return cache_directory() / "logs" / f"{self.path.name}.log"

    def facts(self) -> dict[str, Any]:
        """What was recorded when it was made: `lock`, `packages`, `bytes`, `seconds`."""
        facts: dict[str, Any] = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        return facts


def cache_directory() -> Path:
    """Returns `$KFLOOP_CACHE`, or the platform's cache directory for kfloop."""
    chosen = os.environ.get("KFLOOP_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kfloop"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kfloop"


def environment(family: str) -> Environment:
    """Describes a family's environment, whether it is made or not.

    Raises:
        InputError: If there is no such family, or its lock is missing.
    """
    if family not in FAMILIES:
        raise InputError(f"There is no family {family!r}; there is {', '.join(FAMILIES)}.")
    folder = _location("serving") if family == "serving" else _location("components") / family
    lock, note = folder / "requirements.txt", ""
    if family == "validation":
        lock, note = _validation_lock(folder)
    return describe(family, (lock, _location("components") / "kfp-runtime.txt"), note)


def jax_environment() -> Environment:
    """Describes the environment for training in several processes, with Keras on JAX."""
    locks = _location("components")
    return describe(
        "training-jax", (locks / "training" / "requirements-jax.txt", locks / "kfp-runtime.txt")
    )


def tests_environment(lock: Path) -> Environment:
    """Describes the overlay with pytest that is laid behind the environment under test."""
    return describe("tests", (lock,), overlay=True)


def describe(
    name: str, locks: tuple[Path, ...], note: str = "", overlay: bool = False
) -> Environment:
    """Describes the environment made from `locks` by this Python on this platform.

    Raises:
        InputError: If a lock is missing.
    """
    digest = hashlib.sha256()
    digest.update(f"{platform.python_version()} {sysconfig.get_platform()} {overlay}".encode())
    for lock in locks:
        if not lock.is_file():
            raise InputError(
                f"The lock {lock} of the environment {name!r} is missing; run `make locks`."
            )
        digest.update(b"\0")
        for line in lock.read_text(encoding="utf-8").splitlines():
            # A comment that changes is not another environment.
            text = line.strip()
            if text and not text.startswith("#"):
                digest.update(text.encode() + b"\n")
    path = cache_directory() / "environments" / f"{name}-{digest.hexdigest()[:12]}"
    return Environment(name, locks, path, note, overlay)


def _validation_lock(folder: Path) -> tuple[Path, str]:
    """Returns the newest lock whose TFDV loads on this system, and what to say about it."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return folder / "requirements.txt", ""
    libc, version = platform.libc_ver()
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        found = ()
    if libc == "glibc" and found >= TFDV_GLIBC:
        return folder / "requirements.txt", ""
    wanted = ".".join(map(str, TFDV_GLIBC))
    reason = (
        f"this system's glibc {version} is older than {wanted}"
        if libc == "glibc"
        else f"this system has no glibc {wanted} or newer"
    )
    return folder / "requirements-fallback.txt", f"TFDV 1.16 fallback lock, because {reason}"


def family_of_image(image: str) -> str:
    """Returns the family of an image such as `prefix/training:0.1.0`.

    Raises:
        InputError: If the image is of no family.
    """
    name = image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]
    if name not in FAMILIES:
        raise InputError(
            f"The image {image!r} is of no kfloop family, so there is no environment to run it in "
            f"here; an image is named PREFIX/FAMILY:VERSION with a family of {', '.join(FAMILIES)}."
        )
    return name


def ensure(
    families: Iterable[str], say: Say | None = None, console: Any = None
) -> dict[str, Environment]:
    """Makes the environments that are not there yet, and keeps all of them from being removed.

    Args:
        families: Names of families.
        say: Where notes go, a line each; the terminal by default.
        console: A `rich.console.Console` for the progress; a new one on stderr by default.

    Returns:
        The environments by family.

    Raises:
        InputError: If there is no such family, or an environment cannot be made; it says why and
            where the log is.
    """
    chosen = {family: environment(family) for family in dict.fromkeys(families)}
    make_ready(list(chosen.values()), say, console)
    return chosen


def make_ready(
    environments: list[Environment], say: Say | None = None, console: Any = None
) -> None:
    """Does for any environments what `ensure` does for families."""
    absent = [each for each in environments if not _hold(each)]
    if not absent:
        return
    from kfloop.pipelines.local.environment_build import build  # imports rich

    build(absent, say, console)


def _hold(environment: Environment) -> bool:
    """Takes this process's share of an environment if it is ready."""
    if environment.path not in _held:
        if not environment.ready:
            return False
        handle = open_lock(environment)
        if not try_lock(handle, fcntl.LOCK_SH):  # it is being made or removed
            os.close(handle)
            return False
        keep(environment, handle)
    if environment.ready:
        os.utime(environment.path / MARKER)  # when it was last used
        return True
    os.close(_held.pop(environment.path))
    return False


def open_lock(environment: Environment) -> int:
    """Opens the environment's lock file and returns its descriptor."""
    environment.lock_file.parent.mkdir(parents=True, exist_ok=True)
    return os.open(environment.lock_file, os.O_RDWR | os.O_CREAT, 0o644)


def try_lock(handle: int, kind: int) -> bool:
    """Takes a lock (`fcntl.LOCK_SH` or `LOCK_EX`) if it is free, giving up the one held."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep(environment: Environment, handle: int) -> None:
    """Keeps a shared lock until this process ends."""
    previous = _held.pop(environment.path, None)
    if previous is not None:
        os.close(previous)
    _held[environment.path] = handle


def code_path() -> Path:
    """Returns the directory to put on `PYTHONPATH` so that `import kfloop` finds this code.

    It holds `kfloop/` with a link to each of its parts, wherever they are: a checkout installed
    editable, or site-packages. It is keyed by those places, so two checkouts never mix.
    """
    parts = {
        name: _location(name)
        for name in ("components", "pipelines", "serving", "scripts", "testing")
    }
    key = hashlib.sha256("\0".join(map(str, parts.values())).encode()).hexdigest()[:12]
    target = cache_directory() / "code" / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    beside.chmod(0o755)
    (beside / "kfloop").mkdir()
    for name, place in parts.items():
        (beside / "kfloop" / name).symlink_to(place)
    try:
        beside.rename(target)
    except OSError:
        # Another process was faster; its directory has the same links.
        shutil.rmtree(beside)
        if not target.is_dir():
            raise
    return target


@cache
def _location(part: str) -> Path:
    """Returns the real directory of `kfloop.<part>`."""
    spec = find_spec(f"kfloop.{part}")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"kfloop.{part} is not installed; install kfloop again.")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def task_environment(environment: Environment) -> dict[str, str]:
    """Returns the process environment in which `python` is the family's and sees this kfloop.

    The caller's own Python settings are left out: they are about another interpreter.
    """
    variables = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
    }
    variables["PATH"] = os.pathsep.join(
        [str(environment.python.parent), variables.get("PATH", os.defpath)]
    )
    variables["VIRTUAL_ENV"] = str(environment.path)
    variables["PYTHONPATH"] = str(code_path())
    return variables
