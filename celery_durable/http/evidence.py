"""The evidence of one call: what was asked, what came back, how long it took."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from celery_durable import context
from celery_durable.http import redaction

HEADER = "Idempotency-Key"

Redact = Callable[[dict[str, Any]], dict[str, Any]]
"""Gets the evidence of a call, redacted already; returns what is kept of it."""

_COUNTER = "\0http"


class Evidence:
    """What is kept of calls.

    Arguments:
        bodies: whether request and response bodies are kept, as far as they are text.
        max_body: how many characters of each.
        redact: a last word on what is kept.
    """

    def __init__(self, *, bodies: bool = True, max_body: int = 2048, redact: Redact | None = None) -> None:
        self.bodies = bodies
        self.max_body = max_body
        self.redact = redact

    def begin(self, method: str, url: str, headers: Mapping[str, str], content: Any) -> Call | None:
        """Note a call of the current step; return None outside of one."""
        frame = context.current()
        if frame is None or frame.step is None:
            return None
        data = content if isinstance(content, bytes) else str(content).encode() if content else b""
        call = Call(self, frame.step, _key_of_call(frame, method, url, data), method, url)
        call.sent(headers, data)
        frame.execution.note(frame.step, call.as_json)
        return call


class Call:
    """One call, as it goes on; `as_json` says what is known of it so far."""

    def __init__(self, evidence: Evidence, step: str, key: str, method: str, url: str) -> None:
        self.key = key
        self._evidence = evidence
        self._began = time.monotonic()
        self._response: Mapping[str, str] = {}
        self._received = b""
        self._size = 0
        self._detail: dict[str, Any] = {
            "call": str(uuid.uuid4()),
            "step": step,
            "method": method,
            "url": redaction.url(url),
            "status": None,
            "error": None,
            "seconds": None,
        }

    def sent(self, headers: Mapping[str, str], data: bytes) -> None:
        """Note what is sent; a key that the caller has chosen is the one that counts."""
        self._detail["idempotency_key"] = headers.get(HEADER) or self.key
        self._detail["request"] = self._body(headers, data, len(data))

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Note that the head of a response is there."""
        self._detail["status"] = status
        self._response = headers
        self._took()

    def received(self, chunk: bytes) -> None:
        """Note a part of the response's body."""
        self._size += len(chunk)
        if len(self._received) <= redaction.LARGEST:
            self._received += chunk
        self._took()

    def received_whole(self, content: bytes) -> None:
        """Note the whole body of the response, decompressed."""
        self._response = {**self._response, "content-encoding": ""}
        self.received(content)

    def failed(self, error: BaseException) -> None:
        """Note that there is no response, or no more of it."""
        self._detail["error"] = type(error).__name__  # its text may quote the URL
        self._took()

    def _took(self) -> None:
        self._detail["seconds"] = round(time.monotonic() - self._began, 6)

    def as_json(self) -> str:
        """Return what is kept."""
        detail = dict(self._detail)
        if detail["status"] is not None:
            detail["response"] = self._body(self._response, self._received, self._size)
        if self._evidence.redact is not None:
            detail = {**self._evidence.redact(detail), "call": self._detail["call"]}
        return json.dumps(_storable(detail), default=str)

    def _body(self, headers: Mapping[str, str], data: bytes, size: int) -> dict[str, Any]:
        kind = headers.get("content-type") or ""
        found: dict[str, Any] = {"bytes": size}
        if kind:
            found["content_type"] = kind
        if self._evidence.bodies and size and size == len(data):
            encoding = (headers.get("content-encoding") or "").lower()
            text = redaction.body(data, kind, encoding, self._evidence.max_body)
            if text is not None:
                found["body"] = text
        return found


def _storable(value: Any) -> Any:
    """Return plain values without NUL characters, which jsonb does not take."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_storable(str(name)): _storable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(part) for part in value]
    return value


def _key_of_call(frame: context.Frame, method: str, url: str, data: bytes) -> str:
    """Return the call's idempotency key: that of its step, and its number if it is not the first one in it.

    A thread that the step has started makes its calls in no order, so they are told by what they send.
    """
    base = f"{frame.execution.name}/{frame.step}"
    if frame.calls is None:
        return f"{base}/{hashlib.sha256(f'{method} {url} '.encode() + data).hexdigest()[:16]}"
    number = frame.calls[_COUNTER] = frame.calls.get(_COUNTER, 0) + 1
    return base if number == 1 else f"{base}/{number}"
