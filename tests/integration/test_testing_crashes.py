"""Workers that die where a test wants it, and the effects compared with those of nobody dying."""

from __future__ import annotations

import asyncio
import itertools
import re
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

import celery_durable as durable
from celery_durable.operations import Runs
from celery_durable.testing import CrashDifferenceError, Crashes, pointed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery import Celery


class Bank:
    """A bank that keeps its books in a file, so that another process may write into them."""

    def __init__(self, folder: Path) -> None:
        self._books = folder / "books"
        self.reset()

    def charge(self, amount: int, key: str | None = None) -> str:
        entries = self.entries()
        if key is None or key not in entries:
            with self._books.open("a") as books:
                books.write(f"{key or 'cash'}\n")
        return f"receipt for {amount}"

    def entries(self) -> list[str]:
        return self._books.read_text().splitlines()

    def reset(self) -> None:
        self._books.write_text("")


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path)


@pytest.fixture
def fulfil(durable_app: Celery, bank: Bank) -> Any:
    """An order, done right: one effect, with an idempotency key."""

    @durable.step
    def reserve(order: int) -> int:
        return order

    @durable.step
    def charge(order: int) -> str:
        return bank.charge(order, durable.idempotency_key())

    @durable_app.task(name="dying.fulfil", shared=False)
    def fulfil(order: int) -> str:
        reserved = reserve(order)
        durable.sleep(hours=1)
        return charge(reserved)

    return fulfil


BOUNDARIES = ["step 'reserve'", "wait 'sleep'", "step 'charge'", "the result of dying.fulfil"]


@pytest.mark.parametrize("kill", [False, True], ids=["raised", "killed"])
def test_a_task_that_survives_everything_passes(
    crash_everywhere: Callable[..., list[str]], fulfil: Any, bank: Bank, *, kill: bool
) -> None:
    found = crash_everywhere(fulfil.s(7), effects=bank.entries, reset=bank.reset, kill=kill)

    assert found == BOUNDARIES
    assert len(bank.entries()) == 1


@pytest.mark.parametrize("kill", [False, True], ids=["raised", "killed"])
def test_a_step_whose_effect_comes_twice_is_named(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery, bank: Bank, *, kill: bool
) -> None:
    @durable.step
    def charge(order: int) -> str:
        return bank.charge(order)  # nothing tells the bank that it was asked before

    @durable_app.task(name="dying.careless", shared=False)
    def careless(order: int) -> str:
        return charge(order)

    with pytest.raises(CrashDifferenceError) as caught:
        crash_everywhere(careless.s(7), effects=bank.entries, reset=bank.reset, kill=kill)

    text = str(caught.value)
    assert "dying.careless does not survive its worker" in text
    assert "effects differ when the worker dies before step 'charge' is stored:" in text
    assert "- ['cash']\n" in text
    assert "+ ['cash', 'cash']" in text
    assert "after step 'charge' is stored" not in text


def test_an_effect_outside_of_a_step_is_found_by_a_death_after_the_step(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery, bank: Bank
) -> None:
    @durable.step
    def reserve(order: int) -> int:
        return order

    @durable_app.task(name="dying.loose", shared=False)
    def loose(order: int) -> str:
        bank.charge(order)
        return str(reserve(order))

    with pytest.raises(CrashDifferenceError, match="dies after step 'reserve' is stored"):
        crash_everywhere(loose.s(7), effects=bank.entries, reset=bank.reset, sides=("after",))


def test_a_result_that_a_death_changes_is_shown(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery
) -> None:
    @durable.step(at_most_once=True)
    def once() -> str:
        return "done"

    @durable_app.task(name="dying.once", shared=False, max_retries=0)
    def task() -> str:
        return once()

    with pytest.raises(CrashDifferenceError) as caught:
        crash_everywhere(task.s())

    text = str(caught.value)
    assert "the result differs when the worker dies after the start of step 'once' is stored" in text
    assert "- SUCCESS 'done'\n" in text
    assert "+ FAILURE StepInterruptedError" in text


def test_a_body_that_takes_another_way_is_told_apart(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery
) -> None:
    ways = iter(range(100))

    @durable.step
    def walk(way: int) -> None: ...

    @durable_app.task(name="dying.wanderer", shared=False)
    def wanderer() -> None:
        walk.options(name=f"way {next(ways)}")(0)

    with pytest.raises(
        CrashDifferenceError, match="step 'way 0' was stored once, and another time it was not"
    ):
        crash_everywhere(wanderer.s())


@pytest.mark.parametrize("kill", [False, True], ids=["raised", "killed"])
def test_steps_side_by_side_may_be_stored_in_any_order(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery, bank: Bank, *, kill: bool
) -> None:
    def pay(amount: int) -> str:
        return bank.charge(amount, durable.idempotency_key())

    async def pay_later(amount: int) -> str:
        await asyncio.sleep(next(hurry))
        return bank.charge(amount, durable.idempotency_key())

    charge, charge_later = durable.step(pay), durable.step(pay_later)
    hurry = itertools.cycle([0.0, 0.02, 0.01, 0.0])

    @durable_app.task(name="dying.threads", shared=False)
    def threads() -> list[str]:
        return durable.gather(charge.s(1), charge.s(2), charge.s(3))

    @durable_app.task(name="dying.branches", shared=False)
    async def branches() -> list[str]:
        return await asyncio.gather(*(charge_later(amount) for amount in (1, 2, 3)))

    def charged() -> list[str]:
        return sorted(bank.entries())

    def paid(task: Any) -> set[str]:
        return set(crash_everywhere(task.s(), effects=charged, reset=bank.reset, kill=kill))

    assert paid(threads) == {"step 'pay'", "step 'pay#2'", "step 'pay#3'", "the result of dying.threads"}
    assert len(paid(branches)) == 4


def test_failures_retries_and_children_are_compared_too(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery
) -> None:
    @durable.step
    def shaky() -> str:
        if durable.current_run().attempt < 2:
            raise ConnectionError("not yet")
        return "at last"

    @durable_app.task(name="dying.child", shared=False)
    def child() -> str:
        return shaky()

    @durable_app.task(name="dying.parent", shared=False, throws=(ValueError,))
    def parent() -> str:
        child.delay()
        raise ValueError("so be it")

    found = crash_everywhere(parent.s())

    assert found[:2] == ["step 'delay:dying.child'", "the error of dying.parent"]
    assert "the retry of dying.child" in found
    assert found[-1] == "the result of dying.child"


def test_one_death_is_chosen_by_its_step(crash_after: Callable[..., Any], fulfil: Any, bank: Bank) -> None:
    assert crash_after("reserve", fulfil.s(7)) == "receipt for 7"
    assert len(bank.entries()) == 1
    assert crash_after("charge", fulfil.s(7), side="before", kill=True) == "receipt for 7"


def test_a_step_that_is_never_stored_is_an_error_that_says_what_was(
    crash_after: Callable[..., Any], fulfil: Any
) -> None:
    expected = "no step 'chrage' was stored. Stored were: 'reserve', 'sleep', 'charge'"
    with pytest.raises(CrashDifferenceError, match=re.escape(expected)):
        crash_after("chrage", fulfil.s(7))


def test_a_side_that_a_checkpoint_does_not_have_is_named(
    crash_after: Callable[..., Any], crash_everywhere: Callable[..., Any], fulfil: Any
) -> None:
    with pytest.raises(ValueError, match="no side 'middle': the worker dies 'before' or 'after'"):
        crash_after("charge", fulfil.s(7), side="middle")
    with pytest.raises(ValueError, match="no side 'befor'"):
        crash_everywhere(fulfil.s(7), sides=("after", "befor"))


def test_what_is_no_signature_is_named(
    crash_after: Callable[..., Any], crash_everywhere: Callable[..., Any], fulfil: Any
) -> None:
    for wrong in (fulfil, fulfil.run, "dying.fulfil", None):
        with pytest.raises(TypeError, match=r"is no signature: give task\.s"):
            crash_everywhere(wrong)
        with pytest.raises(TypeError, match=r"is no signature: give task\.s"):
            crash_after("charge", wrong)


def test_a_database_that_is_not_for_tests_is_left_alone(
    postgres_url: str, tmp_path: Path, durable_app: Celery, fulfil: Any
) -> None:
    name = f"durable_precious_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    try:
        with pointed(durable_app, backend=f"durable+{url}", broker=f"durable+embedded://{tmp_path}"):
            kept = fulfil.delay(7)
            with pytest.raises(durable.ConfigurationError, match="would be emptied"):
                Crashes(durable_app).everywhere(fulfil.s(7))
            assert [run.id for run in Runs(durable_app).list().runs] == [kept.id]
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as server:
            server.execute(f"drop database {name} with (force)".encode())


def test_what_goes_wrong_in_a_killed_child_is_raised_here(
    crash_after: Callable[..., Any], durable_app: Celery
) -> None:
    @durable_app.task(name="dying.stuck", shared=False)
    def stuck() -> None:
        durable.wait_for_signal("never")

    with pytest.raises(durable.DurableError, match=r"StuckError.*is waiting"):
        crash_after("x", stuck.s(), kill=True)
