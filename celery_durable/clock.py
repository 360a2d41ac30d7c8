"""Time, ids and chance that are the same at every replay; outside a run they are the ordinary ones."""

from __future__ import annotations

import random as random_module
import uuid
from datetime import datetime, timezone

from celery_durable import context


def now() -> datetime:
    """Return the current time in UTC; in a run the database's clock, and the same value at every replay."""
    frame = context.current()
    if frame is None or frame.step is not None:
        return datetime.now(timezone.utc)  # noqa: TID251  (outside a run there is no other clock)
    return frame.execution.now()


def uuid4() -> uuid.UUID:
    """Return a random UUID; in a run the same one at every replay."""
    frame = context.current()
    return uuid.uuid4() if frame is None or frame.step is not None else frame.execution.uuid4()


def random() -> random_module.Random:
    """Return a random generator; in a run it draws the same numbers at every replay."""
    frame = context.current()
    if frame is None or frame.step is not None:
        return random_module.Random()  # noqa: S311  (the caller's choice)
    return frame.execution.random()
