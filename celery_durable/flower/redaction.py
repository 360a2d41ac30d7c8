"""The user's function that decides what of a payload or an error people see."""

from __future__ import annotations

import logging
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

HIDDEN = "[hidden: the redaction function failed, see Flower's log]"


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
