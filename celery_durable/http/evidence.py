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
from celery_durable.http.passing import Passing

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
        content: bytes | None,
        parts: Iterable[bytes] | None,
    ) -> Call | None:
        """Note a call of the current step; return None outside of one.

        Arguments:
            method: of the call.
            url: its address.
            headers: those that are sent.
            content: the body; None for one that is to pass, `Call.request` then takes what does.
            parts: the body, to be read ahead; None if that cannot be.

        Raises `StepUsageError` where the step or the call cannot be told from others.
        """
        frame = context.current(older=True)
        if frame is None or frame.step is None:
            return None
        chosen, kind = _header(headers, HEADER), _header(headers, "content-type")
        key = chosen or key_of(frame, method, url, kind, parts)
        call = Call(self, frame.step, key, method, url)
        call.sends(headers, content)
        frame.execution.note(frame.step, call.as_json)
        return call


class Call:
    """One call, as it goes on; `as_json` says what is known of it so far.

    Attributes:
        key: its idempotency key.
        request: what has passed of its body, if that was not known before.
    """

    def __init__(self, evidence: Evidence, step: str, key: str, method: str, url: str) -> None:
        self.key = key
        self.request = Passing()
        self._received = Passing()
        self._evidence = evidence
        self._began = time.monotonic()
        self._headers: Mapping[str, Any] | None = {}
        self._response: Mapping[str, Any] = {}
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

    def sends(self, headers: Mapping[str, Any], content: bytes | None) -> None:
        """Note what is sent, or that it is to pass."""
        self._headers = headers
        if content is not None:
            self.request.begin()
            self.request.part(content)
            self._sent()

    def _sent(self) -> None:
        """Note what was sent; as early as can be, for its like is not held until the step is stored."""
        headers, self._headers = self._headers, None
        if headers is None:
            return
        try:
            self._detail["request"] = self._body(headers, self.request)
        except _INTERRUPTIONS:
            raise
        except Exception:
            logger.exception(_LACKING, "body", self._detail["step"])
        self.request = Passing()

    def answered(self, status: int, headers: Mapping[str, Any]) -> None:
        """Note that the head of a response is there."""
        self._detail["status"] = status
        self._response = headers
        self._sent()
        self._took()

    def receives(self) -> None:
        """Note that the response's body is read."""
        if self._received.size is None:
            self._received.begin()

    def received(self, chunk: bytes) -> None:
        """Note a part of the response's body."""
        self._received.part(chunk)
        self._took()

    def decompressed(self) -> None:
        """Note that the response's body is not received as it came, but decompressed."""
        self._response = {**self._response, "content-encoding": ""}

    def failed(self, error: BaseException) -> None:
        """Note that there is no response, or no more of it."""
        self._sent()
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
        self._sent()
        detail = dict(self._detail)
        if detail["status"] is not None:
            detail["response"] = self._body(self._response, self._received)
        if self._evidence.redact is None:
            return detail
        there_was_one = {name: detail[name] for name in ("call", "step")}
        redacted = self._evidence.redact(detail)
        return there_was_one if redacted is None else {**redacted, "call": there_was_one["call"]}

    def _body(self, headers: Mapping[str, Any], body: Passing) -> dict[str, Any]:
        kind, encoding = _header(headers, "content-type"), _header(headers, "content-encoding").lower()
        found: dict[str, Any] = {"bytes": body.size}
        if kind:
            found["content_type"] = kind
        if self._evidence.bodies and body.data:
            text = redaction.body(body.data, kind, encoding, self._evidence.max_body)
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
