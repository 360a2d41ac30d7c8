"""Durable execution for the Celery app you already have.

Swap the task base class, point the result backend at Postgres, and every step a task finishes is a
checkpoint that no crash, retry or deploy makes it repeat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.changes import patched
    from celery_durable.children import call, gather, map  # noqa: A004
    from celery_durable.clock import now, random, uuid4
    from celery_durable.context import RunContext, current_run, idempotency_key
    from celery_durable.exceptions import (
        ConfigurationError,
        DurableError,
        ExhaustedError,
        Fatal,
        LeaseLostError,
        NondeterminismError,
        PayloadTooLargeError,
        RollbackError,
        RunCancelled,
        RunNotFoundError,
        RunStateError,
        SerializationError,
        SignalTimeout,
        SignalTokenError,
        StepInterruptedError,
        StepNotFoundError,
        StepTimeLimitError,
        StepUsageError,
        StoreUnavailableError,
        TransactionUsageError,
    )
    from celery_durable.operations import Runs
    from celery_durable.operations.sending import send_signal, send_signal_with_token
    from celery_durable.rollback import on_rollback
    from celery_durable.steps import step
    from celery_durable.task import DurableTask
    from celery_durable.transactions import transaction
    from celery_durable.waits import continue_as, sleep, sleep_until, wait_for_signal

_WHERE = {
    "ConfigurationError": "exceptions",
    "DurableError": "exceptions",
    "DurableTask": "task",
    "ExhaustedError": "exceptions",
    "Fatal": "exceptions",
    "LeaseLostError": "exceptions",
    "NondeterminismError": "exceptions",
    "PayloadTooLargeError": "exceptions",
    "RollbackError": "exceptions",
    "RunCancelled": "exceptions",
    "RunContext": "context",
    "RunNotFoundError": "exceptions",
    "RunStateError": "exceptions",
    "Runs": "operations",
    "SerializationError": "exceptions",
    "SignalTimeout": "exceptions",
    "SignalTokenError": "exceptions",
    "StepInterruptedError": "exceptions",
    "StepNotFoundError": "exceptions",
    "StepTimeLimitError": "exceptions",
    "StepUsageError": "exceptions",
    "StoreUnavailableError": "exceptions",
    "TransactionUsageError": "exceptions",
    "call": "children",
    "continue_as": "waits",
    "current_run": "context",
    "gather": "children",
    "idempotency_key": "context",
    "map": "children",
    "now": "clock",
    "on_rollback": "rollback",
    "patched": "changes",
    "random": "clock",
    "send_signal": "operations.sending",
    "send_signal_with_token": "operations.sending",
    "sleep": "waits",
    "sleep_until": "waits",
    "step": "steps",
    "transaction": "transactions",
    "uuid4": "clock",
    "wait_for_signal": "waits",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    # Loaded at first use: importing the package costs next to nothing, and needs no database driver.
    if name not in _WHERE:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
