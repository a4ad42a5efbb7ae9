# SPDX-License-Identifier: Apache-2.0
"""`schedules.yaml`: recurring runs as data."""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.cron import next_times, to_kfp
from kfloop.pipelines.loop_sections import Moment, Name
from kfloop.pipelines.package import package_pipeline
from kfloop.pipelines.yaml_file import read_yaml_file

MARK = "kfloop schedule {name}, content {content}"
INTERVAL = re.compile(r"(\d+)(s|m|h|d)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Document = dict[str, Any]


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError("write a time zone like UTC or Europe/Berlin") from error
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(_Section):
    """One recurring run.

    Attributes:
        pipeline: Name of one of kfloop's pipelines, or a compiled YAML file.
        loop: Loop file that gives the parameters of kfloop's pipelines, and what the pods of any
            pipeline get: resources, variables, Secrets, volumes.
        parameters: Pipeline parameters, over those of the loop file.
        cron: Five fields, in the file's time zone.
        every: An interval instead: `30m`, `6h`, `1d`.
        with_seconds: Allows what fires more often than once a minute.
        concurrency: Most runs at a time.
        catch_up: Whether slots missed while it was disabled are run later.
        caching: Whether steps may be reused where they allow it; false runs every step.
        enabled: Whether it fires.
        since: First time it may fire.
        until: Last time it may fire.
        service_account: Kubernetes service account of the runs; empty is KFP's default.
        description: What it is for.
    """

    pipeline: str
    loop: str = ""
    parameters: dict[str, Any] = {}
    cron: str = ""
    every: str = ""
    with_seconds: bool = False
    # The API takes no more than 10.
    concurrency: Annotated[int, Field(ge=1, le=10)] = 1
    catch_up: bool = False
    caching: bool = True
    enabled: bool = True
    since: Moment = ""
    until: Moment = ""
    service_account: str = ""
    description: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> "Schedule":
        if bool(self.cron) == bool(self.every):
            raise ValueError("give either cron or every")
        try:
            _ = self.kfp_cron if self.cron else self.interval_seconds
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def kfp_cron(self) -> str:
        """The cron expression with seconds, as KFP wants it; empty for an interval."""
        return to_kfp(self.cron, self.with_seconds) if self.cron else ""

    @property
    def interval_seconds(self) -> int:
        """Seconds between two runs; 0 for a cron."""
        if not self.every:
            return 0
        found = INTERVAL.fullmatch(self.every)
        if not found or not int(found[1]):
            raise InputError(f"every is {self.every!r}; write a number and s, m, h or d, like 6h")
        seconds = int(found[1]) * SECONDS[found[2]]
        if seconds < 60 and not self.with_seconds:
            raise InputError(
                f"every is {self.every}, more often than once a minute; make it longer, or say "
                "`with_seconds: true`"
            )
        return seconds


class ScheduleFile(_Section):
    """What `schedules.yaml` holds.

    Attributes:
        time_zone: The zone of the crons. The cluster has one for all, CRON_SCHEDULE_TIMEZONE of
            KFP's ScheduledWorkflow controller, UTC unless it was set; this must be the same.
        experiment: KFP experiment of the runs.
        schedules: By name.
    """

    time_zone: Annotated[str, AfterValidator(_zone)]
    experiment: str = "kfloop"
    schedules: dict[Name, Schedule]


@dataclass(frozen=True)
class Job:
    """A recurring run as it should be.

    Attributes:
        name: The schedule's name.
        schedule: What the file says.
        documents: The compiled pipeline with the caching asked for: its spec and, where there are
            any, its platform settings.
        arguments: The pipeline's parameters.
        time_zone: Zone of the cron.
    """

    name: str
    schedule: Schedule
    documents: list[Document]
    arguments: Document
    time_zone: str

    @property
    def facts(self) -> Document:
        """What makes two recurring runs different; `enabled` is switched in place."""
        schedule = self.schedule
        return {
            "spec": digest(self._as_sent),
            "cron": schedule.kfp_cron,
            "interval_seconds": schedule.interval_seconds,
            "concurrency": schedule.concurrency,
            "catch_up": schedule.catch_up,
            "since": _rfc3339(schedule.since, self.time_zone),
            "until": _rfc3339(schedule.until, self.time_zone),
            "service_account": schedule.service_account,
            "parameters": self.arguments,
        }

    @property
    def _as_sent(self) -> Document:
        spec, *platform = self.documents
        return {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec

    @property
    def content(self) -> str:
        """Hash of the facts."""
        return digest(self.facts)[:10]

    @property
    def display_name(self) -> str:
        """Its name in KFP."""
        return f"{self.name}-{self.content}"

    @property
    def description(self) -> str:
        """Its description in KFP, with the mark that `plan` looks for."""
        mark = MARK.format(name=self.name, content=self.content)
        return "\n".join(filter(None, [self.schedule.description, mark]))

    def next_times(self, after: datetime) -> list[datetime]:
        """Returns when it fires next; none for an interval or for a cron with seconds."""
        if len(self.schedule.cron.split()) != 5:
            return []
        return next_times(self.schedule.cron, after.astimezone(ZoneInfo(self.time_zone)))


def load_schedules(path: str | Path) -> tuple[ScheduleFile, list[Job]]:
    """Reads a schedule file and everything it names.

    Raises:
        InputError: If the file, a loop file or a parameter is wrong; nothing was sent anywhere.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no schedule file {file}; give its path with --file.")
    parsed, lines = read_yaml_file(file, ScheduleFile, "a schedule file", "time_zone and schedules")
    jobs = []
    for name, schedule in parsed.schedules.items():
        try:
            jobs.append(_job(name, schedule, file.resolve().parent, parsed.time_zone))
        except InputError as error:
            line = lines[("schedules", name)]
            raise InputError(f"{file} line {line}: schedules.{name}: {error}") from error
    return parsed, jobs


def _job(name: str, schedule: Schedule, base: Path, time_zone: str) -> Job:
    package = package_pipeline(
        schedule.pipeline,
        base / schedule.loop if schedule.loop else None,
        schedule.parameters,
        schedule.caching,
        base,
    )
    return Job(name, schedule, package.documents, package.arguments, time_zone)


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value; 2.0 is 2 in it, as KFP's API gives it back."""
    text = json.dumps(_as_kfp_writes(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_kfp_writes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_kfp_writes(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_kfp_writes(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _rfc3339(moment: str, time_zone: str) -> str:
    if not moment:
        return ""
    parsed = datetime.fromisoformat(moment)
    zoned = parsed if parsed.tzinfo else parsed.replace(tzinfo=ZoneInfo(time_zone))
    # In UTC, as KFP gives it back.
    return zoned.astimezone(UTC).isoformat()
