# SPDX-License-Identifier: Apache-2.0
"""The walk on a service in memory: others who write at the same time, failures, first versions."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from memory_backend import DataPlane, MemoryBackend, write_package

from kfloop.components.contracts.decision import FAIL, PASS, Decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import acts
from kfloop.components.deployment.manifest import record_of, without_canary
from kfloop.components.deployment.plan import Plan
from kfloop.components.deployment.resources import PredictorOptions
from kfloop.components.deployment.roll_out import verdict
from kfloop.components.deployment.walk import Walk

SERVICE = "m"


class Judges:
    """Passes everything, unless told otherwise; `before_analysis` happens meanwhile."""

    def __init__(
        self,
        smoke: str = PASS,
        harmful: Decision | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.smoke, self.harmful, self.before, self.asked = smoke, harmful, before, 0

    def smoke_test(self) -> tuple[Decision, str]:
        return Decision("smoke_test", self.smoke), "<p>smoke"

    def analyse(self) -> tuple[Decision, str]:
        self.asked += 1
        self.before()
        return Decision("canary", PASS), "<p>canary"

    def harmful_now(self) -> Decision | None:
        return self.harmful


@pytest.fixture(scope="module")
def data_plane() -> Iterator[DataPlane]:
    made = DataPlane()
    yield made
    made.close()


@pytest.fixture
def backend(data_plane: DataPlane) -> MemoryBackend:
    return MemoryBackend(data_plane)


def walk(
    backend: MemoryBackend, uri: str, judges: Judges, bake_seconds: float = 0.0
) -> tuple[Walk, Decision]:
    target = acts.describe_target(backend, uri, PredictorOptions(), "")
    made = Walk(backend, SERVICE, Plan(target, (10, 50), bake_seconds), judges, "", 5.0)
    after = made.run()
    return made, verdict(made.rollout, after, uri, made.trouble)


def test_every_share_is_proved_and_judged_and_nothing_else_is_written(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    assert walk(backend, first, Judges())[1].action == "deployed"
    backend.writes.clear()
    judges = Judges()
    made, decision = walk(backend, second, judges)
    assert (decision.decision, decision.action, judges.asked) == (PASS, "promoted", 2)
    assert [title for title, _ in made.pages] == [
        "Smoke test: pass",
        "10 %: pass",
        "50 %: pass",
    ]
    canaries = [manifest["spec"].get("canary") for manifest in backend.writes]
    shares = [canary[0]["trafficPercent"] if canary else 100 for canary in canaries]
    # dark, what the smoke test said, each share and what was said of it, the promotion
    assert shares == [0, 0, 10, 10, 50, 50, 100]


def test_a_write_by_somebody_else_is_kept_and_the_rollout_goes_on(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())

    def annotate() -> None:
        manifest = backend.get(SERVICE)
        manifest["metadata"]["annotations"]["owner"] = "somebody"
        backend.apply(manifest)

    _, decision = walk(backend, second, Judges(before=annotate))
    assert decision.action == "promoted"
    assert backend.get(SERVICE)["metadata"]["annotations"]["owner"] == "somebody"


def test_a_candidate_that_somebody_takes_away_is_not_put_back(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())

    def by_hand() -> None:
        backend.apply(without_canary(backend.get(SERVICE), "complaints", acts.now()))

    _, decision = walk(backend, second, Judges(before=by_hand))
    assert (decision.decision, decision.action) == (FAIL, "rolled_back")
    assert "somebody else took it away: complaints" in decision.summary
    assert record_of(backend.get(SERVICE)).stable.storage_uri == first


def test_one_who_writes_again_and_again_ends_the_step_with_a_sentence(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())
    writes = iter(range(1000))

    def annotate() -> None:
        manifest = backend.get(SERVICE)
        manifest["metadata"]["annotations"]["owner"] = str(next(writes))
        backend.apply(manifest)

    with pytest.raises(InputError, match="was changed by others again and again"):
        walk(backend, second, Judges(before=annotate))


@pytest.mark.parametrize("judge", ["smoke_test", "analyse"])
def test_what_cannot_be_judged_is_rolled_back(
    backend: MemoryBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())

    def unreachable() -> tuple[Decision, str]:
        raise InputError("Prometheus does not answer.")

    judges = Judges()
    monkeypatch.setattr(judges, judge, unreachable)
    _, decision = walk(backend, second, judges)
    assert (decision.decision, decision.action) == ("no_data", "rolled_back")
    assert "it could not be judged: Prometheus does not answer" in decision.summary
    assert record_of(backend.get(SERVICE)).candidate is None


def test_a_look_that_fails_while_it_bakes_stops_nothing(
    backend: MemoryBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())
    judges = Judges()
    looks: list[int] = []
    # It bakes until it was looked at, however slow the machine is.
    monkeypatch.setattr(
        "kfloop.components.deployment.plan.seconds_left", lambda *_: 0.0 if looks else 0.01
    )

    def unreachable() -> Decision | None:
        looks.append(1)
        raise InputError("Prometheus does not answer.")

    monkeypatch.setattr(judges, "harmful_now", unreachable)
    _, decision = walk(backend, second, judges, bake_seconds=1)
    assert decision.action == "promoted"
    assert looks == [1]


def test_who_shifts_the_share_back_again_and_again_ends_the_step(
    backend: MemoryBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())
    monkeypatch.setattr("kfloop.components.deployment.walk.LOOK_SECONDS", 0.001)
    monkeypatch.setattr("kfloop.components.deployment.walk.MOST_ACTIONS", 10)
    judges = Judges()

    def shift() -> Decision | None:
        backend.apply(acts.shifted(backend.get(SERVICE), 3))
        return None

    monkeypatch.setattr(judges, "harmful_now", shift)
    with pytest.raises(InputError, match="was changed by others again and again"):
        walk(backend, second, judges, bake_seconds=600.0)


def test_a_candidate_that_is_surely_worse_is_taken_away_while_it_bakes(
    backend: MemoryBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())
    monkeypatch.setattr("kfloop.components.deployment.walk.LOOK_SECONDS", 0.01)
    judges = Judges(harmful=Decision("canary", FAIL))
    _, decision = walk(backend, second, judges, bake_seconds=600.0)
    assert (decision.decision, decision.action, judges.asked) == (FAIL, "rolled_back", 0)


def test_a_first_version_that_fails_is_removed(backend: MemoryBackend, tmp_path: Path) -> None:
    first = write_package(tmp_path, "1")
    _, decision = walk(backend, first, Judges(smoke=FAIL))
    assert (decision.decision, decision.action) == (FAIL, "removed")
    assert backend.get(SERVICE) is None
    backend.failing.add(first)
    _, decision = walk(backend, first, Judges())
    assert (decision.decision, decision.action) == (FAIL, "removed")
    assert "it cannot load" in decision.summary
    assert backend.get(SERVICE) is None


def test_a_promotion_that_was_killed_and_does_not_come_up_is_undone(
    backend: MemoryBackend, tmp_path: Path
) -> None:
    first, second = (write_package(tmp_path, version) for version in "12")
    walk(backend, first, Judges())
    walk(backend, second, Judges())
    # As when the process ended between the promotion's write and its proof.
    backend.failing.add(second)
    _, decision = walk(backend, second, Judges())
    assert (decision.decision, decision.action) == (FAIL, "rolled_back")
    assert "promotion failed" in decision.summary
    assert record_of(backend.get(SERVICE)).stable.storage_uri == first
