"""An app that uses a test's database and broker for a while, and then its own again."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

_CACHED = ("amqp", "control", "events", "durable_stores")
_OVERRULING = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)


@contextmanager
def pointed(app: Celery, *, backend: str, broker: str, **settings: Any) -> Iterator[Celery]:
    """Point an app at another store and broker; yield it, and put everything back afterwards.

    Arguments:
        app: the app, configured or not.
        backend: the URL of the store, such as `durable+postgresql://…`.
        broker: the URL of the broker, such as `durable+embedded:///tmp/x`.
        settings: further Celery settings for that time.
    """
    conf: Any = app.conf
    before = dict(conf.changes)
    hidden = {name: os.environ.pop(name) for name in _OVERRULING if name in os.environ}
    conf.update(
        broker_url=broker,
        broker_read_url=broker,
        broker_write_url=broker,
        result_backend=backend,
        task_always_eager=False,
        durable_auto_migrate=True,
        **settings,
    )
    forget_connections(app)
    try:
        yield app
    finally:
        close_stores(app)
        conf.changes.clear()
        conf.changes.update(before)
        os.environ.update(hidden)
        forget_connections(app)


def close_stores(app: Celery) -> None:
    """Close the connections of an app's stores."""
    for store in vars(app).get("durable_stores", {}).values():
        store.close()


def forget_connections(app: Celery) -> None:
    """Let the app make anew what it has made of its old settings."""
    anything: Any = app
    anything._after_fork()  # noqa: SLF001  (what a pool child does to let go of its parent's connections)
    anything._local = threading.local()  # noqa: SLF001
    anything._backend_cache = None  # noqa: SLF001
    for name in _CACHED:
        vars(app).pop(name, None)


def named(path: str) -> Celery:
    """Return the app that `module:attribute` names; a new one for an empty path."""
    from celery import Celery
    from celery.app.utils import find_app

    from celery_durable.task import DurableTask

    if path:
        return find_app(path)  # as `celery -A` does
    return Celery("durable_tests", task_cls=DurableTask, set_as_current=False)
