"""Who is dead: a heartbeat that the leader itself has seen stand still for a whole lease."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable.store.deaths import DeathWatch

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
LEASE = timedelta(seconds=30)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def watch() -> DeathWatch:
    return DeathWatch(LEASE, longest_gap=LEASE)


def test_a_heartbeat_that_stands_still_for_a_whole_lease_is_a_death(watch: DeathWatch) -> None:
    assert [watch.observe(at(second), {1: 5}) for second in (0, 10, 20, 29.9)] == [{}] * 4
    assert watch.observe(at(30), {1: 5}) == {1: 5}


def test_each_beat_begins_a_new_lease(watch: DeathWatch) -> None:
    for second in (0, 20, 40, 60):
        assert watch.observe(at(second), {1: second}) == {}
    assert watch.observe(at(89), {1: 60}) == {}
    assert watch.observe(at(90), {1: 60}) == {1: 60}


def test_a_counter_that_went_back_is_a_sign_of_life_too(watch: DeathWatch) -> None:
    watch.observe(at(0), {1: 5})
    assert watch.observe(at(30), {1: 4}) == {}


def test_each_worker_is_judged_alone_and_a_new_one_has_its_whole_lease(watch: DeathWatch) -> None:
    watch.observe(at(0), {1: 1})
    watch.observe(at(15), {1: 1, 2: 1})

    assert watch.observe(at(30), {1: 1, 2: 1}) == {1: 1}
    assert watch.observe(at(45), {1: 1, 2: 1}) == {1: 1, 2: 1}


def test_a_worker_that_went_and_came_begins_anew(watch: DeathWatch) -> None:
    watch.observe(at(0), {1: 1})
    watch.observe(at(15), {})
    watch.observe(at(20), {1: 1})

    assert watch.observe(at(45), {1: 1}) == {}


def test_after_an_outage_nobody_is_dead_at_once(watch: DeathWatch) -> None:
    """Postgres was away: no heartbeat could be written, whoever lives."""
    watch.observe(at(0), {1: 1})
    assert watch.observe(at(31), {1: 1}) == {}
    assert watch.observe(at(60), {1: 1}) == {}
    assert watch.observe(at(61), {1: 1}) == {1: 1}


def test_an_interrupted_view_begins_anew(watch: DeathWatch) -> None:
    watch.observe(at(0), {1: 1})
    watch.observe(at(20), {1: 1})
    watch.forget()

    assert watch.observe(at(31), {1: 1}) == {}


def test_a_database_clock_that_went_back_kills_nobody(watch: DeathWatch) -> None:
    watch.observe(at(100), {1: 1})
    assert watch.observe(at(60), {1: 1}) == {}
    assert watch.observe(at(89), {1: 1}) == {}
    assert watch.observe(at(90), {1: 1}) == {1: 1}


def test_nobody_at_all_is_no_news(watch: DeathWatch) -> None:
    watch.observe(at(0), {1: 1})
    assert watch.observe(None, {}) == {}
    assert watch.observe(at(30), {1: 1}) == {}


@given(st.lists(st.tuples(st.floats(0.1, 60), st.booleans()), max_size=50))
def test_who_beats_within_every_lease_never_dies_and_who_dies_stood_still(
    story: list[tuple[float, bool]],
) -> None:
    watch = DeathWatch(LEASE, longest_gap=LEASE)
    now, beat, last_beat = 0.0, 0, 0.0
    for pause, beats in story:
        now += pause
        if beats:
            beat, last_beat = beat + 1, now
        if watch.observe(at(now), {1: beat}):
            assert now - last_beat >= LEASE.total_seconds()
