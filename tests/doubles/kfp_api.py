# SPDX-License-Identifier: Apache-2.0
"""A double of the KFP API (v2beta1) for the unmodified kfp client, over HTTP on loopback.

What it knows: experiments, recurring runs and runs, with the real server's defaults, pages, filters
and refusals. Like the real one it takes two recurring runs of one name, has no update, backfills
unless told not to, reads crons as robfig/cron v1 does, takes the unfinished runs of a recurring
run away when that is deleted, checks parameters against the pipeline, gives 2.0 back as 2, says
which service account it chose, lists in the order of the ids, and says 1970 for what has not ended.
It executes nothing: `advance` says what became of a run's tasks.
"""

import json
import re
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from .robfig import Cron

Document = dict[str, Any]
ROOT = "/apis/v2beta1"
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 200
INVALID, NOT_FOUND, UNAUTHENTICATED, INTERNAL = 400, 404, 401, 500
# gRPC's codes, which its answers have beside the status of HTTP.
CODES = {INVALID: 3, NOT_FOUND: 5, 409: 6, 501: 12, INTERNAL: 13, 503: 14, UNAUTHENTICATED: 16}
ACCOUNT = "pipeline-runner"
NEVER = "1970-01-01T00:00:00Z"
# What it says of tasks.
NOT_ENDED = "0001-01-01T00:00:00Z"
LISTS = {
    "experiments": "experiment_id",
    "recurringruns": "recurring_run_id",
    "runs": "run_id",
}
FIELD_OF = {"experiments": "experiments", "recurringruns": "recurringRuns", "runs": "runs"}
FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Fault:
    """What happens to the next matching requests instead of, or after, the real thing.

    Attributes:
        kind: An HTTP status, `drop` (connection closed before it is done) or `drop_after` (done,
            and then closed without an answer).
        method: HTTP method it matches; empty matches all.
        path: Regular expression that the path must contain.
        times: How many requests.
    """

    kind: int | str
    method: str = ""
    path: str = ""
    times: int = 1


@dataclass
class KfpApi:
    """The server; use it as a context manager.

    Attributes:
        token: Bearer token that requests must carry; empty wants none.
        cookie: Cookie without which a login page is answered, as by Dex; empty wants none.
        multi_user: What healthz says.
        tag: The version that it says.
        requests: How often each `METHOD path` was asked, ids left out.
    """

    token: str = ""
    cookie: str = ""
    multi_user: bool = False
    tag: str = "2.17.0"
    requests: Counter[str] = field(default_factory=Counter)
    _stored: dict[str, dict[str, Document]] = field(
        default_factory=lambda: {name: {} for name in LISTS}
    )
    _faults: list[Fault] = field(default_factory=list)
    _clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fault(self, kind: int | str, method: str = "", path: str = "", times: int = 1) -> None:
        """Makes the next matching requests fail; see `Fault`."""
        self._faults.append(Fault(kind, method, path, times))

    def recurring_runs(self) -> list[Document]:
        """Returns every recurring run, oldest first."""
        return list(self._stored["recurringruns"].values())

    def runs(self) -> list[Document]:
        """Returns every run, oldest first."""
        return list(self._stored["runs"].values())

    def start_run(self, recurring_run_id: str, state: str = "RUNNING") -> str:
        """Does what the scheduler does when a slot comes; returns the run's id."""
        job = self._stored["recurringruns"][recurring_run_id]
        run = {
            "display_name": job["display_name"],
            "experiment_id": job["experiment_id"],
            "recurring_run_id": recurring_run_id,
            "pipeline_spec": job["pipeline_spec"],
            "runtime_config": job["runtime_config"],
            "storage_state": "AVAILABLE",
            "finished_at": NEVER,
            "state": state,
        }
        return str(self._store("runs", run)["run_id"])

    def finish_run(self, run_id: str, state: str = "SUCCEEDED") -> None:
        """Ends a run."""
        self._stored["runs"][run_id] |= {"state": state, "finished_at": self._now()}

    def advance(self, run_id: str, task: str, state: str, seconds: int = 0) -> None:
        """Says how a task is doing: its driver is done, and it took so many seconds.

        Like the real server's, the answer has all nodes of the engine: the whole workflow, the
        pipeline's root, drivers, executors, and each of them again as its first attempt. It never
        says why one failed.
        """
        run = self._stored["runs"][run_id]
        run["state"] = "RUNNING"
        tasks = run.setdefault("run_details", {}).setdefault("task_details", [])
        spec = run["pipeline_spec"]
        pipeline = spec.get("pipeline_spec", spec)["pipelineInfo"]["name"]
        scheduled = run.get("recurring_run_id")
        driver = f"{task}-driver"
        whole = run["display_name"] if scheduled else f"{pipeline}-4t9xk"
        again = {"", task, driver, "executor", "root", "root-driver", whole}
        # No name: one that is only planned.
        tasks[:] = [
            one for one in tasks if one.get("display_name", "").partition("(")[0] not in again
        ]
        start = self._now()
        self._clock += timedelta(seconds=seconds)
        tasks.append({"run_id": run_id, "task_id": str(uuid.uuid4()), "start_time": start})
        for name, its_state in {
            whole: "RUNNING",
            "root-driver": "SUCCEEDED",
            "root": "RUNNING",
            driver: "SUCCEEDED",
            task: state,
            "executor": state,
        }.items():
            for attempt in (name, f"{name}(0)"):
                end = self._now() if its_state in FINISHED else NOT_ENDED
                tasks.append(
                    {
                        "run_id": run_id,
                        "task_id": str(uuid.uuid4()),
                        "display_name": attempt,
                        "create_time": run["created_at"],
                        "start_time": start,
                        "end_time": end,
                        "state": its_state,
                        "state_history": [{"update_time": self._now(), "state": its_state}],
                    }
                )

    def _now(self) -> str:
        return self._clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _store(self, kind: str, item: Document) -> Document:
        self._clock += timedelta(seconds=1)
        key = str(uuid.uuid4())
        stored = {**item, LISTS[kind]: key, "created_at": self._now()}
        self._stored[kind][key] = stored
        return stored

    def _fault_for(self, method: str, path: str) -> int | str | None:
        for fault in self._faults:
            if fault.times and fault.method in ("", method) and re.search(fault.path, path):
                fault.times -= 1
                return fault.kind
        return None

    def answer(self, method: str, path: str, query: Document, body: Document) -> Document:
        """Answers one request.

        Raises:
            Refused: If the real server would refuse it.
        """
        with self._lock:
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: Document, body: Document) -> Document:
        if path == f"{ROOT}/healthz":
            return {"multi_user": self.multi_user, "tag_name": self.tag, "commit_sha": "unknown"}
        found = re.fullmatch(rf"{ROOT}/(\w+)(?:/([\w-]+))?(?::(\w+))?", path)
        if not found or found[1] not in LISTS:
            raise Refused(NOT_FOUND, "Not Found")
        kind, key, verb = found.groups()
        if not key:
            return self._create(kind, body) if method == "POST" else self._list(kind, query)
        if key not in self._stored[kind]:
            raise Refused(NOT_FOUND, f"{kind} {key} not found")
        if method == "GET":
            return self._stored[kind][key]
        if kind == "recurringruns" and method == "POST" and verb in ("enable", "disable"):
            self._stored[kind][key]["status"] = f"{verb.upper()}D"
            self._stored[kind][key]["mode"] = verb.upper()
            return {}
        if kind == "recurringruns" and method == "DELETE":
            self._delete(key)
            return {}
        raise Refused(501, "Method Not Allowed")

    def _delete(self, key: str) -> None:
        del self._stored["recurringruns"][key]
        for run in self.runs():
            # The workflows belong to the ScheduledWorkflow and go with it.
            if run.get("recurring_run_id") == key and run["state"] not in FINISHED:
                del self._stored["runs"][run["run_id"]]

    def _list(self, kind: str, query: Document) -> Document:
        items = self._stored[kind].values()
        experiment = query.get("experiment_id")
        chosen = [
            item
            for item in items
            if (not experiment or kind == "experiments" or item["experiment_id"] == experiment)
            and _passes(item, query.get("filter", ""))
        ]
        field_name, _, order = query.get("sort_by", "").partition(" ")
        if field_name not in ("", "created_at", "display_name"):
            raise Refused(INVALID, f'Invalid input error: Invalid sorting field: "{field_name}"')
        field_name = field_name or LISTS[kind]
        chosen.sort(key=lambda item: str(item[field_name]), reverse=order == "desc")
        size = min(int(query.get("page_size") or 0) or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        start = int(query.get("page_token") or 0)
        answer: Document = {
            FIELD_OF[kind]: chosen[start : start + size],
            "total_size": len(chosen),
        }
        if start + size < len(chosen):
            answer["next_page_token"] = str(start + size)
        return answer

    def _create(self, kind: str, body: Document) -> Document:
        if not body.get("display_name"):
            raise Refused(INTERNAL, "InternalServerError: Invalid input error: an empty name")
        if kind != "experiments" and body.get("experiment_id") not in self._stored["experiments"]:
            raise Refused(NOT_FOUND, f"Experiment {body.get('experiment_id')} not found")
        if kind == "runs":
            return self._store(kind, _run(body))
        if kind == "experiments":
            names = [item["display_name"] for item in self._stored[kind].values()]
            if body["display_name"] in names:
                raise Refused(409, f"Already exist error: {body['display_name']}")
            return self._store(kind, {**body, "storage_state": "AVAILABLE"})
        return self._store(kind, _recurring_run(body))


KINDS = {
    "NUMBER_INTEGER": ((int, float), "double or integer"),
    "NUMBER_DOUBLE": ((int, float), "double or integer"),
    "STRING": ((str,), "string"),
    "BOOLEAN": ((bool,), "bool"),
    "LIST": ((list,), "list"),
    "STRUCT": ((dict,), "struct"),
}


def _run(body: Document) -> Document:
    _check_parameters(body)
    about = {"storage_state": "AVAILABLE", "state": "PENDING", "finished_at": NEVER}
    account = body.get("service_account") or ACCOUNT
    return {**body, **about, "scheduled_at": NEVER, "service_account": account}


def _check_parameters(body: Document) -> None:
    spec = body.get("pipeline_spec") or {}
    spec = spec.get("pipeline_spec", spec)
    given = (body.get("runtime_config") or {}).get("parameters") or {}
    if "root" not in spec or "pipelineInfo" not in spec:
        raise Refused(INTERNAL, "InvalidInputError: unknown template format")
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, definition in declared.items():
        kinds, asked = KINDS[definition["parameterType"]]
        if name not in given:
            if not definition.get("isOptional") and "defaultValue" not in definition:
                raise Refused(
                    INVALID,
                    f"parameter {name} is not optional, yet has neither default value nor user "
                    "provided value",
                )
        elif type(given[name]) not in kinds:
            raise Refused(INVALID, f"input parameter {name} requires type {asked}, but the input")
    if extra := sorted(set(given) - set(declared)):
        raise Refused(
            INVALID, f"parameter(s) provided are not required by pipeline: {','.join(extra)}"
        )


def _recurring_run(body: Document) -> Document:
    if not body.get("pipeline_spec"):
        raise Refused(INTERNAL, "Internal error: Cannot create a job with an empty pipeline ID")
    concurrency = int(body.get("max_concurrency") or 0)
    if not 1 <= concurrency <= 10:
        raise Refused(INVALID, "Max concurrency of a recurring run must be at least 1 and at most")
    mode = body.get("mode") or "DISABLE"
    trigger = body.get("trigger") or {}
    cron, period = trigger.get("cron_schedule"), trigger.get("periodic_schedule")
    if cron:
        try:
            Cron(cron.get("cron", ""))
        except ValueError as error:
            message = f"Schedule cron is not a supported format. Error: {error}"
            raise Refused(INVALID, message) from error
    elif period and int(period.get("interval_second") or 0) < 1:
        raise Refused(INVALID, "Found invalid period schedule interval. Set at interval to least 1")
    elif period:
        # Protobuf writes 64-bit integers as text.
        period = {**period, "interval_second": str(period["interval_second"])}
        trigger = {"periodic_schedule": period}
    _check_parameters(body)
    return {
        **body,
        "trigger": trigger,
        "mode": mode,
        "service_account": body.get("service_account") or ACCOUNT,
        "max_concurrency": str(concurrency),
        "no_catchup": bool(body.get("no_catchup")),
        "status": f"{mode}D",
    }


def _numbers(value: Any) -> Any:
    """Protobuf's numbers are all of one kind, and whole ones are written without a point."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _passes(item: Document, text: str) -> bool:
    for predicate in json.loads(text or "{}").get("predicates", []):
        wanted = predicate.get("stringValue", predicate.get("string_value"))
        if predicate["operation"] not in (1, "EQUALS") or item.get(predicate["key"]) != wanted:
            return False
    return True


def _handler(api: KfpApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: the tests read `requests`."""

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            body = _numbers(json.loads(self.rfile.read(length) or b"{}"))
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            api.requests[f"{self.command} {re.sub(r'[0-9a-f-]{36}', 'ID', parts.path)}"] += 1
            fault = api._fault_for(self.command, parts.path)
            if fault == "drop":
                self.close_connection = True
                return
            if api.cookie and self.headers.get("cookie") != api.cookie:
                self._send(200, b"<html>Log in to Your Account</html>", "text/html")
                return
            try:
                if isinstance(fault, int):
                    raise Refused(fault, "injected")
                if api.token and self.headers.get("authorization") != f"Bearer {api.token}":
                    raise Refused(UNAUTHENTICATED, "Unauthenticated")
                status, answer = 200, api.answer(self.command, parts.path, query, body)
            except Refused as refused:
                status = refused.status
                answer = {
                    "code": CODES.get(status, 2),
                    "message": refused.message,
                    "details": [{"error_details": refused.message}],
                }
            if fault == "drop_after":
                self.close_connection = True
                return
            self._send(status, json.dumps(answer).encode(), "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    return Handler
