"""`DurableTask`: the base class to swap in."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import Task, current_app
from celery._state import get_current_task, get_current_worker_task
from celery.exceptions import Reject

from celery_durable import (
    batching,
    config,
    context,
    driving,
    envelope,
    misspelt,
    once,
    outgoing,
    slots,
    transactions,
    transport,
)
from celery_durable.attempt import Attempt
from celery_durable.backend import durable_backend, durable_settings
from celery_durable.enlisting import Enlistment, refuse_chords
from celery_durable.exceptions import TERMINAL, ConfigurationError, TransactionUsageError
from celery_durable.steps import Step, StepOptions
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.result import AsyncResult

    from celery_durable.executor import Execution
    from celery_durable.store import Store
    from celery_durable.store.writes import NewRun

_WORKER_STEP = "celery_durable.bootstep:DurableStep"
_NOW = timedelta(0)
_DEFAULT_AUTORETRY: tuple[type[BaseException], ...] = (Exception,)


class DurableTask(Task):  # type: ignore[type-arg]  # (not generic at run time before Celery 5.7)
    """A Celery task whose runs survive: checkpointed, fenced, recovered, and retried when they raise.

    Use it as `Celery(task_cls=DurableTask)` or `@app.task(base=DurableTask)`. Every attribute of Celery's
    task works as before; the defaults that differ are below.
    """

    durable = True
    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    track_started = True
    Request = "celery_durable.request:DurableRequest"

    autoretry_for = _DEFAULT_AUTORETRY
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    max_retries = 3
    retry_backoff = True
    retry_backoff_max = 600
    retry_jitter = True
    deadline: float | timedelta | None = None
    _retries_by_default = True

    concurrency_key: str | Callable[..., str] | None = None
    """Runs with the same key share `concurrency_limit` and `start_rate`, also those of other tasks: a format
    string of the arguments, or a function of them. Default: the task's name."""
    concurrency_limit: int | None = None
    """How many runs of the key are executed at a time, by all workers together."""
    start_rate: str | int | None = None
    """How many runs of the key start in each second, minute or hour, by all workers together: `"100/m"`."""

    singleton: bool | str | Callable[..., str] = False
    """Whether a call returns the run of an earlier equal call as long as that is not over. What makes calls
    equal: all arguments (True), a format string of them (`"customer-{customer}"`), or a function of them."""

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check settings and options, and give the app's workers their heartbeat and keeper."""
        misspelt.refuse_attributes(cls)
        settings = config.load(durable_settings(app))
        cls._check_options(app)
        transport.share_settings(app.conf, settings)
        cls._retries_by_default = settings.autoretry
        if cls.autoretry_for is _DEFAULT_AUTORETRY:
            cls.dont_autoretry_for = (*TERMINAL, *(cls.throws or ()), *cls.dont_autoretry_for)
        steps: Any = app.steps["worker"]
        steps.add(_WORKER_STEP)

    @classmethod
    def _check_options(cls, app: Celery) -> None:
        """Raise `ConfigurationError` for an option that no call could be made with."""
        slots.check(cls)
        try:
            outgoing.Schedule.taken_from(app, {}, cls.expires, cls.deadline)
        except ConfigurationError as error:
            message = f"{cls.name}: {error}"
            raise ConfigurationError(message) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: as an attempt of its run in a worker, as a plain call anywhere else."""
        request = self.request
        if request.called_directly or request.is_eager or request.get("durable"):
            # The default retry policy is for workers: a task applied in a test should raise what it raises.
            return self._called(request, args, kwargs)
        return Attempt(self, request).run(args, kwargs)

    def _called(self, request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function; an `async def` one is awaited by who calls it directly."""
        run = self._run(retries_by_default=False)
        if not self._is_async:
            with context.inlined(self.name):
                return run(*args, **kwargs)
        if request.called_directly:
            return driving.inlined(self.name, run(*args, **kwargs))
        with context.inlined(self.name):
            return self._waiting(run)(*args, **kwargs)

    @property
    def body(self) -> Callable[..., Any]:
        """The function with the retry policy that an attempt runs it under."""
        run = self._run(retries_by_default=self._retries_by_default)
        return self._waiting(run) if self._is_async else run

    @property
    def unretried(self) -> Callable[..., Any]:
        """The function without any retry policy; an `async def` one is waited for."""
        run: Callable[..., Any] = getattr(self, "_orig_run", self.run)
        return self._waiting(run) if self._is_async else run

    @functools.cached_property
    def _is_async(self) -> bool:
        return driving.is_async(self.run)

    def _waiting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return an `async def` task's function as one that waits, with the retry policy that `run` had."""
        plain: Callable[..., Any] = getattr(self, "_orig_run", run)
        return driving.waiting(self, plain, retried=run is not plain)

    def _get_request(self) -> Any:
        """Return the request being executed: on the event loop it is not found by its thread."""
        requests: Any = self.request_stack
        on_loop = driving.request_of(self) if requests.top is None else None
        celerys: Any = getattr(super(), "_get_request")  # noqa: B009  (the stubs do not know it)
        return celerys() if on_loop is None else on_loop

    request = property(_get_request)

    def _run(self, *, retries_by_default: bool) -> Callable[..., Any]:
        """Return `run`, without Celery's retry wrapper when that only says what is the default here."""
        run: Callable[..., Any] = self.run
        if self.autoretry_for is _DEFAULT_AUTORETRY and not retries_by_default:
            run = getattr(self, "_orig_run", run)
        return run

    def apply_async(  # noqa: PLR0917  (Celery's signature)
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        transaction: Any = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Store the run, then send its message; with the broker away the keeper sends it later.

        Arguments are Celery's. `countdown`, `eta` and `expires` are kept with the run and are no part of the
        message. So is `deadline` (seconds, a `timedelta` or a `datetime`): a run that is not over by then is
        cancelled. Inside a run the new run's id is derived from the current one's, so that a replay does not
        start it again.

        `transaction` is a session or connection in whose open transaction the run is stored: the run is there
        when that is committed, its message is sent after that, and when it is rolled back there is nothing.
        It may be a SQLAlchemy `Session` or `Connection`, Django's `connection`, a psycopg connection or
        another DBAPI connection, of the same database. Raises `TransactionUsageError` for anything else.

        `idempotency_key` and `ttl` return the run of an earlier call with this key, if there is one, for as
        long as `ttl` says, or as the run is kept; `throttle_key` and `throttle` do so for one run in each
        `throttle`. `debounce_key`, `debounce` and `debounce_max` start one run, with the arguments of the
        last call, `debounce` after it and at most `debounce_max` after the first. Lengths of time are seconds
        or a `timedelta`. Raises `ConfigurationError` for options that do not go together.
        """
        if task_id is not None:
            _check_id(self.name, task_id)
        app: Celery = self.app
        key = once.taken_from(self, args, kwargs, options)
        slot = slots.taken_from(self, args, kwargs, options)
        misspelt.refuse_options(self.name, options)
        if app.conf.task_always_eager:
            return super().apply_async(args, kwargs, task_id, producer, link, link_error, shadow, **options)
        durable_backend(app)
        if key is not None and transaction is not None:
            message = (
                f"{self.name}: a key has a transaction of its own, so there can be no transaction= with one"
            )
            raise ConfigurationError(message)
        if key is not None and key.delay is not None:
            options["countdown"] = key.delay.total_seconds()
        enlistment = None if transaction is None else self._enlist(transaction)
        schedule = outgoing.Schedule.taken_from(app, options, self.expires, self.deadline)

        def send(chosen_id: str | None) -> AsyncResult[Any]:
            celerys: Any = super(DurableTask, self).apply_async
            with app.producer_or_acquire(producer) as real:
                storing = outgoing.StoringProducer(
                    app, real, schedule, enlistment=enlistment, key=key, slot=slot
                )
                result: AsyncResult[Any] = celerys(
                    args,
                    kwargs,
                    task_id=chosen_id,
                    producer=storing,
                    link=link,
                    link_error=link_error,
                    shadow=shadow,
                    expires=None,
                    **options,
                )
            return result if storing.instead is None else self.AsyncResult(storing.instead)

        frame = context.current(older=True)
        with driving.known_to_celery():
            if frame is None or task_id is not None:
                return send(task_id)
            if frame.step is not None:
                return send(frame.execution.child_of_step(frame, self.name))
            if key is not None:
                return self.AsyncResult(self._started_once(send))
            return self._start_child(frame, send)

    def _started_once(self, send: Callable[[str | None], AsyncResult[Any]]) -> str:
        """Send within a step of its own, which remembers whose run the key stood for."""

        def start() -> str:
            frame = context.current()
            chosen = frame and frame.execution.child_of_step(frame, self.name)
            return str(send(chosen).id)

        return Step(start, StepOptions(name=f"once:{self.name}"))()

    def _enlist(self, transaction: Any) -> Enlistment:
        from celery_durable.store.callers import recognised  # with the database driver

        frame = context.current(older=True)
        if frame is not None and frame.step is None:
            message = (
                "transaction= belongs into a step, for a body is replayed without its transactions. Move "
                "this apply_async, and what it is to be committed with, into a @durable.step function"
            )
            raise TransactionUsageError(message)
        return Enlistment(self.app, durable_backend(self.app).store, recognised(transaction))

    def _start_child(
        self, frame: context.Frame, send: Callable[[str | None], AsyncResult[Any]]
    ) -> AsyncResult[Any]:
        caught: list[NewRun] = []

        def new_run(child_id: str) -> NewRun:
            with outgoing.collecting(child_id) as collected:
                send(child_id)
            if collected.successor is None:
                message = f"{self.name} was not sent: a before_task_publish handler or a router dropped it"
                raise ConfigurationError(message)
            caught.append(collected.successor)
            return collected.successor

        scope = frame.scope if frame.crew is not None and frame.crew.inner else ""
        child_id, state = frame.execution.child(self.name, new_run, scope)
        if state is None and (parent := get_current_worker_task()):
            parent.add_trail(self.AsyncResult(child_id))
        if state == "pending":
            messages = [Stored(run.id, run.message, run.body) for run in caught if run.publish]
            if failed := envelope.publish_stored(self.app, messages):
                durable_backend(self.app).store.runs.unpublish(failed, _NOW)
        return self.AsyncResult(child_id)

    def retry(  # noqa: PLR0917  (Celery's signature)
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Exception | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Retry the run: a due time in the store instead of a message, finished steps are not repeated.

        Arguments are Celery's. Errors that a retry cannot mend (`Fatal`, a body that left its history) are
        raised as they are. A run that has asked is retried also where its body returns behind that, or raises
        `Ignore`: what it returns is then lost.
        """
        frame = context.current()
        if isinstance(exc, TERMINAL):
            raise exc
        if frame is None or self.request.called_directly:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        execution = frame.execution
        with outgoing.collecting(execution.id) as caught, driving.known_to_celery():
            try:
                asked = super().retry(args, kwargs, exc, False, eta, countdown, max_retries, **options)  # noqa: FBT003
            except Reject as refused:  # it cannot be called like that: its parameters have changed
                reason = getattr(refused, "reason", None)
                raise (reason if isinstance(reason, Exception) else refused) from exc
            finally:
                execution.successor = caught.successor
                execution.rewritten = bool(args is not None or kwargs is not None or options)
        execution.retry = asked
        if throw:
            raise asked
        return asked

    def replace(self, sig: Any) -> Any:
        """Let another task take this run's place, as Celery does; the swap is one fenced write."""
        frame = context.current()
        if frame is None or self.request.called_directly:
            return super().replace(sig)
        with driving.known_to_celery():
            return replaced(frame.execution, self.app, super().replace, sig)


def _check_id(name: str, task_id: Any) -> None:
    if not isinstance(task_id, str) or not task_id or "\0" in task_id:
        message = f"{name}: task_id={task_id!r} is no text that could be the id of a run"
        raise ConfigurationError(message)


def replaced(execution: Execution, app: Celery, celerys: Callable[[Any], Any], sig: Any) -> Any:
    """Have Celery's `replace` let another task take a run's place; what it would send is kept for that."""
    with outgoing.collecting(execution.id, everything_of=app) as caught:
        execution.replaced = True
        try:
            return celerys(_with_its_result(sig))
        finally:
            execution.successor, execution.outgoing = caught.successor, caught.messages


def _with_its_result(sig: Any) -> Any:
    """Return a signature whose last task stores what it returns, as the run that waits for it needs."""
    sig = sig.clone()
    last = sig
    while last.subtask_type == "chord" or (last.subtask_type == "chain" and last.tasks):
        last = last.body if last.subtask_type == "chord" else last.tasks[-1]
    last.set(ignore_result=False)
    return sig


def _another_task_here() -> bool:
    """Whether this thread handles a message of its own, so that it is no thread of somebody's body."""
    return get_current_worker_task() is not None


def _store_here() -> Store:
    """Return the store of the app at hand, for transactions outside of any run."""
    task: Task[..., Any] | None = get_current_task()
    return durable_backend(current_app if task is None else task.app).store


batching.batch_groups()
refuse_chords()
context.runs_elsewhere(_another_task_here)
transactions.outside_of_runs(_store_here)
transport.register()  # an app with durable tasks may have durable+embedded:// as its broker
