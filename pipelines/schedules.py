# SPDX-License-Identifier: Apache-2.0
"""Brings the recurring runs of a KFP API in line with `schedules.yaml`.

KFP cannot change a recurring run, and a name may be there twice. So each one carries the schedule's
name and the hash of its content in its description: the same content is left alone, new content
becomes a new recurring run, and only then the old one is disabled. Nothing is deleted but by prune.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from kfloop.pipelines.kfp_client import api_errors, pages
from kfloop.pipelines.schedule_file import Document, Job, digest

if TYPE_CHECKING:
    from kfp import Client

MARKED = re.compile(r"kfloop schedule (?P<name>\S+), content (?P<content>[0-9a-f]{10})")
ENABLED = "ENABLED"
# What the API says when none was asked for: that of a stand-alone KFP, and that of a profile.
DEFAULT_ACCOUNTS = ("pipeline-runner", "default-editor")
# States of a run that deleting its schedule would take away from somebody.
FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


@dataclass(frozen=True)
class Existing:
    """A recurring run that the API has and that carries our mark.

    Attributes:
        id: Its id.
        name: The schedule's name.
        content: Hash of its content.
        enabled: Whether it fires.
        created_at: When it was made; orders equal ones.
        facts: What the API says of it, as `Job.facts`.
    """

    id: str
    name: str
    content: str
    enabled: bool
    created_at: datetime
    facts: Document


@dataclass(frozen=True)
class Action:
    """One change.

    Attributes:
        kind: What is done.
        name: The schedule.
        why: In words.
        job: What is created.
        id: What is enabled or disabled.
        differences: What a newer content changes, one line each.
    """

    kind: Literal["keep", "create", "enable", "disable"]
    name: str
    why: str
    job: Job | None = None
    id: str = ""
    differences: tuple[str, ...] = ()


def plan(jobs: Iterable[Job], existing: Iterable[Existing]) -> list[Action]:
    """Returns what has to be done, in the order in which it is safe.

    Each schedule's new recurring run comes before its old ones are disabled: a failure in between
    runs a pipeline twice rather than never, and the next apply mends it.
    """
    ours: dict[str, list[Existing]] = {}
    for one in sorted(existing, key=lambda one: (one.created_at, one.id)):
        ours.setdefault(one.name, []).append(one)
    actions: list[Action] = []
    for job in jobs:
        actions += _plan_job(job, ours.pop(job.name, []))
    for left in ours.values():
        actions += [_disable(one, "it is not in the file") for one in left if one.enabled]
    return actions


def _plan_job(job: Job, there: list[Existing]) -> list[Action]:
    same = [one for one in there if one.content == job.content]
    wanted = job.schedule.enabled
    if not same:
        why = "its content changed" if there else "it is new"
        told = tuple(differences(_asked_for(there[-1].facts, job), job.facts)) if there else ()
        actions = [Action("create", job.name, why, job=job, differences=told)]
    elif same[0].enabled == wanted:
        actions = [Action("keep", job.name, "it is as the file says", id=same[0].id)]
    else:
        kind: Literal["enable", "disable"] = "enable" if wanted else "disable"
        why = f"the file says `enabled: {str(wanted).lower()}`"
        actions = [Action(kind, job.name, why, id=same[0].id)]
    kept = same[0].id if same else ""
    old = [one for one in there if one.enabled and one.id != kept]
    return actions + [_disable(one, "a newer one takes its place") for one in old]


def _asked_for(facts: Document, job: Job) -> Document:
    """Returns what the API says without the account that it chose itself."""
    chosen = not job.schedule.service_account and facts["service_account"] in DEFAULT_ACCOUNTS
    return facts | {"service_account": ""} if chosen else facts


def _disable(one: Existing, why: str) -> Action:
    return Action("disable", one.name, why, id=one.id)


def superseded(jobs: Iterable[Job], existing: Iterable[Existing]) -> list[Existing]:
    """Returns what prune may delete: disabled ones that no schedule of the file is."""
    current = {(job.name, job.content) for job in jobs}
    return [one for one in existing if not one.enabled and (one.name, one.content) not in current]


def differences(old: Document, new: Document) -> list[str]:
    """Returns one line per key that differs, nested keys joined by dots."""
    before, after = _flat(old), _flat(new)
    return [
        f"{key}: {_shown(before.get(key))} → {_shown(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {place: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{place}.{key}" if place else str(key))
    return found


def _shown(value: Any, limit: int = 60) -> str:
    text = "(none)" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}…"


def find_existing(client: "Client", experiment_id: str) -> list[Existing]:
    """Returns the recurring runs of an experiment that carry our mark.

    Raises:
        InputError: If the API does not give them.
    """
    with api_errors("The recurring runs cannot be listed"):
        runs = list(
            pages(client.list_recurring_runs, "recurring_runs", experiment_id=experiment_id)
        )
    marked = [(run, MARKED.search(run.description or "")) for run in runs]
    return [
        Existing(
            id=run.recurring_run_id,
            name=mark["name"],
            content=mark["content"],
            enabled=run.status == ENABLED,
            created_at=run.created_at,
            facts=_facts(run),
        )
        for run, mark in marked
        if mark
    ]


def _facts(run: Any) -> Document:
    cron, period = run.trigger.cron_schedule, run.trigger.periodic_schedule
    trigger = cron or period
    return {
        "spec": digest(run.pipeline_spec),
        "cron": cron.cron if cron else "",
        "interval_seconds": int(period.interval_second) if period else 0,
        "concurrency": int(run.max_concurrency),
        "catch_up": not run.no_catchup,
        "since": trigger.start_time.isoformat() if trigger.start_time else "",
        "until": trigger.end_time.isoformat() if trigger.end_time else "",
        "service_account": run.service_account or "",
        "parameters": run.runtime_config.parameters or {},
    }


def carry_out(client: "Client", experiment_id: str, action: Action) -> None:
    """Does one action of a plan.

    Raises:
        InputError: If the API refuses or does not answer; running it again is safe.
    """
    with api_errors(f"{action.name}: {action.kind} failed"):
        if action.kind == "create":
            assert action.job is not None
            _create(client, experiment_id, action.job)
        elif action.kind == "enable":
            client.enable_recurring_run(action.id)
        elif action.kind == "disable":
            client.disable_recurring_run(action.id)


def _create(client: "Client", experiment_id: str, job: Job) -> None:
    facts = job.facts
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "pipeline.yaml"
        package.write_text(yaml.safe_dump_all(job.documents, sort_keys=False), encoding="utf-8")
        client.create_recurring_run(
            experiment_id=experiment_id,
            job_name=job.display_name,
            description=job.description,
            start_time=facts["since"] or None,
            end_time=facts["until"] or None,
            cron_expression=facts["cron"] or None,
            interval_second=facts["interval_seconds"] or None,
            max_concurrency=facts["concurrency"],
            no_catchup=not facts["catch_up"],
            params=job.arguments,
            pipeline_package_path=str(package),
            enabled=job.schedule.enabled,
            service_account=facts["service_account"] or None,
        )


def prune(client: "Client", experiment_id: str, jobs: Iterable[Job]) -> tuple[list[str], list[str]]:
    """Deletes what was superseded or left the file, unless one of its runs is still going on.

    Deleting a recurring run takes its unfinished runs with it, so those wait for the next prune.

    Returns:
        Names and ids of what was deleted, and of what was kept for its runs.

    Raises:
        InputError: If the API refuses or does not answer.
    """
    candidates = superseded(jobs, find_existing(client, experiment_id))
    with api_errors("The runs cannot be listed"):
        busy = {
            run.recurring_run_id
            for run in pages(client.list_runs, "runs", experiment_id=experiment_id)
            if run.state not in FINISHED
        }
    deleted, kept = [], []
    for one in candidates:
        if one.id in busy:
            kept.append(f"{one.name} {one.id}")
            continue
        with api_errors(f"{one.name}: {one.id} cannot be deleted"):
            client.delete_recurring_run(one.id)
        deleted.append(f"{one.name} {one.id}")
    return deleted, kept
