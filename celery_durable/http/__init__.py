"""HTTP calls of steps: sent with an idempotency key, and kept as evidence with the step that made them.

- `DurableTransport`, `AsyncDurableTransport`: transports for `httpx.Client` and `httpx.AsyncClient`;
- `DurableAdapter`: an adapter for `requests.Session`.

Outside a step they do nothing but pass calls on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.http.with_httpx import AsyncDurableTransport, DurableTransport
    from celery_durable.http.with_requests import DurableAdapter

__all__ = ["AsyncDurableTransport", "DurableAdapter", "DurableTransport"]

_WHERE = {
    "AsyncDurableTransport": "with_httpx",
    "DurableAdapter": "with_requests",
    "DurableTransport": "with_httpx",
}


def __getattr__(name: str) -> Any:
    # Loaded at first use: nobody needs both libraries.
    if name not in _WHERE:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
