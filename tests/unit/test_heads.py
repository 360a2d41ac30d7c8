"""Where a consumer's scans of a queue begin."""

from __future__ import annotations

from celery_durable.store.consuming import Place
from celery_durable.transport.heads import Heads


def floor(heads: Heads, queue: str = "work", priority: int = 0) -> int:
    (place,) = (one for one in heads.places([queue]) if one.priority == priority)
    return place.floor


def test_the_scans_of_all_queues_come_in_the_order_of_priority() -> None:
    places = Heads(5.0).places(["a", "b"])

    assert [(place.queue, place.priority) for place in places[:3]] == [("a", 9), ("b", 9), ("a", 8)]
    assert len(places) == 20
    assert {place.floor for place in places} == {0}


def test_a_number_becomes_the_floor_when_nothing_below_it_can_be_committed_late_any_more() -> None:
    heads = Heads(5.0)
    heads.reached("work", 0, 100, now=10.0)
    heads.reached("work", 0, 200, now=11.5)
    assert floor(heads) == 0

    heads.reached("work", 0, 300, now=12.0)
    assert floor(heads) == 100
    heads.reached("work", 0, 400, now=13.6)
    assert floor(heads) == 200
    assert floor(heads, priority=9) == floor(heads, "other") == 0


def test_a_floor_never_sinks_by_itself() -> None:
    heads = Heads(5.0)
    for now, number in ((10.0, 500), (11.0, 90), (12.5, 600), (14.0, 700)):
        heads.reached("work", 0, number, now)

    assert floor(heads) == 500


def reached(heads: Heads, queue: str = "work", priority: int = 0) -> None:
    """Let the floor be 100, with a higher one to come."""
    heads.reached(queue, priority, 100, now=10.0)
    heads.reached(queue, priority, 200, now=12.0)
    assert floor(heads, queue, priority) == 100


def test_after_an_outage_the_scans_begin_at_the_start() -> None:
    heads = Heads(5.0)
    reached(heads)

    heads.forget()

    assert floor(heads) == 0
    assert not heads.raised


def test_what_comes_back_lowers_every_floor_to_itself_and_no_further() -> None:
    heads = Heads(5.0)
    reached(heads)
    reached(heads, "other", 9)

    heads.came_back(150)
    assert floor(heads) == floor(heads, "other", 9) == 100

    heads.came_back(60)
    assert floor(heads) == floor(heads, "other", 9) == 59


def test_what_comes_back_is_not_passed_by_a_number_reached_before() -> None:
    heads = Heads(5.0)
    heads.reached("work", 0, 500, now=10.0)
    heads.reached("work", 0, 90, now=11.0)

    heads.came_back(400)
    heads.reached("work", 0, 600, now=12.5)
    assert floor(heads) == 0

    heads.reached("work", 0, 700, now=13.0)
    assert floor(heads) == 90


def test_a_look_from_the_start_leaves_the_floors_alone() -> None:
    heads = Heads(5.0)
    reached(heads)

    assert {place.floor for place in heads.places(["work"], from_start=True)} == {0}
    heads.looked(13.0, 13.01, [Place("work", 0, 250)])

    assert floor(heads) == 100


def test_what_a_look_from_the_start_finds_lowers_the_floor_of_its_scan_only() -> None:
    heads = Heads(5.0)
    reached(heads)
    reached(heads, "other")
    reached(heads, priority=9)

    heads.looked(13.0, 13.01, [Place("work", 0, 40), Place("work", 0, 41)])

    assert floor(heads) == 40
    assert floor(heads, "other") == floor(heads, priority=9) == 100


def test_every_few_seconds_a_look_begins_at_the_start_and_the_rarer_the_longer_it_took() -> None:
    heads = Heads(5.0)
    assert heads.full_look_due(100.0)
    heads.looked(100.0, 100.01, [])
    assert not heads.full_look_due(105.0)
    assert heads.full_look_due(105.02)
    heads.looked(105.02, 105.52, [])
    assert not heads.full_look_due(155.0)
    assert heads.full_look_due(155.6)
