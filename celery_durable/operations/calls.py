"""The calls to other services that a run's steps have made, from the evidence that is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from celery_durable.store.views import EventView, RunView

KIND = "call"
"""The kind of the events that hold the evidence."""

_FAILURE = 400  # HTTP statuses from here on say that it did not work


@dataclass(frozen=True, kw_only=True)
class CallView:
    """One call.

    Attributes:
        at: when it was stored, with the outcome of its step.
        step: the key of the step that made it.
        status: of the answer; None when there was none.
        error: the type of the error, when there was no answer or it broke off.
        seconds: from its beginning to the end of the answer, as far as that was read.
        request, response: what is kept of the bodies: `bytes`, `content_type`, `body`.
    """

    at: datetime
    step: str
    method: str
    url: str
    status: int | None
    error: str | None
    seconds: float | None
    idempotency_key: str | None
    request: dict[str, Any] | None
    response: dict[str, Any] | None

    @property
    def kept(self) -> bool:
        """Whether anything is kept of it but that there was one."""
        return bool(self.method) or self.status is not None or self.error is not None

    @property
    def failed(self) -> bool:
        """Whether it had no answer, or one that says that it did not work."""
        return self.kept and (self.status is None or self.status >= _FAILURE)


def calls_of(run: RunView) -> list[CallView]:
    """Return a run's calls, in the order in which they were stored; what a redaction left out is None."""
    return [_call(event) for event in run.events if event.kind == KIND]


def _call(event: EventView) -> CallView:
    known = event.detail

    def given(name: str, *kinds: type) -> Any:
        value = known.get(name)
        return value if isinstance(value, kinds) and not isinstance(value, bool) else None

    return CallView(
        at=event.at,
        step=given("step", str) or "",
        method=given("method", str) or "",
        url=given("url", str) or "",
        status=given("status", int),
        error=given("error", str),
        seconds=given("seconds", int, float),
        idempotency_key=given("idempotency_key", str),
        request=given("request", dict),
        response=given("response", dict),
    )
