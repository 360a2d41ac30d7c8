"""The queues of a broker that is Postgres."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import ConfigurationError, StoreUnavailableError
from celery_durable.store.patience import PASSING, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from celery_durable.store.messages import QueueView
    from celery_durable.transport.broker import Broker


def queues_of(app: Celery) -> list[QueueView]:
    """Return every queue of an app's broker.

    Raises `ConfigurationError` when the broker is not Postgres, `StoreError` when it does not answer.
    """
    with broker_of(app) as broker:
        return broker.messages.queues()


def redrive(app: Celery, queue: str) -> int:
    """Put the dead letters of a queue back into it; return how many.

    Raises as `queues_of`.
    """
    with broker_of(app) as broker:
        return broker.messages.redrive(queue)


@contextmanager
def broker_of(app: Celery) -> Iterator[Broker]:
    """Yield the database that is an app's broker.

    Raises `ConfigurationError` when the broker is not Postgres, `StoreError` when it does not answer.
    """
    with app.connection_for_write() as connection:
        broker: Any = getattr(connection.transport, "broker", None)
        if broker is None:
            message = f"The broker {connection.as_uri()} is not durable+postgresql:// or durable+embedded://"
            raise ConfigurationError(message)
        try:
            yield broker
        except PASSING as error:
            message = f"The broker {connection.as_uri()} does not answer: {first_line(error)}"
            raise StoreUnavailableError(message) from error
        finally:
            broker.release()
