# SPDX-License-Identifier: Apache-2.0
"""A small S3 over HTTP, faithful where AWS's client can tell.

It speaks what the loop uses of S3: listing in pages, HEAD and ranges of one version under an ETag,
ETags and checksums of whole uploads and of parts, uploads in parts, new objects under
`If-None-Match`, deletion under `If-Match`, and STS's credentials for a web identity. Who asks is
known by the key and the region in the signature's scope; the signature itself is taken as good.
With `versioned` an overwritten version stays, without it is gone, as in the real service. `Faults`
are those of `storage_server`; a status of 503 says SlowDown.
"""

import base64
import hashlib
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import google_crc32c
from storage_server import LoggedServer, QuietHandler, Request

CODES = {
    403: "AccessDenied",
    408: "RequestTimeout",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}
TOKENS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>temporary</AccessKeyId>
<SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>
<Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@dataclass
class Stored:
    content: bytes
    version: str
    part_bytes: int = 0
    kms: bool = False
    checksums: dict[str, str] = field(default_factory=dict)
    encoding: str = ""

    @property
    def etag(self) -> str:
        if self.kms:
            return hashlib.md5(b"key" + self.content).hexdigest()
        if not self.part_bytes:
            return hashlib.md5(self.content).hexdigest()
        parts = [hashlib.md5(part).digest() for part in self.parts()]
        return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"

    @property
    def composite(self) -> str:
        digests = [google_crc32c.Checksum(part).digest() for part in self.parts()]
        return f"{crc32c(b''.join(digests))}-{len(digests)}"

    def parts(self) -> list[bytes]:
        size = self.part_bytes or len(self.content) or 1
        return [self.content[at : at + size] for at in range(0, len(self.content), size)]


def crc32c(content: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


class Server(LoggedServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.objects: dict[tuple[str, str], list[Stored]] = {}
        self.buckets = {"bucket"}
        self.keys = {"key", "temporary"}
        self.region = "eu-central-1"
        self.tells_region = True
        self.versioned = False
        self.heeds_conditions = True
        self.page = 1000
        self.denied = ""
        self.writes = 0
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.smallest_part = 5 << 20
        self.lost_answers = 0

    def put(self, name: str, content: bytes, **about: object) -> Stored:
        with self.lock:
            self.writes += 1
            stored = Stored(content, f"v{self.writes}" if self.versioned else "", **about)
            versions = self.objects.setdefault(("bucket", name), [])
            if not self.versioned:
                versions.clear()
            versions.append(stored)
            return stored

    def names(self) -> list[str]:
        return sorted(name for _, name in self.objects)


class Handler(QuietHandler):
    server: Server

    def _handle(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query, True).items()}
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size) if size else b""
        if self.command == "POST" and parts.path == "/":
            self._assume()
            return
        server.log.append(Request(self.command, self.path, self.headers.get("Range", "")))
        with server.lock:
            statuses = server.faults.statuses
            status = server.faults.always or (statuses.pop(0) if statuses else 0)
        _, bucket, name = (*map(unquote, parts.path.split("/", 2)), "")[:3]
        scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/s3/", self.headers["Authorization"])
        if status:
            self._fail(status, CODES[status])
        elif scope is None or scope[1] not in server.keys:
            self._fail(403, "InvalidAccessKeyId")
        elif scope[2] != server.region:
            more = f"<Region>{server.region}</Region>" if server.tells_region else ""
            self._fail(400, "AuthorizationHeaderMalformed", more)
        elif server.denied and server.denied in f"{self.command} {name}":
            self._fail(403, "AccessDenied")
        elif bucket not in server.buckets:
            self._fail(404, "NoSuchBucket")
        elif not name:
            self._list(bucket)
        elif self.command == "POST" and "uploads" in self.query:
            self._begin_upload()
        elif "uploadId" in self.query:
            self._upload(bucket, name, self.query["uploadId"])
        elif self.command == "PUT":
            self._put(bucket, name)
        else:
            self._object(bucket, name)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _handle

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, status: int, code: str, more: str = "") -> None:
        text = f"<Error><Code>{code}</Code><Message>says {code}</Message>{more}</Error>"
        headers = {"x-amz-bucket-region": self.server.region} if self.server.tells_region else {}
        self._answer(status, b"" if self.command == "HEAD" else text.encode(), **headers)

    def _assume(self) -> None:
        given = parse_qs(self.body.decode())
        if given["WebIdentityToken"] == ["of the pod"]:
            self._answer(200, TOKENS.encode())
        else:
            self._fail(403, "AccessDenied")

    def _list(self, bucket: str) -> None:
        prefix, start = self.query.get("prefix", ""), int(self.query.get("continuation-token", 0))
        size = min(self.server.page, int(self.query.get("max-keys", 1000)))
        with self.server.lock:
            known = {name: self.server.objects[bucket, name][-1] for name in self.server.names()}
        names = [name for name in known if name.startswith(prefix)]
        shown = names[start : start + size]
        spell = quote if self.query.get("encoding-type") == "url" else escape
        entries = "".join(
            f"<Contents><Key>{spell(name)}</Key><ETag>&quot;{known[name].etag}&quot;</ETag>"
            f"<Size>{len(known[name].content)}</Size></Contents>"
            for name in shown
        )
        more = start + len(shown) < len(names)
        token = f"<NextContinuationToken>{start + len(shown)}</NextContinuationToken>" * more
        coded = "<EncodingType>url</EncodingType>" * ("encoding-type" in self.query)
        self._answer(
            200,
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{coded}{token}{entries}"
            "</ListBucketResult>".encode(),
        )

    def _put(self, bucket: str, name: str) -> None:
        told = self.headers.get("x-amz-checksum-crc32c")
        if told and told != crc32c(self.body):
            self._fail(400, "BadDigest")
            return
        with self.server.lock:
            if self.headers.get("If-None-Match") == "*" and (bucket, name) in self.server.objects:
                self._fail(412, "PreconditionFailed")
                return
            about = {"checksums": {"crc32c": told}} if told else {}
            stored = self.server.put(name, self.body, **about)
        self._answer(200, ETag=f'"{stored.etag}"')

    def _begin_upload(self) -> None:
        if self.headers.get("x-amz-checksum-algorithm") != "CRC32C":
            self._fail(400, "InvalidRequest")
            return
        with self.server.lock:
            self.server.writes += 1
            upload = f"upload {self.server.writes}"
            self.server.uploads[upload] = {}
        self._tell("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")

    def _upload(self, bucket: str, name: str, upload: str) -> None:
        """Takes a part, gives an upload up or completes it."""
        server = self.server
        parts = server.uploads.get(upload)
        if parts is None:
            self._fail(404, "NoSuchUpload")
        elif self.command == "PUT":
            if self.headers["x-amz-checksum-crc32c"] != crc32c(self.body):
                self._fail(400, "BadDigest")
                return
            parts[int(self.query["partNumber"])] = self.body
            self._answer(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')
        elif self.command == "DELETE":
            del server.uploads[upload]
            self._answer(204)
        elif self.headers.get("If-None-Match") == "*" and (bucket, name) in server.objects:
            self._fail(412, "PreconditionFailed")
        else:
            self._complete(name, upload, [parts[number] for number in sorted(parts)])

    def _complete(self, name: str, upload: str, parts: list[bytes]) -> None:
        document = self.body.decode().replace("&quot;", '"')
        etags = [hashlib.md5(part).hexdigest() for part in parts]
        if re.findall(r'<ETag>"?(\w+)"?</ETag>', document) != etags:
            self._fail(400, "InvalidPart")
            return
        if re.findall(r"<ChecksumCRC32C>(.+?)</ChecksumCRC32C>", document) != [*map(crc32c, parts)]:
            self._fail(400, "InvalidPart")
            return
        if any(len(part) < self.server.smallest_part for part in parts[:-1]):
            self._fail(400, "EntityTooSmall")
            return
        stored = self.server.put(name, b"".join(parts), part_bytes=len(parts[0]))
        stored.checksums["crc32c"] = stored.composite
        with self.server.lock:
            del self.server.uploads[upload]
            lost = self.server.lost_answers
            self.server.lost_answers = 0
        if lost:
            self._fail(500, "InternalError")
        else:
            self._tell("CompleteMultipartUploadResult", f"<ETag>{stored.etag}</ETag>")

    def _tell(self, name: str, content: str) -> None:
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        self._answer(200, f'<{name} xmlns="{space}">{content}</{name}>'.encode())

    def _object(self, bucket: str, name: str) -> None:
        if self.command == "GET" and self.server.faults.before_download:
            hook, self.server.faults.before_download = self.server.faults.before_download, None
            hook(name)
        with self.server.lock:
            versions = self.server.objects.get((bucket, name), [])
            wanted = self.query.get("versionId")
            found = [one for one in versions if wanted in (None, one.version)]
            deletes = self.command == "DELETE"
            if not found:
                self._fail(404, "NoSuchVersion" if wanted else "NoSuchKey")
                return
            stored, match = found[-1], self.headers.get("If-Match", "").strip('"')
            heeded = self.server.heeds_conditions or not deletes
            if match and match != stored.etag and heeded:
                self._fail(412, "PreconditionFailed")
                return
            if deletes:
                del self.server.objects[bucket, name]
        if deletes:
            self._answer(204)
        else:
            self._send(stored)

    def _send(self, stored: Stored) -> None:
        content, faults, total = stored.content, self.server.faults, len(stored.content)
        status, headers = 200, {"ETag": f'"{stored.etag}"'}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found:
            start, end = int(found[1]), min(int(found[2]), total - 1)
            content, status = content[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        elif "partNumber" in self.query:
            content, status = stored.parts()[int(self.query["partNumber"]) - 1], 206
        elif self.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers |= {f"x-amz-checksum-{name}": told for name, told in stored.checksums.items()}
        if stored.version:
            headers["x-amz-version-id"] = stored.version
        if stored.kms:
            headers["x-amz-server-side-encryption"] = "aws:kms"
        if stored.encoding:
            headers["Content-Encoding"] = stored.encoding
        if self.command == "GET" and faults.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        if self.command == "GET" and faults.wrong_size:
            content = content[:-1]
        with self.server.lock:
            cut = faults.cuts.pop(0) if faults.cuts and self.command == "GET" else None
            cut = faults.always_cut if cut is None and self.command == "GET" else cut
        if cut is None or cut >= len(content):
            self._answer(status, content, **headers)
            return
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[:cut])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
