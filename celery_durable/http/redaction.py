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
_SECRET_WORDS = frozenset(
    {"bearer", "cookie", "cookies", "cred", "creds", "jwt", "key", "keys", "otp", "pan", "pwd"}
)
# Of words that are written together as well, such as accesstoken; those above are parts of harmless ones.
_SECRET_PARTS = re.compile(
    r"passw|passphrase|pass$|secret|token|auth|credential|apikey|accesskey|private|signature|session"
    r"|card|cvc|cvv|iban|accounts?$|accountn|ssn|pin$"
)
# Of paths, in front of what is as good as a password; and what may stand between them.
_TELLING = frozenset({"activate", "confirm", "invitation", "invite", "magic", "reset", "verify"})
_HARMLESS = re.compile(
    r"v\d+|(?:(?:access|api|refresh|sign|log|forgot|new|o)[-_]?)?"
    r"(?:account|auth|authorize|callback|card|check|confirm|create|credential|email|id|in|key|link|list|login"
    r"|logout|me|new|out|password|refresh|reset|revoke|search|secret|session|status|token|update|verify)s?"
)
_PARAMETER = re.compile(r"(;[^=;]*=)[^;]*")
# A name in quotes with a colon behind it, in what is no JSON as a whole; JSON within JSON has escaped quotes.
_NAME = re.compile(r"""(["'])([^"'\\\r\n]{1,100})\\{0,20}\1\s{0,50}:\s{0,50}""")
_VALUE = re.compile(r"""(\\{0,20})(["']).*?(?<!\\)\1\2|[\w.+-]+""", re.DOTALL)
_LINE = re.compile(r"((?:^|(?<=[\r\n]))(?:data: ?)?)([{\[][^\r\n]*)")


def url(text: str) -> str:
    """Return a URL without credentials, with names alone of its query's fields and of parameters in its path.

    A segment of the path is hidden behind one that tells of a secret, as in `/reset/token/…`. Empty for none.
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(f"{name}={HIDDEN}" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit((parts.scheme, host, _path(parts.path), query, ""))


def _path(text: str) -> str:
    found, told = [], False
    for segment in text.split("/"):
        name, semicolon, parameters = segment.partition(";")
        harmless = not name or _HARMLESS.fullmatch(name.lower())
        found.append(HIDDEN if told and not harmless else name)
        found[-1] += _PARAMETER.sub(rf"\1{HIDDEN}", semicolon + parameters)
        told = (told and bool(harmless)) or name.lower() in _TELLING or (not told and _is_secret(name))
    return "/".join(found)


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
        redacted = urlencode([(name, _hidden(name, _inside(value))) for name, value in fields], safe="*")
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
    """Return a text, which some services use to send JSON, or a stream of events with JSON in their lines."""
    try:
        value = json.loads(text)
    except ValueError:
        return _pieces(_LINE.sub(lambda line: line[1] + (_as_json(line[2]) or line[2]), text))
    except RecursionError:
        return None
    return _json(text) if isinstance(value, (dict, list)) else _inside(text)


def _inside(text: str) -> str:
    """Return a text that may be JSON, as a service sends it inside of JSON, or have some in it."""
    found = _as_json(text)
    return _pieces(text) if found is None else found


def _as_json(text: str) -> str | None:
    """Return a text that is JSON as a whole; None for any other."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        value = json.loads(text)
        redacted = _redacted(value)
    except ValueError:
        return None
    except RecursionError:
        return HIDDEN
    return text if redacted == value else json.dumps(redacted, ensure_ascii=False)


def _pieces(text: str) -> str:
    """Return a text without the values of fields in it; where one has no end, without what follows."""
    found, at = [], 0
    while name := _NAME.search(text, at):
        end = name.end()
        if _is_secret(name[2]):
            value = _VALUE.match(text, end)
            found.append(f'{text[at:end]}"{HIDDEN}"')
            end = len(text) if value is None else value.end()
        else:
            found.append(text[at:end])
        at = end
    return "".join(found) + text[at:]


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return _inside(value)
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
