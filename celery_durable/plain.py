"""A plain Celery task, or a canvas, as the child of a run: a run of its own executes it."""

from __future__ import annotations

import copy
import functools
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery import _state as celery_state
from celery.app.trace import task_has_custom
from celery.canvas import maybe_signature
from celery.exceptions import Ignore, NotRegistered, Reject, Retry
from celery.utils.saferepr import saferepr

from celery_durable import context, outgoing, texts
from celery_durable.children import PLAIN
from celery_durable.exceptions import TERMINAL, DurableError
from celery_durable.retry import backoff
from celery_durable.seam import Suspended
from celery_durable.task import DurableTask, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_OF_THE_CALL = ("producer", "task_type", "result_cls", "ignore_result", "add_to_parent", "task_id")

_run: ContextVar[str | None] = ContextVar("celery_durable_plain", default=None)


class PlainTask(DurableTask):
    """Executes a plain task's function under its own name, request, hooks and retry policy.

    The run keeps its result, whatever the task says of results, and goes on when its message or its worker is
    lost.
    """

    name = PLAIN
    autoretry_for = ()
    ignore_result = False
    track_started = True

    def start(self, signature: Any, run_id: str) -> None:
        """Send a signature to be executed by a run of this task, where its own task would have gone."""
        if signature.subtask_type is not None:
            self.apply_async((None, None, None, dict(signature)), task_id=run_id, add_to_parent=False)
            return
        signature.options.pop("task_id", None)
        with _executed_by(run_id, self.app):
            signature.apply_async(task_id=run_id, add_to_parent=False)

    def run(
        self, name: str | None, args: list[Any] | None, kwargs: dict[str, Any] | None, canvas: Any = None
    ) -> Any:
        """Execute a plain task, or let a canvas take this run's place."""
        if name is None:
            raise self.replace(maybe_signature(canvas, app=self.app))
        if name not in self.app.tasks:
            raise self._unknown(name)
        task: Any = self.app.tasks[name]
        if getattr(task, "durable", False):  # the code that called it did not know it
            raise self.replace(task.signature(args, kwargs))
        outgoing.watch(self.app)
        _lend_replace(task)
        lent = self.request.lent = self._lent(name, args, kwargs)
        with _executed_by(lent.id, self.app), outgoing.collecting(lent.id) as caught:
            try:
                value = _call(task, lent)
            except Exception as error:
                if (told := _told(error, caught)) is not error:
                    raise told from error
                raise
        if caught.successor is not None:
            raise _told(Retry("Retry was asked for"), caught)
        return value

    def _lent(self, name: str, args: list[Any] | None, kwargs: dict[str, Any] | None) -> Any:
        """Return the request that the plain task sees: this run's, with its own name and arguments."""
        _ = self.request.children  # they have this list in common
        lent = copy.copy(self.request)
        lent.update(task=name, args=args or [], kwargs=kwargs or {}, called_directly=False)
        return lent

    def replace(self, sig: Any) -> Any:
        """Let a canvas or another task take this run's place; a single plain task is executed by it, too."""
        with _executed_by(self.request.id, self.app):
            return super().replace(sig)

    # -- Celery calls these, and the plain task has its own -------------------------------------------------

    @property
    def throws(self) -> Any:  # type: ignore[override]
        """Errors that the plain task expects: its log says less of them."""
        lent = self.request.get("lent")
        return () if lent is None else self.app.tasks[lent.task].throws

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        """Call the plain task's hook."""
        self._hook("on_success", retval, task_id)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002
        """Call the plain task's hook."""
        self._hook("on_retry", exc, task_id, einfo=(einfo,))

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002
        """Call the plain task's hook."""
        self._hook("on_failure", exc, task_id, einfo=(einfo,))

    def after_return(  # noqa: PLR0917  (Celery's signature)
        self,
        status: str,
        retval: Any,
        task_id: str,
        args: Any,  # noqa: ARG002
        kwargs: Any,  # noqa: ARG002
        einfo: Any,
    ) -> None:
        """Call the plain task's hook."""
        self._hook("after_return", status, retval, task_id, einfo=(einfo,))

    def _hook(self, name: str, *given: Any, einfo: tuple[Any, ...] = ()) -> None:
        lent = self.request.get("lent")
        if lent is None:  # nothing of it has begun
            return
        task = self.app.tasks[lent.task]
        with _current(task, lent):
            getattr(task, name)(*given, lent.args, lent.kwargs, *einfo)

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


def _call(task: Any, lent: Any) -> Any:
    """Call a plain task's function as Celery's tracer does."""
    with _current(task, lent):
        task.before_start(lent.id, lent.args, lent.kwargs)
        function = task if task_has_custom(task, "__call__") else task.run
        return function(*lent.args, **lent.kwargs)


@contextmanager
def _current(task: Any, lent: Any) -> Iterator[None]:
    stack: Any = getattr(celery_state, "_task_stack")  # noqa: B009  (the stubs do not know it)
    stack.push(task)
    task.request_stack.push(lent)
    try:
        yield
    finally:
        task.request_stack.pop()
        stack.pop()


def _told(error: Exception, caught: outgoing.Collected) -> Exception:
    """Return how the run goes on, if the task has sent a message under its id: that is never published.

    It has asked for a retry then, also where it returns or raises something else afterwards.
    """
    if isinstance(error, Retry) and isinstance(error.exc, TERMINAL):
        return error.exc
    if isinstance(error, Reject):
        reason = getattr(error, "reason", None)  # of a retry that could not be sent
        return reason if isinstance(reason, Exception) and reason is error.__context__ else error
    frame = context.here()
    if frame is None or caught.successor is None or isinstance(error, DurableError):
        return error
    execution = frame.execution
    if execution.replaced:
        return error
    execution.successor, execution.rewritten = caught.successor, True
    execution.replaced = isinstance(error, Ignore)
    return error if isinstance(error, (Ignore, Retry)) else Retry(exc=error)


def _lend_replace(task: Any) -> None:
    """Have a plain task's own `replace` be its run's while one executes it."""
    celerys: Any = task.replace
    if getattr(celerys, "of_runs", False):
        return

    @functools.wraps(celerys)
    def replace(sig: Any) -> Any:
        frame = context.here()
        if frame is None or task.request.called_directly or frame.execution.id != task.request.id:
            return celerys(sig)
        return replaced(frame.execution, task.app, celerys, sig)

    replace.of_runs = True  # type: ignore[attr-defined]
    task.replace = replace


@contextmanager
def _executed_by(run_id: str, app: Any) -> Iterator[None]:
    """Have a plain task that is sent under this id executed by the run that has it.

    So all is as its task would have it: its options, its own `apply_async`, what its `retry` asks for.
    """
    if not getattr(app.send_task, "of_runs", False):
        app.send_task = _of_runs(app, app.send_task)
    token = _run.set(run_id)
    try:
        yield
    finally:
        _run.reset(token)


def _of_runs(app: Any, celerys: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(celerys)
    def send_task(name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        run_id = _run.get()
        durable = isinstance(options.get("producer"), outgoing.StoringProducer)
        if run_id is None or durable or options.get("task_id") != run_id:
            return celerys(name, args, kwargs, *more, **options)
        task = options.get("task_type")
        options = {key: value for key, value in options.items() if key not in _OF_THE_CALL}
        options = app.amqp.router.route(options, options.pop("route_name", None) or name, args, kwargs, task)
        options["shadow"] = options.get("shadow") or name
        arguments = (name, list(args or ()), dict(kwargs or {}))
        for shown, values in (("argsrepr", args or ()), ("kwargsrepr", kwargs or {})):
            options[shown] = options.get(shown) or saferepr(values, getattr(app.amqp, f"{shown}_maxsize"))
        return app.tasks[PLAIN].apply_async(arguments, task_id=run_id, add_to_parent=False, **options)

    send_task.of_runs = True  # type: ignore[attr-defined]
    return send_task


def register(app: Celery) -> None:
    """Give an app the task that executes plain ones."""
    if PLAIN not in app.tasks:
        app.register_task(PlainTask())
