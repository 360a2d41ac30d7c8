"""A plain Celery task, or a canvas, as the child of a run: a run of its own executes it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import _state as celery_state
from celery.canvas import maybe_signature
from celery.exceptions import NotRegistered

from celery_durable import context, outgoing, texts
from celery_durable.children import PLAIN
from celery_durable.retry import backoff
from celery_durable.seam import Suspended
from celery_durable.task import DurableTask

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_OF_THE_MESSAGE = ("callbacks", "errbacks", "chain", "chord")


class PlainTask(DurableTask):
    """Executes a plain task's function under its own name, request and retry policy.

    The run keeps its result, whatever the task says of results, and goes on when its message or its worker is
    lost.
    """

    name = PLAIN
    autoretry_for = ()
    ignore_result = False
    track_started = True

    def start(self, signature: Any, run_id: str) -> None:
        """Send a signature to be executed by a run of this task, where its own task would have gone."""
        app: Celery = self.app
        if signature.subtask_type is not None:
            self.apply_async((None, None, None, dict(signature)), task_id=run_id, add_to_parent=False)
            return
        task = app.tasks.get(signature.task)
        own: Any = getattr(task, "_get_exec_options", dict)
        options = {**own(), **signature.options}
        for taken in ("task_id", "ignore_result"):
            options.pop(taken, None)
        amqp: Any = app.amqp
        options = amqp.router.route(options, signature.task, signature.args, signature.kwargs)
        arguments = (signature.task, list(signature.args), dict(signature.kwargs))
        shadow = options.pop("shadow", None) or signature.task
        self.apply_async(arguments, task_id=run_id, shadow=shadow, add_to_parent=False, **options)

    def run(
        self, name: str | None, args: list[Any] | None, kwargs: dict[str, Any] | None, canvas: Any = None
    ) -> Any:
        """Execute a plain task, or let a canvas take this run's place."""
        if name is None:
            raise self.replace(maybe_signature(canvas, app=self.app))
        if name not in self.app.tasks:
            raise self._unknown(name)
        task: Any = self.app.tasks[name]
        outgoing.watch(self.app)
        request = {
            **{key: value for key, value in vars(self.request).items() if key not in _OF_THE_MESSAGE},
            "task": name,
            "args": args,
            "kwargs": kwargs,
            "called_directly": False,
        }
        stack: Any = getattr(celery_state, "_task_stack")  # noqa: B009  (the stubs do not know it)
        stack.push(task)
        task.push_request(**request)
        try:
            # A retry is the run's business: the message that the task sends for it is caught and forgotten.
            with outgoing.collecting(str(self.request.id)):
                return task.run(*(args or ()), **(kwargs or {}))
        finally:
            task.pop_request()
            stack.pop()

    def _unknown(self, name: str) -> BaseException:
        """Return what lets the run leave this worker, which may be of an older deploy than its parent's."""
        error, frame = NotRegistered(name), context.current()
        if frame is None:
            return error
        run_id, attempt = frame.execution.id, frame.execution.attempt
        pause = backoff(attempt - 1, factor=_FIRST_PAUSE, maximum=_LONGEST_PAUSE, jitter=False)
        logger.warning(
            "%s[%s]: this worker does not know its task, another one may: it comes back in %g s. Deploy the "
            "code that has it everywhere, or celery -A <app> durable cancel %s",
            name,
            run_id,
            pause,
            run_id,
        )
        return Suspended("suspended", pause, "retry", error=texts.line(error))


def register(app: Celery) -> None:
    """Give an app the task that executes plain ones."""
    if PLAIN not in app.tasks:
        app.register_task(PlainTask())
