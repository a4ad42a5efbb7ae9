# SPDX-License-Identifier: Apache-2.0
"""Environments are made once for each lock, by real uv, from a wheel made here: no network."""

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.environments import MARKER, Environment
from kfloop.scripts.envs import envs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a uv that finds only the wheels in tmp_path/wheels."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("KFLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    yield tmp_path / "cache"
    release()


def release() -> None:
    """Gives up this process's shares, as its end would."""
    for handle in environments._held.values():
        os.close(handle)
    environments._held.clear()


def make_lock(tmp_path: Path, name: str, body: str = "VALUE = 1\n", needs: str = "") -> Path:
    """Makes a wheel and a lock with its hash."""
    wheel = tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text.encode())}\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    lock = tmp_path / f"{name}.txt"
    lock.write_text(f"{name}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return lock


def tiny(tmp_path: Path, name: str = "tiny") -> Environment:
    return environments.describe(name, (make_lock(tmp_path, name),))


def run_in(each: Environment, code: str) -> str:
    command = [str(each.python), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def in_another_process(action: str, tmp_path: Path) -> subprocess.Popen[str]:
    """Starts a process that makes the environment of tmp_path/tiny.txt and then does `action`."""
    code = (
        "from pathlib import Path; from kfloop.pipelines.local import environments as e\n"
        f"tiny = e.describe('tiny', (Path({str(tmp_path / 'tiny.txt')!r}),))\n"
        f"e.make_ready([tiny], lambda line: print(line, flush=True))\n{action}"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def started_a_process(*arguments: object, **options: object) -> None:
    pytest.fail(f"started {arguments}")


def test_an_environment_has_the_locked_packages_as_bytecode(cache: Path, tmp_path: Path) -> None:
    each = tiny(tmp_path)
    said: list[str] = []
    environments.make_ready([each], said.append)
    assert run_in(each, "import tiny; print(tiny.VALUE, tiny.__cached__)").startswith("1 ")
    assert Path(run_in(each, "import tiny; print(tiny.__cached__)")).is_file()
    assert each.facts()["packages"] == 1
    assert any("tiny: ready in" in line and "1 packages" in line for line in said)


def test_a_second_ask_makes_nothing_and_starts_no_process(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = tiny(tmp_path)
    environments.make_ready([each])
    release()
    said: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", started_a_process)
    environments.make_ready([each], said.append)
    assert not said


def test_asking_for_every_family_that_is_there_starts_no_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in environments.FAMILIES:
        each = environments.environment(family)
        each.python.parent.mkdir(parents=True)
        each.python.touch()
        (each.path / MARKER).write_text("{}")
    monkeypatch.setattr(subprocess, "Popen", started_a_process)
    environments.ensure(environments.FAMILIES)
    assert environments.code_path()


def test_packages_of_later_locks_come_without_their_dependencies(
    cache: Path, tmp_path: Path
) -> None:
    second = make_lock(tmp_path, "runtime", needs="not-there")
    each = environments.describe("tiny", (make_lock(tmp_path, "tiny"), second))
    environments.make_ready([each])
    assert run_in(each, "import tiny, runtime; print(runtime.VALUE)") == "1"


def test_only_what_is_installed_decides_which_environment_it_is(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# first\na==1 \\\n    --hash=sha256:00\n    # via b\n")
    first = environments.describe("tiny", (lock,)).path
    lock.write_text("a==1 \\\n    --hash=sha256:00\n\n# other words\n")
    assert environments.describe("tiny", (lock,)).path == first
    lock.write_text("a==1 \\\n    --hash=sha256:11\n")
    assert environments.describe("tiny", (lock,)).path != first


def test_an_interrupted_environment_is_made_anew(cache: Path, tmp_path: Path) -> None:
    each = tiny(tmp_path)
    (each.path / "bin").mkdir(parents=True)
    (each.path / "bin" / "python").touch()
    assert not each.ready
    environments.make_ready([each])
    assert run_in(each, "import tiny; print(tiny.VALUE)") == "1"


def test_an_environment_whose_python_is_gone_is_made_anew(cache: Path, tmp_path: Path) -> None:
    each = tiny(tmp_path)
    environments.make_ready([each])
    each.python.unlink()
    environments.make_ready([each])
    assert run_in(each, "import tiny; print(tiny.VALUE)") == "1"


def test_a_wrong_hash_is_one_clear_error_and_leaves_nothing_that_looks_ready(
    cache: Path, tmp_path: Path
) -> None:
    lock = make_lock(tmp_path, "tiny")
    lock.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    each = environments.describe("tiny", (lock,))
    with pytest.raises(InputError, match=r"'tiny' could not be made.*(?s:.*)[Hh]ash") as raised:
        environments.make_ready([each])
    assert str(each.log) in str(raised.value)
    assert not each.ready


def test_two_processes_make_it_once_and_the_second_says_that_it_waits(
    cache: Path, tmp_path: Path
) -> None:
    each = tiny(tmp_path)
    handle = environments.open_lock(each)
    environments.fcntl.flock(handle, environments.fcntl.LOCK_EX)
    waiting = [in_another_process("", tmp_path) for _ in range(2)]
    try:
        for process in waiting:
            assert process.stdout is not None
            assert "Making" in process.stdout.readline()
            assert "waiting for another process" in process.stdout.readline()
        os.close(handle)
        told = "".join(process.communicate(timeout=60)[0] for process in waiting)
        assert told.count("ready in") == 1
        assert [process.returncode for process in waiting] == [0, 0]
    finally:
        for process in waiting:
            process.kill()


def test_a_uv_that_outlived_its_killed_parent_is_waited_for(cache: Path, tmp_path: Path) -> None:
    each = tiny(tmp_path)
    handle = environments.open_lock(each)
    environments.fcntl.flock(handle, environments.fcntl.LOCK_EX)
    # Inherits the lock as uv does, writes on after its parent closed its own, and ends.
    orphan = subprocess.Popen(
        ["sh", "-c", f"sleep 1; mkdir -p {each.path}/bin"], pass_fds=(handle,)
    )
    os.close(handle)
    said: list[str] = []
    environments.make_ready([each], said.append)
    assert orphan.poll() == 0
    assert any("waiting" in line for line in said)
    assert run_in(each, "import tiny; print(tiny.VALUE)") == "1"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_after_kill_9_at_any_moment_the_next_ask_makes_it_whole(
    cache: Path, tmp_path: Path, delay: float
) -> None:
    each = tiny(tmp_path)
    process = in_another_process("", tmp_path)
    assert process.stdout is not None
    process.stdout.readline()  # "Making …"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    environments.make_ready([each])
    assert run_in(each, "import tiny; print(tiny.VALUE)") == "1"


def test_a_task_runs_in_its_family_and_sees_this_kfloop_only(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    each = tiny(tmp_path)
    environments.make_ready([each])
    code = "import sys, tiny, kfloop.pipelines as p; print(sys.prefix, p.__file__, sys.path)"
    variables = environments.task_environment(each)
    done = subprocess.run(
        ["sh", "-c", f"python3 -c '{code}'"],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    prefix, file, path = done.stdout.split(" ", 2)
    assert Path(prefix) == each.path
    import kfloop.pipelines

    assert Path(file).resolve() == Path(str(kfloop.pipelines.__file__)).resolve()
    assert "/elsewhere" not in path


def test_an_image_names_its_family() -> None:
    assert environments.family_of_image("kfloop/training:0.1.0") == "training"
    assert environments.family_of_image("host:5000/a/b/data:1@sha256:00") == "data"
    with pytest.raises(InputError, match=r"busybox.*PREFIX/FAMILY.*monitoring"):
        environments.family_of_image("busybox")


@pytest.mark.parametrize(
    ("libc", "lock", "note"),
    [
        (("glibc", "2.36"), "requirements-fallback.txt", "glibc 2.36 is older than 2.39"),
        (("glibc", "2.39"), "requirements.txt", ""),
        (("glibc", "3.0"), "requirements.txt", ""),
        (("", ""), "requirements-fallback.txt", "no glibc 2.39"),
    ],
)
def test_validation_takes_the_newest_lock_that_loads_here(
    libc: tuple[str, str], lock: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments.sys, "platform", "linux")
    monkeypatch.setattr(environments.platform, "libc_ver", lambda: libc)
    each = environments.environment("validation")
    assert each.locks[0].name == lock
    assert note in each.note
    assert bool(each.note) == bool(note)


def test_every_family_has_its_lock() -> None:
    for family in environments.FAMILIES:
        assert environments.environment(family).locks[0].is_file()
    with pytest.raises(InputError, match=r"no family 'mining'.*training"):
        environments.environment("mining")


def test_clean_keeps_what_another_process_uses_and_removes_the_rest(
    cache: Path, tmp_path: Path
) -> None:
    used, unused = tiny(tmp_path), tiny(tmp_path, "unused")
    environments.make_ready([unused])
    release()
    user = in_another_process("print('here', flush=True); input()", tmp_path)
    try:
        assert user.stdout is not None
        while "here" not in user.stdout.readline():
            pass
        done = CliRunner().invoke(envs, ["clean", "--all"], catch_exceptions=False)
        assert "kept, a running kfloop" in done.output
        assert "1 environment(s) removed" in done.output
        assert used.ready
        assert not unused.path.exists()
    finally:
        user.kill()
        user.communicate()


def test_clean_keeps_the_environment_of_a_served_model_whose_starter_has_ended(
    cache: Path, tmp_path: Path
) -> None:
    each = tiny(tmp_path)
    environments.make_ready([each])
    release()
    server = subprocess.Popen([str(each.python), "-c", "import time; time.sleep(60)"])
    try:
        done = CliRunner().invoke(envs, ["clean"], catch_exceptions=False)
        assert f"kept, process {server.pid} runs in it" in done.output
        assert each.ready
    finally:
        server.kill()
        server.wait()
    CliRunner().invoke(envs, ["clean"], catch_exceptions=False)
    assert not each.path.exists()


def test_list_tells_what_is_made(cache: Path, tmp_path: Path) -> None:
    each = tiny(tmp_path)
    environments.make_ready([each])
    done = CliRunner().invoke(envs, ["list"], catch_exceptions=False)
    lines = {line.split()[0]: line for line in done.output.splitlines()}
    assert "not made" in lines["training"]
    assert "ready" in lines["tiny"]
