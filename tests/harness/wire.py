"""As much of Postgres' protocol as a proxy needs: where messages end, and which statement one executes."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from celery_durable.store import queries

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
NO_ENCRYPTION = b"N"
_PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True)
class Message:
    """One message: its kind (empty for the first one of a connection) and all its bytes."""

    kind: bytes
    data: bytes

    @property
    def content(self) -> bytes:
        return self.data[5:] if self.kind else self.data[4:]

    @property
    def asks_for_encryption(self) -> bool:
        return not self.kind and struct.unpack("!I", self.content[:4])[0] in (_SSL_REQUEST, _GSS_REQUEST)


class Stream:
    """Cuts what arrives into messages.

    Arguments:
        has_preamble: whether the first message has no kind, as from a client.
    """

    def __init__(self, *, has_preamble: bool) -> None:
        self._buffer = b""
        self._preamble = has_preamble

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete now."""
        self._buffer += data
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> Message | None:
        head = 0 if self._preamble else 1
        if len(self._buffer) < head + 4:
            return None
        end = head + struct.unpack("!I", self._buffer[head : head + 4])[0]
        if len(self._buffer) < end:
            return None
        message = Message(self._buffer[:head], self._buffer[:end])
        self._buffer = self._buffer[end:]
        if self._preamble and not message.asks_for_encryption:
            self._preamble = False
        return message


@dataclass
class Conversation:
    """What one client has prepared, so that an execution is known by its statement's text."""

    prepared: dict[bytes, str] = field(default_factory=dict)
    bound: dict[bytes, str] = field(default_factory=dict)

    def statement(self, message: Message) -> str | None:
        """Return the text of the statement that this message executes, if it does."""
        if message.kind == b"Q":
            return _text(message.content)
        if message.kind == b"P":
            name, rest = message.content.split(b"\0", 1)
            self.prepared[name] = _text(rest)
        elif message.kind == b"B":
            portal, rest = message.content.split(b"\0", 1)
            self.bound[portal] = self.prepared.get(rest.split(b"\0", 1)[0], "")
        elif message.kind == b"E":
            return self.bound.get(message.content.split(b"\0", 1)[0])
        return None


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def on_the_wire(noun: str, name: str) -> str:
    """Return a named query of the store as psycopg sends it: parameters by number."""
    numbers: dict[str, str] = {}
    return _PARAMETER.sub(
        lambda found: numbers.setdefault(found[1], f"${len(numbers) + 1}"), queries.load(noun)[name]
    ).replace("%%", "%")
