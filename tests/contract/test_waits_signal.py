"""Signals: kept until they are waited for, received in order and once, and no wake-up is ever lost."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from attempting import Killed, Story
from contending import background, changed, in_transaction, keeper, move_clock, wait_until_blocked
from harness.waiting import eventually
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from inspecting import execute
from replaying import inside

import celery_durable as durable
from celery_durable.exceptions import RunCancelled, SerializationError, SignalTimeout
from celery_durable.run import RunState
from celery_durable.seam import Suspended
from celery_durable.store.runs import Finish, Release
from celery_durable.store.waits import WaitStore
from celery_durable.store.writes import Wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store
    from celery_durable.store.signals import Delivery

NOW = timedelta(0)


@pytest.fixture
def story(store: Store) -> Story:
    """Return a run that was enqueued."""
    return Story(store)


def send(story: Story, payload: Any = None, name: str = "approved", **more: Any) -> Delivery:
    return story.store.signals.deliver(story.id, name, json.dumps(payload).encode(), codec="json", **more)


def approved(**options: Any) -> Any:
    return durable.wait_for_signal("approved", **options)


def taken(store: Store) -> list[tuple[Any, str | None]]:
    rows = execute(store, "select payload, taken_by from durable.signal order by key")
    return [(json.loads(row["payload"]), row["taken_by"]) for row in rows]


def test_a_signal_that_was_sent_before_is_received_at_once(story: Story, store: Store) -> None:
    assert send(story, {"by": "ada"}).verdict == "kept"

    assert story.attempt(approved) == {"by": "ada"}
    assert story.attempt(approved) == {"by": "ada"}, "at the replay, too"
    assert taken(store) == [({"by": "ada"}, "wait_for_signal:approved")]


def test_a_signal_wakes_the_run_that_waits_for_it_and_hands_out_its_message(story: Story) -> None:
    story.leaves(approved)
    row = story.row("state, reason, due, awaits, worker")
    assert (row["state"], row["reason"], row["due"], row["awaits"]) == ("waiting", "signal", None, "approved")

    delivery = send(story, 7)

    assert delivery.verdict == "woken"
    assert delivery.wake is not None
    row = story.row("state, reason, due, published_at")
    assert (row["state"], row["reason"]) == ("pending", None)
    assert row["published_at"] is not None
    assert row["due"] > row["now"], "the next look for a lost message"
    assert story.attempt(approved) == 7


def test_signals_of_one_name_are_a_queue_and_each_is_received_once(story: Story) -> None:
    for number in range(3):
        send(story, number)
    send(story, "other", name="rejected")

    def body() -> list[Any]:
        return [approved() for _ in range(4)]

    story.leaves(body)
    assert send(story, 3).verdict == "woken"
    assert story.attempt(body) == [0, 1, 2, 3]


def test_a_signal_of_another_name_wakes_nobody_and_is_kept(story: Story) -> None:
    story.leaves(approved)

    assert send(story, name="rejected").verdict == "kept"
    assert story.row()["state"] == "waiting"
    send(story, 1)
    assert story.attempt(lambda: [approved(), durable.wait_for_signal("rejected")]) == [1, None]


@pytest.mark.parametrize("kind", ["sleep", "retry", "timer"])
def test_a_run_that_waits_for_something_else_is_not_woken(story: Story, store: Store, kind: str) -> None:
    story.leaves(approved)  # leaves the name it waited for behind
    send(story, 1)
    if kind == "sleep":
        story.leaves(lambda: [approved(), durable.sleep(hours=1)])
    elif kind == "retry":
        claim = story.claimed().claim
        store.runs.release(claim.key, claim.fence, Release("retry", timedelta(hours=1), "retry", retries=1))
    else:
        execute(
            store, "update durable.run set state = 'waiting', reason = 'timer', due = now() + interval '1 h'"
        )

    assert send(story, 2).verdict == "kept"
    assert story.row()["state"] == "waiting"


def test_a_timeout_is_the_databases_and_is_the_same_error_at_every_replay(story: Story, store: Store) -> None:
    story.leaves(lambda: approved(timeout=timedelta(days=3)))
    row = story.row("due, claimed_at")
    assert timedelta(days=3) <= row["due"] - row["claimed_at"] < timedelta(days=3, minutes=1)
    move_clock(store, "3 days")
    assert story.wake() == 1

    for _ in range(2):
        with pytest.raises(SignalTimeout, match="'approved' came within 3 days"):
            story.attempt(lambda: approved(timeout=timedelta(days=3)))

    send(story, "too late")

    def body() -> Any:
        try:
            return approved(timeout=timedelta(days=3))
        except SignalTimeout:
            return approved()

    assert story.attempt(body) == "too late"


@pytest.mark.parametrize("timeout", [0, -5, timedelta(days=-1)])
def test_a_timeout_of_nothing_or_less_says_that_no_signal_came_at_once(
    story: Story, store: Store, timeout: Any
) -> None:
    with pytest.raises(SignalTimeout, match=r"^No signal 'approved' came at once$"):
        story.attempt(lambda: approved(timeout=timeout))
    assert execute(store, "select arguments from durable.checkpoint") == [{"arguments": "timeout=0:00:00"}]


def test_a_signal_in_time_wins_over_a_timer_that_has_woken_the_run(story: Story, store: Store) -> None:
    story.leaves(lambda: approved(timeout=60))
    move_clock(store, "2 minutes")
    story.wake()
    send(story, "just in time")

    assert story.attempt(lambda: approved(timeout=60)) == "just in time"


def test_a_crash_does_not_extend_a_timeout(story: Story, store: Store) -> None:
    story.leaves(lambda: approved(timeout=3600))
    due = story.row()["due"]
    move_clock(store, "30 minutes")
    execute(store, "update durable.run set state = 'pending', reason = null")

    story.leaves(lambda: approved(timeout=3600))

    assert story.row()["due"] == due


def test_a_timeout_that_a_retry_of_the_run_puts_aside_begins_anew(story: Story, store: Store) -> None:
    story.leaves(lambda: approved(timeout=60))
    move_clock(store, "2 minutes")
    story.wake()
    execution = story.claimed()
    with pytest.raises(SignalTimeout):
        inside(execution, lambda: approved(timeout=60))
    claim = execution.claim
    store.runs.release(claim.key, claim.fence, Release("retry", NOW, "retry", retries=1, discard="errors"))

    story.leaves(lambda: approved(timeout=60))

    row = story.row()
    assert timedelta(0) < row["due"] - row["now"] <= timedelta(seconds=60)


def test_one_signal_per_idempotency_key_and_name(story: Story, store: Store) -> None:
    verdicts = [
        send(story, 1, once="invoice-17").verdict,
        send(story, 2, once="invoice-17").verdict,
        send(story, 3, once="invoice-18").verdict,
        send(story, 4, once="invoice-17", name="rejected").verdict,
    ]

    assert verdicts == ["kept", "known", "kept", "kept"]
    assert [payload for payload, _ in taken(store)] == [1, 3, 4]


def test_a_signal_sent_again_after_a_lost_answer_hands_out_the_message_again(story: Story) -> None:
    story.leaves(approved)
    first, second = (send(story, 1, once="x") for _ in range(2))

    assert (first.verdict, second.verdict) == ("woken", "known")
    assert first.wake == second.wake


def test_unknown_and_finished_runs_take_no_signal(story: Story, store: Store) -> None:
    send(story, 1, once="before")
    claim = story.claimed().claim
    store.runs.finish(claim.key, claim.fence, Finish(RunState.SUCCEEDED, b"1", "application/json"))

    final, again = send(story, 1), send(story, 1, once="before")
    assert (final.verdict, final.standing) == ("final", "succeeded")
    assert again.verdict == "known"
    assert store.signals.deliver("nobody", "approved", b"1", codec="json").verdict == "unknown"
    assert len(taken(store)) == 1


def test_one_that_is_too_late_by_the_databases_clock_is_not_delivered(story: Story, store: Store) -> None:
    until = story.row()["now"] + timedelta(hours=1)
    assert send(story, until=until).verdict == "kept"
    move_clock(store, "2 hours")

    assert send(story, until=until).verdict == "expired"


def sql(story: Story, call: str) -> Any:
    (row,) = execute(story.store, f"select durable.send_signal({call}) as said")
    return row["said"]


def test_sql_alone_can_send_and_the_keeper_publishes_what_it_wakes(story: Story) -> None:
    story.leaves(approved)

    assert sql(story, f"""'{story.id}', 'approved', '{{"by": "grace \\u00e9"}}'""") == "woken"
    with keeper(story.store) as statements:
        assert [run.id for run in statements.publishable(10)] == [story.id]
    assert story.attempt(approved) == {"by": "grace é"}
    assert sql(story, f"'{story.id}', 'more', 'null', 'k'") == "kept"
    assert sql(story, f"'{story.id}', 'more', null, 'k'") == "known"


def test_sql_is_told_what_is_wrong(story: Story, store: Store) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="No run has the id nobody"):
        sql(story, "'nobody', 'approved', 'null'")
    store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="is over, it is cancelled"):
        sql(story, f"'{story.id}', 'approved', 'null'")


@pytest.mark.parametrize("name", ["''", "null", "repeat('a', 201)", "e'a\\nb'"])
def test_sql_cannot_send_what_no_run_could_wait_for(story: Story, name: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is no name of a signal"):
        sql(story, f"'{story.id}', {name}, 'null'")
    assert sql(story, f"'{story.id}', repeat('a', 200), 'null'") == "kept"


@dataclass
class Approval:
    """A payload with a type."""

    by: str
    until: timedelta


def test_a_payload_comes_back_with_its_type(story: Story) -> None:
    codec, coder = story.claimed()._journal._seam.codec(None)
    story.take_away()
    value = Approval("ada", timedelta(days=1))
    encoded = coder.encode(value, where="signal")
    story.store.signals.deliver(story.id, "approved", encoded, codec=codec)

    assert story.attempt(lambda: approved(type=Approval)) == value


@pytest.mark.parametrize("when", ["kept", "woken"])
def test_plain_json_is_made_the_type_that_is_asked_for(story: Story, when: str) -> None:
    if when == "woken":
        story.leaves(approved)
    send(story, {"by": "ada", "until": 86_400})

    for _ in range(2):
        assert story.attempt(lambda: approved(type=Approval)) == Approval("ada", timedelta(days=1))


def test_a_payload_that_does_not_fit_is_an_error_with_its_place_and_is_not_lost(
    story: Story, store: Store
) -> None:
    send(story, {"by": "ada"})

    for _ in range(2):
        with pytest.raises(SerializationError, match="signal 'approved': value has no field 'until'"):
            story.attempt(lambda: approved(type=Approval))
    assert taken(store) == [({"by": "ada"}, "wait_for_signal:approved")]
    assert story.attempt(lambda: approved(type=dict[str, str])) == {"by": "ada"}, "by code that was mended"


def test_a_process_that_dies_after_it_received_a_signal_has_received_it(story: Story, store: Store) -> None:
    send(story, 1)

    def body() -> Any:
        approved()
        raise Killed

    story.attempt(body)
    assert story.attempt(approved) == 1
    assert len(taken(store)) == 1


def test_a_wait_whose_answer_was_lost_receives_the_same_signal(story: Story, store: Store) -> None:
    for number in range(2):
        send(story, number)
    execution = story.claimed()
    real = execution._journal.runs.waits.leave
    answers: list[Any] = []

    def twice(*args: Any) -> Any:
        answers.extend([real(*args), real(*args)])
        return answers[-1]

    execution._journal.runs.waits.leave = twice  # type: ignore[method-assign]

    assert inside(execution, approved) == 0
    assert answers[0].output == answers[1].output == b"0"
    assert [by for _, by in taken(store)] == ["wait_for_signal:approved", None]


def test_a_superseded_attempt_takes_no_signal(story: Story, store: Store) -> None:
    old = story.claimed()
    story.take_away()
    story.claimed()
    send(story, 1)

    with pytest.raises(durable.LeaseLostError):
        inside(old, approved)
    assert taken(store) == [(1, None)]


def test_a_run_that_is_asked_to_stop_waits_for_no_signal_and_takes_none(story: Story, store: Store) -> None:
    execution = story.claimed()
    store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
    send(story, 1)

    with pytest.raises(RunCancelled):
        inside(execution, approved)
    assert taken(store) == [(1, None)]


def test_what_belongs_to_a_run_goes_with_it(story: Story, store: Store) -> None:
    send(story, 1)
    claim = story.claimed().claim
    store.runs.finish(claim.key, claim.fence, Finish(RunState.SUCCEEDED, b"1", "application/json"))
    store.results.forget(story.id)
    assert taken(store) == []

    other = Story(store)
    send(other, 2)
    claim = other.claimed().claim
    store.runs.finish(claim.key, claim.fence, Finish(RunState.SUCCEEDED, b"1", "application/json"))
    with keeper(store) as statements:
        statements.prune(NOW, 100)
    assert taken(store) == []


# -- two transactions at a time ---------------------------------------------------------------------------


def test_a_wait_that_meets_a_signal_in_an_open_transaction_waits_for_its_commit_and_receives_it(
    story: Story, store: Store
) -> None:
    """A wait and its look for signals in one snapshot would miss it, and nobody would wake the run."""
    with store.connections.dedicated() as sender, sender.transaction():
        sender.execute("select durable.send_signal(%s, 'approved', '1')", (story.id,))
        answer = background(lambda: story.attempt(approved))
        wait_until_blocked(store)

    assert answer.result(20) == 1


def test_a_signal_that_meets_a_run_on_its_way_to_sleep_wakes_it(story: Story, store: Store) -> None:
    """To look for a waiting run, instead of for the run, would miss it."""
    claim = story.claimed().claim
    with in_transaction(store) as runs:
        waits = _waits(runs)
        assert waits.leave(claim.key, claim.fence, _wait()).left
        delivery = background(lambda: send(story, 1))
        wait_until_blocked(store)

    assert delivery.result(20).verdict == "woken"
    assert story.attempt(approved) == 1


# -- any interleaving -------------------------------------------------------------------------------------


@dataclass
class Sender:
    """Sends numbers, each in a statement of its own or in a transaction that it keeps open for a while."""

    name: int
    held: list[bool]

    def run(self, story: Story) -> None:
        with story.store.connections.dedicated() as connection:
            for number, held in enumerate(self.held):
                with connection.transaction():
                    connection.execute(
                        "select durable.send_signal(%s, 'approved', %s)",
                        (story.id, json.dumps([self.name, number])),
                    )
                    if held:
                        connection.execute("select pg_sleep(0.004)")


def play(story: Story, senders: list[Sender], patience: float) -> list[Any]:
    """Let all of them send while the run receives; return what it received."""
    count = sum(len(sender.held) for sender in senders)

    def body() -> list[Any]:
        return [approved() for _ in range(count)]

    sending = [background(lambda sender=sender: sender.run(story)) for sender in senders]
    while True:
        try:
            received: list[Any] = story.attempt(body)
        except Suspended:
            eventually(
                lambda: story.row()["state"] == "pending", timeout=patience, what="somebody to wake the run"
            )
        else:
            for future in sending:
                future.result(20)
            return received


SENDERS = st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=3)


def interleave(store: Store, examples: int, patience: float, *, derandomize: bool = False) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=derandomize,
    )
    @given(SENDERS)
    def test(scripts: list[list[bool]]) -> None:
        story = Story(store)
        senders = [Sender(name, held) for name, held in enumerate(scripts)]
        received = play(story, senders, patience)
        rows = execute(
            store,
            "select s.payload, s.taken_by from durable.signal s join durable.run r on r.key = s.run_key"
            " where r.id = %s order by s.key",
            story.id,
        )
        assert received == [json.loads(row["payload"]) for row in rows], "received in the order of the queue"
        assert all(row["taken_by"] for row in rows)
        for sender in senders:
            mine = [number for name, number in received if name == sender.name]
            assert mine == list(range(len(sender.held))), "each once, and in the order of its sender"

    test()


def test_whatever_the_interleaving_every_signal_is_received_once_in_order_and_wakes_the_run(
    store: Store,
) -> None:
    interleave(store, examples=40, patience=10)


@contextmanager
def planted(store: Store, where: str, change: tuple[str, str]) -> Iterator[None]:
    if where == "function":
        sql = "select pg_get_functiondef('durable.deliver_signal'::regproc) as definition"
        (row,) = execute(store, sql)
        execute(store, changed(row["definition"], change).replace("%", "%%"))
        yield
        execute(store, row["definition"].replace("%", "%%"))
    else:
        waits = store.runs.waits
        waits._sql = {**waits._sql, where: changed(waits._sql[where], change)}
        yield


PLANTED = {
    "a sender that looks for a run that waits": (
        "function",
        ("where r.id = of_run for no key update", "where r.id = of_run"),
    ),
    "a wait that does not lock the run before it looks": ("wait", ("for no key update", "")),
    "a signal that is not taken": ("receive", ("set taken_by = %(key)s", "set taken_by = s.taken_by")),
}


@pytest.mark.parametrize(("where", "change"), PLANTED.values(), ids=PLANTED)
def test_a_lost_wake_up_would_be_noticed(store: Store, where: str, change: tuple[str, str]) -> None:
    with planted(store, where, change), pytest.raises(BaseException):  # noqa: B017, PT011  (whatever notices it)
        interleave(store, examples=300, patience=1, derandomize=True)


# -- by hand ----------------------------------------------------------------------------------------------


def _waits(runs: Any) -> WaitStore:
    return WaitStore(runs._connections, schema="durable", check=timedelta(minutes=1))


def _wait() -> Wait:
    return Wait(
        key="wait_for_signal:approved",
        seq=1,
        kind="signal",
        digest=b"\0" * 16,
        arguments="",
        awaits="approved",
    )
