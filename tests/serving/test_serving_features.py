# SPDX-License-Identifier: Apache-2.0
"""Looking features up: what Feast says, the ttl, what is missing, and stores that are down."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import NOW, PLANES, ROUTES, SERVICE, SQLITE, Locked, with_features, write_repo
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, read_model_json
from kfloop.serving.breaker import Breaker
from kfloop.serving.features import FeaturesUnavailableError, OnDemandError, OnlineFeatures

FEATURES = ("seats", "distance", "weekend")


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureStore]:
    path = tmp_path_factory.mktemp("features") / "repo"
    return path, write_repo(path, SQLITE)


@pytest.fixture(scope="module")
def package(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    copy = tmp_path_factory.mktemp("package") / "toy"
    return read_model_json(with_features(packages["v1"], copy))


@pytest.fixture(scope="module")
def online(repo: tuple[Path, FeatureStore], package: Any) -> OnlineFeatures:
    return OnlineFeatures(repo[0], package)


def columns(rows: list[tuple[Any, Any, Any]]) -> dict[str, list[Any]]:
    return dict(zip(("plane", "route", "day"), map(list, zip(*rows, strict=True)), strict=True))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([*PLANES, "N404"]),
        st.sampled_from([*ROUTES, 404, -1]),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
)


def agrees_with_feast(store: FeatureStore, online: OnlineFeatures, rows: Any) -> None:
    given = columns(rows)
    entities = [dict(zip(given, row, strict=True)) for row in rows]
    service = store.get_feature_service(SERVICE)
    expected = store.get_online_features(features=service, entity_rows=entities).to_dict()
    # Feast knows no ttl: ask for the moment at which nothing is too old.
    found = online.look_up(given, [NOW - timedelta(days=1)] * len(rows))
    assert {name: found.columns[name] for name in FEATURES} == {
        name: expected[name] for name in FEATURES
    }


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_a_look_up_says_what_feast_says(repo: Any, online: OnlineFeatures, rows: Any) -> None:
    agrees_with_feast(repo[1], online, rows)


def test_what_a_model_needs_of_a_request_is_worked_out(online: OnlineFeatures) -> None:
    assert online.features == set(FEATURES)
    assert online.needs == {"plane": "string", "route": "int", "day": "int"}


@pytest.mark.parametrize(
    ("route", "minutes", "outcome", "distance"),
    [
        (7, 60, "found", 1120.0),
        (7, 61, "expired", None),
        (9, 29, "found", 3960.8),
        (9, 31, "expired", None),
        (10, 0, "expired", None),
        (10, -31, "found", 160.0),
        (404, 0, "absent", None),
        (2**70, 0, "absent", None),
        (None, 0, "no key", None),
    ],
)
def test_a_value_counts_for_its_ttl_at_the_moment_of_the_row(
    online: OnlineFeatures, route: Any, minutes: int, outcome: str, distance: float | None
) -> None:
    found = online.look_up(columns([("N1", route, 1)]), [NOW + timedelta(minutes=minutes)])
    assert found.outcomes == {"planes": ["found"], "routes": [outcome]}
    assert found.columns["distance"] == [pytest.approx(distance) if distance else None]
    assert found.columns["seats"] == [150]  # planes never get too old


def test_a_view_is_read_once_for_a_batch_and_rows_keep_their_own(online: OnlineFeatures) -> None:
    rows = [("N2", 7, 1), ("N1", 9, 5), ("N2", 404, 6), (None, 7, None)]
    moments = [NOW, NOW + timedelta(hours=2), NOW, NOW]
    found = online.look_up(columns(rows), moments)
    assert found.columns["seats"] == [9, 150, 9, None]
    assert found.columns["weekend"] == [False, True, True, None]
    assert found.columns["distance"] == [1120.0, None, None, 1120.0]
    assert found.outcomes["routes"] == ["found", "expired", "absent", "found"]
    assert found.outcomes["planes"] == ["found", "found", "found", "no key"]


def test_a_store_that_is_down_is_left_alone_and_asked_again_later(repo: Any, package: Any) -> None:
    clock = Clock()
    online = OnlineFeatures(repo[0], package, timeout=0.01)
    online.breaker = Breaker(failures=3, rest_seconds=5, clock=clock)
    rows = columns([("N1", 7, 1)])
    with Locked(repo[0]):
        for _ in range(3):
            with pytest.raises(FeaturesUnavailableError, match=r"does not answer.*locked"):
                online.look_up(rows, [NOW])
        with pytest.raises(FeaturesUnavailableError, match="left alone"):
            online.look_up(rows, [NOW])
        assert online.breaker.open
        clock.seconds = 5.0  # one call may try, and fails
        with pytest.raises(FeaturesUnavailableError, match="locked"):
            online.look_up(rows, [NOW])
    with pytest.raises(FeaturesUnavailableError, match="left alone"):
        online.look_up(rows, [NOW])
    clock.seconds = 10.0
    assert online.look_up(rows, [NOW]).columns["seats"] == [150]
    assert not online.breaker.open


def test_only_one_call_tries_a_store_that_was_down() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, rest_seconds=5, clock=clock)
    assert breaker.allow()
    breaker.failed()
    assert not breaker.allow()
    clock.seconds = 5.0
    assert [breaker.allow() for _ in range(3)] == [True, False, False]
    clock.seconds = 10.0  # whoever tried never came back
    assert breaker.allow()
    breaker.succeeded()
    assert [breaker.allow() for _ in range(2)] == [True, True]


def test_a_failing_on_demand_view_is_not_the_stores_fault(repo: Any, package: Any) -> None:
    online = OnlineFeatures(repo[0], package)
    with pytest.raises(OnDemandError, match="'trip' failed: TypeError"):
        online.look_up(columns([("N1", 7, "monday")]), [NOW])
    assert not online.breaker.open
    assert online.look_up(columns([("N1", 7, 1)]), [NOW]).columns["weekend"] == [False]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"feature_service": ""}, "without a feature service"),
        ({"feature_service": "other"}, "needs the feature service 'other'"),
        ({"features": [Feature("x", "float")]}, "none of the features"),
        ({"features": [Feature("seats", "string")]}, "'seats' as string, .* gives it as int"),
        ({"features": [Feature("seats", "int"), Feature("plane", "int")]}, "'plane' is int"),
    ],
)
def test_a_repository_that_does_not_fit_the_model_is_refused(
    repo: Any, package: Any, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        OnlineFeatures(repo[0], replace(package, **change))


def test_a_repository_without_a_filled_store_is_refused(
    repo: Any, package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"holds no feature_store\.yaml"):
        OnlineFeatures(tmp_path, package)
    copy = tmp_path / "copy"
    shutil.copytree(repo[0], copy)
    (copy / "data/online_store.db").unlink()
    with pytest.raises(InputError, match=r"online store .* is not there"):
        OnlineFeatures(copy, package)
    text = (copy / "feature_store.yaml").read_text()
    changed = text.replace("data/online_store.db", "${TOY_STORE}")
    (copy / "feature_store.yaml").write_text(changed)
    with pytest.raises(InputError, match="asks the environment for TOY_STORE"):
        OnlineFeatures(copy, package)
    monkeypatch.setenv("TOY_STORE", str(repo[0] / "data/online_store.db"))
    found = OnlineFeatures(copy, package).look_up(columns([("N1", 7, 1)]), [NOW])
    assert found.columns["seats"] == [150]


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def test_redis_says_what_feast_says_and_its_outage_ends(
    redis_port: int, package: Any, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{redis_port}"
    online_store = {"type": "redis", "connection_string": address}
    store = write_repo(tmp_path / "repo", online_store)
    online = OnlineFeatures(tmp_path / "repo", package, timeout=0.2)
    rows = [("N1", 7, 1), ("Ünï", 8, 6), ("N404", 404, 2), ("N2", 9, 5)]
    agrees_with_feast(store, online, rows)
    found = online.look_up(columns(rows), [NOW + timedelta(minutes=45)] * 4)
    assert found.outcomes["routes"] == ["found", "found", "absent", "expired"]
    clock = Clock()
    online.breaker = Breaker(failures=1, rest_seconds=5, clock=clock)
    with socket.create_connection(("127.0.0.1", redis_port)) as admin:
        admin.sendall(b"CLIENT PAUSE 700 ALL\r\n")
        assert admin.recv(100).startswith(b"+OK")
        with pytest.raises(FeaturesUnavailableError, match="Timeout"):
            online.look_up(columns(rows), [NOW] * 4)
        with pytest.raises(FeaturesUnavailableError, match="left alone"):
            online.look_up(columns(rows), [NOW] * 4)
        admin.sendall(b"PING\r\n")
        assert admin.recv(100).startswith(b"+PONG")  # answered when the pause is over
    clock.seconds = 5.0
    assert online.look_up(columns(rows), [NOW] * 4).columns["seats"] == [150, None, None, 9]
