"""Greenlets that wait for results; run as a program, with the URL of a database that is migrated."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys
import uuid

import gevent
from celery import Celery, states
from celery.result import ResultSet


def main(url: str) -> None:
    """Wait, and say what has come of it."""
    waiter, storer = (
        Celery(name, broker="memory://", backend=f"durable+{url}") for name in ("waiter", "storer")
    )
    ids = [str(uuid.uuid4()) for _ in range(30)]
    waiting = [gevent.spawn(lambda one=one: waiter.AsyncResult(one).get(timeout=30)) for one in ids]
    together = gevent.spawn(lambda: ResultSet([waiter.AsyncResult(one) for one in ids]).get(timeout=30))
    gevent.sleep(0.3)
    for one in ids:
        storer.backend.store_result(one, one, states.SUCCESS)
    assert [one.get(timeout=30) for one in waiting] == ids
    assert together.get(timeout=30) == ids
    print("joined")

    kept, promised = [], str(uuid.uuid4())
    waiter.AsyncResult(promised).then(lambda result: kept.append(result.get()))
    gevent.sleep(0.3)
    storer.backend.store_result(promised, "promised", states.SUCCESS)
    with gevent.Timeout(30):
        while not kept:
            gevent.sleep(0.01)
    print("kept")

    with gevent.Timeout(30):
        while waiter.backend._background._greenlet is not None:
            gevent.sleep(0.01)
    assert not waiter.backend._poller._place.active
    print("idle")


if __name__ == "__main__":
    main(sys.argv[1])
