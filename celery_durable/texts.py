"""Text as Postgres stores it: errors and tracebacks of any kind, without NUL, surrogates or surprises."""

from __future__ import annotations

import traceback

_LONGEST_LINE = 2000
_LONGEST_TRACE = 100_000


def storable(text: str) -> str:
    """Return `text` without what a text column refuses."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def line(error: BaseException) -> str:
    """Return an error in a line: its type and message, also when the message cannot be made."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (a message is the user's code)
        message = "<its message cannot be shown>"
    name = type(error).__qualname__
    return storable(f"{name}: {message}" if message else name)[:_LONGEST_LINE]


def trace(error: BaseException) -> str:
    """Return an error's traceback, the end of it when it is very long."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001  (a message is the user's code)
        text = "".join(traceback.format_tb(error.__traceback__)) + line(error)
    return storable(text)[-_LONGEST_TRACE:]
