"""How often a process asks for the results it waits for."""

from __future__ import annotations

import pytest

from celery_durable.waiting.pace import Allowance, question, reckoned


@pytest.mark.parametrize("age", [0.0, 0.1, 0.5, 0.99])
def test_the_server_looks_by_itself_every_few_milliseconds_for_a_wait_of_up_to_a_second(age: float) -> None:
    asked = question(age, 10, 0.001)

    assert asked.pause == 0
    assert asked.every < 0.01
    assert asked.within <= 0.05


@pytest.mark.parametrize("age", [1.0, 5.0, 3600.0])
def test_a_longer_wait_holds_no_connection_and_hears_within_a_tenth_of_a_second(age: float) -> None:
    asked = question(age, 10, 0.001)

    assert asked.within == 0
    assert 0.02 <= asked.pause <= 0.1


@pytest.mark.parametrize("age", [0.1, 10.0])
@pytest.mark.parametrize("watching", [True, False])
def test_what_is_expensive_is_asked_more_rarely(age: float, *, watching: bool) -> None:
    asked = question(age, 10_000, 0.1, watching=watching)

    assert asked.pause >= 0.4
    assert asked.within == 0


def test_one_slow_answer_is_no_reason_to_ask_more_rarely_but_several_are() -> None:
    cost = reckoned(0.001, 0.001)
    assert question(5.0, 1, reckoned(cost, 0.5)) == question(5.0, 1, cost)

    for _ in range(10):
        cost = reckoned(cost, 0.5)
    assert question(5.0, 1, cost).pause == 2.0
    assert reckoned(cost, 0.001) == 0.001


@pytest.mark.parametrize("age", [0.0, 0.5, 0.999, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("watching", [True, False])
@pytest.mark.parametrize("ids", [1, 400, 600])
def test_nobody_asks_more_than_fifty_times_a_second(age: float, ids: int, *, watching: bool) -> None:
    asked = question(age, ids, 0.0, watching=watching)

    assert asked.pause + asked.within >= 0.02


def test_an_allowance_lets_some_questions_through_at_once_and_a_number_a_second_in_the_long_run() -> None:
    allowance = Allowance(rate=10, burst=3, now=100.0)
    now, asked = 100.0, []
    while now < 110:
        now += allowance.delay(now)
        allowance.spend(now)
        asked.append(now)

    assert asked[:3] == [100.0, 100.0, 100.0]
    assert len(asked) <= 3 + 10 * 10 + 1
    assert asked[3] == pytest.approx(100.1)


def test_an_allowance_is_not_saved_up_beyond_its_burst() -> None:
    allowance = Allowance(rate=10, burst=2)
    for _ in range(2):
        assert allowance.delay(1000.0) == 0
        allowance.spend(1000.0)

    assert allowance.delay(1000.0) == pytest.approx(0.1)
