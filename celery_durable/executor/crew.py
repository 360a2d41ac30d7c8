"""The asyncio tasks of one body: what is in flight when it ends, and the end of all of them."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from celery_durable import context
from celery_durable.exceptions import RunCancelled
from celery_durable.executor.order import Order
from celery_durable.seam import Suspended

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from celery_durable.executor.journal import Journal


class Muster:
    """All tasks of a body.

    Attributes:
        steps: one for each step that is being executed.
        order: in which outcomes of steps arrive.
        ending: whether the body is over: no further step begins.
        closing: whether everything is being cancelled: what ends now is not stored.
        begun: the scopes of the tasks that were started.
        ended: those of them that are over.

    Arguments:
        journal: says when the run leaves its worker.
    """

    def __init__(self, journal: Journal) -> None:
        self.steps: set[asyncio.Future[Any]] = set()
        self.order = Order()
        self.begun: set[str] = set()
        self.ended: set[str] = set()
        self.closing = False
        self.ending = False
        self._journal = journal
        self._tasks: set[asyncio.Task[Any]] = set()
        self._left = asyncio.Event()
        self._aborted: asyncio.Future[None] | None = None

    async def lead(self, coroutine: Coroutine[Any, Any, Any], frame: context.Frame, seed: object) -> Any:
        """Run a body to its end; steps in flight are finished and stored, then what is left is cancelled.

        The body ends when it returns or raises, or when one of its tasks has found that the run leaves its
        worker.
        """
        with context.led(frame, Crew(self, frame.scope, seed, told=self._journal.told)):
            root = asyncio.Task(coroutine)
        self.joined(root, frame.scope)
        left = asyncio.ensure_future(self._left.wait())
        self._aborted = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({root, left}, return_when=asyncio.FIRST_COMPLETED)
            self.ending = True
            self.order.open()
            while self.steps and not self.closing:
                await asyncio.wait({*self.steps, self._aborted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            await self.dismiss()
        return root.result()

    def joined(self, task: asyncio.Task[Any], scope: str) -> None:
        """Note a new task."""
        self._tasks.add(task)
        self.begun.add(scope)
        task.add_done_callback(partial(self._ended, scope))

    def _ended(self, scope: str, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self.ended.add(scope)
        if not task.cancelled():
            task.exception()  # looked at: whoever started it may not wait for it any more
        if self._journal.leaving is not None:
            self._left.set()

    async def dismiss(self) -> None:
        """Cancel what is left, and wait until it has ended; some catch one cancellation and go on."""
        self.closing = self.ending = True
        self.order.open()
        patience = 0.05
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=patience)
            patience = min(2 * patience, 1.0)

    def abort(self) -> None:
        """Give up all of it at once: an interruption from outside."""
        self.closing = self.ending = True
        self._left.set()
        if self._aborted is not None and not self._aborted.done():
            self._aborted.set_result(None)


class Crew:
    """The tasks that one task starts, counted in the order in which it does.

    Arguments:
        muster: where they are noted.
        scope: of the task that starts them.
        seed: of its chance.
        ordered: whether it is known in which order the task was started.
        told: whether the starter knows that the run is asked to stop, and this task with it.
        starter: of this task.
    """

    def __init__(
        self,
        muster: Muster,
        scope: str,
        seed: object,
        *,
        told: bool,
        starter: Crew | None = None,
        ordered: bool = True,
    ) -> None:
        self.muster = muster
        self.inner = starter is not None
        self._told = told
        self.ordered = ordered
        self.scope = scope
        self.chance = Random(f"{seed}/{scope}")  # noqa: S311  (repeatable on purpose)
        self._seed = seed
        self._count = 0

    def next(self, *, ordered: bool) -> tuple[str, Crew]:
        """Return the scope of the next task, and the crew that it may start itself."""
        self._count += 1
        scope = f"{self.scope}[{self._count}]/"
        ordered = ordered and self.ordered
        return scope, Crew(self.muster, scope, self._seed, told=self.told, starter=self, ordered=ordered)

    @property
    def told(self) -> bool:
        """Whether this task knows that the run is asked to stop.

        Also one that was told so by another task it waited for, and is cleaning up behind that.
        """
        self._told = self._told or any(isinstance(one, RunCancelled) for one in _leaves(sys.exc_info()[1]))
        return self._told

    @told.setter
    def told(self, told: bool) -> None:
        self._told = told


def decisive(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException:
    """Return what decides about the run among the errors of a task group, or the error itself."""
    order: tuple[type[BaseException], ...] = (Suspended, *kinds)
    for kind in order:
        for leaf in _leaves(error):
            if isinstance(leaf, kind):
                return leaf
    return error


def _leaves(error: BaseException | None) -> list[BaseException]:
    if error is None:
        return []
    parts = getattr(error, "exceptions", None)
    if not isinstance(parts, tuple):
        return [error]
    return [leaf for part in parts for leaf in _leaves(part)]
