"""Runs executed here and now: no worker, no waiting. Claims, fences and checkpoints are the real ones."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.app.trace import build_tracer
from kombu.utils import json

from celery_durable import envelope, hooks, plain
from celery_durable.backend import durable_backend
from celery_durable.children import PLAIN
from celery_durable.exceptions import DurableError, ExhaustedError
from celery_durable.keeper import services
from celery_durable.store.rehearsal import Rehearsal
from celery_durable.testing.boundaries import Crash

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator

    from celery import Celery

    from celery_durable.store.writes import Stored

_LONGER_THAN_ANY_GRACE = 120.0  # seconds, after which the keeper does what others have not told or sent
_TOO_OFTEN = 10_000
_NAME = "player@test"


class StuckError(DurableError):
    """Nothing can go on: runs wait for something that only the test can bring."""


class Player:
    """Executes the runs of an app in this thread, oldest first, until all are over.

    Timers cost no time: when every run waits, the database's clock is turned to the next one. The app's
    database must serve nobody else. Not to be used while a worker of the app runs in this process.

    Arguments:
        app: the app, pointed at a store of the test's own.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.store = durable_backend(app).store
        self._rehearsal = Rehearsal(self.store.connections, schema=self.store.settings.schema)
        self._token: uuid.UUID | None = None

    def run(self, signature: Any, *, when_waiting: Callable[[str], object] | None = None) -> Any:
        """Start a task, execute every run until all are over, and return the task's result.

        Raises what the task raised, and `StuckError` when a run waits for what does not come.

        Arguments:
            signature: `task.s(...)`, a chain, a group or a chord.
            when_waiting: called with a run's id when runs wait for something else than time, and before the
                clock is turned to the timeout of a signal; it may send a signal or cancel the run.
        """
        result = signature.apply_async()
        self.play(when_waiting=when_waiting)
        return result.get(timeout=10, disable_sync_subtasks=False)

    def play(self, *, when_waiting: Callable[[str], object] | None = None) -> None:
        """Execute what there is until all runs are over.

        Arguments:
            when_waiting: as for `run`.
        """
        with self.worker():
            ask = _Ask(when_waiting)
            for _ in range(_TOO_OFTEN):
                if (stored := self._rehearsal.next_pending()) is not None:
                    self._execute(stored)
                    ask.again()
                elif self._plain_tasks():
                    ask.again()
                elif ask.about(run for run in self._rehearsal.unfinished() if run["reason"] == "signal"):
                    continue  # and only if nothing has come does the clock turn
                elif self._time() or self._services():
                    ask.again()
                elif not (left := self._rehearsal.unfinished()):
                    return
                elif not ask.about(left):
                    raise StuckError(_stuck(left))
        left = self._rehearsal.unfinished()
        raise StuckError(f"The runs are not over after {_TOO_OFTEN:,} attempts: {_stuck(left)}")

    def recover_all(self, pid: int) -> None:
        """Hand on what a process executed that is gone, as the main process of a worker does.

        Arguments:
            pid: that process.
        """
        for run in self._rehearsal.unfinished():
            if run["state"] in ("running", "cancelling"):
                self._recover(run["id"], pid)

    def _recover(self, run_id: str, pid: int) -> None:
        backend, settings = durable_backend(self.app), self.store.settings
        cause = "the test killed its worker"
        exhausted = ExhaustedError.after(run_id, settings.max_recoveries, cause)
        self.store.runs.recover_child(
            run_id,
            token=hooks.worker_token(),
            pid=pid,
            error=cause,
            max_recoveries=settings.max_recoveries,
            result=backend.error_meta(exhausted),
            result_type=backend.content_type,
            budget=5.0,
        )

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Be a worker for a while, with an identity and a row that says that it lives."""
        if self._token is not None:
            yield
            return
        plain.register(self.app)
        with hooks.worker_for_a_while() as token, self.store.connections.dedicated() as connection:
            self.store.keeper(connection).register(token, hostname=_NAME, pid=os.getpid(), version="test")
            self._token = token
            try:
                yield
            finally:
                self._token = None

    def _execute(self, stored: Stored) -> None:
        headers = json.loads(stored.message)["headers"]
        args, kwargs, embed = envelope.body_of(
            stored.message, bytes(stored.body), self.app.conf.accept_content
        )
        try:
            self._trace(headers, args, kwargs, embed)
        except Crash:
            self._recover(stored.id, os.getpid())

    def _trace(self, headers: dict[str, Any], args: Any, kwargs: Any, embed: Any) -> None:
        needed = args[0] if headers["task"] == PLAIN else headers["task"]  # None is a canvas
        if needed is not None and needed not in self.app.tasks:
            message = f"There is no task {needed!r} in this app: import the module that defines it"
            raise StuckError(message)
        task = self.app.tasks[headers["task"]]
        delivery = {"redelivered": False, "priority": None, "routing_key": "test", "exchange": ""}
        request = {**headers, **(embed or {}), "args": args, "kwargs": kwargs, "is_eager": False}
        request.update(hostname=_NAME, delivery_info=delivery, reply_to=None, correlation_id=headers["id"])
        trace = build_tracer(task.name, task, app=self.app, hostname=_NAME)
        trace(headers["id"], args, kwargs, request)

    def _plain_tasks(self) -> bool:
        """Execute the messages of tasks that have no run; those of runs say nothing new."""
        met = False
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            for queue in self.app.amqp.queues.values():
                queue(channel).declare()
                while (message := queue(channel).get(no_ack=True)) is not None:
                    if envelope.HEADER not in message.headers:
                        met = True
                        self._trace(dict(message.headers), *message.decode())
        return met

    def _time(self) -> bool:
        """Do what it is time for; if that is nothing, turn the clock to the next moment that counts."""
        done, opens_in = self._keep()
        if done:
            return True
        moments = [seconds for seconds in (self._rehearsal.next_timer(), opens_in) if seconds is not None]
        if not moments:
            return False
        if min(moments) > 0:
            self._rehearsal.turn_clock(min(moments) + 0.001)
        self._keep()
        return True

    def _keep(self) -> tuple[int, float | None]:
        """Do what the keeper does with time; return to how many runs, and when a slot opens."""
        with self.store.connections.dedicated() as connection:
            keeper = self.store.keeper(connection)
            done = [services.enforce_deadlines(keeper), services.cascade(keeper)]
            done += [services.wake(self.app, keeper), services.wake_parents(self.app, keeper, 0)[0]]
            done.append(services.report_endings(self.app, keeper))
            granted, _, opens_in = services.grant_slots(self.app, keeper, "")
        return sum(done) + granted, opens_in

    def _services(self) -> bool:
        """Do what the keeper does for a worker that died before it had told or sent everything."""
        if not self._rehearsal.untold():
            return False
        self._rehearsal.turn_clock(_LONGER_THAN_ANY_GRACE + 2 * self.store.settings.lease)
        with self.store.connections.dedicated() as connection:
            keeper = self.store.keeper(connection)
            done = (
                services.report_endings(self.app, keeper),
                services.look_at_chords(self.app, keeper),
                services.publish_outbox(self.app, keeper),
            )
        return any(done)


class _Ask:
    """Asks a test for what runs wait for, about each of them once while nothing else happens.

    Arguments:
        when_waiting: as for `Player.run`.
    """

    def __init__(self, when_waiting: Callable[[str], object] | None) -> None:
        self._when_waiting = when_waiting
        self._asked: set[str] = set()

    def about(self, runs: Iterable[dict[str, Any]]) -> bool:
        """Ask about the first run that was not asked about; say whether there was one."""
        run = next((run for run in runs if run["id"] not in self._asked), None)
        if run is None or self._when_waiting is None:
            return False
        self._asked.add(run["id"])
        self._when_waiting(run["id"])
        return True

    def again(self) -> None:
        """Note that something has happened: who still waits is asked about anew."""
        self._asked.clear()


def _stuck(left: list[dict[str, Any]]) -> str:
    waiting = "; ".join(
        f"{run['task']}[{run['id']}] is {run['state']}" + (f", for {run['reason']}" if run["reason"] else "")
        for run in left[:5]
    )
    return f"{waiting}. What comes from outside (a signal) is brought by `when_waiting=`"
