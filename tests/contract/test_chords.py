"""Chords: parts count once, whoever makes one complete starts its body, and nobody else does."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import background, changed, keeper, move_clock, stalled, together, wait_until_blocked
from inspecting import Worker, execute, open_transaction

from celery_durable.exceptions import LeaseLostError
from celery_durable.run import RunState
from celery_durable.store.runs import Finish, NewRun
from celery_durable.store.writes import Look, Part, PlainMessage

if TYPE_CHECKING:
    from celery_durable.store import Store

CHORD = "group-1"
SUCCESS = Finish(RunState.SUCCEEDED, b"1", "application/json")
BODY = NewRun(id="body-1", task="media.join", queue="celery", priority=None, message=b"{}", body=b"[]")


def part(number: int, *, task_id: str | None = None, state: str = "SUCCESS") -> Part:
    return Part(CHORD, task_id or f"part-{number}", number, state, str(number).encode(), "application/json")


def returned(store: Store, number: int, **options: Any) -> Look:
    return store.chords.part(part(number, **options), uuid.uuid4())


def expected(store: Store, size: int) -> None:
    store.chords.expect(CHORD, b'{"task": "media.join"}', None, "application/json")
    store.chords.resize(CHORD, size, uuid.uuid4())


def stored_parts(store: Store) -> list[str]:
    rows = execute(store, "select task_id from durable.chord_part order by position")
    return [row["task_id"] for row in rows]


def test_the_last_part_makes_a_chord_complete_and_the_ones_before_do_not(store: Store) -> None:
    expected(store, 3)

    assert [returned(store, number).complete for number in range(3)] == [False, False, True]


def test_a_part_that_is_delivered_again_counts_once(store: Store) -> None:
    expected(store, 2)

    assert [returned(store, 0).complete for _ in range(3)] == [False] * 3
    assert returned(store, 1).complete
    assert stored_parts(store) == ["part-0", "part-1"]


def test_two_members_that_share_a_frozen_id_are_two_parts(store: Store) -> None:
    expected(store, 2)

    assert not returned(store, 0, task_id="twin").complete
    assert returned(store, 1, task_id="twin").complete


def test_a_size_that_arrives_after_the_parts_makes_the_chord_complete(store: Store) -> None:
    store.chords.expect(CHORD, b"{}", None, "application/json")
    assert not any(returned(store, number).complete for number in range(2))

    assert store.chords.resize(CHORD, 2, uuid.uuid4()).complete


def test_a_size_that_arrives_before_anything_else_is_kept(store: Store) -> None:
    store.chords.resize(CHORD, 1, uuid.uuid4())
    store.chords.expect(CHORD, b"{}", None, "application/json")

    assert returned(store, 0).complete


def test_a_chord_that_was_extended_waits_for_one_more(store: Store) -> None:
    expected(store, 1)
    store.chords.extend(CHORD)

    assert not returned(store, 0).complete
    assert returned(store, 1).complete


def test_of_two_last_parts_that_commit_together_the_later_one_sees_both(store: Store) -> None:
    # Given a part whose transaction is open when the other one comes, so that neither sees the other's row
    expected(store, 2)
    with open_transaction(store) as first:
        parameters = {**part(0).__dict__, "holder": None, "fence": None}
        first.execute(store.chords._sql["part"], parameters)
        assert not returned(store, 1).complete

    # When it has committed, and looks in a transaction of its own
    assert store.chords.look(CHORD, uuid.uuid4()).complete


def test_of_two_looks_that_see_a_complete_chord_one_gets_the_claim(store: Store) -> None:
    expected(store, 1)
    with open_transaction(store) as first:
        first.execute(store.chords._sql["part"], {**part(0).__dict__, "holder": None, "fence": None})

    with stalled(store) as start:  # both have their snapshot, in which the chord is complete and unclaimed
        looks = [start(lambda other: other.chords.look(CHORD, uuid.uuid4())) for _ in range(2)]

    assert sorted(look.result(10).complete for look in looks) == [False, True]


def test_parts_that_are_returned_all_at_once_complete_a_chord_once(store: Store) -> None:
    expected(store, 8)

    looks = together(*(lambda number=number: returned(store, number) for number in range(8)))  # type: ignore[misc]

    assert sum(look.complete for look in looks) == 1


def test_a_look_that_is_repeated_after_its_answer_was_lost_has_the_claim_still(store: Store) -> None:
    expected(store, 1)
    token = uuid.uuid4()

    assert store.chords.part(part(0), token).complete
    assert store.chords.part(part(0), token).complete
    assert not store.chords.part(part(0), uuid.uuid4()).complete


def test_a_claim_that_ran_out_is_taken_over_and_its_first_holder_starts_nothing(store: Store) -> None:
    expected(store, 1)
    first, second = uuid.uuid4(), uuid.uuid4()
    assert store.chords.part(part(0), first).complete
    assert not store.chords.look(CHORD, second).complete

    move_clock(store, "31 s")
    assert store.chords.look(CHORD, second).complete

    assert store.chords.finish(CHORD, first, [BODY]) is None
    assert store.chords.finish(CHORD, second, [BODY]) == ["pending"]
    assert execute(store, "select id from durable.run") == [{"id": "body-1"}]


def test_the_body_is_stored_with_the_end_of_its_chord_and_once_however_often_that_is_repeated(
    store: Store,
) -> None:
    expected(store, 1)
    token = uuid.uuid4()
    store.chords.part(part(0), token)
    plain = PlainMessage("plain-1", b"{}", b"[]")

    first = store.chords.finish(CHORD, token, [BODY, plain])
    again = store.chords.finish(CHORD, token, [BODY, plain])

    assert first == again
    assert first is not None
    assert first[0] == "pending"
    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 1}]
    assert execute(store, "select count(*) as messages from durable.outbox") == [{"messages": 1}]
    assert stored_parts(store) == []


def test_a_part_that_comes_late_to_a_chord_that_is_done_changes_nothing(store: Store) -> None:
    expected(store, 1)
    token = uuid.uuid4()
    store.chords.part(part(0), token)
    store.chords.finish(CHORD, token)

    assert not returned(store, 0).complete
    assert stored_parts(store) == []


def test_a_frozen_chord_that_is_applied_again_begins_anew(store: Store) -> None:
    expected(store, 1)
    token = uuid.uuid4()
    store.chords.part(part(0), token)
    store.chords.finish(CHORD, token)

    store.chords.expect(CHORD, b"{}", None, "application/json")
    assert not returned(store, 0).complete
    assert store.chords.resize(CHORD, 1, uuid.uuid4()).complete


def test_a_chord_that_is_applied_again_while_it_is_open_keeps_its_parts(store: Store) -> None:
    expected(store, 2)
    returned(store, 0)

    expected(store, 2)

    assert returned(store, 1).complete


# -- many parts -----------------------------------------------------------------------------------------


def test_a_look_counts_a_few_dozen_parts_at_most_however_many_there_are(store: Store) -> None:
    expected(store, 1500)
    longest = 0
    for number in range(1499):
        look = returned(store, number)
        store.chords.add_up(CHORD, look)
        longest = max(longest, look.uncounted)
        assert not look.complete

    assert longest <= 64
    assert returned(store, 1499).complete


def test_parts_that_are_added_up_while_others_are_stored_are_counted_once(store: Store) -> None:
    expected(store, 600)
    for number in range(300):
        returned(store, number)
    long = Look(complete=False, uncounted=256)

    def rest(start: int) -> list[bool]:
        found = []
        for number in range(start, 600, 3):
            look = returned(store, number)
            store.chords.add_up(CHORD, long)
            found.append(look.complete)
        return found

    found = together(*(lambda start=start: rest(start) for start in (300, 301, 302)))  # type: ignore[misc]

    assert sum(map(sum, found)) == 1
    store.chords.add_up(CHORD, long)
    assert execute(store, "select counted from durable.chord") == [{"counted": 600}]


def test_nobody_waits_for_who_adds_up(store: Store) -> None:
    expected(store, 10)
    returned(store, 0)
    with open_transaction(store) as other:
        other.execute("select from durable.chord for update")

        store.chords.add_up(CHORD, Look(complete=False, uncounted=256))
        assert not returned(store, 1).complete

    assert execute(store, "select counted from durable.chord") == [{"counted": 0}]


def test_a_look_between_the_rows_and_the_sum_of_an_addition_is_not_fooled(store: Store) -> None:
    # Given 300 of 301 parts, and an addition that has not committed
    expected(store, 301)
    for number in range(300):
        returned(store, number)
    with open_transaction(store) as adding:
        adding.execute(store.chords._sql["add_up"], {"chord": CHORD})

        # Then who looks meanwhile counts each part once
        assert store.chords.look(CHORD, uuid.uuid4()) == Look(complete=False, uncounted=300)

    assert store.chords.look(CHORD, uuid.uuid4()) == Look(complete=False, uncounted=0)
    assert returned(store, 300).complete


# -- parts of runs --------------------------------------------------------------------------------------


def test_a_run_stores_its_part_with_its_finish(store: Store) -> None:
    expected(store, 1)
    claim = Worker(store).start("part-0")

    finished = store.runs.finish(claim.key, claim.fence, SUCCESS, part=part(0))

    assert finished.chord == Look(
        complete=True, uncounted=1, body=b'{"task": "media.join"}', content_type="application/json"
    )
    assert store.chords.finish(CHORD, claim.fence, [BODY]) == ["pending"]


def test_a_finish_that_is_repeated_after_its_answer_was_lost_has_the_claim_still(store: Store) -> None:
    expected(store, 1)
    claim = Worker(store).start("part-0")
    store.runs.finish(claim.key, claim.fence, SUCCESS, part=part(0))

    again = store.runs.finish(claim.key, claim.fence, SUCCESS, part=part(0))

    assert again.chord is not None
    assert again.chord.complete


def test_a_superseded_attempt_returns_no_part(store: Store) -> None:
    expected(store, 1)
    worker = Worker(store)
    claim = worker.start("part-0")
    execute(store, "update durable.run set fence = gen_random_uuid()")

    with pytest.raises(LeaseLostError):
        store.runs.finish(claim.key, claim.fence, SUCCESS, part=part(0))

    assert stored_parts(store) == []


def test_two_runs_that_finish_together_complete_their_chord_once(store: Store) -> None:
    worker = Worker(store)
    for turn in range(20):
        chord = f"group-{turn}"
        store.chords.expect(chord, b"{}", None, "application/json")
        store.chords.resize(chord, 2, uuid.uuid4())
        claims = [worker.start(f"{chord}-{number}") for number in range(2)]
        parts = [
            Part(chord, claim.id, number, "SUCCESS", b"1", "json") for number, claim in enumerate(claims)
        ]

        finished = together(
            *(
                lambda claim=claim, one=one: store.runs.finish(claim.key, claim.fence, SUCCESS, part=one)  # type: ignore[misc]
                for claim, one in zip(claims, parts, strict=True)
            )
        )

        assert sum(one.chord is not None and one.chord.complete for one in finished) == 1


def test_a_look_in_the_transaction_of_its_part_would_miss_the_other_last_part(store: Store) -> None:
    """What the second transaction of a finish is for."""
    expected(store, 2)
    with open_transaction(store) as first, open_transaction(store) as second:
        for number, connection in enumerate((first, second)):
            sql = store.chords._sql["part"]
            connection.execute(sql, {**part(number).__dict__, "holder": None, "fence": None})
        parameters = {"chord": CHORD, "token": uuid.uuid4(), "lease": timedelta(seconds=30)}
        naive = [one.execute(store.chords._sql["look"], parameters).fetchone() for one in (first, second)]

    assert [look["complete"] for look in naive] == [False, False]
    assert store.chords.look(CHORD, uuid.uuid4()).complete


# -- what is left behind --------------------------------------------------------------------------------


def test_the_leader_looks_at_open_chords_ever_more_rarely(store: Store) -> None:
    expected(store, 2)
    expected_at = []
    for offset in ("50 s", "61 s", "100 s", "10 min", "12 min"):
        move_clock(store, offset)
        with keeper(store) as statements:
            expected_at.append(statements.open_chords(10))

    assert expected_at == [[], [CHORD], [], [CHORD], []]


def test_chords_and_parts_without_one_go_when_they_are_old(store: Store) -> None:
    expected(store, 2)
    returned(store, 0)
    store.chords.part(Part("no chord", "stray", 0, "SUCCESS", b"1", "json"), uuid.uuid4())

    assert store.chords.expire(timedelta(hours=1)) == 0
    assert len(stored_parts(store)) == 2
    move_clock(store, "61 min")
    assert store.chords.expire(timedelta(hours=1)) == 1
    assert stored_parts(store) == []
    assert execute(store, "select id from durable.chord") == []


def test_cancelling_a_run_leaves_a_note_that_its_chord_has_to_be_told(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue("part-0")
    store.inspection.cancel([run_id], operation=uuid.uuid4(), actor="someone", reason=None)
    other = worker.enqueue("part-1", expires=timedelta(seconds=1))
    move_clock(store, "31 s")
    with keeper(store) as statements:
        assert statements.expire(10) == [other]
    third = worker.enqueue("part-2")
    store.runs.revoke(third, token=None, terminated=False)

    move_clock(store, "60 s")
    with keeper(store) as statements:
        told = {run.id: (run.state, run.reason) for run in statements.unreported(10)}

    assert told == {
        run_id: ("cancelled", "cancelled"),
        other: ("cancelled", "expired"),
        third: ("cancelled", "revoked"),
    }


def test_a_claim_without_a_lease_would_keep_a_chord_for_ever(store: Store) -> None:
    expected(store, 1)
    assert store.chords.part(part(0), uuid.uuid4()).complete
    move_clock(store, "1 day")
    naive = changed(store.chords._sql["look"], ("or c.claimed_until <= durable.clock()", ""))
    parameters = {"chord": CHORD, "token": uuid.uuid4(), "lease": timedelta(seconds=30)}

    def look(sql: str) -> Any:
        return store.connections.once(lambda c: c.execute(sql, parameters).fetchone())

    assert not look(naive)["complete"]
    assert look(store.chords._sql["look"])["complete"]


def test_a_part_waits_for_no_other_part_of_its_chord(store: Store) -> None:
    """No counter row: a part whose commit takes its time holds up nobody."""
    expected(store, 3)
    with open_transaction(store) as slow:
        slow.execute(store.chords._sql["part"], {**part(0).__dict__, "holder": None, "fence": None})

        assert not background(lambda: returned(store, 1)).result(10).complete


def test_a_part_that_is_delivered_twice_at_once_waits_for_itself_and_counts_once(store: Store) -> None:
    expected(store, 1)
    with open_transaction(store) as first:
        first.execute(store.chords._sql["part"], {**part(0).__dict__, "holder": None, "fence": None})
        second = background(lambda: returned(store, 0))
        wait_until_blocked(store)

    assert second.result(10).complete
    assert stored_parts(store) == ["part-0"]
