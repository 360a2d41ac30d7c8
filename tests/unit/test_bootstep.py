"""Which runs a worker says it executes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.worker import state

from celery_durable import bootstep

if TYPE_CHECKING:
    import pytest


class Message:
    """A request as the worker's sets hold it: weakly, by identity."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id


def test_what_executes_counts_also_when_the_worker_forgot_that_it_had_reserved_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, executing = Message("waiting"), Message("executing")
    monkeypatch.setattr(state, "reserved_requests", {waiting, executing})
    monkeypatch.setattr(state, "active_requests", {executing})
    assert bootstep._executing() == {"waiting", "executing"}

    state.reserved_requests.clear()  # as Celery 5.5 does when it connects again

    assert bootstep._executing() == {"executing"}
    assert bootstep._reserved() == 0
