"""Options of a task that no call could be made with: an error where the task is bound."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_durable import ConfigurationError, DurableTask

STORE = "durable+postgresql://localhost:1/away"  # never asked


def bound(**options: Any) -> Any:
    def pack() -> None: ...

    app = Celery("shop", broker="memory://", backend=STORE, set_as_current=False)
    app.task(base=DurableTask, name="shop.pack", shared=False, **options)(pack)
    app.finalize()
    return app.tasks["shop.pack"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deadline": "soon"}, "deadline='soon' is no moment"),
        ({"deadline": True}, "deadline=True is no number of seconds"),
        ({"expires": True}, "expires=True is no number of seconds"),
        ({"expires": "soon"}, "expires='soon' is no moment"),
        ({"concurrency_limit": 0}, "concurrency_limit = 0 is not a whole number from 1 on"),
        ({"concurrency_limit": "2"}, "concurrency_limit = '2' is not a whole number from 1 on"),
        ({"start_rate": "10"}, "start_rate = '10' is not like '10/s'"),
    ],
)
def test_an_option_that_no_call_could_be_made_with_is_refused_where_the_task_is_bound(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^shop.pack: {words}"):
        bound(**options)


def test_options_that_can_be_meant_are_taken() -> None:
    assert bound(deadline=timedelta(hours=1), expires="2030-01-01T12:00:00Z", start_rate="10/s").durable
    assert bound(deadline=5.5, expires=60, concurrency_limit=1, concurrency_key="{customer}").durable


def test_a_call_cannot_say_a_bool_where_a_time_is_meant() -> None:
    for option in ("expires", "countdown", "deadline", "eta"):
        with pytest.raises(ConfigurationError, match=f"{option}=True is no number of seconds"):
            bound().apply_async(**{option: True})


@pytest.mark.parametrize("task_id", [5, "", "a\0b"])
def test_an_id_that_no_run_could_have_is_refused_before_anything_is_stored(task_id: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no text that could be the id of a run"):
        bound().apply_async(task_id=task_id)
