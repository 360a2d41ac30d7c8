"""Which of a task's hooks and of Celery's signals were called, in order, in which process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task, signals

if TYPE_CHECKING:
    from pathlib import Path

    from harness.ledger import Ledger

_ledgers: list[Ledger] = []
_connected: list[bool] = []


def note(event: str, run: str | None, detail: Any = None) -> None:
    """Write a line."""
    if _ledgers:
        _ledgers[-1].write(event, "", run=run, detail=detail)


def noted(event: str, run: str) -> bool:
    """Return whether such a line was written."""
    return bool(_ledgers[-1].entries(event, run=run))


class Witness(Task):
    """A mixin: a task whose hooks write down that they were called."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note("before_start", task_id, [list(args), kwargs])

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note("on_success", task_id, [retval, list(args), kwargs])

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note("on_failure", task_id, [repr(exc), list(args), kwargs, "Traceback" in str(einfo)])

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note("on_retry", task_id, [repr(exc), list(args), kwargs])

    def after_return(self, status: str, retval: Any, task_id: str, *args: Any) -> None:
        note("after_return", task_id, [status, repr(retval), list(args[0]), args[1]])


def _prerun(task_id: str, args: Any, kwargs: Any, **_: Any) -> None:
    note("task_prerun", task_id, [list(args), kwargs])


def _postrun(task_id: str, retval: Any, state: str | None = None, **_: Any) -> None:
    note("task_postrun", task_id, [state, repr(retval)])


def _success(sender: Any, result: Any, **_: Any) -> None:
    note("task_success", sender.request.id, repr(result))


def _failure(task_id: str, exception: BaseException, **_: Any) -> None:
    note("task_failure", task_id, repr(exception))


def _retry(request: Any, reason: Any, **_: Any) -> None:
    note("task_retry", request.id, repr(reason))


def _revoked(request: Any, terminated: Any, signum: Any, expired: Any, **_: Any) -> None:
    note("task_revoked", request.id, [bool(terminated), bool(expired)])


def _received(request: Any, **_: Any) -> None:
    note("task_received", request.id)


def _before_publish(headers: Any, **_: Any) -> None:
    note("before_task_publish", headers["id"], {"task": headers["task"], "eta": headers["eta"]})


def _after_publish(headers: Any, **_: Any) -> None:
    note("after_task_publish", headers["id"])


def _internal_error(task_id: str, exception: BaseException, **_: Any) -> None:
    note("task_internal_error", task_id, repr(exception))


_HANDLERS = {
    "task_prerun": _prerun,
    "task_postrun": _postrun,
    "task_success": _success,
    "task_failure": _failure,
    "task_retry": _retry,
    "task_revoked": _revoked,
    "task_received": _received,
    "task_internal_error": _internal_error,
    "before_task_publish": _before_publish,
    "after_task_publish": _after_publish,
}


def open_journal(ledger: Ledger) -> None:
    """Write everything down from now on, in this process and its children."""
    if not _connected:
        _connected.append(True)
        for name, handler in _HANDLERS.items():
            getattr(signals, name).connect(handler, weak=False)
    _ledgers.append(ledger)


def close_journal(path: Path) -> None:
    """Write no more into this one."""
    _ledgers[:] = [ledger for ledger in _ledgers if ledger.path != path]
