"""Attempts made by hand: what a claim would have handed over, and the real executor on it."""

from __future__ import annotations

import copy
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import Celery

from celery_durable import context
from celery_durable.attempt import WorkerSeam
from celery_durable.checkpoint import Checkpoint
from celery_durable.config import Settings
from celery_durable.executor import Execution
from celery_durable.run import Claim
from celery_durable.serialization import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.steps import Step
    from celery_durable.store import Store

MOMENT = datetime(2026, 1, 1, tzinfo=timezone.utc)
_APP = Celery("replaying", broker="memory://", backend="durable+postgresql://localhost:1/nowhere")


def seam(store: Store | None = None) -> Any:
    """Return Celery's side, as a worker has it."""
    backend: Any = _APP.backend
    if store is not None:
        backend = copy.copy(backend)
        backend._store = store
    return WorkerSeam(backend)


def claim(**changes: Any) -> Claim:
    """Return a lease as a claim returns it."""
    given: dict[str, Any] = {
        "key": 1,
        "id": "run-1",
        "task": "media.process",
        "fence": uuid.UUID(int=1),
        "attempt": 1,
        "generation": 0,
        "retries": 0,
        "recoveries": 0,
        "seed": uuid.UUID(int=2),
        "cancel_requested": False,
        "claimed_at": MOMENT,
        "revision": 0,
        "replacements": 0,
        "body": None,
        "message": None,
    }
    return Claim(**{**given, **changes})


def stored(
    key: str, step: Step[..., Any] | None = None, value: Any = None, *args: Any, **more: Any
) -> Checkpoint:
    """Return a finished step as the history holds it."""
    codec, coder = seam().codec(None)
    known, text = digest(step.named_arguments(args, {})) if step else (b"\0" * 16, "")
    given: dict[str, Any] = {
        "key": key,
        "seq": 1,
        "outcome": "ok",
        "output": coder.encode(value, step.returns, where="") if step else str(value).encode(),
        "codec": codec,
        "digest": known,
        "arguments": text,
        "tries": 1,
        "spent": 0,
    }
    return Checkpoint(**{**given, **more})


def replaying(
    history: Sequence[Checkpoint] = (), settings: Settings | None = None, **changes: Any
) -> Execution:
    """Return an attempt that has nowhere to write: whatever it does, it does from its history."""
    nowhere: Any = None
    return Execution(
        claim(**changes), list(history), runs=nowhere, settings=settings or Settings(), seam=seam()
    )


def inside(execution: Execution, body: Callable[[], Any]) -> Any:
    """Return what a body returns that runs in an attempt."""
    with context.activate(execution):
        return body()
