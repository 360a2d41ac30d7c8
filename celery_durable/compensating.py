"""A run that ends badly takes back what it has done; then it ends as it was going to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore

from celery_durable import context, driving, texts
from celery_durable.backend import has_dependents, tell_revoked
from celery_durable.exceptions import (
    DurableError,
    LeaseLostError,
    NondeterminismError,
    RollbackError,
    RunCancelled,
    StoreUnavailableError,
)
from celery_durable.executor.history import PATCH
from celery_durable.executor.rollbacks import is_compensation
from celery_durable.run import RunState
from celery_durable.seam import ReplayedError, Suspended
from celery_durable.store.writes import Finish

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from celery_durable.executor import Execution
    from celery_durable.settling import Settlement

logger = logging.getLogger(__name__)


_NAMED = 10


def what_stands(execution: Execution) -> str:
    """Name what is done and was not taken back, in a sentence; nothing if there is none of it."""
    named = _standing(execution)
    undone = sum(map(is_compensation, execution.standing))
    taken = f"Taken back were {undone} of them" if undone else "Nothing is taken back"
    return f"{taken}; what stands: {named}. " if named else ""


def _standing(execution: Execution) -> str:
    keys = [key for key in execution.standing if not is_compensation(key) and not key.startswith(PATCH)]
    more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
    return ", ".join(repr(key) for key in keys[:_NAMED]) + more


def says_what_stands(error: NondeterminismError, execution: Execution) -> None:
    """Let the error of a body that left its history name what is done and was not taken back."""
    if execution.compensations or execution.claim.rolls_back:
        told, also = what_stands(execution), "; cancel it then to have it taken back"
    else:
        named = _standing(execution)
        told, also = f"What stands: {named}. " if named else "", ""
    if told:
        error.args = (f"{error}\n{told}Mend the code and resume the run{also}",)


class Rollback:
    """The end of a run that has compensations.

    Arguments:
        settlement: how its attempt ends.
    """

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement
        self._execution = settlement.execution
        self._claim = settlement.claim
        self._runs = settlement.runs

    def of_replay(self, body: Callable[[], Any]) -> Exception:
        """Replay a body for what it has registered, and take that back; return what tells Celery of it."""
        execution = self._execution
        execution.replay_only()
        problem: DurableError | None = None
        ended: BaseException | None = None
        try:
            with context.activate(execution):
                body()
        except (SystemExit, KeyboardInterrupt, LeaseLostError, StoreUnavailableError):
            raise
        except NondeterminismError as error:
            says_what_stands(error, execution)
            problem = error
        except BaseException as error:  # noqa: BLE001  (how the run ends is stored already)
            ended = error
        if execution.leaving is not None:
            raise execution.departed(execution.leaving)
        if execution.lost:
            raise LeaseLostError
        problem = problem or self._not_found_out(ended)
        keys = execution.compensations if self._claim.rollbacks is None else list(self._claim.rollbacks)
        if keys and self._claim.rollbacks is None and problem is None:
            self._begin(Finish(RunState(self._claim.ending)), keys)
        # Of a run that was only replayed the end is stored already; a clean-up has an end of its own.
        failed = ended if self._execution.cleaned and isinstance(ended, Exception) else None
        return self._ended(self._claim.ending or "failed", keys, problem, None, failed)

    def _not_found_out(self, ended: BaseException | None) -> RollbackError | None:
        """Return why the replay has not registered all there is to take back; None if it has.

        It has when it came to the end of what is stored, whatever it raised there: nothing was done later.
        """
        known, execution = self._claim.rollbacks, self._execution
        if known is None:
            missing = [key for key in execution.ahead if not is_compensation(key)]
        else:
            missing = [key for key in known if key not in execution.compensations]
        if not missing:
            return None
        how = "returned"
        if isinstance(ended, (ReplayedError, RunCancelled)):
            how = "came to something new"
        elif ended is not None:
            how = f"raised {texts.line(ended)},"
        message = (
            f"What the run has to take back could not be found out: its replay {how} before it came to "
            f"{missing[0]!r}, which is stored. {what_stands(execution)}Once the code is mended: "
            f"celery -A <app> durable resume {self._claim.id}"
        )
        error = RollbackError(message, run=self._claim.id)
        error.__cause__ = ended
        return error

    def of(self, finish: Finish, error: Exception | None) -> Exception:
        """Take back what a body has registered that has just ended badly.

        Returns what tells Celery the outcome: the body's `error`, or `Ignore` for a cancelled run.
        """
        keys = self._execution.compensations
        self._begin(finish, keys)
        return self._ended(finish.state.value, keys, None, error)

    def _begin(self, finish: Finish, keys: Sequence[str]) -> None:
        self._runs.roll_back(self._claim.key, self._claim.fence, finish, keys)

    def _ended(
        self,
        ending: str,
        keys: list[str],
        problem: DurableError | None,
        error: Exception | None,
        failed: Exception | None = None,
    ) -> Exception:
        problem = problem or self._take_back(keys)
        settlement, request = self._settlement, self._settlement.request
        undone = bool(keys) or self._execution.cleaned
        told = settlement.rolled_back(problem, failed, undone=undone, unreported=has_dependents(request))
        where = f"{settlement.task.name}[{request.id}]"
        if problem is not None:
            logger.error("%s: %s", where, problem)
        if ending == "failed":
            return error or self._stored_error()
        if (bad := problem or failed) is not None:
            return bad
        tell_revoked(settlement.backend, request, told or "cancelled")
        logger.info("%s was cancelled, after %s compensations", where, len(keys))
        return Ignore("run cancelled")

    def _take_back(self, keys: Sequence[str]) -> RollbackError | None:
        task = self._settlement.task

        def wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return driving.completed(task, coroutine)

        try:
            with context.activate(self._execution):
                self._execution.rolled_back(keys, wait)
        except (SystemExit, KeyboardInterrupt, Suspended):
            raise
        except (LeaseLostError, StoreUnavailableError):
            raise
        except BaseException as error:  # noqa: BLE001  (told to the operator, who resumes the rest)
            message = (
                f"A compensation failed for good, and those before it were not made: {texts.line(error)}. "
                f"Once the cause is mended: celery -A <app> durable resume {self._claim.id}"
            )
            return RollbackError(message, run=self._claim.id)
        return None

    def _stored_error(self) -> Exception:
        claim, backend = self._claim, self._settlement.backend
        decoded = backend.decoded(claim.result, claim.result_type)
        error = backend.exception_to_python(decoded) if decoded else None
        return error or DurableError("The run failed with an error that cannot be read")
