"""A fake S3 server: the requests that a disk needs, with injected error responses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from aiovblk.storage.objects import ObjectStoreClient
from aiovblk.storage.objects.opening import from_url

BUCKET = "bucket"


@dataclass
class ErrorResponse:
    """An error response."""

    status: int
    code: str = ""
    message: str = "why"
    more: str = ""
    """Further XML elements of the body."""

    @property
    def body(self) -> bytes:
        if not self.code:
            return b""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>{self.message}</Message>{self.more}</Error>"
        ).encode()


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]

    @property
    def key_id(self) -> str:
        """The access key id of the credentials."""
        found = re.search("Credential=([^/]*)/", self.headers.get("authorization", ""))
        return found[1] if found else ""


@dataclass
class FakeS3:
    """The server, and its objects by path."""

    error_for: Callable[[Request], ErrorResponse | None] = lambda request: None
    """Returns the error to respond with, or None to serve the request."""
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def client(self, folder: str = "disk", **options: Any) -> ObjectStoreClient:
        """Return a client of it, with fixed credentials."""
        fixed = {
            "endpoint": self.endpoint,
            "access_key_id": "key",
            "secret_access_key": "secret",
            "region": "us-east-1",
        }
        return from_url(f"s3://{BUCKET}/{folder}", **(fixed | options))[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            first, *lines = head.decode().rstrip().split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            headers = {name.lower(): value for name, _, value in pairs}
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = first.split()
            path, _, query = target.partition("?")
            request = Request(method, unquote(path), query, headers)
            self.requests.append(request)
            error = self.error_for(request)
            status, body = (error.status, error.body) if error else self._do(request, data)
            writer.write(
                f'HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nETag: "e"\r\n'
                "Last-Modified: Tue, 01 Sep 2026 00:00:00 GMT\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + (body if method != "HEAD" else b"")
            )
            await writer.drain()

    def _do(self, request: Request, data: bytes) -> tuple[int, bytes]:
        path = request.path
        if "list-type" in request.query:
            return 200, self._list(request)
        if request.method == "PUT":
            if path in self.objects and "if-none-match" in request.headers:
                return 412, b""
            self.objects[path] = data
            return 200, b""
        if request.method == "POST":
            keys = re.findall("<Key>(.*?)</Key>", data.decode())
            for key in keys:
                self.objects.pop(f"/{BUCKET}/{key}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return 200, f"<DeleteResult>{deleted}</DeleteResult>".encode()
        if request.method == "DELETE":
            self.objects.pop(path, None)
            return 204, b""
        if path in self.objects:
            return 200, self.objects[path]
        return 404, ErrorResponse(404, "NoSuchKey", "The specified key does not exist.").body

    def _list(self, request: Request) -> bytes:
        found = re.search("prefix=([^&]*)", request.query)
        prefix = f"/{BUCKET}/{unquote(found[1]) if found else ''}"
        found = re.search("start-after=([^&]*)", request.query)
        after = f"/{BUCKET}/{unquote(found[1]) if found else ''}"
        contents = "".join(
            f"<Contents><Key>{path[len(BUCKET) + 2 :]}</Key><Size>{len(data)}</Size><ETag>e</ETag>"
            "<LastModified>2026-09-01T00:00:00.000Z</LastModified></Contents>"
            for path, data in sorted(self.objects.items())
            if path.startswith(prefix) and path > after
        )
        return (
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ).encode()
