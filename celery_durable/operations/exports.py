"""A run with its whole history as one plain document: for a bug report, an archive, or another program."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery_durable import chains, envelope
from celery_durable.checkpoint import OK

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.store.views import Payloads, RunView

FORMAT = 1
"""Grows when an export's fields change their meaning."""

Redact = Callable[[tuple[str, ...], Any], Any]
"""Gets the path and the value of a payload; returns what is exported in its place."""

_PLAIN = (str, int, float, bool, type(None))


def exported(
    app: Celery, store: Store, run: RunView, *, payloads: bool, redact: Redact | None
) -> dict[str, Any]:
    """Return a run as plain JSON values, its payloads passed through `redact`."""
    document = _plain(asdict(run))
    document["celery_state"] = run.celery_state
    for internal in ("key", "now"):
        document.pop(internal)
    stored = store.inspection.payloads(run.id) if payloads else None
    if stored is not None:
        keep = redact or (lambda _path, value: value)
        document["payloads"] = _called_with(app, stored, keep)
        outputs = _outputs(app, stored, keep)
        for step in document["steps"]:
            step["output"] = outputs.get(step["key"])
    return {"format": FORMAT, "run": document}


def _called_with(app: Celery, stored: Payloads, redact: Redact) -> dict[str, Any]:
    backend: Any = app.backend
    args, kwargs, canvas = envelope.body_of(stored.message, bytes(stored.body), app.conf.accept_content)
    result = _readable(lambda: backend.decoded(stored.result, stored.result_type), stored.result)
    found = {
        "args": args,
        "kwargs": kwargs,
        "canvas": _readable(lambda: chains.whole(app, canvas), stored.body),
        "headers": envelope.headers_of(stored.message),
        "result": result,
    }
    return {name: _plain(redact((name,), value)) for name, value in found.items()}


def _outputs(app: Celery, stored: Payloads, redact: Redact) -> dict[str, Any]:
    backend: Any = app.backend
    found: dict[str, Any] = {}
    for key, outcome, output, codec in stored.outputs:
        if output is None:
            continue
        if codec is None:
            value: Any = bytes(output).decode(errors="replace")
        elif outcome == OK:
            value = _tree(backend, codec, bytes(output))
        else:
            value = _readable(lambda o=output, c=codec: backend.decoded(o, c), output)  # type: ignore[misc]
        found[key] = _plain(redact(("steps", key, "output"), value))
    return found


def _tree(backend: Any, codec: str, output: bytes) -> Any:
    """Return a step's value as it is stored: what JSON lacks is an object like `{"~decimal": "1.10"}`."""
    return _readable(lambda: backend.codec(codec)[1].serializer.loads(output), output)


def _readable(load: Callable[[], Any], data: bytes | None) -> Any:
    """Return what bytes stand for; the bytes themselves where this app cannot read them."""
    try:
        return load()
    except Exception as error:  # noqa: BLE001  (an export shows what is there, whatever it is)
        return {"unreadable": str(error), "base64": base64.b64encode(bytes(data or b"")).decode()}


def _plain(value: Any) -> Any:
    """Return a value of JSON's types; moments as ISO 8601 in UTC, anything foreign as its text."""
    if isinstance(value, _PLAIN):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    return str(value)
