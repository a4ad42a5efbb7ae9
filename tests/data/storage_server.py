# SPDX-License-Identifier: Apache-2.0
"""A small object store over HTTP, faithful where the client of the real one can tell.

It speaks what google-cloud-storage 3 uses of the JSON API: objects with generations, listing in
pages, reads of a generation and of a range with the checksum in a header, uploads in one and in
several requests, deletion, and preconditions. Without versioning, as by default in the real
service, an overwritten generation is gone. PyPI's `gcp-storage-emulator` was tried first: it
ignores generations and preconditions, so a race cannot be shown with it.

`Faults` makes it fail in the ways that networks and stores fail. Run as a script it serves until
its standard input ends, for benchmarks.
"""

import base64
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

PAGE = 1000
SLICE = 1 << 18


@dataclass
class Stored:
    content: bytes
    generation: int
    encoding: str = ""

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.Checksum(self.content).digest()).decode()


@dataclass
class Faults:
    """What goes wrong, for the next requests.

    Attributes:
        statuses: HTTP statuses to answer instead of the content, one per request of any kind.
        always: A status that every request gets.
        cuts: Bytes after which a download's connection is closed, one per download.
        always_cut: The same for every download.
        corrupt: Whether downloads have a flipped bit that the checksum does not know about.
        wrong_size: Whether downloads end early and say that this is all.
        before_download: Called with the name before the next download is answered.
    """

    statuses: list[int] = field(default_factory=list)
    always: int = 0
    cuts: list[int] = field(default_factory=list)
    always_cut: int | None = None
    corrupt: bool = False
    wrong_size: bool = False
    before_download: Callable[[str], None] | None = None


@dataclass
class Request:
    method: str
    path: str
    range: str


class LoggedServer(ThreadingHTTPServer):
    """A server on loopback that knows what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.faults = Faults()
        self.log: list[Request] = []
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, method: str, part: str) -> int:
        return sum(r.method == method and part in r.path for r in self.log)

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: connections that break are what is tested."""


class QuietHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Server(LoggedServer):
    def __init__(self, latency: float = 0.0, bytes_per_second: float = 0.0, port: int = 0) -> None:
        super().__init__(Handler, port)
        self.latency, self.bytes_per_second = latency, bytes_per_second
        self.objects: dict[tuple[str, str], Stored] = {}
        self.buckets = {"bucket"}
        self.page = PAGE
        self.sessions: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self.generations = 1_700_000_000_000_000

    def put(self, name: str, content: bytes, bucket: str = "bucket", encoding: str = "") -> Stored:
        with self.lock:
            self.generations += 1
            stored = Stored(content, self.generations, encoding)
            self.objects[bucket, name] = stored
            return stored

    def names(self, bucket: str = "bucket") -> list[str]:
        return sorted(name for where, name in self.objects if where == bucket)


class Handler(QuietHandler):
    server: Server

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size) if size else b""
        self.server.log.append(Request(self.command, self.path, self.headers.get("Range", "")))
        if self.server.latency:
            time.sleep(self.server.latency)
        faults = self.server.faults
        with self.server.lock:
            status = faults.always or (faults.statuses.pop(0) if faults.statuses else 0)
        if status:
            self._fail(status, "injected")
            return
        path = parts.path
        found = re.fullmatch(r"(/download|/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", path)
        resumable = re.fullmatch(r"/resumable/(.+)", path)
        if resumable:
            self._continue_upload(resumable[1])
        elif not found or found[2] not in self.server.buckets:
            self._fail(404, "no such bucket")
        elif found[1] == "/upload":
            self._start_upload(found[2])
        elif found[3] is None:
            self._list(found[2])
        else:
            self._object(found[2], unquote(found[3]), media=found[1] == "/download")

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, status: int, document: object = None, **headers: str) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"code": status, "message": message}})

    def _document(self, bucket: str, name: str, stored: Stored) -> dict[str, object]:
        document: dict[str, object] = {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{stored.generation}",
            "bucket": bucket,
            "name": name,
            "generation": str(stored.generation),
            "metageneration": "1",
            "etag": f"tag-{stored.generation}",
            "size": str(len(stored.content)),
            "crc32c": stored.crc32c,
        }
        if stored.encoding:
            document["contentEncoding"] = stored.encoding
        return document

    def _list(self, bucket: str) -> None:
        prefix = self.query.get("prefix", "")
        with self.server.lock:
            names = [name for name in self.server.names(bucket) if name.startswith(prefix)]
            start = int(self.query.get("pageToken", 0))
            shown = names[start : start + self.server.page]
            items = [self._document(bucket, n, self.server.objects[bucket, n]) for n in shown]
        document: dict[str, object] = {"kind": "storage#objects", "items": items}
        if start + len(shown) < len(names):
            document["nextPageToken"] = str(start + len(shown))
        self._answer(200, document)

    def _object(self, bucket: str, name: str, media: bool) -> None:
        if media and self.server.faults.before_download:
            hook, self.server.faults.before_download = self.server.faults.before_download, None
            hook(name)
        with self.server.lock:
            stored = self.server.objects.get((bucket, name))
            wanted = self.query.get("generation")
            if stored is None or (wanted and int(wanted) != stored.generation):
                self._fail(404, f"No such object: {bucket}/{name}")
                return
            match = self.query.get("ifGenerationMatch")
            if match and int(match) != stored.generation:
                self._fail(412, "At least one of the pre-conditions you specified did not hold.")
                return
            if self.command == "DELETE":
                del self.server.objects[bucket, name]
        if self.command == "DELETE":
            self._answer(204)
        elif media:
            self._send(stored)
        else:
            self._answer(200, self._document(bucket, name, stored))

    def _send(self, stored: Stored) -> None:
        content, faults = stored.content, self.server.faults
        total = len(content)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found:
            start = int(found[1])
            end = min(int(found[2]) if found[2] else total - 1, total - 1)
            if start >= total:
                self._fail(416, "range not satisfiable")
                return
            content = content[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
        else:
            self.send_response(200)
        if faults.corrupt and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        if faults.wrong_size:
            content = content[:-1]
        self.send_header("X-Goog-Hash", f"crc32c={stored.crc32c}")
        self.send_header("X-Goog-Generation", str(stored.generation))
        self.send_header("X-Goog-Stored-Content-Length", str(total))
        self.send_header("X-Goog-Stored-Content-Encoding", stored.encoding or "identity")
        if stored.encoding:
            self.send_header("Content-Encoding", stored.encoding)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with self.server.lock:
            cut = faults.cuts.pop(0) if faults.cuts else faults.always_cut
        if cut is not None and cut < len(content):
            self.wfile.write(content[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if not self.server.bytes_per_second:
            self.wfile.write(content)
            return
        for start in range(0, len(content), SLICE):
            self.wfile.write(content[start : start + SLICE])
            time.sleep(SLICE / self.server.bytes_per_second)

    def _start_upload(self, bucket: str) -> None:
        if self.query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, first, second, _ = self.body.split(b"--" + boundary)
            about = json.loads(first.partition(b"\r\n\r\n")[2])
            content = second.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self._keep(bucket, about["name"], self.query, content, about.get("crc32c"))
            return
        about = json.loads(self.body or b"{}")
        name = about.get("name") or self.query["name"]
        key = str(len(self.server.sessions))
        self.server.sessions[key] = (bucket, name, self.query, bytearray())
        self._answer(200, {}, Location=f"{self.server.url}/resumable/{key}")

    def _continue_upload(self, key: str) -> None:
        bucket, name, query, content = self.server.sessions[key]
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
        if found and found[1]:
            del content[int(found[1]) :]
            content += self.body
        if found and found[3] != "*" and len(content) == int(found[3]):
            self._keep(bucket, name, query, bytes(content))
        elif content:
            self._answer(308, None, Range=f"bytes=0-{len(content) - 1}")
        else:
            self._answer(308)

    def _keep(
        self,
        bucket: str,
        name: str,
        query: dict[str, str],
        content: bytes,
        crc32c: str | None = None,
    ) -> None:
        if crc32c and crc32c != Stored(content, 0).crc32c:
            self._fail(400, "Provided CRC32C does not match the content.")
            return
        with self.server.lock:
            there = self.server.objects.get((bucket, name))
            match = query.get("ifGenerationMatch")
            if match and int(match) != (there.generation if there else 0):
                self._fail(412, "At least one of the pre-conditions you specified did not hold.")
                return
            self._answer(200, self._document(bucket, name, self.server.put(name, content, bucket)))


def main() -> None:
    """Serves objects made up of the command line's sizes until standard input ends."""
    settings = json.loads(sys.argv[1])
    server = Server(settings["latency"], settings["bytes_per_second"])
    for name, path in settings["objects"].items():
        with open(path, "rb") as file:
            server.put(name, file.read())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.url, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
