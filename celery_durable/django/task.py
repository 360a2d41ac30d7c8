"""The durable task for Django projects: what is sent on commit is stored with it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from celery.contrib.django.task import DjangoTask
from celery.utils import uuid
from django.db import transaction

from celery_durable import context
from celery_durable.backend import durable_backend
from celery_durable.store.callers.django import DjangoTransaction
from celery_durable.task import DurableTask

if TYPE_CHECKING:
    from celery.result import AsyncResult

_DjangoTask: Any = DjangoTask


class DjangoDurableTask(DurableTask, _DjangoTask):  # type: ignore[misc]  # (Celery's class has no stubs)
    """`DurableTask` whose `delay_on_commit` and `apply_async_on_commit` cannot lose the run.

    Celery sends the message when the transaction is over, and loses it with a process that dies in between.
    Here the run is stored in the transaction, where the store is in the same database; elsewhere Celery's
    way is all there is.
    """

    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> AsyncResult[Any] | None:
        """Start the run with the commit of the current transaction of the default database.

        Returns as `apply_async_on_commit` does.
        """
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, *args: Any, using: str | None = None, **options: Any
    ) -> AsyncResult[Any] | None:
        """Start the run with the commit of the current transaction; outside of one, at once.

        Arguments are those of `apply_async`, and `using`, the alias of the database whose transaction is
        meant. Returns the result, whose id is known before the commit; None in the body of a run, where the
        id is only known when it is sent.
        """
        connection = transaction.get_connection(using)
        if connection.in_atomic_block and self._stored_in(connection):
            return self.apply_async(*args, transaction=connection, **options)
        if not connection.in_atomic_block and connection.get_autocommit():
            return self.apply_async(*args, **options)
        frame = context.current()
        if frame is not None and frame.step is None:
            transaction.on_commit(functools.partial(self.apply_async, *args, **options), using=using)
            return None
        task_id = options.setdefault("task_id", uuid())
        transaction.on_commit(functools.partial(self.apply_async, *args, **options), using=using)
        return self.AsyncResult(task_id)

    def _stored_in(self, connection: Any) -> bool:
        """Say whether the run can be stored in the transaction that this connection is in."""
        frame = context.current()
        if self.app.conf.task_always_eager or (frame is not None and frame.step is None):
            return False
        if connection.vendor != "postgresql":
            return False
        return durable_backend(self.app).store.callers.is_ours(DjangoTransaction(connection))
