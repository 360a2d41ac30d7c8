"""Time, ids and chance that are the same at every replay; outside a run they are the ordinary ones."""

from __future__ import annotations

import random as random_module
import uuid
from datetime import datetime, timezone

from celery_durable import context
from celery_durable.exceptions import StepUsageError


def now() -> datetime:
    """Return the current time in UTC; in a run the database's clock, and the same value at every replay."""
    frame = context.current()
    if frame is None or frame.step is not None:
        return datetime.now(timezone.utc)  # noqa: TID251  (outside a run there is no other clock)
    if frame.crew is not None and frame.crew.inner:
        message = (
            "now() is called in an asyncio task that the body has started, where the order of calls depends "
            "on who is faster. Call it in the body before the task is started, or inside a step"
        )
        raise StepUsageError(message)
    return frame.execution.now()


def uuid4() -> uuid.UUID:
    """Return a random UUID; in a run the same one at every replay."""
    frame = context.current()
    if frame is None or frame.step is not None:
        return uuid.uuid4()
    if frame.crew is not None and frame.crew.inner:
        return uuid.UUID(int=frame.crew.chance.getrandbits(128), version=4)
    return frame.execution.uuid4()


def random() -> random_module.Random:
    """Return a random generator; in a run it draws the same numbers at every replay."""
    frame = context.current()
    if frame is None or frame.step is not None:
        return random_module.Random()  # noqa: S311  (the caller's choice)
    if frame.crew is not None and frame.crew.inner:
        return frame.crew.chance
    return frame.execution.random()
