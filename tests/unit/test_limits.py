"""A time limit around a body, in each kind of thread."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from celery_durable.exceptions import StepTimeLimitError
from celery_durable.limits import time_limit

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = 0.05


def wait_for_ever() -> None:
    threading.Event().wait(60)


def work_for_ever() -> None:
    while True:
        threading.Event().wait(0.001)


def limited(body: Callable[[], object], seconds: float | None = SHORT) -> object:
    with time_limit(seconds, "Step 'download'"):
        return body()


def in_thread(work: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(30)


def test_without_a_limit_nothing_happens() -> None:
    assert limited(lambda: 1, None) == 1


def test_in_the_main_thread_a_body_is_interrupted_wherever_it_is() -> None:
    with pytest.raises(
        StepTimeLimitError, match=r"Step 'download' ran longer than its time_limit of 0\.05 s"
    ) as error:
        limited(wait_for_ever)
    assert error.value.facts == {"seconds": SHORT}


def test_in_another_thread_a_body_is_interrupted_between_two_steps_of_the_interpreter() -> None:
    with pytest.raises(StepTimeLimitError, match="ran longer than"):
        in_thread(lambda: limited(work_for_ever))


@pytest.mark.parametrize("where", [lambda work: work(), in_thread], ids=["main thread", "another thread"])
def test_a_body_that_is_in_time_is_left_alone_and_so_is_what_comes_after_it(
    where: Callable[[Callable[[], object]], object],
) -> None:
    def body() -> str:
        value = limited(lambda: "in time", 0.02)
        threading.Event().wait(0.05)  # past the limit, outside of it
        return str(value)

    assert where(body) == "in time"


def test_the_handler_and_the_timer_of_the_process_are_given_back() -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGALRM, handler)
    try:
        limited(lambda: None, 5)
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_error_of_the_body_is_the_bodys() -> None:
    def fails() -> None:
        raise KeyError("x")

    for where in (lambda work: work(), in_thread):
        with pytest.raises(KeyError):
            where(lambda: limited(fails, 5))
