# SPDX-License-Identifier: Apache-2.0
"""Any order of rollouts, roll backs, kills and failures, on a cluster that a subclass gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_backend import Killed, Mortal

from kfloop.components.contracts.decision import FAIL, NO_DATA, PASS, Decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.deployment import acts, roll_back, rollout
from kfloop.components.deployment.manifest import record_of, traffic_of, without_canary
from kfloop.components.deployment.plan import Plan
from kfloop.components.deployment.resources import PredictorOptions
from kfloop.components.deployment.walk import Walk

SERVICE = "m"
PERCENTS = (10, 50)
FIRST = 1


class Judges:
    """Decides by what was decided before about a version."""

    def __init__(self, smoke: str, analyses: list[str]) -> None:
        self.smoke, self.analyses = smoke, analyses

    @property
    def passes(self) -> bool:
        return {self.smoke, *self.analyses} == {PASS}

    def smoke_test(self) -> tuple[Decision, str]:
        return Decision("smoke_test", self.smoke), "page"

    def analyse(self) -> tuple[Decision, str]:
        return Decision("canary", self.analyses[0]), "page"

    def harmful_now(self) -> Decision | None:
        return None


outcomes = st.sampled_from([PASS, PASS, PASS, FAIL, NO_DATA])
# 0: not killed. Short acts make a dozen calls, a whole rollout some fifty.
kills = st.one_of(st.just(0), st.integers(1, 12), st.integers(1, 50))
shares = st.sampled_from([0, 10, 50, 99, 100])


class Rollouts(RuleBasedStateMachine):
    """`self.good` are the versions that may have all requests; a subclass gives the cluster."""

    work: Path
    timeout = 2.0
    longest_lag = 3

    def open(self, lag: int) -> Any:
        """Returns the backend of a new cluster whose controllers are so slow."""
        raise NotImplementedError

    def package(self, version: int) -> str:
        """Returns the URI of a published version."""
        raise NotImplementedError

    def set_failing(self, uri: str, failing: bool) -> None:
        """Lets a version fail to load, or not."""
        raise NotImplementedError

    def written(self) -> list[dict[str, Any] | None]:
        """Returns every manifest that was written, in order; None for a removal."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the cluster."""

    @initialize(lag=st.sampled_from([0, 1, 3]))
    def create(self, lag: int) -> None:
        self.backend = self.open(lag)
        self.newest = FIRST
        self.judges = {FIRST: Judges(PASS, [PASS])}
        self.good = {self.package(FIRST)}
        self.killed = False
        self.live = self.package(FIRST)
        self.checked = 0
        self.walk(FIRST, self.backend)
        assert self.record.stable.storage_uri == self.package(FIRST)

    def teardown(self) -> None:
        if not hasattr(self, "backend"):
            return
        try:
            self.converges()
        finally:
            self.close()

    def converges(self) -> None:
        for version in range(FIRST, self.newest + 1):
            self.set_failing(self.package(version), False)
        # Whatever happened: run once more, it ends, and what serves is alone and has passed.
        self.walk(self.newest, self.backend)
        self.holds()
        assert self.record.candidate is None
        assert self.record.stable.storage_uri in self.good
        if self.judges[self.newest].passes:
            assert self.record.stable.storage_uri == self.package(self.newest)

    @property
    def record(self):
        return record_of(self.backend.get(SERVICE))

    def target(self, version: int, backend):
        return acts.describe_target(backend, self.package(version), PredictorOptions(), "")

    def walk(self, version: int, backend) -> None:
        plan = Plan(self.target(version, backend), PERCENTS, 0.0)
        Walk(backend, SERVICE, plan, self.judges[version], "", self.timeout).run()

    def run(self, kill: int, after: bool, act: Callable[[object], object]) -> None:
        """Runs an act, which dies at its call number `kill` if it makes so many."""
        try:
            act(Mortal(self.backend, kill, after))
        except Killed:
            self.killed = True
        except InputError as error:
            assert "\n" not in str(error)

    def connected(self, kill: int, after: bool, act: Callable[[], object]) -> None:
        def on(backend: object) -> None:
            with pytest.MonkeyPatch.context() as patch:
                for module in (rollout, roll_back):
                    patch.setattr(module, "connect", lambda _: backend)
                act()

        self.run(kill, after, on)

    @rule(
        smoke=outcomes,
        first=outcomes,
        kill=kills,
        after=st.booleans(),
        again=st.booleans(),
    )
    def roll_out(self, smoke: str, first: str, kill: int, after: bool, again: bool) -> None:
        if not (again and self.newest != FIRST):
            self.newest += 1
            self.judges[self.newest] = Judges(smoke, [first])
            if self.judges[self.newest].passes:
                self.good.add(self.package(self.newest))
        version = self.newest
        self.run(kill, after, lambda backend: self.walk(version, backend))

    @rule(percent=shares.filter(lambda percent: percent < 100), kill=kills, after=st.booleans())
    def deploy(self, percent: int, kill: int, after: bool) -> None:
        uri, record = self.package(self.newest), self.work / "record.json"
        self.connected(
            kill,
            after,
            lambda: rollout.deploy_model(
                uri, SERVICE, record, percent, timeout_seconds=self.timeout
            ),
        )

    @rule(percent=shares, kill=kills, after=st.booleans())
    def shift(self, percent: int, kill: int, after: bool) -> None:
        record = self.work / "record.json"
        self.connected(
            kill,
            after,
            lambda: rollout.shift_traffic(SERVICE, percent, record, timeout_seconds=self.timeout),
        )

    @precondition(lambda self: self.judges[self.newest].passes)
    @rule(kill=kills, after=st.booleans())
    def promote_what_was_judged(self, kill: int, after: bool) -> None:
        uri, record = self.package(self.newest), self.work / "record.json"
        self.connected(
            kill,
            after,
            lambda: rollout.promote_model(SERVICE, record, uri, timeout_seconds=self.timeout),
        )

    @rule(kill=st.one_of(st.just(0), st.integers(1, 14)), after=st.booleans())
    def go_back(self, kill: int, after: bool) -> None:
        record = self.work / "record.json"
        self.connected(
            kill,
            after,
            lambda: roll_back.roll_back_model(SERVICE, record, "why", timeout_seconds=self.timeout),
        )

    @precondition(lambda self: self.record.candidate is not None)
    @rule()
    def somebody_takes_the_candidate_away(self) -> None:
        if self.record.state == "canary":
            self.backend.apply(without_canary(self.backend.get(SERVICE), "by hand", acts.now()))

    @rule(broken=st.booleans())
    def newest_cannot_load(self, broken: bool) -> None:
        uri = self.package(self.newest)
        self.set_failing(uri, broken and self.record.stable.storage_uri != uri)

    @invariant()
    def holds(self) -> None:
        """Looks at every manifest that was written, not only at the last one."""
        for manifest in self.written()[self.checked :]:
            assert manifest is not None, "the service was removed"
            record = record_of(manifest)
            shares = traffic_of(manifest)
            serving = [record.stable, *([record.candidate] if record.candidate else [])]
            for target in serving:
                if shares[target.predictor["name"]] == 100:
                    assert target.storage_uri in self.good, "all requests went to what failed"
            stable = record.stable.storage_uri
            if stable != self.live:
                known = {record.previous.storage_uri if record.previous else "", self.before}
                assert {self.live, stable} & known, "the last good version was lost"
            self.live = stable
            self.before = record.previous.storage_uri if record.previous else ""
        self.checked = len(self.written())

    before = ""
