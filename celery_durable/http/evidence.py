"""The evidence of one call: what was asked, what came back, how long it took."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import context
from celery_durable.exceptions import StepTimeLimitError
from celery_durable.http import redaction
from celery_durable.http.keys import HEADER, key_of

Redact = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Gets the evidence of a call, redacted already; returns what is kept of it, None for nothing."""

_MEASURED = ("call", "step", "method", "url", "status", "error", "seconds")
_INTERRUPTIONS = (SoftTimeLimitExceeded, StepTimeLimitError)  # meant for the body, wherever they arrive
_LACKING = "The %s of a call of step %r cannot be kept: it is only measured"
logger = logging.getLogger(__name__)


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

    def begin(
        self,
        method: str,
        url: str,
        headers: Mapping[str, Any],
        content: bytes,
        parts: Iterable[bytes] | None,
    ) -> Call | None:
        """Note a call of the current step; return None outside of one.

        Arguments:
            method: of the call.
            url: its address.
            headers: those that are sent.
            content: the body, as far as it is known.
            parts: the body, to be read ahead; None if that cannot be.

        Raises `StepUsageError` where the step or the call cannot be told from others.
        """
        frame = context.current(older=True)
        if frame is None or frame.step is None:
            return None
        chosen, kind = _header(headers, HEADER), _header(headers, "content-type")
        key = chosen or key_of(frame, method, url, kind, parts)
        call = Call(self, frame.step, key, method, url)
        call.sent(headers, content)
        frame.execution.note(frame.step, call.as_json)
        return call


class Call:
    """One call, as it goes on; `as_json` says what is known of it so far."""

    def __init__(self, evidence: Evidence, step: str, key: str, method: str, url: str) -> None:
        self.key = key
        self._evidence = evidence
        self._began = time.monotonic()
        self._response: Mapping[str, Any] = {}
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
            "idempotency_key": key,
        }

    def sent(self, headers: Mapping[str, Any], data: bytes) -> None:
        """Note what is sent; at once, for its like is not held in memory until the step is stored."""
        try:
            self._detail["request"] = self._body(headers, data, len(data))
        except _INTERRUPTIONS:
            raise
        except Exception:
            logger.exception(_LACKING, "body", self._detail["step"])

    def answered(self, status: int, headers: Mapping[str, Any]) -> None:
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
        names = (kind.__name__ for kind in type(error).__mro__)
        # Of the class that users know; its text may quote the URL.
        self._detail["error"] = next(name for name in names if not name.startswith("_"))
        self._took()

    def _took(self) -> None:
        self._detail["seconds"] = round(time.monotonic() - self._began, 6)

    def as_json(self) -> str:
        """Return what is kept; a step is not failed by the evidence of it."""
        try:
            return json.dumps(_storable(self._kept()), default=str, allow_nan=False)
        except _INTERRUPTIONS:
            raise
        except Exception:
            logger.exception(_LACKING, "evidence", self._detail["step"])
            measured = {name: self._detail[name] for name in _MEASURED}
            return json.dumps(_storable({**measured, "url": measured["url"].partition("?")[0]}))

    def _kept(self) -> dict[str, Any]:
        detail = dict(self._detail)
        if detail["status"] is not None:
            detail["response"] = self._body(self._response, self._received, self._size)
        if self._evidence.redact is None:
            return detail
        there_was_one = {name: detail[name] for name in ("call", "step")}
        redacted = self._evidence.redact(detail)
        return there_was_one if redacted is None else {**redacted, "call": there_was_one["call"]}

    def _body(self, headers: Mapping[str, Any], data: bytes, size: int) -> dict[str, Any]:
        kind, encoding = _header(headers, "content-type"), _header(headers, "content-encoding").lower()
        found: dict[str, Any] = {"bytes": size}
        if kind:
            found["content_type"] = kind
        if self._evidence.bodies and size and size == len(data):
            text = redaction.body(data, kind, encoding, self._evidence.max_body)
            if text is not None:
                found["body"] = text
        return found


def _header(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name) or ""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)  # requests takes either


def _storable(value: Any) -> Any:
    """Return plain values without what jsonb does not take: NUL characters, and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.replace("\0", "").encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_storable(str(name)): _storable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(part) for part in value]
    return value
