"""Stored values for people: what can be read of the bytes, with the redaction function's consent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.backend import decompressed

if TYPE_CHECKING:
    from celery_durable.operations.redaction import Redaction

INLINE = 256 * 1024  # bytes of a payload that a page shows whole
GLIMPSE = 64 * 1024  # bytes it shows of a larger one
_LONGEST = 2 * 1024 * 1024  # characters, indents included
_HEX = 4 * 1024
JSON = frozenset({"json", "application/json"})
_TEXT = frozenset({"yaml", "application/x-yaml", "text/plain"})


@dataclass(frozen=True)
class Payload:
    """A payload as a page shows it.

    Attributes:
        text: what can be read of it.
        form: `json`, `text` or `hex`.
        bytes: how large it is in the store.
        whole: whether `text` is all of it.
        note: why it is not, or what else to know.
    """

    text: str
    form: str
    bytes: int
    whole: bool = True
    note: str | None = None


def readable(
    data: bytes, *, size: int, codec: str | None, kind: str, name: str, redaction: Redaction
) -> Payload:
    """Return stored bytes as text: JSON indented, other text as it is, anything else in hexadecimal.

    Arguments:
        data: the payload or, if it is larger than a page shows, its beginning.
        size: the size of the whole in bytes.
        codec: name or content type under which it was stored.
        kind: for the redaction function.
        name: for the redaction function.
        redaction: decides what is shown of it.
    """
    if len(data) < size:
        if redaction.active:
            note = "Too large to be shown redacted here: download it"
            return Payload("", "text", size, whole=False, note=note)
        text, form = _as_text(data[:GLIMPSE])
        return Payload(text, form, size, whole=False, note="Only the beginning is shown: download the rest")
    value = decoded(data, codec)
    if value is not None:
        return _cut(Payload(pretty(redaction(kind, name, value.value)), "json", size))
    text, form = _as_text(data)
    shown = str(redaction(kind, name, text))
    return _cut(Payload(shown, form, size, whole=form != "hex" or size <= _HEX))


def _cut(payload: Payload) -> Payload:
    """Return what a page can show of a payload that was small while it was compressed, or had no indents."""
    if len(payload.text) <= _LONGEST:
        return payload
    note = "Only the beginning is shown: download the rest"
    return Payload(payload.text[:GLIMPSE], "text", payload.bytes, whole=False, note=note)


@dataclass(frozen=True)
class Decoded:
    """A decoded value, which may be None."""

    value: Any


def decoded(data: bytes, codec: str | None) -> Decoded | None:
    """Return the value of bytes that are JSON; None for anything else. No class is built from it."""
    if codec not in JSON:
        return None
    try:
        return Decoded(json.loads(decompressed(data)))
    except (ValueError, RecursionError):
        return None


def pretty(value: Any) -> str:
    """Return a value as indented JSON that can be encoded."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def for_download(data: bytes, *, codec: str | None, kind: str, name: str, redaction: Redaction) -> bytes:
    """Return a whole payload as it may be downloaded when there is a redaction function."""
    value = decoded(data, codec)
    if value is not None:
        return pretty(redaction(kind, name, value.value)).encode()
    return str(redaction(kind, name, data.decode("utf-8", "backslashreplace"))).encode(
        "utf-8", "backslashreplace"
    )


def _as_text(data: bytes) -> tuple[str, str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start > len(data) - 4:
            return _as_text(data[: error.start])  # cut in the middle of a character
        return _hexadecimal(data[:_HEX]), "hex"
    if "\0" in text:
        return _hexadecimal(data[:_HEX]), "hex"
    return text, "text"


def _hexadecimal(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        plain = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)  # noqa: PLR2004  (printable)
        lines.append(f"{start:08x}  {row.hex(' '):<47}  {plain}")
    return "\n".join(lines)


def called_with(data: bytes, message: bytes) -> tuple[bytes, str | None]:
    """Return a stored message's body as `{args, kwargs}` and what it is, as far as it can be read."""
    try:
        envelope = json.loads(message)
        content_type = str(envelope.get("content_type"))
    except (ValueError, AttributeError):
        return data, None
    value = decoded(data, content_type)
    if value is None or not isinstance(value.value, list) or len(value.value) != 3:  # noqa: PLR2004
        return data, content_type
    args, kwargs, canvas = value.value
    shown: dict[str, Any] = {"args": args, "kwargs": kwargs}
    links = {key: part for key, part in (canvas or {}).items() if part} if isinstance(canvas, dict) else {}
    if links:
        shown["canvas"] = links
    return json.dumps(shown).encode(), "json"
