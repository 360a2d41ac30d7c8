"""Sending a signal to a run."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import current_app

from celery_durable import context
from celery_durable.envelope import publish_stored
from celery_durable.exceptions import RunNotFoundError, RunStateError, SignalTokenError, StepUsageError
from celery_durable.operations.outcomes import checked_id
from celery_durable.operations.stores import store_of
from celery_durable.steps import step
from celery_durable.tokens import checked_name, read

if TYPE_CHECKING:
    from datetime import datetime

    from celery import Celery

    from celery_durable.backend import DurableBackend

_LONGEST_KEY = 500


def send_signal(
    run_id: str,
    name: str,
    payload: Any = None,
    *,
    idempotency_key: str | None = None,
    app: Celery | None = None,
) -> bool:
    """Send a signal to a run: it is kept until the run waits for one of this name, and wakes it if it does.

    In the body of a run this is a step of its own, so that a replay sends nothing again.

    Arguments:
        run_id: the run's id, which is its Celery task id.
        name: the name that the run waits for with `wait_for_signal`.
        payload: any value that a step could return.
        idempotency_key: at most one signal of this name and key is delivered to the run.
        app: the app whose run it is; the current app by default.

    Returns whether it was delivered: False when one with this idempotency key was there already.

    Raises `RunNotFoundError`, `RunStateError` for a run that is over, and `SerializationError` for a payload
    that cannot be stored.
    """
    frame = context.current(older=True)
    if frame is None or frame.step is not None:
        return deliver(app or current_app, run_id, name, payload, once=idempotency_key)

    @step(name="send_signal")
    def in_a_step(run_id: str, name: str, payload: Any) -> bool:
        once = idempotency_key or context.idempotency_key()
        return deliver(app or current_app, run_id, name, payload, once=once)

    return in_a_step(run_id, name, payload)


def send_signal_with_token(token: str, payload: Any = None, *, app: Celery | None = None) -> bool:
    """Send the one signal that a token stands for: what a webhook or the page behind a link calls.

    Arguments:
        token: what `current_run().signal_token(name)` has returned.
        payload: any value that a step could return.
        app: the app whose run it is; the current app by default.

    Returns whether it was delivered: False when this token has been used before.

    Raises `SignalTokenError` for a token that is damaged, forged or expired (its `problem` is `invalid` or
    `expired`), and what `send_signal` raises.
    """
    chosen = app or current_app
    told = read(token, store_of(chosen).settings.signal_secret)
    once = f"token:{told.place}"
    return deliver(chosen, told.run, told.name, payload, once=once, actor="token", until=told.until)


def deliver(
    app: Celery,
    run_id: str,
    name: str,
    payload: Any,
    *,
    once: str | None = None,
    actor: str | None = None,
    until: datetime | None = None,
) -> bool:
    """Deliver a signal, and publish the message of the run that it wakes."""
    checked_id(run_id)
    checked_name(name)
    key: Any = once
    if key is not None and not (isinstance(key, str) and key.isprintable() and 0 < len(key) <= _LONGEST_KEY):
        message = f"idempotency_key={once!r} is no printable string of at most {_LONGEST_KEY} characters"
        raise StepUsageError(message)
    store, backend = store_of(app), _backend(app)
    codec, coder = backend.codec(None)
    encoded = coder.encode(payload, where=f"signal {name!r}")
    delivery = store.signals.deliver(run_id, name, encoded, codec=codec, once=once, actor=actor, until=until)
    if delivery.wake is not None and (failed := publish_stored(app, [delivery.wake])):
        store.runs.unpublish(failed, timedelta(0))
    if delivery.verdict == "unknown":
        message = f"No run has the id {run_id!r}: signals go to runs of durable tasks that are not over"
        raise RunNotFoundError(message, run_id=run_id)
    if delivery.verdict == "final":
        message = f"The run {run_id} is over, it has {delivery.standing}: it takes no signal {name!r}"
        raise RunStateError(message, run_id=run_id, state=delivery.standing)
    if delivery.verdict == "expired":
        message = f"The time in which the signal {name!r} could be sent to the run {run_id} is over"
        raise SignalTokenError(message, problem="expired", run_id=run_id)
    return delivery.verdict in ("kept", "woken")


def _backend(app: Celery) -> DurableBackend:
    backend: Any = app.backend
    return backend  # type: ignore[no-any-return]
