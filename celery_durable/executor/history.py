"""Replay: what is stored of a run, and whether its body still follows it."""

from __future__ import annotations

from collections import defaultdict, deque
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from celery_durable import checkpoint as outcomes
from celery_durable.exceptions import NondeterminismError
from celery_durable.executor.keys import branch

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from celery_durable.checkpoint import Checkpoint
    from celery_durable.config import Settings
    from celery_durable.seam import Seam
    from celery_durable.steps import Step


PATCH = "patched:"


class History:
    """The stored steps of a run.

    Arguments:
        steps: what is stored.
        task: the task's name, for messages.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    def __init__(self, steps: list[Checkpoint], *, task: str, settings: Settings, seam: Seam) -> None:
        self.last_seq = max((step.seq for step in steps), default=0)
        self.clock = [moment for step in steps for moment in step.clock]
        self._task = task
        self._settings = settings
        self._seam = seam
        self._steps = {step.key: step for step in steps}
        self._unmet = {step.key for step in steps if step.finished or step.outcome == outcomes.WAITING}
        self._unmet -= {key for key in self._unmet if key.startswith(PATCH)}  # a branch may lose its question
        self._tried = {step.key for step in steps if step.outcome in (outcomes.STARTED, outcomes.TRYING)}
        self._waits: defaultdict[str, deque[str]] = defaultdict(deque)
        for step in steps:
            if step.kind and step.key in self._unmet:
                self._waits[branch(step.key)].append(step.key)

    def find(self, key: str) -> Checkpoint | None:
        """Return what is stored of a step."""
        known = self._steps.get(key)
        if self._tried:
            self._tried.discard(key)
        if known is not None and known.kind is not None:
            message = (
                f"{self._task} calls a step {key!r}, and its history holds a wait of that key: {known.kind}"
            )
            raise NondeterminismError(message, step=key, stored=known.kind)
        return known

    @property
    def left(self) -> int:
        """How many stored steps and waits the body has not come by yet."""
        return len(self._unmet)

    @property
    def ahead(self) -> tuple[str, ...]:
        """What is stored of steps and waits that the body has not come by yet, in their order."""
        return tuple(key for key in self._steps if key in self._unmet or key in self._tried)

    def passed_over(self, wait: str, is_over: Callable[[str], bool]) -> tuple[str, ...]:
        """What is stored in front of a stored wait and the body has not come by, and does not any more.

        That is what its branch was to come by, and what others were to that are over.
        """
        if wait not in self._steps:
            return ()
        here = branch(wait)
        before = takewhile(lambda key: key != wait, self._steps)
        return tuple(
            key for key in before if key in self._unmet and (branch(key) == here or is_over(branch(key)))
        )

    @property
    def standing(self) -> tuple[str, ...]:
        """The steps that are done, in their order."""
        return tuple(
            step.key for step in self._steps.values() if step.outcome == outcomes.OK and not step.kind
        )

    def patched(self, change: str) -> bool | None:
        """Return which branch the run took at a change; None when it comes there for the first time."""
        if PATCH + change in self._steps:
            return True
        return False if self._unmet or self._tried else None

    def meet(self, known: Checkpoint) -> None:
        """Note that the body came by this step."""
        self._unmet.discard(known.key)

    def due(self, key: str) -> datetime | None:
        """Return when a stored wait ends by itself."""
        known = self._steps.get(key)
        return None if known is None else known.due

    def meet_wait(self, key: str, kind: str) -> Checkpoint | None:
        """Return what is stored of the wait that the body has come to.

        Waits of one branch have one order; those of several asyncio tasks come in any.
        """
        known = self._steps.get(key)
        waits = self._waits[branch(key)]
        expected = waits[0] if waits else None
        if known is not None and known.outcome == outcomes.DISCARDED:
            known = None
        if (expected is not None and expected != key) or (known is not None and known.kind != kind):
            stored = expected or key
            self.deviates(
                f"{self._task} waits in another order than its history holds\n"
                f"  stored: {stored!r}\n"
                f"  met:    {key!r}",
                stored=stored,
                met=key,
            )
            if known is None or known.kind != kind:
                return None
        if key in waits:
            waits.remove(key)
        self._unmet.discard(key)
        return known

    def to_take_up(self, key: str, digest: bytes) -> str | None:
        """Return the id of a wait for children to be taken up again, if the body asks for the same ones.

        Code that was mended may ask for others.
        """
        known = self._steps.get(key)
        if known is None or (known.outcome, known.codec) != (outcomes.DISCARDED, outcomes.AGAIN):
            return None
        return (known.output or b"").decode() if known.digest == digest else None

    def outcome(self, step: Step[Any, Any], known: Checkpoint, arguments: tuple[bytes, str]) -> Any:
        """Return the value of a finished step, or raise its error."""
        self.compare(known, arguments)
        return self.kept(step, known)

    def kept(self, step: Step[Any, Any], known: Checkpoint) -> Any:
        """The same, of one that was compared."""
        if known.outcome == outcomes.ERROR:
            raise self._seam.load_error(known.codec, known.output or b"")
        return self._seam.codec(known.codec)[1].decode(known.output or b"", step.returns)

    def compare(self, known: Checkpoint, arguments: tuple[bytes, str]) -> None:
        """Note that the body came by a finished step, and check that it calls it as before."""
        self.meet(known)
        if known.digest != arguments[0] and self._settings.nondeterminism != "ignore":
            self.deviates(
                f"Step {known.key!r} of {self._task} was stored with other arguments than it is called with\n"
                f"  stored: {known.arguments}\n"
                f"  called: {arguments[1]}",
                step=known.key,
                stored=known.arguments,
                called=arguments[1],
            )

    def check_complete(self) -> None:
        """Check, at the end of the body, that it came by every finished step."""
        if self._unmet and self._settings.nondeterminism != "ignore":
            missed = ", ".join(repr(key) for key in sorted(self._unmet)[:5])
            self.deviates(
                f"The body of {self._task} ended without the steps {missed}, which its history holds: "
                f"its code changed, or it depends on something that is not a step",
                missed=sorted(self._unmet),
            )

    def deviates(self, message: str, **facts: Any) -> None:
        """Treat a body that left its history as the settings want it."""
        if self._settings.nondeterminism == "error":
            raise NondeterminismError(message, **facts)
        self._seam.warn(message)
