"""What users may rely on: the names of the package, pinned."""

from __future__ import annotations

import pickle

import pytest

import celery_durable as durable
from celery_durable import exceptions

NAMES = [
    "ConfigurationError",
    "DurableError",
    "DurableTask",
    "ExhaustedError",
    "Fatal",
    "LeaseLostError",
    "NondeterminismError",
    "PayloadTooLargeError",
    "RollbackError",
    "RunCancelled",
    "RunContext",
    "RunNotFoundError",
    "RunStateError",
    "Runs",
    "SerializationError",
    "SignalTimeout",
    "SignalTokenError",
    "StepInterruptedError",
    "StepNotFoundError",
    "StepTimeLimitError",
    "StepUsageError",
    "StoreUnavailableError",
    "TransactionUsageError",
    "call",
    "continue_as",
    "current_run",
    "gather",
    "idempotency_key",
    "map",
    "now",
    "on_rollback",
    "patched",
    "random",
    "send_signal",
    "send_signal_with_token",
    "sleep",
    "sleep_until",
    "step",
    "transaction",
    "uuid4",
    "wait_for_signal",
]


def test_the_public_names_are_these() -> None:
    assert durable.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_used(name: str) -> None:
    assert getattr(durable, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'stepp'"):
        durable.stepp  # noqa: B018


def test_outside_a_run_there_is_no_current_run() -> None:
    with pytest.raises(durable.DurableError, match="no current run"):
        durable.current_run()
    with pytest.raises(durable.DurableError, match="call it inside a"):
        durable.idempotency_key()


def test_outside_a_run_time_and_chance_are_the_ordinary_ones() -> None:
    assert durable.now().tzinfo is not None
    assert durable.uuid4() != durable.uuid4()
    assert durable.random().random() != durable.random().random()


@pytest.mark.parametrize(
    "cls",
    [
        one
        for one in vars(exceptions).values()
        if isinstance(one, type) and issubclass(one, exceptions.DurableError)
    ],
)
def test_every_error_survives_pickling(cls: type[exceptions.DurableError]) -> None:
    error = cls("what happened", run="r-1")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is cls
    assert str(again) == "what happened"
    assert again.run == "r-1"  # type: ignore[attr-defined]


def test_the_django_task_keeps_delay_on_commit() -> None:
    from celery_durable.django import DjangoDurableTask

    assert issubclass(DjangoDurableTask, durable.DurableTask)
    assert callable(DjangoDurableTask.delay_on_commit)
