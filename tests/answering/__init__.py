"""An HTTP server on loopback that answers as it is asked to, and remembers what it was sent."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    path: str
    key: str | None
    body: bytes


class Server:
    """What was received, and where."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.refusals = 0
        self.answers: dict[str, bytes] = {}
        self.elsewhere: dict[str, str] = {}
        handler: Any = type("Handler", (_Handler,), {"server_of_test": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def keys(self) -> list[str | None]:
        return [one.key for one in self.received]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: Server

    def _answer(self) -> None:
        server = self.server_of_test
        body = self._body()
        server.received.append(Received(self.command, self.path, self.headers.get("Idempotency-Key"), body))
        status, kind, data = 200, "application/json", json.dumps({"ok": True, "token": "t0psecret"}).encode()
        encoding = None
        if server.refusals:
            server.refusals -= 1
            status = 503
        if self.path in server.answers:
            data = server.answers[self.path]
        elif self.path.startswith("/zipped"):
            data, encoding = gzip.compress(data), "gzip"
        elif self.path.startswith("/large"):
            kind, data = "text/plain", b"x" * 10_000
        elif self.path.startswith("/picture"):
            kind, data = "image/png", b"\x89PNG\0"
        if self.path in server.elsewhere:
            status = 307
        self.send_response(status)
        if self.path in server.elsewhere:
            self.send_header("Location", server.elsewhere[self.path])
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = _answer  # noqa: N815  (the library's names)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering() -> Iterator[Server]:
    """Yield a server that answers."""
    server = Server()
    try:
        yield server
    finally:
        server.close()
