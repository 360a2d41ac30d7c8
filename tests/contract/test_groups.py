"""A group is stored in few statements, and each of its members as if it were alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Task, chord, group
from celery.canvas import group as celerys_group
from harness.waiting import take
from inspecting import Worker, execute
from kombu.exceptions import EncodeError, OperationalError
from linking import World

from celery_durable import batching, envelope
from celery_durable.store import bulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

AWAY = "redis://127.0.0.1:1"


def nothing(*_: Any) -> None:
    """Do nothing, with whatever is given."""


class Groups(World):
    """A world with a durable and a plain task."""

    def __init__(self, store: Store, broker: str = "memory://", **settings: Any) -> None:
        super().__init__(store, broker, **settings)
        self.add = self.task(nothing, name="add")
        self.plain = self.task(nothing, name="plain", base=Task)


@pytest.fixture
def new_world(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Groups]]:
    """Return a function that makes an app; what it knows of its broker is forgotten at the end."""
    monkeypatch.setattr(envelope, "breaker", envelope.Breaker(first=60.0))
    monkeypatch.setattr(batching, "_LINGER", 60.0)  # however slow the machine
    made: list[Groups] = []

    def make(*options: Any, **settings: Any) -> Groups:
        made.append(Groups(store, *options, **settings))
        return made[-1]

    yield make
    for world in made:
        world.leave()


@pytest.fixture
def world(new_world: Callable[..., Groups]) -> Groups:
    """Return an app on a broker in memory."""
    return new_world()


def test_members_keep_their_options_and_their_order(world: Groups) -> None:
    add = world.add
    members = group(
        add.s(1),
        add.s(2).set(queue="other", priority=3),
        add.s(3).set(countdown=3600, expires=7200),
        world.plain.s(4),
        add.s(5) | add.s(6),
        group(add.s(7), add.s(8)),
    )
    result = members.apply_async(priority=5)

    one, two, three, plain, _, seven, eight = (child.id for child in result)
    first_of_chain = next(iter(set(world.runs()) - {one, two, three, seven, eight}))
    assert world.runs() == [one, two, three, first_of_chain, seven, eight]
    assert world.sent() == [plain, one, first_of_chain, seven, eight]
    assert world.sent("other") == [two]
    rows = execute(
        world.store,
        'select queue, priority, state, expires_at is not null as expires, "group" as of from durable.run'
        " order by key",
    )
    assert [tuple(row.values()) for row in rows] == [
        ("celery", 5, "pending", False, result.id),
        ("other", 5, "pending", False, result.id),
        ("celery", 5, "waiting", True, result.id),
        ("celery", 5, "pending", False, None),
        ("celery", 5, "pending", False, result.id),
        ("celery", 5, "pending", False, result.id),
    ]


def test_members_in_front_of_one_that_cannot_be_sent_are_stored_and_sent(world: Groups) -> None:
    add = world.add

    with pytest.raises(EncodeError):
        group(add.s(1), add.s(2), add.s(object()), add.s(4)).apply_async()

    assert len(world.runs()) == 2
    assert world.sent() == world.runs()


def test_nobody_but_the_group_waits_for_its_batch(world: Groups) -> None:
    seen: list[list[str]] = []

    def members() -> Iterator[Any]:
        for number in range(3):
            seen.append(world.runs())
            world.add.delay(number)
            seen.append(world.runs())
            yield world.add.s(number)

    group(members()).apply_async()

    assert [len(runs) for runs in seen] == [0, 1, 1, 2, 2, 3]
    assert len(world.runs()) == len(world.sent()) == 6


def test_a_member_that_has_waited_long_enough_does_not_wait_for_the_others(
    world: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_LINGER", 0.0)
    stored: list[int] = []

    def members() -> Iterator[Any]:
        for number in range(6):
            stored.append(len(world.runs()))
            yield world.add.s(number)

    group(members()).apply_async()

    assert stored == sorted(stored)
    assert 0 < stored[-1] < len(world.runs()) == 6


def test_a_member_does_not_wait_for_one_that_takes_long_to_make(
    world: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_LINGER", 0.01)
    stored: list[int] = []

    def members() -> Iterator[Any]:
        for number in range(4):
            take(0.05)
            stored.append(len(world.runs()))
            yield world.add.s(number)

    group(members()).apply_async()

    assert stored == [0, 0, 1, 2], "Celery asks for one more than it sends"


def test_a_loop_that_is_left_early_leaves_nothing_unsent(world: Groups) -> None:
    tasks: Any = group(world.add.s(number) for number in range(5))
    prepared = tasks._prepared(tasks.tasks, [], "group", "root", world.app)
    loop = tasks._apply_tasks(prepared)
    taken = [next(loop).id, next(loop).id]
    own = world.add.delay(9).id  # of whoever has the loop, so at once

    assert world.runs() == [own]
    loop.close()

    assert sorted(world.runs()) == sorted([*taken, own])
    assert world.sent() == [own, *taken]


def test_two_members_with_one_id_are_one_run(world: Groups) -> None:
    same = [world.add.s(number).set(task_id="same") for number in range(2)]

    group(*same, world.add.s(3)).apply_async()

    assert len(world.runs()) == 2
    assert world.sent() == world.runs()


def test_a_member_that_runs_already_is_not_sent(world: Groups) -> None:
    started = Worker(world.store).start("started")

    result = group(world.add.s(1), world.add.s(2).set(task_id=started.id)).apply_async()

    assert world.sent() == [result[0].id]


def test_a_group_is_stored_while_the_broker_is_away(new_world: Callable[..., Groups]) -> None:
    world = new_world(AWAY)

    result = group(world.add.s(number) for number in range(bulk.ROWS + 10)).apply_async()

    assert world.runs() == [child.id for child in result]
    unpublished = execute(
        world.store,
        "select count(*) as runs from durable.run"
        " where published_at is null and due <= now() and state = 'pending'",
    )
    assert unpublished == [{"runs": bulk.ROWS + 10}]


def test_whoever_wants_to_hear_of_a_broker_that_is_away_hears_it_and_no_member_stays(
    new_world: Callable[..., Groups],
) -> None:
    world = new_world(AWAY, durable_publish_errors="raise")

    with pytest.raises(OperationalError):
        group(world.add.s(number) for number in range(3)).apply_async()

    assert world.runs() == []


def test_the_header_of_a_chord_is_a_group(world: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def at_most(_: Any, size: int) -> None:
        told.append(len(world.runs()) + size)

    monkeypatch.setattr(world.app.backend, "set_chord_size", at_most)

    chord([world.add.s(number) for number in range(3)], world.add.s()).apply_async()

    tasks = [row["task"] for row in execute(world.store, "select task from durable.run order by key")]
    assert tasks.count("add") == 3
    assert len(told) == 1


@pytest.mark.parametrize("loop", [None, list, lambda self, tasks, app: iter(())])
def test_a_celery_with_another_loop_is_left_alone(monkeypatch: pytest.MonkeyPatch, loop: Any) -> None:
    monkeypatch.setattr(celerys_group, "_apply_tasks", loop)

    batching.batch_groups()

    assert celerys_group._apply_tasks is loop


def test_a_group_is_stored_one_by_one_where_celery_has_another_loop(
    world: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    celerys: Any = celerys_group._apply_tasks
    monkeypatch.setattr(celerys_group, "_apply_tasks", celerys.__wrapped__)

    result = group(world.add.s(number) for number in range(3)).apply_async()

    assert world.runs() == world.sent() == [child.id for child in result]
