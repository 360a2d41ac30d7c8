"""Links, chains, groups, chords and replacements: the same of durable tasks as of plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import chain, chord, group, states
from celery.result import GroupResult
from harness.waiting import eventually
from semantics.registry import KINDS

if TYPE_CHECKING:
    from semantics.world import Semantics

both = pytest.mark.parametrize("kind", KINDS)


def mixed(world: Semantics, kind: str, name: str, number: int) -> Any:
    """Return the plain and the durable task in turn for `mixed`, else one kind."""
    return world.task(KINDS[number % 2] if kind == "mixed" else kind, name)


kinds = pytest.mark.parametrize("kind", [*KINDS, "mixed"])

WAITING_FOR_A_LOCK = """
select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
"""


@kinds
@pytest.mark.parametrize("number", [1, 2])
def test_links_get_the_value_and_are_children(on_redis: Semantics, kind: str, number: int) -> None:
    links = [mixed(on_redis, kind, "record", n).s(f"link {n}") for n in range(number)]
    result = mixed(on_redis, kind, "add", 1).apply_async((2, 3), link=links)
    assert result.get(timeout=20) == 5
    children = eventually(lambda: result.children)
    values = [child.get(timeout=20) for child in children]
    flat = values[0] if number > 1 and isinstance(values[0][0], list) else values
    assert sorted(flat) == [[5, f"link {n}"] for n in range(number)]


@kinds
def test_an_immutable_link_gets_its_own_arguments_only(on_redis: Semantics, kind: str) -> None:
    result = mixed(on_redis, kind, "add", 0).apply_async(
        (2, 3), link=mixed(on_redis, kind, "record", 1).si(1)
    )
    assert result.get(timeout=20) == 5
    (child,) = eventually(lambda: result.children)
    assert child.get(timeout=20) == [1]
    assert child.parent is None or child.parent.id == result.id


@kinds
def test_error_links_of_either_signature_are_called_with_the_failure(on_redis: Semantics, kind: str) -> None:
    new, old = (mixed(on_redis, kind, name, 1) for name in ("errback", "old_errback"))
    result = mixed(on_redis, kind, "fail", 0).apply_async(("sorry",), link_error=[new.s(), old.s()])
    for event in ("errback", "old_errback"):
        eventually(lambda event=event: on_redis.seen(result.id, event))  # type: ignore[misc]
    assert on_redis.seen(result.id, "errback") == [["ValueError", "sorry", True]]
    assert on_redis.seen(result.id, "old_errback") == [None]


@kinds
def test_a_single_error_link_is_called_once(on_redis: Semantics, kind: str) -> None:
    errback = mixed(on_redis, kind, "errback", 1)
    result = mixed(on_redis, kind, "fail", 0).apply_async(("sorry",), link_error=errback.s())
    eventually(lambda: on_redis.seen(result.id, "errback"))
    assert mixed(on_redis, kind, "add", 0).delay(1, 1).get(timeout=20) == 2
    assert len(on_redis.seen(result.id, "errback")) == 1


@kinds
def test_a_chain_hands_values_on_and_keeps_its_lineage(on_redis: Semantics, kind: str) -> None:
    ids = [mixed(on_redis, kind, "ids", n) for n in range(3)]
    result = chain(ids[0].si(), ids[1].si(), ids[2].si()).apply_async()
    third = result.get(timeout=20)
    first, second = result.parent.parent.get(timeout=20), result.parent.get(timeout=20)
    assert first == [result.parent.parent.id, None, first[0]]
    assert second == [result.parent.id, first[0], first[0]]
    assert third == [result.id, second[0], first[0]]
    assert [child.id for child in result.parent.parent.children] == [result.parent.id]
    assert [one.id for one, _ in result.parent.parent.collect(intermediate=True)] == [
        first[0],
        second[0],
        third[0],
    ]


@kinds
def test_a_chain_adds_up(on_redis: Semantics, kind: str) -> None:
    add = [mixed(on_redis, kind, "add", n) for n in range(4)]
    assert chain(add[0].s(1, 2), add[1].s(3), add[2].s(4), add[3].s(5)).apply_async().get(timeout=20) == 15


@kinds
def test_a_long_chain_with_a_chord_in_it_adds_up(on_redis: Semantics, kind: str) -> None:
    add, total = (mixed(on_redis, kind, name, 1) for name in ("add", "total"))
    links = [mixed(on_redis, kind, "add", n).s(n) for n in range(20)]
    canvas = chain(add.s(1, 0), *links, group(add.s(1), add.s(2)), total.s(), *links)
    assert canvas.apply_async().get(timeout=60) == 2 * 191 + 3 + 190


@kinds
def test_a_failure_ends_the_whole_chain_and_tells_its_error_links(on_redis: Semantics, kind: str) -> None:
    add, fail, errback = (mixed(on_redis, kind, name, n) for n, name in enumerate(("add", "fail", "errback")))
    canvas = chain(add.s(1, 2), fail.si("middle"), add.s(3), add.s(4))
    result = canvas.on_error(errback.s()).apply_async()
    with pytest.raises(ValueError, match="middle"):
        result.get(timeout=20)
    eventually(lambda: result.parent.state == states.FAILURE)
    assert result.state == states.FAILURE
    assert isinstance(result.parent.result, ValueError)
    assert result.parent.parent.parent.get(timeout=20) == 3
    eventually(lambda: on_redis.seen(result.parent.parent.id, "errback"))


@kinds
def test_a_group_joins_in_order(on_redis: Semantics, kind: str) -> None:
    result = group(mixed(on_redis, kind, "add", n).s(n, n) for n in range(5)).apply_async()
    assert result.get(timeout=20) == [0, 2, 4, 6, 8]
    assert result.successful()
    assert result.completed_count() == 5


@kinds
def test_a_group_with_a_failure_raises_it(on_redis: Semantics, kind: str) -> None:
    add, fail = mixed(on_redis, kind, "add", 0), mixed(on_redis, kind, "fail", 1)
    result = group(add.s(1, 1), fail.s("one of them")).apply_async()
    with pytest.raises(ValueError, match="one of them"):
        result.get(timeout=20)
    eventually(result.ready)
    assert result.failed()
    assert [type(one) for one in result.join(propagate=False, timeout=20)] == [int, ValueError]


@kinds
def test_a_chord_calls_its_body_with_the_header_in_order(on_redis: Semantics, kind: str) -> None:
    header = [mixed(on_redis, kind, "add", n).s(n, n) for n in range(4)]
    result = chord(header, mixed(on_redis, kind, "total", 0).s()).apply_async()
    assert result.get(timeout=30) == 12
    assert isinstance(result.parent, GroupResult)


@kinds
def test_a_chord_whose_header_fails_fails(on_redis: Semantics, kind: str) -> None:
    add, fail, total = (mixed(on_redis, kind, name, n) for n, name in enumerate(("add", "fail", "total")))
    result = chord([add.s(1, 1), fail.s("header")], total.s()).apply_async()
    on_redis.outcome(result, timeout=30)
    assert result.state == states.FAILURE
    assert "header" in str(result.result)


@kinds
def test_nested_canvas_ends_with_the_right_value(on_redis: Semantics, kind: str) -> None:
    add, total = mixed(on_redis, kind, "add", 0), mixed(on_redis, kind, "total", 1)
    canvas = chain(
        add.s(1, 1), group(add.s(n) for n in range(3)), total.s(), group(add.s(1), chain(add.s(2), add.s(3)))
    )
    assert canvas.apply_async().get(timeout=40) == [10, 14]


@both
@pytest.mark.parametrize(
    ("by", "value"),
    [
        ("task", 5),
        ("another kind", 5),
        ("itself", 5),
        ("chain", 7),
        ("group", [2, 4]),
        ("chord", 6),
    ],
)
def test_a_replaced_task_ends_with_the_value_of_its_replacement(
    on_redis: Semantics, kind: str, by: str, value: Any
) -> None:
    result = on_redis.task(kind, "replace").delay(by)
    assert result.get(timeout=30) == value
    assert result.state == states.SUCCESS


@pytest.mark.parametrize(("by", "value"), [("another kind", 5), ("chain", 7)])
def test_a_replacement_starts_only_when_the_run_waits_for_it(
    on_redis: Semantics, by: str, value: int
) -> None:
    task_id = f"slowly-{by}".replace(" ", "-")
    on_redis.gates.close(f"replace-{task_id}")
    result = on_redis.task("durable", "replace").apply_async((by,), task_id=task_id)
    eventually(lambda: on_redis.tables.state(result.id) == "running")
    received = on_redis.ledger.count("task_received")
    with psycopg.connect(on_redis.tables.url) as slow, slow.transaction():
        slow.execute("select from durable.run where id = %s for update", (result.id,))
        on_redis.gates.open(f"replace-{result.id}")
        eventually(lambda: on_redis.tables.one(WAITING_FOR_A_LOCK))
        assert on_redis.task("plain", "add").delay(1, 1).get(timeout=20) == 2  # whatever was sent has arrived
        assert on_redis.ledger.count("task_received") == received + 1
    assert result.get(timeout=20) == value


@both
@pytest.mark.parametrize(("by", "text"), [("failing", "replaced"), ("failing chain", "in the chain")])
def test_a_replaced_task_fails_as_its_replacement(on_redis: Semantics, kind: str, by: str, text: str) -> None:
    result = on_redis.task(kind, "replace").delay(by)
    with pytest.raises(ValueError, match=text):
        result.get(timeout=30)


@kinds
@pytest.mark.parametrize("by", ["task", "chain", "group"])
def test_what_follows_a_replaced_task_in_a_chain_follows_its_replacement(
    on_redis: Semantics, kind: str, by: str
) -> None:
    record = mixed(on_redis, kind, "record", 1)
    result = chain(mixed(on_redis, kind, "replace", 0).si(by), record.s("after")).apply_async()
    assert result.get(timeout=30) == [{"task": 5, "chain": 7, "group": [2, 4]}[by], "after"]


@both
def test_a_task_replaced_in_a_chord_header_counts_once(on_redis: Semantics, kind: str) -> None:
    replace, add, total = (on_redis.task(kind, name) for name in ("replace", "add", "total"))
    result = chord([replace.si("chain"), add.s(1, 1), replace.si("task")], total.s()).apply_async()
    assert result.get(timeout=40) == 14


@both
def test_map_starmap_and_chunks_call_the_function(on_redis: Semantics, kind: str) -> None:
    add, echo = on_redis.task(kind, "add"), on_redis.task(kind, "echo")
    assert echo.map([1, 2]).apply_async().get(timeout=20) == [[[1], {}], [[2], {}]]
    assert add.starmap([(1, 2), (3, 4)]).apply_async().get(timeout=20) == [3, 7]
    assert add.chunks([(n, n) for n in range(4)], 2).apply_async().get(timeout=20) == [[0, 2], [4, 6]]


@both
def test_tasks_started_by_a_body_are_its_children(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "starts").delay(3)
    started = result.get(timeout=20)
    assert [child.id for child in result.children] == started
    assert [child.get(timeout=20) for child in result.children] == [0, 2, 4]


@both
def test_stamps_reach_every_task_of_a_canvas(on_redis: Semantics, kind: str) -> None:
    about = on_redis.task(kind, "about")
    canvas = chain(about.si(), group(about.si(), about.si()))
    canvas.stamp(customer="seven")
    result = canvas.apply_async()
    for seen in [*result.get(timeout=20), result.parent.get(timeout=20)]:
        assert "customer" in seen["stamped_headers"]
        assert seen["stamps"]["customer"] in ("seven", ["seven"])
