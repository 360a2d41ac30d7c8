"""Slots: which runs share a key, how many of them may be executed, and who is woken when one ends."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_durable import envelope
from celery_durable.callkeys import of_call, of_task
from celery_durable.exceptions import ConfigurationError
from celery_durable.store.writes import Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery
    from kombu import Producer

    from celery_durable.store import Store
    from celery_durable.store.writes import Stored
    from celery_durable.task import DurableTask

logger = logging.getLogger(__name__)

HEADER = "durable-slot"
"""Message header of a run that needs a slot: its claim asks for one at once, and is not refused first."""

_OPTIONS = frozenset({"concurrency_key", "concurrency_limit", "start_rate"})
_RATE = re.compile(r"^(\d+)/(s|m|h)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_LARGEST = 2**31 - 1


def taken_from(task: DurableTask, args: Any, kwargs: Any, options: dict[str, Any]) -> Slot | None:
    """Take what limits a run out of a caller's options, or of its task; None where nothing does.

    Raises `ConfigurationError` for what cannot be meant.
    """
    given = {name: options.pop(name) for name in _OPTIONS & options.keys()}
    limit = given.get("concurrency_limit", task.concurrency_limit)
    rate = given.get("start_rate", task.start_rate)
    if limit is None and rate is None:
        if given.get("concurrency_key", task.concurrency_key) is None:
            return None
        message = f"{task.name}: a concurrency_key needs a concurrency_limit or a start_rate"
        raise ConfigurationError(message)
    called = (args or (), kwargs or {})
    if "concurrency_key" in given:
        key = of_call(task, "concurrency_key", given["concurrency_key"], *called)
    elif task.concurrency_key is not None:
        key = of_task(task, "concurrency_key", *called) or task.name
    else:
        key = task.name
    count, period = (None, None) if rate is None else _rate(task, rate)
    return Slot(key, None if limit is None else _limit(task, limit), count, period)


def check(task: type[DurableTask]) -> None:
    """Raise `ConfigurationError` for limits of a task that cannot be meant."""
    if task.concurrency_limit is not None:
        _limit(task, task.concurrency_limit)
    if task.start_rate is not None:
        _rate(task, task.start_rate)


def _limit(task: DurableTask | type[DurableTask], value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        message = f"{task.name}: concurrency_limit = {value!r} is not a whole number from 1 on"
        raise ConfigurationError(message)
    return value


def _rate(task: DurableTask | type[DurableTask], value: Any) -> tuple[int, timedelta]:
    match = _RATE.match(f"{value}/s" if isinstance(value, int) else str(value))
    if match is None or not 1 <= int(match[1]) <= _LARGEST:
        message = f"{task.name}: start_rate = {value!r} is not like '10/s', '100/m' or '1000/h'"
        raise ConfigurationError(message)
    return int(match[1]), timedelta(seconds=_SECONDS[match[2]])


def rank(producer: Producer, priority: Any) -> int:
    """Return who goes first as a number that grows: on Redis the lowest priority is the most urgent one."""
    connection: Any = producer.connection
    urgent_is_low = connection.transport.driver_name == "redis"  # its type would be ours as well
    return (-1 if urgent_is_low else 1) * int(priority or 0)


def publish(app: Celery, store: Store, granted: Sequence[Stored]) -> None:
    """Publish the messages of runs that were woken for a slot; what goes wrong is left to the keeper."""
    try:
        if failed := envelope.publish_stored(app, granted):
            store.runs.unpublish(failed, timedelta(0))
    except Exception:
        logger.exception("The messages of %d runs that have a slot now are left to the keeper", len(granted))


def hand_on(app: Celery, store: Store, slot: str) -> None:
    """Wake who waits for a slot of this key; the keeper does it later where this fails."""
    try:
        publish(app, store, store.slots.grant(slot))
    except Exception:
        logger.exception("Who waits for a slot of %r is left to the keeper", slot)
