# SPDX-License-Identifier: Apache-2.0
"""`kfloop schedule` against a double of the KFP API, through the unmodified kfp client.

With KFLOOP_TEST_KFP_HOST the first tests ask that API too, in experiments of their own,
of which only the empty ones are left.
"""

import shutil
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from doubles.kfp_api import KfpApi
from doubles.robfig import Cron
from hypothesis import given
from hypothesis import strategies as st

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.catalogue import compiled_path
from kfloop.pipelines.cron import next_times, to_kfp
from kfloop.pipelines.kfp_client import connect
from kfloop.pipelines.schedule_file import load_schedules
from kfloop.pipelines.schedules import Existing, find_existing
from kfloop.scripts.schedule import schedule

FILE = """\
time_zone: UTC
schedules:
  nightly-rollback-drill:
    pipeline: rollback
    parameters: {service: flights, reason: drill}
    cron: "0 6 * * 1-5"
"""


def command_for(host: str, file: Path) -> Callable[..., str]:
    """Returns what runs a schedule command over a file's text, and returns what it printed."""

    def kfloop(command: str, text: str = FILE) -> str:
        file.write_text(text)
        arguments = [command, "--file", str(file), "--host", host]
        done = CliRunner().invoke(schedule, arguments, catch_exceptions=True)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    return kfloop


@pytest.fixture
def kfloop(api, tmp_path):
    return command_for(api.url, tmp_path / "schedules.yaml")


class Anywhere:
    """The schedules of an experiment of its own, at the double or at a real KFP."""

    def __init__(self, host: str, file: Path) -> None:
        self.client = connect(host)
        self.experiment = f"kfloop-test-{uuid.uuid4().hex[:8]}"
        self.run = command_for(host, file)

    def kfloop(self, command: str, text: str = FILE) -> str:
        return self.run(command, f"experiment: {self.experiment}\n{text}")

    def there(self) -> list[Existing]:
        """Returns the recurring runs."""
        try:
            made = self.client.get_experiment(experiment_name=self.experiment)
        except ValueError:  # what the client says when there is none
            return []
        return find_existing(self.client, made.experiment_id)

    def enabled(self) -> dict[str, bool]:
        """Returns whether each recurring run fires, by its parameter `reason`."""
        return {one.facts["parameters"]["reason"]: one.enabled for one in self.there()}


@pytest.fixture
def anywhere(host, tmp_path):
    place = Anywhere(host, tmp_path / "schedules.yaml")
    yield place
    for one in place.there():
        place.client.delete_recurring_run(one.id)


def enabled(api: KfpApi) -> list[str]:
    return [run["display_name"] for run in api.recurring_runs() if run["status"] == "ENABLED"]


def test_plan_changes_nothing_and_tells_when_it_fires(anywhere):
    told = anywhere.kfloop("plan")
    assert "+ create  nightly-rollback-drill: it is new" in told
    assert told.count("06:00") == 3
    assert not anywhere.there()


def test_apply_creates_what_the_file_says(anywhere):
    anywhere.kfloop("apply")
    (run,) = anywhere.there()
    assert run.facts["cron"] == "0 0 6 * * 1,2,3,4,5"
    assert run.facts["parameters"] == {"service": "flights", "reason": "drill"}
    assert run.facts["catch_up"] is False
    assert run.facts["concurrency"] == 1
    assert run.enabled


def test_apply_again_does_nothing(anywhere):
    anywhere.kfloop("apply")
    assert "Nothing to do." in anywhere.kfloop("apply")
    assert "Nothing to do." in anywhere.kfloop("plan")
    assert len(anywhere.there()) == 1


def test_changed_content_is_shown_and_replaces_the_old_one_without_deleting_it(anywhere):
    anywhere.kfloop("apply")
    changed = FILE.replace("reason: drill", "reason: exercise").replace("0 6", "30 7")
    told = anywhere.kfloop("plan", changed)
    assert 'parameters.reason: "drill" → "exercise"' in told
    assert 'cron: "0 0 6 * * 1,2,3,4,5" → "0 30 7 * * 1,2,3,4,5"' in told
    assert "spec:" not in told and "service_account:" not in told
    anywhere.kfloop("apply", changed)
    assert anywhere.enabled() == {"drill": False, "exercise": True}


def test_going_back_to_former_content_enables_it_again(anywhere):
    anywhere.kfloop("apply")
    changed = FILE.replace("drill}", "exercise}")
    anywhere.kfloop("apply", changed)
    anywhere.kfloop("apply")
    assert anywhere.enabled() == {"drill": True, "exercise": False}


def test_what_left_the_file_is_pruned(anywhere):
    anywhere.kfloop("apply")
    empty = "time_zone: UTC\nschedules: {}\n"
    anywhere.kfloop("apply", empty)
    assert anywhere.enabled() == {"drill": False}
    assert "deleted nightly-rollback-drill" in anywhere.kfloop("prune", empty)
    assert not anywhere.there()


def test_failure_between_create_and_disable_is_mended_by_the_next_apply(api, kfloop):
    kfloop("apply")
    changed = FILE.replace("drill}", "exercise}")
    api.fault(500, path=":disable")
    with pytest.raises(InputError, match="disable failed: 500"):
        kfloop("apply", changed)
    assert len(enabled(api)) == 2, "twice rather than never"
    assert "1 done." in kfloop("apply", changed)
    assert len(enabled(api)) == 1
    assert len(api.recurring_runs()) == 2


def test_a_lost_answer_to_create_makes_no_second_one(api, kfloop):
    api.fault("drop_after", method="POST", path="recurringruns")
    with pytest.raises(InputError, match="no answer"):
        kfloop("apply")
    assert "Nothing to do." in kfloop("apply")
    assert len(api.recurring_runs()) == 1


def test_two_of_the_same_content_become_one(api, kfloop):
    kfloop("apply")
    twin = api.recurring_runs()[0]
    api.answer("POST", "/apis/v2beta1/recurringruns", {}, {**twin, "mode": "ENABLE"})
    kfloop("apply")
    assert len(enabled(api)) == 1


def test_enabled_false_is_switched_in_place(api, kfloop):
    kfloop("apply")
    off = FILE + "    enabled: false\n"
    kfloop("apply", off)
    assert not enabled(api)
    kfloop("apply")
    assert len(enabled(api)) == 1
    assert len(api.recurring_runs()) == 1


def test_what_left_the_file_is_disabled_and_what_others_made_is_left_alone(api, kfloop):
    kfloop("apply")
    body = {**api.recurring_runs()[0], "description": "somebody else's", "mode": "ENABLE"}
    api.answer("POST", "/apis/v2beta1/recurringruns", {}, body)
    kfloop("apply", "time_zone: UTC\nschedules: {}\n")
    ours, theirs = api.recurring_runs()
    assert (ours["status"], theirs["status"]) == ("DISABLED", "ENABLED")


def test_prune_keeps_what_still_runs_and_what_the_file_names(api, kfloop):
    kfloop("apply")
    changed = FILE.replace("drill}", "exercise}")
    kfloop("apply", changed)
    old, _ = api.recurring_runs()
    run = api.start_run(old["recurring_run_id"])
    assert "kept nightly-rollback-drill" in kfloop("prune", changed)
    assert [run["run_id"] for run in api.runs()] == [run]
    api.finish_run(run)
    assert "deleted nightly-rollback-drill" in kfloop("prune", changed)
    assert len(api.recurring_runs()) == 1
    assert "Nothing to do." in kfloop("prune", changed + "    enabled: true\n")


def test_finds_its_own_among_more_than_a_page(api, kfloop):
    kfloop("apply")
    other = {**api.recurring_runs()[0], "description": "", "mode": "ENABLE"}
    for _ in range(250):
        api.answer("POST", "/apis/v2beta1/recurringruns", {}, other)
    changed = FILE.replace("drill}", "exercise}")
    kfloop("apply", changed)
    assert "Nothing to do." in kfloop("apply", changed)
    assert len(api.recurring_runs()) == 252


BIKES = """\
name: bikes
task: regression
sources: {trips: {uri: gs://bikes/trips.csv}}
examples: {query: SELECT * FROM trips, label: minutes, timestamp: at}
serving: {model_repository: gs://bikes/models, inference_log: gs://bikes/log}
"""


def test_caching_off_reaches_nested_tasks_and_parameters_come_from_the_loop(api, kfloop, tmp_path):
    (tmp_path / "loop.yaml").write_text(BIKES)
    text = "time_zone: UTC\nschedules:\n  daily:\n    pipeline: training\n    loop: loop.yaml\n"
    kfloop("apply", text + "    every: 1d\n")
    kfloop("apply", text + "    every: 1d\n    caching: false\n")
    reusing, running = api.recurring_runs()
    assert "'enableCache': True" in str(reusing["pipeline_spec"])
    assert "enableCache" not in str(running["pipeline_spec"])
    assert running["runtime_config"]["parameters"]["model_repository"] == "gs://bikes/models"
    assert running["trigger"]["periodic_schedule"]["interval_second"] == "86400"


def test_the_pods_of_a_pipeline_of_ones_own_get_what_the_loop_file_says(api, kfloop, tmp_path):
    shutil.copy(compiled_path("rollback"), tmp_path / "own.yaml")
    (tmp_path / "loop.yaml").write_text(BIKES + "volumes: {state: {path: /state}}\n")
    kfloop("apply", FILE.replace("rollback\n", "own.yaml\n    loop: loop.yaml\n", 1))
    (made,) = api.recurring_runs()
    platforms = made["pipeline_spec"]["platform_spec"]["platforms"]
    settings = platforms["kubernetes"]["deploymentSpec"]["executors"].values()
    assert settings
    for each in settings:
        assert each["pvcMount"] == [{"constant": "state", "mountPath": "/state"}]


def test_a_token_comes_from_the_environment(api, kfloop, monkeypatch):
    api.token = "secret"
    with pytest.raises(InputError, match="KFLOOP_KFP_TOKEN"):
        kfloop("plan")
    monkeypatch.setenv("KFLOOP_KFP_TOKEN", "secret")
    assert "it is new" in kfloop("plan")


def test_no_server_is_one_sentence(kfloop, api, tmp_path):
    (tmp_path / "s.yaml").write_text(FILE)
    arguments = ["plan", "--file", str(tmp_path / "s.yaml"), "--host", "http://127.0.0.1:9"]
    done = CliRunner().invoke(schedule, arguments)
    assert isinstance(done.exception, InputError)
    assert "no answer" in str(done.exception)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"0 6 * * 1-5"', '"0 6 * *"', "line 3: .*not five fields"),
        ('"0 6 * * 1-5"', '"0 0 6 * * 1"', "six fields and could fire every second"),
        ('"0 6 * * 1-5"', '"61 6 * * *"', "Bad minute"),
        ('"0 6 * * 1-5"', '"0 6-6/2 * * *"', "a span of one value; write 6 alone"),
        ('cron: "0 6 * * 1-5"', "every: 30s", "more often than once a minute"),
        ('cron: "0 6 * * 1-5"', "every: soon", "number and s, m, h or d"),
        ('cron: "0 6 * * 1-5"', "concurrency: 1", "either cron or every"),
        ("pipeline: rollback", "pipeline: rolback", "there is no pipeline|There is no pipeline"),
        ("service: flights", "servise: flights", "servise"),
        ("time_zone: UTC", "time_zone: Mars/Olympus", "line 1: time_zone: .*UTC or Europe"),
        ("time_zone: UTC\n", "", "time_zone: is missing"),
        ("drill:\n", "drill:\n    concurrency: 11\n", "less than or equal to 10"),
    ],
)
def test_a_mistake_is_named_before_anything_is_asked(api, kfloop, old, new, sentence):
    with pytest.raises(InputError, match=sentence):
        kfloop("apply", FILE.replace(old, new))
    assert not api.requests


def test_a_path_of_this_machine_is_refused(tmp_path):
    (tmp_path / "trips.csv").write_text("at,minutes\n")
    (tmp_path / "loop.yaml").write_text(
        "name: bikes\ntask: regression\nsources: {trips: {uri: trips.csv}}\n"
        "examples: {query: SELECT * FROM trips, label: minutes, timestamp: at}\n"
    )
    file = tmp_path / "schedules.yaml"
    file.write_text(
        "time_zone: UTC\nschedules:\n  daily:\n    pipeline: training\n    loop: loop.yaml\n"
        "    every: 1d\n"
    )
    with pytest.raises(InputError, match=r"line 3: .*sources.0.uri is .*a path on this machine"):
        load_schedules(file)


def test_what_cron_says_here_is_not_what_kfp_would_make_of_it():
    nine = datetime(2026, 1, 5, 9, 0)
    assert Cron(to_kfp("0 9 * * *")).fires(nine)
    assert not Cron("0 9 * * *").fires(nine)
    assert Cron("0 9 * * *").fires(datetime(2026, 1, 5, 17, 9))
    assert Cron("*/15 * * * *").fires(datetime(2026, 1, 5, 17, 9, 45))


def _fields(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pairs = st.tuples(number, number).map(sorted)
    spans = pairs.map(lambda pair: f"{pair[0]}-{pair[1]}")
    wide = pairs.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: f"{pair[0]}-{pair[1]}")
    steps = st.tuples(st.one_of(st.just("*"), wide), st.integers(1, 9)).map(
        lambda pair: f"{pair[0]}/{pair[1]}"
    )
    one = st.one_of(number.map(str), spans, steps)
    lists = st.lists(one.filter(lambda text: "*" not in text), min_size=1, max_size=3)
    return st.one_of(st.just("*"), one, lists.map(",".join))


CRONS = st.tuples(
    _fields(0, 59), _fields(0, 23), _fields(1, 31), _fields(1, 12), _fields(0, 7)
).map(" ".join)


@given(CRONS, st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)))
def test_fires_on_kfp_when_five_field_cron_says(expression, after):
    try:
        first = next_times(expression, after, 1)[0]
    except StopIteration:  # the 31st of February
        return
    kfp = Cron(to_kfp(expression))
    assert kfp.fires(first)
    moment = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for _ in range(200):
        assert kfp.fires(moment) == (moment == first) or moment > first
        assert not kfp.fires(moment.replace(second=1))
        moment += timedelta(minutes=1)
