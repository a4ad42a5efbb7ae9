# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of the API server double."""

import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .auth import Attempt, User
from .errors import ApiError, NoSuchPathError, not_found
from .faults import Fault
from .resources import Resource
from .routes import Route, parse
from .verbs import APPLY, Options
from .watching import Watch

if TYPE_CHECKING:
    from .server import ApiServer

HOP_HEADERS = {"host", "authorization", "content-length", "connection", "transfer-encoding"}
HEALTH = ("/healthz", "/livez", "/readyz")


class Server(ThreadingHTTPServer):
    """Takes many connections at once, and says nothing when one breaks."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Tells what is wrong with the double itself; broken connections are what is tested."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # as given


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    # Buffered, so that headers and body leave in one packet.
    wbufsize = -1
    api: "ApiServer"

    def log_message(self, *arguments: object) -> None:
        """Says nothing: `ApiServer.requests` keeps what was asked."""

    def setup(self) -> None:
        """Answers are small: without this each would wait for the client's acknowledgement."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self._sent = self.rfile.read(size) if size else b""
        self._user = User("system:anonymous", [])
        self._route = parse(self.command, self.path)
        try:
            self._user = self.api.gate.user(self.headers.get("Authorization", ""))
            if self._route is None:
                self._answer(200, self._discovery())
            else:
                self._serve(self._route)
        except ApiError as error:
            self._fail(error)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _discovery(self) -> Any:
        path = urlsplit(self.path).path.rstrip("/")
        if path in HEALTH:
            return "ok"
        if path == "/version":
            major, _, minor = self.api.version.partition(".")
            unknown = (
                "gitCommit",
                "gitTreeState",
                "buildDate",
                "goVersion",
                "compiler",
                "platform",
            )
            known = {"major": major, "minor": minor, "gitVersion": f"v{self.api.version}.0"}
            return {**dict.fromkeys([*unknown, "platform"], ""), **known}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return self.api.registry.groups()
        parts = path.strip("/").split("/")
        found = None
        if parts == ["api", "v1"]:
            found = self.api.registry.resources("", "v1")
        elif len(parts) == 3 and parts[0] == "apis":
            found = self.api.registry.resources(parts[1], parts[2])
        elif len(parts) == 2 and parts[0] == "apis":
            groups = self.api.registry.groups()["groups"]
            found = next((group for group in groups if group["name"] == parts[1]), None)
        if found is None:
            raise NoSuchPathError
        return found

    def _serve(self, route: Route) -> None:
        fault = self.api.faults.draw(route.verb, route.plural, route.name, route.subresource)
        if fault is not None and self._suffer(fault, route):
            return
        attempt = Attempt(
            route.verb,
            route.group,
            route.plural,
            route.namespace,
            route.name,
            route.subresource,
        )
        if route.group == "authorization.k8s.io":
            self._answer(201, self.api.gate.review(self._user, self._body() or {}))
            return
        self.api.gate.check(self._user, attempt)
        kind = self.api.registry.by_path(route.group, route.version, route.plural)
        if kind is None:
            raise NoSuchPathError
        if route.subresource == "proxy":
            self._proxy(route)
        elif route.subresource == "log":
            self._log(kind, route)
        elif route.verb == "watch":
            self._watch(kind, route)
        else:
            code, document = self._act(kind, route)
            self._answer(code, document)

    def _act(self, kind: Resource, route: Route) -> tuple[int, Any]:
        verbs, namespace, name = self.api.verbs, route.namespace, route.name
        if route.subresource not in ("", "status") or (
            route.subresource == "status" and not kind.has_status
        ):
            raise NoSuchPathError
        if kind.namespaced and not namespace and (name or route.verb == "create"):
            told = "the server does not allow this method on the requested resource"
            raise ApiError(405, told)
        options = self._options(route)
        match route.verb:
            case "list":
                return 200, self.api.lists.page(kind, route)
            case "get":
                return 200, verbs.get(kind, namespace, name)
            case "create":
                return 201, verbs.create(kind, namespace, self._body(), options)
            case "update":
                return 200, verbs.replace(kind, namespace, name, self._body(), options)
            case "patch":
                content = self.headers.get("Content-Type", "").partition(";")[0]
                document, created = verbs.patch(
                    kind, namespace, name, self._body(content), content, options
                )
                return 201 if created else 200, document
            case "delete":
                return 200, verbs.delete(kind, namespace, name, self._wishes(), options.dry_run)
        for item in self.api.lists.page(kind, route)["items"]:
            metadata = item["metadata"]
            where = metadata.get("namespace", "")
            verbs.delete(kind, where, metadata["name"], self._wishes(), options.dry_run)
        return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _options(self, route: Route) -> Options:
        wanted = route.query.get("fieldValidation", "")
        if wanted not in ("", "Strict", "Warn", "Ignore"):
            raise ApiError(422, f'fieldValidation: Unsupported value: "{wanted}"')
        agent = self.headers.get("User-Agent", "unknown").partition("/")[0]
        content = self.headers.get("Content-Type", "").partition(";")[0]
        manager = route.query.get("fieldManager", "")
        if content in APPLY and route.verb == "patch" and not manager:
            raise ApiError(
                422,
                "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required "
                "for apply patch",
            )
        dry_run = route.query.get("dryRun") == "All"
        if self.command == "DELETE" and isinstance(self._wishes(), dict):
            dry_run = dry_run or self._wishes().get("dryRun") == ["All"]
        return Options(
            dry_run=dry_run,
            strict=wanted == "Strict" or (not wanted and self.api.strict),
            manager=manager or agent,
            force=route.asked("force"),
            status=route.subresource == "status",
        )

    def _wishes(self) -> Any:
        """Returns DeleteOptions; the parameters of the URL count too."""
        wishes = self._body() if self._sent else {}
        policy = self._route.query.get("propagationPolicy") if self._route else None
        return {**wishes, "propagationPolicy": policy} if policy else wishes

    def _body(self, content_type: str = "") -> Any:
        try:
            return json.loads(self._sent) if self._sent else None
        except ValueError as error:
            if content_type in APPLY:
                raise ApiError(415, "this double reads apply patches as JSON only") from error
            raise ApiError(400, f"the object provided is unrecognized: {error}") from error

    def _suffer(self, fault: Fault, route: Route) -> bool:
        """Does what a fault says; returns whether the request is over."""
        if isinstance(fault.what, int):
            error = ApiError(fault.what, _told(fault.what, route))
            if fault.retry_after:
                error.details = {"retryAfterSeconds": fault.retry_after}
            self._fail(error)
            return True
        if fault.what == "drop":
            self._cut()
            return True
        if fault.what == "drop_after":
            kind = self.api.registry.by_path(route.group, route.version, route.plural)
            if kind is not None and route.subresource in ("", "status"):
                try:
                    if route.verb not in ("watch", "list", "get"):
                        self._act(kind, route)
                finally:
                    self._cut()
            else:
                self._cut()
            return True
        if fault.what == "hang":
            time.sleep(fault.seconds)
        elif fault.what == "conflict_write":
            self.api.disturb(route)
        return False

    def _cut(self) -> None:
        """Closes the connection with no answer."""
        self._note(0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _watch(self, kind: Resource, route: Route) -> None:
        watch = Watch(self.api.store, self.api.faults, kind, route)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        self._note(200)

        def send(event: dict[str, Any]) -> None:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()

        if watch.run(send, lambda: self.api.stopping):
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _log(self, kind: Resource, route: Route) -> None:
        self.api.verbs.get(kind, route.namespace, route.name)
        where = (route.namespace, route.name)
        text = self.api.logs.get((*where, route.query.get("container", "")))
        text = self.api.logs.get(where, "") if text is None else text
        lines = int(route.query.get("tailLines") or 0)
        if lines:
            text = "".join(text.splitlines(keepends=True)[-lines:])
        self._send(200, text.encode(), {"Content-Type": "text/plain"})

    def _proxy(self, route: Route) -> None:
        """Passes a request on to a service: `[scheme:]name[:port]`."""
        parts = route.name.split(":")
        name = parts[1] if len(parts) == 3 else parts[0]
        port = parts[-1] if len(parts) > 1 else ""
        kind = self.api.registry.find("services")
        self.api.verbs.get(kind, route.namespace, name)
        headers = {k.lower(): v for k, v in self.headers.items() if k.lower() not in HOP_HEADERS}
        query = urlsplit(self.path).query
        path = (route.rest or "/") + (f"?{query}" if query else "")
        for proxy in self.api.proxies:
            status, answered, body = proxy(
                route.namespace, name, port, self.command, path, headers, self._sent
            )
            self._send(status, body, answered)
            return
        raise ApiError(503, f'no endpoints available for service "{route.name}"')

    def _answer(self, code: int, document: Any) -> None:
        if isinstance(document, str):
            self._send(code, document.encode(), {"Content-Type": "text/plain"})
        else:
            self._send(code, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _fail(self, error: ApiError) -> None:
        if isinstance(error, NoSuchPathError):
            self._answer(error.code, error.message)
            return
        headers = {"Content-Type": "application/json"}
        wait = (error.details or {}).get("retryAfterSeconds")
        if wait:
            headers["Retry-After"] = str(wait)
        self._send(error.code, json.dumps(error.status()).encode(), headers)

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self._note(code)
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _note(self, code: int) -> None:
        from .server import Request

        route = self._route or Route("get", "", "", urlsplit(self.path).path)
        try:
            body = json.loads(self._sent) if self._sent else None
        except ValueError:
            body = None
        about = (route.verb, route.plural, route.namespace, route.name, route.subresource)
        self.api.requests.append(Request(*about, code, body, self._user.name))


def _told(code: int, route: Route) -> str:
    """What a real server says with a status."""
    resource = f"{route.plural}.{route.group}" if route.group else route.plural
    match code:
        case 409:
            return (
                f'Operation cannot be fulfilled on {resource} "{route.name}": the object has been '
                "modified; please apply your changes to the latest version and try again"
            )
        case 404:
            return not_found(resource, route.name).message
        case 429:
            return "the server has received too many requests and has asked us to try again later"
        case 500:
            return "Internal error occurred: etcdserver: request timed out"
        case 503:
            return "the server is currently unable to handle the request"
        case 504:
            return "Timeout: request did not complete within the allotted duration"
    return f"injected {code}"
