"""The `step` decorator, outside of any run."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest

from celery_durable.exceptions import StepUsageError
from celery_durable.steps import Step, step
from celery_durable.transactions import transaction


@step
def double(number: int, *, times: int = 1) -> int:
    """Return twice the number."""
    return 2 * number * times


def test_outside_a_run_a_step_is_its_function() -> None:
    assert double(21) == 42
    assert double(number=1, times=3) == 6
    assert double.__name__ == "double"
    assert double.__doc__ == "Return twice the number."
    assert repr(double) == "<step double>"


def test_options_make_another_step_of_the_same_function() -> None:
    other = double.options(key="intro", max_retries=2)

    assert other(4) == 8
    assert (other.step_options.key, double.step_options.key) == ("intro", None)
    assert other.name == "double"


def test_asking_for_retries_without_saying_of_what_means_any_error() -> None:
    @step(max_retries=5, retry_backoff=True)
    def flaky() -> None: ...

    assert flaky.step_options.autoretry_for == (Exception,)
    assert flaky.options(autoretry_for=OSError).step_options.autoretry_for == (OSError,)
    assert double.options(max_retries=0).step_options.autoretry_for == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retry": 1}, "did you mean 'max_retries'?"),
        ({"qqq": 1}, "there are: at_most_once, autoretry_for"),
        ({"autoretry_for": ("ValueError",)}, "is not made of exception classes"),
        ({"autoretry_for": int}, "is not made of exception classes"),
        ({"autoretry_for": 5}, "is not made of exception classes"),
        ({"max_retries": "3"}, "neither a number of retries nor None"),
        ({"max_retries": -1}, "neither a number of retries nor None"),
        ({"max_retries": 1.5}, "neither a number of retries nor None"),
        ({"max_retries": True}, "neither a number of retries nor None"),
        ({"default_retry_delay": -1}, "not a number of seconds, from 0 on"),
        ({"default_retry_delay": None}, "not a number of seconds, from 0 on"),
        ({"default_retry_delay": float("nan")}, "not a number of seconds, from 0 on"),
        ({"retry_backoff": "yes"}, "neither True nor False, and not a number of seconds"),
        ({"retry_backoff": -2}, "neither True nor False, and not a number of seconds"),
        ({"retry_backoff_max": "1m"}, "not a number of seconds, from 0 on"),
        ({"retry_backoff_max": -1}, "not a number of seconds, from 0 on"),
        ({"retry_jitter": "no"}, "neither True nor False"),
        ({"at_most_once": "yes"}, "neither True nor False"),
        ({"serializer": 5}, "not the name of a serializer"),
        ({"time_limit": "1h"}, "not a positive number of seconds"),
        ({"time_limit": True}, "not a positive number of seconds"),
        ({"time_limit": float("inf")}, "not a positive number of seconds"),
        ({"commit": "later"}, "neither 'sync' nor 'async'"),
        ({"time_limit": 0}, "not a positive number of seconds"),
        ({"time_limit": -1.5}, "not a positive number of seconds"),
        ({"at_most_once": True, "max_retries": 2}, "at_most_once steps are never retried"),
        ({"name": ""}, "name='' is not a printable, non-empty string"),
        ({"key": ""}, "key='' is not a printable, non-empty string"),
        ({"key": "a\0b"}, "is not a printable, non-empty string"),
        ({"key": "\udcff"}, "is not a printable, non-empty string"),
        ({"key": 7}, "key=7 is not a printable, non-empty string"),
    ],
)
def test_an_option_that_cannot_be_meant_is_an_error_where_it_is_written(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StepUsageError, match=message.replace("?", r"\?")) as error:
        step(**options)(lambda: None)
    assert str(error.value).startswith("Step '")

    with pytest.raises(StepUsageError):
        double.options(**options)


@pytest.mark.parametrize("options", [{"time_limit": "x"}, {"database": 5}, {"database": ""}])
def test_an_option_that_cannot_be_meant_of_a_transaction_is_one_too(options: dict[str, Any]) -> None:
    with pytest.raises(StepUsageError, match=f"'book': {next(iter(options))}="):

        @transaction(**options)
        def book(connection: Any) -> None: ...


def test_every_option_that_can_be_meant_is_taken() -> None:
    chosen = step(
        max_retries=None,
        default_retry_delay=0,
        retry_backoff=0.5,
        retry_backoff_max=60.0,
        retry_jitter=False,
        autoretry_for=[OSError, KeyError],
        time_limit=0.5,
    )(lambda: None).step_options

    assert (chosen.max_retries, chosen.retry_backoff, chosen.time_limit) == (None, 0.5, 0.5)
    assert chosen.autoretry_for == (OSError, KeyError)


@pytest.mark.parametrize("odd", [5, "charge", classmethod(len)])
def test_what_is_no_function_is_no_step(odd: Any) -> None:
    with pytest.raises(StepUsageError, match="is given no function"):
        step(odd)
    with pytest.raises(StepUsageError, match="is given no function"):
        step(odd, name="x")
    with pytest.raises(StepUsageError, match="is given no function"):
        transaction(odd)


def test_options_count_also_beside_the_function() -> None:
    assert step(max, name="most", max_retries=2).name == "most"
    assert step(max, name="most", max_retries=2).step_options.max_retries == 2
    with pytest.raises(StepUsageError, match="did you mean 'name'"):
        step(max, nmae="most")

    def book(connection: Any, cents: int) -> None: ...

    made = transaction(book, name="booked", isolation="serializable")
    assert (made.name, made.step_options.isolation) == ("booked", "serializable")


def test_what_has_no_name_is_given_one() -> None:
    half = functools.partial(max, 1)

    with pytest.raises(StepUsageError, match="has no name of its own: give the step one"):
        step(half)
    assert step(half, name="at least one")(0) == 1


def test_a_generator_is_no_step() -> None:
    def yields() -> Any:
        yield 1

    async def yields_later() -> Any:
        yield 1

    for function in (yields, yields_later):
        with pytest.raises(StepUsageError, match="is a generator: a step is a function"):
            step(function)


def test_arguments_have_the_same_names_however_they_are_given() -> None:
    def function(first: int, /, second: int, *rest: int, third: int = 3, **more: int) -> None: ...

    made = step(function)

    assert made.named_arguments((1,), {"second": 2}) == made.named_arguments((1, 2), {})
    assert made.named_arguments((1, 2, 8, 9), {"third": 4, "x": 5}) == {
        "first": 1,
        "second": 2,
        "*": (8, 9),
        "third": 4,
        "x": 5,
    }


def test_a_function_that_cannot_be_inspected_keeps_its_positions() -> None:
    assert step(max).named_arguments((1, 2), {}) == {"*": (1, 2)}


class Shop:
    """A step may be a method, with its instance as the first argument."""

    discount = 2

    @step
    def price(self, full: int) -> int:
        return full - self.discount

    @staticmethod
    @step
    def tax(price: int) -> int:
        return price // 5


def test_methods_can_be_steps() -> None:
    assert Shop().price(10) == 8
    assert Shop.tax(10) == 2
    assert isinstance(Shop.price, Step)


def test_a_step_has_a_name_of_its_own_when_it_is_given_one() -> None:
    @step(name="fetch")
    def download() -> None: ...

    assert download.name == "fetch"
    assert download.options(key="intro").name == "fetch"


def test_the_return_annotation_is_what_the_value_is_restored_to() -> None:
    assert double.returns is int


def test_a_step_at_the_top_of_a_module_can_be_pickled() -> None:
    """Celery's prefork pool and multiprocessing send functions by their names."""
    assert pickle.loads(pickle.dumps(double))(2) == 4
