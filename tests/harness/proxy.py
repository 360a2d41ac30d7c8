"""A proxy before Postgres that counts, cuts, and loses answers at exactly the statement a test names."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict

from harness.waiting import eventually
from harness.wire import NO_ENCRYPTION, Conversation, Message, Stream, on_the_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 65536


@dataclass
class Fault:
    """What is to happen at the next executions of a query.

    Attributes:
        statement: its text as it is sent.
        times: how often.
        applied: True: the server executes it and the answer is lost. False: it never arrives.
        met: how often it happened.
    """

    statement: str
    times: int
    applied: bool
    met: int = 0


class Proxy:
    """Listens on loopback and passes everything on, until told otherwise.

    Arguments:
        url: the libpq URL of the server behind.
    """

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(url)
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._faults: list[Fault] = []
        self._refusing = False
        self.silent = False
        self.statements: list[str] = []
        self.kinds: Counter[bytes] = Counter()  # what clients sent; `S` and `Q` end a network round trip
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        user = urlsplit(url).netloc.rpartition("@")[0] or str(self._target.get("user", ""))
        database = str(self._target.get("dbname", ""))
        self.url = urlunsplit(("postgresql", f"{user}@127.0.0.1:{self.port}", f"/{database}", "", ""))
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    # -- what tests do ------------------------------------------------------------------------------------

    def lose_answer(self, noun: str, name: str, times: int = 1) -> Fault:
        """Let the next executions of a query through, and cut before their answer is delivered."""
        return self._add(Fault(on_the_wire(noun, name), times, applied=True))

    def lose_request(self, noun: str, name: str, times: int = 1) -> Fault:
        """Cut before the next executions of a query reach the server."""
        return self._add(Fault(on_the_wire(noun, name), times, applied=False))

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def cut(self) -> int:
        """Cut all connections; return how many."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()
        return len(links)

    def calm(self) -> None:
        """Forget the faults that have not happened yet."""
        with self._lock:
            self._faults.clear()

    def refuse(self) -> None:
        """Cut all connections and take no new ones."""
        self._refusing = True
        self.cut()

    def blackhole(self) -> None:
        """Swallow everything: nobody hears anything any more, and no connection ends."""
        self.silent = True

    def heal(self) -> None:
        """Be a wire again; what was swallowed is gone, so cut the connections it is missing from."""
        self._refusing = False
        if self.silent:
            self.silent = False
            self.cut()

    def executions(self, noun: str, name: str) -> int:
        """Return how often a query was executed."""
        return self.statements.count(on_the_wire(noun, name))

    def close(self) -> None:
        """End."""
        self._refusing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    # -- how ----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = None if self._refusing else self._connect()
            except OSError:
                server = None
            if server is None:
                client.close()
                continue
            link = _Link(self, client, server)
            with self._lock:
                self._links.add(link)
            link.start()

    def _connect(self) -> socket.socket:
        host, port = str(self._target.get("host") or "127.0.0.1"), int(self._target.get("port") or 5432)
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        server = socket.create_connection((host, port), timeout=10)
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def sending(self, kind: bytes, statement: str | None) -> Fault | None:
        """Note a client's message; return the fault that is to happen at the statement it executes."""
        with self._lock:
            self.kinds[kind] += 1
            if statement is None:
                return None
            self.statements.append(statement)
            for fault in self._faults:
                if fault.met < fault.times and fault.statement == statement:
                    fault.met += 1
                    return fault
        return None

    def forget(self, link: _Link) -> None:
        """A connection has ended."""
        with self._lock:
            self._links.discard(link)


class _Link:
    """One client's connection and its counterpart at the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._conversation = Conversation()
        self._withholding = threading.Event()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Pass on in both directions."""
        for direction in (self._requests, self._answers):
            threading.Thread(target=self._until_cut, args=(direction,), name="proxy", daemon=True).start()

    def _until_cut(self, direction: Callable[[], None]) -> None:
        with suppress(OSError):
            direction()
        self.close()

    def close(self) -> None:
        """Cut both sides."""
        self._proxy.forget(self)
        for side in (self._client, self._server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def _requests(self) -> None:
        stream = Stream(has_preamble=True)
        while data := self._client.recv(_CHUNK):
            passed = [message.data for message in stream.feed(data) if self._passes(message)]
            if self._proxy.silent:
                continue
            self._server.sendall(b"".join(passed))

    def _passes(self, message: Message) -> bool:
        if message.asks_for_encryption:
            self._client.sendall(NO_ENCRYPTION)
            return False
        fault = self._proxy.sending(message.kind, self._conversation.statement(message))
        if fault is not None:
            if not fault.applied:
                raise ConnectionAbortedError
            self._withholding.set()
        return True

    def _answers(self) -> None:
        stream = Stream(has_preamble=False)
        while data := self._server.recv(_CHUNK):
            if self._withholding.is_set():
                # `Z`: the transaction is over, so the statement is applied.
                if any(message.kind == b"Z" for message in stream.feed(data)):
                    return
            elif not self._proxy.silent:
                stream.feed(data)
                self._client.sendall(data)


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """Yield a proxy before the server of `url`."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()


def met(fault: Fault, times: int | None = None) -> None:
    """Return when the fault has happened as often as it was to."""
    wanted = fault.times if times is None else times
    eventually(lambda: fault.met >= wanted, what=f"{fault.statement!r} to be executed {wanted} times")
