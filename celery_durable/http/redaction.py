"""What of a call may be kept: never a secret, and never much."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

HIDDEN = "***"
LARGEST = 256 * 1024
"""Bytes of a body that are looked at; what is larger cannot be read, and so not be redacted."""

_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|auth|credential|api[-_]?key|access[-_]?key|private|signature|session"
    r"|card|cvc|cvv|iban|account[-_]?number|ssn|pin$",
    re.IGNORECASE,
)


def url(text: str) -> str:
    """Return a URL without credentials, and with the names of its query's fields only."""
    parts = urlsplit(text)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(f"{name}={HIDDEN}" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def body(data: bytes, content_type: str, encoding: str, limit: int) -> str | None:
    """Return a body as text, secrets in it hidden; None for one that is not text or cannot be judged."""
    plain = _decompressed(data, encoding)
    if not plain or len(plain) > LARGEST:
        return None
    kind = content_type.partition(";")[0].strip().lower()
    try:
        text = plain.decode()
    except UnicodeDecodeError:
        return None
    if kind.endswith("json"):
        redacted = _json(text)
    elif kind == "application/x-www-form-urlencoded":
        fields = parse_qsl(text, keep_blank_values=True)
        redacted = urlencode([(name, _hidden(name, value)) for name, value in fields], safe="*")
    elif kind.startswith("text/"):
        redacted = text
    else:
        return None
    if redacted is None:
        return None
    redacted = redacted.replace("\0", "\\0")  # jsonb holds none
    return redacted if len(redacted) <= limit else redacted[:limit] + "…"


def _json(text: str) -> str | None:
    try:
        return json.dumps(_redacted(json.loads(text)), ensure_ascii=False)
    except ValueError:  # cut off, or none: what is secret in it cannot be told
        return None


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(name, _redacted(part)) for name, part in value.items()}
    if isinstance(value, list):
        return [_redacted(part) for part in value]
    return value


def _hidden(name: str, value: Any) -> Any:
    return HIDDEN if _SECRET.search(name) else value


def _decompressed(data: bytes, encoding: str) -> bytes | None:
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "deflate"):
        return None
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, LARGEST + 1)
    except zlib.error:
        return None
