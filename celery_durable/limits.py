"""A time limit around a step's body, as far as the thread it runs in allows."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import StepTimeLimitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise `StepTimeLimitError` in the body after `seconds`.

    In a main thread (prefork, solo) a timer signal interrupts the body wherever it is, also inside a system
    call. In a greenlet gevent's timeout does. In any other thread the error arrives at the next bytecode, so
    a body that sits in one long call is not interrupted before the call returns.
    """
    if seconds is None:
        yield
    elif _gevent_patched():
        with _greenlet_limit(seconds, what):
            yield
    elif threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _signal_limit(seconds, what):
            yield
    else:
        with _thread_limit(seconds, what):
            yield


def _error(seconds: float, what: str) -> StepTimeLimitError:
    return StepTimeLimitError(f"{what} ran longer than its time_limit of {seconds:g} s", seconds=seconds)


def _gevent_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return bool(monkey and monkey.is_module_patched("threading"))


@contextmanager
def _greenlet_limit(seconds: float, what: str) -> Iterator[None]:
    from gevent import Timeout

    with Timeout(seconds, _error(seconds, what)):
        yield


@contextmanager
def _signal_limit(seconds: float, what: str) -> Iterator[None]:
    def expire(_signum: int, _frame: FrameType | None) -> None:
        raise _error(seconds, what)

    before: Any = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _ExpiredError(StepTimeLimitError):
    """The step ran longer than its `time_limit`."""


@contextmanager
def _thread_limit(seconds: float, what: str) -> Iterator[None]:
    # The lock makes "the body is over" and "the body is interrupted" exclude each other: an error must not
    # arrive in whatever this thread does next.
    thread, lock, state = threading.get_ident(), threading.Lock(), {"over": False, "hit": False}

    def expire() -> None:
        with lock:
            if not state["over"]:
                state["hit"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(_ExpiredError)
                )

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _ExpiredError:
        raise _error(seconds, what) from None
    finally:
        timer.cancel()
        with lock:
            state["over"] = True
        if state["hit"]:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
