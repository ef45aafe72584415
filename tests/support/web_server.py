"""A fake web server with one file, ranges and conditions, and injected responses."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from aiovblk.storage import HTTPDevice

CONTENT = Random(1).randbytes((3 << 20) + 512)
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@dataclass
class Answer:
    """A response, and what happens to the connection after it."""

    status: str = "206 Partial Content"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    then: str = "go on"
    """Or ``close``, ``reset`` or ``stall``."""

    def serialize(self) -> bytes:
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status}", *(": ".join(pair) for pair in headers.items()), ""]
        return "".join(f"{line}\r\n" for line in lines).encode() + self.body


@dataclass
class Request:
    """A request."""

    target: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int]:
        """The first byte, and the one after the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"])
        assert found
        return int(found[1]), int(found[2]) + 1


class Web:
    """The server: its file, and its responses."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag = '"first"'
        self.modified = DATE
        self.conditional = True
        """Whether it honours If-Match and If-Unmodified-Since."""
        self.requests: list[Request] = []
        self.connections = 0
        self.silent = asyncio.Event()
        """Set when a request has come that is not answered."""
        self.next: list[Answer | None] = []
        """Responses to the next requests, before it serves the file again; None for no response."""
        self.change: Callable[[Answer], None] = lambda answer: None
        """Called with all responses that have a part; may change them."""
        self.port = 0
        self.scheme = "http"

    def url(self, path: str = "/disk.img", user: str = "") -> str:
        return f"{self.scheme}://{user}127.0.0.1:{self.port}{path}"

    def part(self, request: Request) -> Answer:
        """Return the response of a correct server."""
        first, end = request.range
        if self.conditional and self._fails(request.headers):
            return Answer("412 Precondition Failed")
        if first >= len(self.content):
            headers = {"Content-Range": f"bytes */{len(self.content)}"}
            return Answer("416 Range Not Satisfiable", headers)
        body = self.content[first:end]
        headers = {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(self.content)}"}
        if self.etag:
            headers["ETag"] = self.etag
        if self.modified:
            headers["Last-Modified"] = self.modified
        answer = Answer(headers=headers, body=body)
        self.change(answer)
        return answer

    def _fails(self, headers: dict[str, str]) -> bool:
        if "if-match" in headers:
            return self.etag.startswith("W/") or headers["if-match"] != self.etag
        return headers.get("if-unmodified-since", self.modified) != self.modified

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip().split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            request = Request(first.split()[1], {name.lower(): value for name, _, value in pairs})
            self.requests.append(request)
            answer = self.next.pop(0) if self.next else self.part(request)
            if answer is None:
                self.silent.set()
                await reader.read()  # until the client closes the connection
                return
            writer.write(answer.serialize())
            await writer.drain()
            if answer.then == "stall":
                await reader.read()
            if answer.then == "reset":
                # With a linger time of 0, close() sends a reset.
                sock = writer.get_extra_info("socket")
                sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            if answer.then != "go on":
                return


@asynccontextmanager
async def opened(web: Web, path: str = "/disk.img", **options: Any) -> AsyncIterator[HTTPDevice]:
    """Open the file as a disk for the time of a block."""
    device = await HTTPDevice.open(web.url(path), **options)
    try:
        yield device
    finally:
        await device.unmount()
