"""A task takes the place of another one: it begins anew, under an id that is the run's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually
from oddities.replacing import LAST

if TYPE_CHECKING:
    from harness.world import World

# A release for other runs stops here, uncommitted, until the test lets it go.
_STOP = """
create or replace function durable.stop() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(4712);
    return new;
end $$;
create trigger stop before update on durable.run for each row
when (new.reason = 'replaced') execute function durable.stop();
"""
_STOPPED = """
select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'
"""


def test_every_page_of_a_task_that_replaces_itself_begins_anew(odd: World) -> None:
    result = odd.send("pages", 1)

    assert result.get(timeout=20) == LAST
    drawn = [entry.detail for entry in odd.ledger.entries("page", run=result.id)]
    assert [(page["page"], page["retries"]) for page in drawn] == [
        (page, retries) for page in range(1, LAST + 1) for retries in (0, 1)
    ]
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert first | {"retries": 1} == second, "a replay of the same page draws the same"
    for name in ("child", "uuid", "now", "key of the run", "key of the step"):
        assert len({page[name] for page in drawn}) == LAST, f"each page has a {name} of its own"
    children = [odd.app.AsyncResult(page["child"]).get(timeout=10) for page in drawn[::2]]
    assert children == ["page 1", "page 2", "page 3"]
    assert odd.ledger.count("fetch", run=result.id) == LAST


def test_the_steps_of_a_task_that_was_replaced_are_no_history_of_its_successor(odd: World) -> None:
    result = odd.send("pages", LAST - 1)

    assert result.get(timeout=20) == LAST
    steps = odd.tables.steps(result.id)
    assert set(steps) == {"delay:plain", "fetch"}
    assert {step["attempt"] for step in steps.values()} == {3}
    assert odd.tables.outcomes(result.id) == ["retry", "replaced", "retry", "succeeded"]


def test_a_plain_task_that_ends_at_once_ends_the_run_it_took_the_place_of(odd: World) -> None:
    odd.tables.rows(_STOP)
    try:
        odd.tables.rows("select pg_advisory_lock(4712)")
        result = odd.send("steps_aside")
        eventually(lambda: odd.tables.one(_STOPPED) == 1, what="the run to be left")
        hurried = odd.ledger.count("body", "hurries")
    finally:
        odd.tables.rows("select pg_advisory_unlock(4712)")
        odd.tables.rows("drop function durable.stop cascade")

    assert result.get(timeout=10) == "done"
    assert odd.tables.wait_for_state(result.id, "succeeded")["finished_at"] is not None
    assert hurried == 0, "it was sent only when the run waited for it"


@pytest.mark.parametrize("before", [(), ("hurries",)], ids=["alone", "behind another"])
def test_a_plain_task_that_ignores_its_result_ends_the_run_it_took_the_place_of(
    odd: World, before: tuple[str, ...]
) -> None:
    result = odd.send("steps_aside", *before, "forgets")

    assert result.get(timeout=20) == "whatever its task says of results"
    assert odd.tables.wait_for_state(result.id, "succeeded")["finished_at"] is not None


@pytest.mark.parametrize(
    ("names", "kind", "told"),
    [
        (["hurries"], "chain", "done"),
        (["forgets"], "chain", "whatever its task says of results"),
        (["hurries", "forgets"], "chain", "whatever its task says of results"),
        (["hurries", "hurries"], "group", ["done", "done"]),
    ],
    ids=["one", "one that forgets", "chain", "group"],
)
def test_what_takes_the_place_of_a_plain_child_ends_it_for_its_parent_and_its_link(
    odd: World, names: list[str], kind: str, told: Any
) -> None:
    before = odd.ledger.count("body", "follows")
    result = odd.send("calls", kind, *names)

    assert result.get(timeout=20) == told
    eventually(lambda: odd.ledger.count("body", "follows") == before + 1, what="its link")
    assert odd.ledger.entries("body", "follows")[-1].detail == {"result": told}
