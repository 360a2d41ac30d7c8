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

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset({"bearer", "cookie", "cookies", "jwt", "key", "keys", "otp", "pan", "pwd"})
# Of words that are written together as well, such as accesstoken; those above are parts of harmless ones.
_SECRET_PARTS = re.compile(
    r"passw|passphrase|pass$|secret|token|auth|credential|apikey|accesskey|private|signature|session"
    r"|card|cvc|cvv|iban|accounts?$|accountn|ssn|pin$"
)


def url(text: str) -> str:
    """Return a URL without credentials, and with the names of its query's fields only; empty for none."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
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
        text = plain.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if kind.endswith("json"):
        redacted = _json(text)
    elif kind == "application/x-www-form-urlencoded":
        fields = parse_qsl(text, keep_blank_values=True)
        redacted = urlencode([(name, _hidden(name, value)) for name, value in fields], safe="*")
    elif kind.startswith("text/"):
        redacted = _text(text)
    else:
        return None
    if redacted is None:
        return None
    redacted = redacted.replace("\0", "\\0")  # jsonb holds none
    return redacted if len(redacted) <= limit else redacted[:limit] + "…"


def _json(text: str) -> str | None:
    try:
        return json.dumps(_redacted(json.loads(text)), ensure_ascii=False)
    except (ValueError, RecursionError):  # cut off, none, or too deep: what is secret in it cannot be told
        return None


def _text(text: str) -> str | None:
    """Return a text, which some services use to send JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        return None
    return _json(text) if isinstance(value, (dict, list)) else text


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(name, _redacted(part)) for name, part in value.items()}
    if isinstance(value, list):
        return [_redacted(part) for part in value]
    return value


def _hidden(name: str, value: Any) -> Any:
    return HIDDEN if _is_secret(name) else value


def _is_secret(name: str) -> bool:
    words = (word.lower() for word in _WORD.findall(name))
    return any(word in _SECRET_WORDS or _SECRET_PARTS.search(word) for word in words)


def _decompressed(data: bytes, encoding: str) -> bytes | None:
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "deflate"):
        return None
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, LARGEST + 1)
    except zlib.error:
        return None
