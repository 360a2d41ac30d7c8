"""Errors: one root, a message that says what to do, facts as attributes."""

from __future__ import annotations

import builtins
import pickle

import pytest

from celery_durable import exceptions
from celery_durable.exceptions import DurableError, ExhaustedError, RunCancelled

ERRORS = [
    one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, BaseException)
]


@pytest.mark.parametrize("cls", [cls for cls in ERRORS if issubclass(cls, DurableError)])
def test_the_docstring_is_the_message_unless_there_is_a_better_one(cls: type[DurableError]) -> None:
    assert str(cls()) == " ".join((cls.__doc__ or "").split())
    assert str(cls("better")) == "better"


@pytest.mark.parametrize("cls", ERRORS)
def test_no_error_has_the_name_of_a_builtin(cls: type[BaseException]) -> None:
    assert not hasattr(builtins, cls.__name__)


def test_facts_are_attributes() -> None:
    error = DurableError("no", step="download", tries=2)

    assert (error.facts, error.step, error.tries) == ({"step": "download", "tries": 2}, "download", 2)  # type: ignore[attr-defined]


def test_an_error_keeps_its_facts_when_it_is_pickled_twice() -> None:
    error = ExhaustedError.after("r-1", 2, "signal 9")

    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))

    assert str(again) == str(error)
    assert again.facts == {"run": "r-1"}


def test_an_exhausted_run_says_how_often_why_and_what_to_do() -> None:
    text = str(ExhaustedError.after("r-1", 2, "signal 9"))

    assert "lost its worker 3 times" in text
    assert "durable_max_recoveries = 2" in text
    assert "signal 9" in text
    assert text.endswith("celery -A <app> durable resume r-1")


def test_a_cancel_passes_by_handlers_of_errors() -> None:
    assert not issubclass(RunCancelled, Exception)
