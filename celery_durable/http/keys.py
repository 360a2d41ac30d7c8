"""The idempotency key of a call: the same at every try of the step that makes it."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import StepUsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery_durable.context import Frame

HEADER = "Idempotency-Key"

_BOUNDARY = re.compile(r'multipart/.*boundary="?([^";]+)', re.IGNORECASE | re.DOTALL)
_AT_ONCE = 64 * 1024


def key_of(frame: Frame, method: str, url: str, content_type: str, parts: Iterable[bytes] | None) -> str:
    """Return the key of the step, and the call's number in it if it is not the first one.

    Calls beside the step's own thread and asyncio task come in no order, so they are told by what they send.

    Arguments:
        frame: where the call is made.
        method: of the call.
        url: its address.
        content_type: of what is sent.
        parts: what is sent, to be read before it is; None if it can be read only once.

    Raises `StepUsageError` for a call beside others whose content cannot be known before it is sent.
    """
    base, body = f"{frame.execution.name}/{frame.step}", frame.body
    if body is not None and body.here:
        return _numbered(base, body.number(""))
    if parts is None:
        message = (
            f"Step {frame.step!r} makes this call beside its own thread or asyncio task, where it is told by "
            f"what it sends, and its body can be read only once. Give each such call a step of its own, or "
            f"set its {HEADER} header yourself"
        )
        raise StepUsageError(message, step=frame.step)
    told = _digest(method, url, content_type, parts)
    return _numbered(f"{base}/{told}", 1 if body is None else body.number(told))


def _numbered(key: str, number: int) -> str:
    return key if number == 1 else f"{key}/{number}"


def _digest(method: str, url: str, content_type: str, parts: Iterable[bytes]) -> str:
    """Return what tells a call by its content, in which the boundary of a form with files does not count."""
    found = _BOUNDARY.match(content_type.strip())
    boundary = found[1].strip().encode() if found else b""
    digest = hashlib.sha256(f"{method} {url} ".encode())
    for part in parts:
        digest.update(part.replace(boundary, b"") if boundary else part)
    return digest.hexdigest()[:16]


def is_read_again(file: Any) -> bool:
    """Whether what a file holds can be read before it is sent."""
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if seekable is not None else hasattr(file, "seek")


def read_ahead(file: Any) -> Iterator[bytes]:
    """Read a file from where it is to its end, and leave it where it was."""
    before = file.tell()
    try:
        while part := file.read(_AT_ONCE):
            yield part.encode() if isinstance(part, str) else part
    finally:
        file.seek(before)
