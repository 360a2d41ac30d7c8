"""Errors in results: what Celery stores of an exception, and what its class needs to be made again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.utils.saferepr import saferepr

from celery_durable.serialization import build_error, is_same, lower_error, restore_parts
from celery_durable.serialization.lowering import is_plain

if TYPE_CHECKING:
    from celery_durable.store import Store

logger = logging.getLogger(__name__)

_MORE = "exc_durable"


class FailureMixin:
    """What a result backend needs for exceptions to come back as what they were.

    A stored error is what Celery stores, which every reader of results knows; beside it stands what the
    exception carries besides a name and plain arguments. Where that is missing there was nothing more to say,
    or an earlier release stored it.
    """

    if TYPE_CHECKING:
        serializer: str
        content_type: str
        encoded: Any
        decoded: Any

        @property
        def store(self) -> Store:
            """The store."""
            ...

    def error_meta(self, error: BaseException) -> bytes:
        """Return an exception as a result is stored; without its attributes where they are too much."""
        prepared = self.prepare_exception(error)
        data: bytes = self.encoded(prepared)
        if isinstance(prepared, dict) and _MORE in prepared and len(data) > self.store.settings.max_payload:
            del prepared[_MORE]
            data = self.encoded(prepared)
        return data

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        """Return an exception in a form that the result's serializer takes."""
        prepare: Any = super().prepare_exception  # type: ignore[misc]
        prepared = prepare(exc, serializer)
        if not isinstance(prepared, dict) and serializer not in {None, self.serializer}:
            return prepared  # for the pipe to the pool's parent, and no result
        if not isinstance(prepared, dict):  # with pickle: the exception, or one of another class in its place
            if prepared is exc and is_same(self.decoded(self.encoded(exc), self.content_type), exc):
                return prepared
            prepared = prepare(exc, "json")
            prepared["exc_message"] = [arg if is_plain(arg) else saferepr(arg) for arg in exc.args]
        if more := self._more(exc):
            prepared[_MORE] = more
        return prepared

    def _more(self, error: BaseException) -> dict[str, Any]:
        try:
            more = lower_error(error, sorts_keys=self.serializer == "yaml")
            if all(is_plain(arg) for arg in error.args):
                more.pop("args", None)
        except Exception:
            logger.exception("Of a %s only text is kept", type(error).__qualname__)
            return {}
        return more

    def exception_to_python(self, exc: Any) -> Any:
        """Return the exception that a stored form stands for."""
        if (
            isinstance(exc, dict)
            and exc.get("exc_module")
            and isinstance(exc.get("exc_message"), (list, tuple))
        ):
            parts = {"args": exc["exc_message"], **restore_parts(exc.get(_MORE) or {})}
            error = build_error(f"{exc['exc_module']}:{exc['exc_type']}", parts)
            if error is not None:
                return error
        celerys: Any = super().exception_to_python  # type: ignore[misc]
        return celerys(exc)
