"""The user's function that decides what of a payload or an error people see, and runs as it leaves them."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.operations.calls import KIND
from celery_durable.operations.stores import store_of
from celery_durable.store.views import RunSummary, RunView

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

Summary = TypeVar("Summary", bound=RunSummary)

logger = logging.getLogger(__name__)

HIDDEN = "[hidden: the redaction function failed, see the log]"


class Redaction:
    """Applies `redact(kind, name, value)` to everything before it is shown, serialised or downloaded.

    A function that cannot be loaded, or that raises, hides what it was asked about.

    Arguments:
        path: `module.function` or `module:function`; None shows everything as it is.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path

    @property
    def active(self) -> bool:
        """Whether there is a function."""
        return self._path is not None

    @cached_property
    def _function(self) -> Callable[[str, str, Any], Any]:
        assert self._path is not None  # noqa: S101  (asked for only when active)
        module, _, name = self._path.replace(":", ".").rpartition(".")
        function: Callable[[str, str, Any], Any] = getattr(import_module(module), name)
        return function

    def __call__(self, kind: str, name: str, value: Any) -> Any:
        """Return what to show instead of `value`.

        Arguments:
            kind: `arguments`, `output`, `result`, `error`, `traceback`, `event` or `progress`.
            name: a step's key, an event's kind, or the task's name.
            value: decoded if it is JSON, else text.
        """
        if not self.active or value is None:
            return value
        try:
            return self._function(kind, name, value)
        except Exception:  # what the function does not handle is not shown
            logger.exception("The redaction function %s failed for the %s of %s", self._path, kind, name)
            return HIDDEN

    def text(self, kind: str, name: str, value: str | None) -> str | None:
        """Return a text to show instead of a text."""
        shown = self(kind, name, value)
        return None if shown is None else str(shown)

    def of_export(self, task: str) -> Callable[[tuple[str, ...], Any], Any]:
        """Return what an export of a run of `task` passes each of its payloads through."""

        def redact(path: tuple[str, ...], value: Any) -> Any:
            if path[0] == "steps":
                return self("output", path[1], value)
            return self("result" if path == ("result",) else "arguments", task, value)

        return redact


def redaction_of(app: Celery) -> Redaction:
    """Return the function that the setting `durable_redact` of an app names."""
    return Redaction(store_of(app).settings.redact)


def redacted(run: RunView, redaction: Redaction, *, payloads: bool) -> RunView:
    """Return a run as it may be shown: no arguments where payloads are hidden, texts and events redacted."""
    attempts = tuple(
        replace(
            one,
            error=redaction.text("error", run.task, one.error),
            traceback=redaction.text("traceback", run.task, one.traceback),
        )
        for one in run.attempts
    )
    steps = tuple(
        replace(
            one,
            arguments=str(redaction("arguments", one.key, one.arguments)) if payloads else "",
            error=redaction.text("error", one.key, one.error),
            earlier=tuple(
                replace(failed, error=redaction.text("error", one.key, failed.error))
                for failed in one.earlier
            ),
        )
        for one in run.steps
    )
    events = tuple(
        replace(one, detail=_event(one.kind, one.detail, redaction, payloads)) for one in run.events
    )
    return replace(
        summarised(run, redaction),
        traceback=redaction.text("traceback", run.task, run.traceback),
        attempts=attempts,
        steps=steps,
        events=events,
    )


def summarised(run: Summary, redaction: Redaction) -> Summary:
    """Return a run of a list as it may be shown."""
    if not redaction.active:
        return run
    error = redaction.text("error", run.task, run.error)
    return replace(run, error=error, progress=redaction("progress", run.task, run.progress))


# Details of events that are payloads: what was sent, asked and answered.
_PAYLOADS = frozenset(
    {"payload", "body", "request", "response", "value", "result", "args", "kwargs", "overrides"}
)


def _event(kind: str, detail: dict[str, Any], redaction: Redaction, payloads: bool) -> dict[str, Any]:  # noqa: FBT001
    shown = detail if payloads else {name: _hidden(kind, name, value) for name, value in detail.items()}
    answer = redaction("event", kind, shown)
    return answer if isinstance(answer, dict) else {"detail": answer}


def _hidden(kind: str, name: str, value: Any) -> Any:
    """Return what is shown of an event where payloads are hidden: of the bodies of calls, their size."""
    if name not in _PAYLOADS:
        return value
    if kind == KIND and isinstance(value, dict):
        return {part: "[hidden]" if part == "body" else known for part, known in value.items()}
    return "[hidden]"
