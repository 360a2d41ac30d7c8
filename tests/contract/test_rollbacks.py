"""Compensations, through Celery's tracer and a real store: every way to end badly, and every place to die."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, signature
from celery.app.trace import build_tracer
from celery.exceptions import WorkerTerminate
from celery.worker.state import revoked, revoked_stamps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inspecting import execute
from kombu.message import Message

import celery_durable as durable
from celery_durable import envelope, hooks
from celery_durable.exceptions import RunStateError, StepUsageError
from celery_durable.operations import Filter, Runs
from celery_durable.operations.compensations import rollback_of
from celery_durable.operations.wording import summary
from celery_durable.plain import register
from celery_durable.request import DurableRequest
from celery_durable.revoking import write_down
from celery_durable.run import RunState
from celery_durable.store.health import HealthStore
from celery_durable.store.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

done: list[str] = []
dies: dict[str, int] = {}
fails: dict[str, int] = {}


class Killed(WorkerTerminate):
    """The pool child ends here."""


def effect(name: str) -> str:
    """Leave a trace; die or fail as often as the test wants."""
    done.append(name)
    if dies.get(name, 0) > 0:
        dies[name] -= 1
        raise Killed
    if fails.get(name, 0) > 0:
        fails[name] -= 1
        message = f"{name} fails"
        raise ValueError(message)
    return name


@durable.step
def book(what: str) -> str:
    return effect(what)


def undo(what: str) -> str:
    return effect(f"undo {what}")


@durable.step(max_retries=3, default_retry_delay=0)
def undo_stubbornly(what: str) -> str:
    return effect(f"undo {what}")


@durable.step(max_retries=3, default_retry_delay=0)
def undo_never(what: str) -> str:
    effect(f"undo {what}")
    raise durable.Fatal(f"{what} cannot be undone")


@durable.step(max_retries=3, default_retry_delay=60)
def undo_patiently(what: str) -> str:
    return effect(f"undo {what}")


@durable.step
async def undo_later(what: str) -> str:
    await asyncio.sleep(0)
    return effect(f"undo {what}")


def travel(undoing: Any = undo) -> str:
    """Book a flight and a hotel, then pay."""
    book("flight")
    durable.on_rollback(undoing, "flight")
    book("hotel")
    durable.on_rollback(undoing, what="hotel")
    return book("pay")


@pytest.fixture(autouse=True)
def _clean() -> None:
    for one in (done, dies, fails):
        one.clear()


class World:
    """An app whose tasks run here, as in a pool child."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.app = Celery("sagas", broker="memory://", backend=f"durable+{store.url}")
        self.app.conf.update(durable_autoretry=False)
        backend: Any = self.app.backend
        backend._store = store
        self.runs = Runs(self.app)
        self.token = hooks.become_worker()
        self.register()

    def register(self) -> None:
        with self.store.connections.dedicated() as connection:
            self.store.keeper(connection).register(self.token, hostname="worker@one", pid=1, version="0")

    def task(self, body: Callable[..., Any], **options: Any) -> Any:
        return self.app.task(body, base=durable.DurableTask, name=str(uuid.uuid4()), **options)

    def deploy(self, body: Callable[..., Any], **options: Any) -> None:
        """Put other code in the place of the task's."""
        name = self.body.name
        self.app.tasks.unregister(name)
        self.body = self.app.task(body, base=durable.DurableTask, name=name, **options)

    def start(self, body: Callable[..., Any], *args: Any, **options: Any) -> str:
        """Send a run and deliver its message once; it may die."""
        self.body = self.task(body, **options)
        self.args = args
        run_id = str(self.body.delay().id)
        self.deliver(run_id)
        return run_id

    def deliver(self, run_id: str) -> None:
        """Execute one message of a run, as a worker that dies where it is told to."""
        trace = build_tracer(self.body.name, self.body, app=self.app, propagate=False)
        headers = {"id": run_id, "task": self.body.name, "durable-run": 0, "delivery_info": {}, "retries": 0}
        with suppress(Killed):
            trace(run_id, list(self.args), {}, headers)

    def lose(self, run_id: str, max_recoveries: int = 10) -> None:
        """The main process sees that the child is gone."""
        self.store.runs.recover_child(
            run_id,
            token=self.token,
            pid=os.getpid(),
            error="SIGKILL",
            max_recoveries=max_recoveries,
            result=b'{"exc_type": "DurableError", "exc_message": ["exhausted"],'
            b' "exc_module": "celery_durable.exceptions"}',
            result_type="application/json",
            budget=5,
        )

    def until_over(self, run_id: str) -> dict[str, Any]:
        """Deliver, and notice each loss, until the run is over."""
        for _ in range(20):
            row = self.row(run_id)
            if row["finished_at"] is not None:
                return row
            if row["worker"] is not None:
                self.lose(run_id)
            self.deliver(run_id)
        raise AssertionError(self.row(run_id))

    def row(self, run_id: str) -> dict[str, Any]:
        (row,) = execute(self.store, "select * from durable.run where id = %s", run_id)
        return row

    def state(self, run_id: str) -> tuple[str, str | None]:
        row = self.row(run_id)
        return row["state"], row["reason"]

    def steps(self, run_id: str) -> dict[str, tuple[str, int]]:
        rows = execute(
            self.store,
            "select key, outcome, tries from durable.checkpoint"
            " where run_key = (select key from durable.run where id = %s) order by seq",
            run_id,
        )
        return {row["key"]: (row["outcome"], row["tries"]) for row in rows}

    def outcome(self, run_id: str) -> Any:
        return self.app.AsyncResult(run_id)


@pytest.fixture
def world(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return an app on the store; the environment is as before at the end."""
    for name in ("CELERY_DURABLE_WORKER", "CELERY_DURABLE_DRAIN"):
        monkeypatch.setenv(name, "")
    made = World(store)
    yield made
    made.app.close()


FORWARD = ["flight", "hotel", "pay"]
BACK = ["undo hotel", "undo flight"]


def test_a_run_that_succeeds_takes_nothing_back(world: World) -> None:
    run = world.start(travel)

    assert world.state(run) == ("succeeded", None)
    assert done == FORWARD


@pytest.mark.parametrize("undoing", [undo, undo_stubbornly, undo_later])
def test_a_run_that_fails_takes_back_its_steps_the_last_one_first(world: World, undoing: Any) -> None:
    fails["pay"] = 1
    run = world.start(travel, undoing)

    assert done == FORWARD + BACK
    assert world.state(run) == ("failed", None)
    name = undoing.__name__
    assert list(world.steps(run)) == ["book", "book#2", "book#3", f"rollback:{name}#2", f"rollback:{name}"]
    result = world.outcome(run)
    assert (result.state, repr(result.result)) == ("FAILURE", "ValueError('pay fails')")
    attempts = execute(world.store, "select outcome from durable.attempt")
    assert [row["outcome"] for row in attempts] == ["failed"]


def test_the_run_is_cancelling_while_it_takes_back(world: World) -> None:
    seen: list[Any] = []

    def looks() -> None:
        seen.append((world.state(run_ids[-1])[0], world.outcome(run_ids[-1]).state))

    run_ids: list[str] = []

    def body() -> None:
        run_ids.append(durable.current_run().id)
        durable.on_rollback(looks)
        message = "no"
        raise ValueError(message)

    run = world.start(body)

    assert seen == [("cancelling", "STARTED")]
    assert world.state(run) == ("failed", None)


async def _tallied(world: World) -> dict[tuple[str, str | None], int]:
    watching = Watching(world.store.url, schema=world.store.settings.schema)
    try:
        rows = await watching.rows("tally", states=[state.value for state in RunState], most=100)
    finally:
        await watching.close()
    return {(row["state"], row["reason"]): row["runs"] for row in rows}


def shown(world: World, run: str) -> set[str]:
    """Return what everybody who looks at a run calls its state."""
    runs = Runs(world.app)
    return {
        runs.get(run).state.value,
        *(one.state.value for one in runs.list().runs),
        *(count.state for count in world.store.inspection.counts()),
        *(count.state for count in world.store.inspection.stats(timedelta(hours=1)).states),
        *(state for state, _ in asyncio.run(_tallied(world))),
        world.store.inspection.resolve(run)[0].state,
        *(word for word in ("pending", "waiting", "cancelling") if runs.list(state=word).runs),
    }


def test_a_run_that_is_cancelled_is_cancelling_for_everybody_until_its_compensations_are_over(
    world: World,
) -> None:
    """It waits for a worker, fails once and waits for its retry, is claimed: nobody sees that it does."""
    seen: list[Any] = []

    def looks() -> None:
        seen.append(shown(world, run))

    fails["undo a"] = 1

    def body() -> None:
        book("a")
        durable.on_rollback(undo_patiently, "a")
        durable.on_rollback(looks)
        durable.sleep(hours=1)

    run = world.start(body)
    assert shown(world, run) == {"waiting"}

    outcome = Runs(world.app).cancel(run)

    assert (outcome.before, outcome.state) == ("waiting", "cancelling")
    assert shown(world, run) == {"cancelling"}
    assert world.state(run) == ("pending", None), "a claim takes nothing else"
    assert world.outcome(run).state == "STARTED"
    assert "rolls back, then it is cancelled; waits for" in summary(Runs(world.app).get(run))
    assert Runs(world.app).cancel(run).changed is False

    world.deliver(run)
    assert seen == [{"cancelling"}]
    assert world.state(run) == ("waiting", "retry")
    assert shown(world, run) == {"cancelling"}
    assert world.outcome(run).state == "STARTED"
    assert "waits for a retry" in summary(Runs(world.app).get(run))
    assert Runs(world.app).list(state="waiting", reason="retry").runs == ()

    Runs(world.app).retry_now_many(Filter(task=Runs(world.app).get(run).task))
    assert shown(world, run) == {"cancelling"}
    world.deliver(run)
    assert shown(world, run) == {"cancelled"}


@pytest.mark.parametrize("place", [*FORWARD, *BACK])
def test_wherever_the_process_dies_each_step_and_each_compensation_is_done_once(
    world: World, place: str
) -> None:
    """The one that it dies in is begun again, like any step."""
    fails["pay"], dies[place] = 1, 1
    run = world.start(travel)
    row = world.until_over(run)

    assert (row["state"], row["reason"]) == ("failed", None)
    expected = FORWARD + BACK
    expected.insert(expected.index(place), place)
    if place == "pay":  # it dies at its first try, and fails at its second
        assert [name for name in done if name != "pay"] == ["flight", "hotel", *BACK]
    else:
        assert done == expected
    assert repr(world.outcome(run).result) == "ValueError('pay fails')"


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    deaths=st.dictionaries(st.sampled_from([*FORWARD, *BACK]), st.integers(1, 2), max_size=4),
    failures=st.dictionaries(st.sampled_from(BACK), st.integers(1, 2), max_size=2),
)
def test_however_often_it_dies_and_fails_everything_is_taken_back_in_order_and_once(
    world: World, deaths: dict[str, int], failures: dict[str, int]
) -> None:
    done.clear()
    dies.clear()
    fails.clear()
    dies.update(deaths)
    fails.update({"pay": 1, **failures})
    run = world.start(travel, undo_stubbornly)
    world.until_over(run)

    in_order = [name for number, name in enumerate(done) if number == 0 or done[number - 1] != name]
    assert in_order == FORWARD + BACK
    for name in FORWARD + BACK:
        tries = deaths.get(name, 0) + failures.get(name, 0) + 1
        assert done.count(name) == tries
    assert world.state(run) == ("failed", None)


def test_a_failure_that_would_not_happen_again_is_not_forgotten_in_a_crash(world: World) -> None:
    """The body raised between its steps, for a reason that is gone at the replay."""
    moods = ["bad"]

    def moody() -> str:
        book("flight")
        durable.on_rollback(undo, "flight")
        if moods:
            moods.pop()
            message = "bad mood"
            raise ValueError(message)
        durable.on_rollback(undo, "what was never done")
        return book("pay")

    dies["undo flight"] = 1
    run = world.start(moody)
    world.until_over(run)

    assert done == ["flight", "undo flight", "undo flight"]
    assert world.state(run) == ("failed", None)
    assert repr(world.outcome(run).result) == "ValueError('bad mood')"


def test_compensations_have_their_own_retries(world: World) -> None:
    fails.update({"pay": 1, "undo hotel": 2})
    run = world.start(travel, undo_stubbornly)

    assert done == [*FORWARD, "undo hotel", "undo hotel", "undo hotel", "undo flight"]
    assert world.steps(run)["rollback:undo_stubbornly#2"] == ("ok", 3)
    assert world.state(run) == ("failed", None)


def test_a_compensation_that_waits_for_its_retry_leaves_the_worker_and_goes_on(world: World) -> None:
    fails.update({"pay": 1, "undo hotel": 1})
    run = world.start(travel, undo_patiently)

    row = world.row(run)
    assert (row["state"], row["reason"], row["ending"]) == ("waiting", "retry", "failed")
    execute(world.store, "update durable.run set due = now() where id = %s", run)
    with world.store.connections.dedicated() as connection:
        assert world.store.keeper(connection).wake(10)
    world.deliver(run)

    assert done == [*FORWARD, "undo hotel", "undo hotel", "undo flight"]
    assert world.state(run) == ("failed", None)


def test_a_compensation_that_fails_for_good_is_for_the_operator_who_resumes_the_rest(world: World) -> None:
    fails.update({"pay": 1, "undo hotel": 1})
    run = world.start(travel)

    assert done == [*FORWARD, "undo hotel"]
    assert world.state(run) == ("failed", "rollback")
    assert repr(world.outcome(run).result) == "ValueError('pay fails')"
    assert "undo hotel fails" in (world.runs.get(run).error or "")

    assert world.runs.resume(run).state == "pending"
    world.deliver(run)

    assert done == [*FORWARD, "undo hotel", *BACK]
    assert world.state(run) == ("failed", None)
    assert world.runs.get(run).error == "ValueError: pay fails"  # and no other one's


def test_a_compensation_that_raises_fatal_is_not_tried_again(world: World) -> None:
    fails.update({"pay": 1})
    run = world.start(travel, undo_never)

    assert done == [*FORWARD, "undo hotel"]
    assert world.state(run) == ("failed", "rollback")
    assert "hotel cannot be undone" in (world.runs.get(run).error or "")


def test_what_went_wrong_is_told_with_a_run_that_was_taken_back(world: World) -> None:
    fails.update({"pay": 1})
    run = world.start(travel)

    (listed,) = world.runs.list().runs
    assert (world.state(run), listed.error) == (("failed", None), "ValueError: pay fails")
    assert "in travel" in (world.runs.get(run).attempts[0].traceback or "")
    assert repr(world.outcome(run).result) == "ValueError('pay fails')"


def test_what_was_taken_back_cannot_be_resumed(world: World) -> None:
    fails["pay"] = 1
    run = world.start(travel)

    with pytest.raises(RunStateError, match="taken back; start another run, or fork it"):
        world.runs.resume(run)
    assert world.state(run) == ("failed", None)
    assert world.runs.fork(run, dry_run=True).taken_back


def test_a_run_that_retries_keeps_what_it_has(world: World) -> None:
    fails["pay"] = 1

    def retrying(self: Any) -> str:
        try:
            return travel()
        except ValueError as error:
            raise self.retry(exc=error, countdown=0) from error

    world.body, world.args = world.task(retrying, bind=True, max_retries=1), ()
    run = str(world.body.delay().id)
    world.until_over(run)

    assert world.state(run) == ("succeeded", None)
    assert done == [*FORWARD, "pay"]


def test_a_step_error_that_the_body_caught_is_no_reason_to_take_back(world: World) -> None:
    fails["pay"] = 1

    def catching() -> str:
        with suppress(ValueError):
            travel()
        return "found another way"

    run = world.start(catching)
    assert world.state(run) == ("succeeded", None)
    assert done == FORWARD


# -- ended from outside -----------------------------------------------------------------------------------


def sleeping() -> None:
    """Book, then wait."""
    book("flight")
    durable.on_rollback(undo, "flight")
    durable.sleep(3600)
    book("pay")


def test_a_waiting_run_that_is_cancelled_takes_back_what_it_has_done(world: World) -> None:
    run = world.start(sleeping)
    assert world.state(run) == ("waiting", "sleep")

    outcome = world.runs.cancel(run)
    assert (outcome.changed, str(outcome.state)) == (True, "cancelling")
    row = world.row(run)
    assert (row["ending"], row["due"] is not None) == ("cancelled", True)
    world.deliver(run)

    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")
    assert world.outcome(run).state == "REVOKED"


def test_a_waiting_run_without_compensations_that_is_cancelled_ends_at_once(world: World) -> None:
    def plain() -> None:
        book("flight")
        durable.sleep(3600)

    run = world.start(plain)
    assert str(world.runs.cancel(run).state) == "cancelled"
    assert world.state(run) == ("cancelled", "cancelled")


def test_so_does_one_that_is_revoked(world: World) -> None:
    run = world.start(sleeping)
    world.store.runs.revoke(run, token=None, terminated=False)
    world.deliver(run)

    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "revoked")


def test_a_worker_that_has_heard_of_a_revoke_lets_the_run_take_back_what_it_has_done(world: World) -> None:
    """It would refuse the run's message, the keeper send it again, and so on for ever."""
    run = world.start(sleeping)
    request = received(world, run)
    revoked.add(run)
    write_down(world.app, [run])
    assert world.row(run)["ending"] == "cancelled"

    assert not request.revoked()

    world.deliver(run)
    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "revoked")
    revoked.add(run)
    assert received(world, run).revoked()
    revoked.discard(run)


def test_nor_does_one_that_revokes_by_stamps_refuse_it(world: World) -> None:
    run = world.start(sleeping)
    headers = {"stamped_headers": ["customer"], "stamps": {"customer": ["gone"]}}
    revoked_stamps["customer"] = ["gone"]
    try:
        assert received(world, run, **headers).revoked()
        assert world.row(run)["ending"] == "cancelled"

        assert not received(world, run, **headers).revoked()
    finally:
        del revoked_stamps["customer"]

    world.deliver(run)
    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "revoked")


def received(world: World, run_id: str, **headers: Any) -> DurableRequest:
    """Return a run's message as a worker's main process has it."""
    stored = world.row(run_id)
    message: Any = Message(
        body=bytes(stored["body"]),
        headers={**envelope.headers_of(bytes(stored["message"])), **headers},
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={},
    )
    return DurableRequest(message, app=world.app, task=world.body, hostname="worker@one", utc=True)


def test_a_running_run_that_is_cancelled_cleans_up_and_takes_back(world: World) -> None:
    def cancelled() -> None:
        book("flight")
        durable.on_rollback(undo, "flight")
        world.runs.cancel(durable.current_run().id)
        try:
            book("told by its checkpoint")
            book("never")
        except durable.RunCancelled:
            book("clean up")
            raise

    dies["undo flight"] = 1
    run = world.start(cancelled)
    world.until_over(run)

    assert done == ["flight", "told by its checkpoint", "clean up", "undo flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


@durable.step(max_retries=3, default_retry_delay=60)
def give_back(what: str) -> str:
    return effect(f"give back {what}")


def reserved(world: World) -> Callable[[], None]:
    """Return a body that is cancelled while it works, and gives back what it has reserved."""

    def body() -> None:
        book("flight")
        if "told by its checkpoint" not in done:
            world.runs.cancel(durable.current_run().id)
        try:
            book("told by its checkpoint")
            book("never")
        except durable.RunCancelled:
            give_back("flight")
            book("close")
            raise

    return body


CLEANED = ["flight", "told by its checkpoint", "give back flight", "close"]


def test_a_run_that_has_cleaned_up_cannot_be_resumed(world: World) -> None:
    """It would go on from checkpoints that say of something that it is done, and it is given back."""
    run = world.start(reserved(world))

    assert done == CLEANED
    with pytest.raises(RunStateError, match="taken back, or cleaned up"):
        world.runs.resume(run)
    assert world.runs.fork(run, dry_run=True).taken_back
    assert world.state(run) == ("cancelled", "cancelled")


def test_neither_can_one_whose_clean_up_was_only_replayed_by_its_last_attempt(world: World) -> None:
    dies["close"] = 1
    run = world.start(reserved(world))
    world.lose(run)

    def only_gives_back() -> None:
        book("flight")
        try:
            book("told by its checkpoint")
            book("never")
        except durable.RunCancelled:
            give_back("flight")
            raise

    world.deploy(only_gives_back)
    world.deliver(run)

    assert world.state(run) == ("cancelled", "cancelled")
    with pytest.raises(RunStateError, match="cleaned up"):
        world.runs.resume(run)


def test_a_run_that_was_told_to_stop_and_did_nothing_more_is_resumed(world: World) -> None:
    def stops() -> str:
        book("flight")
        if "told by its checkpoint" not in done:
            world.runs.cancel(durable.current_run().id)
        book("told by its checkpoint")
        return book("pay")

    run = world.start(stops)
    assert world.state(run) == ("cancelled", "cancelled")

    world.runs.resume(run)
    world.deliver(run)

    assert done == ["flight", "told by its checkpoint", "pay"]
    assert world.state(run) == ("succeeded", None)


def test_a_clean_up_waits_for_its_retry_off_the_worker_and_goes_on(world: World) -> None:
    fails["give back flight"] = 1
    run = world.start(reserved(world))

    assert world.row(run)["state"] == "waiting"
    assert world.runs.get(run).state is RunState.CANCELLING
    world.runs.cancel(run)
    assert world.runs.get(run).state is RunState.CANCELLING, "it is on its way already"
    execute(world.store, "update durable.run set state = 'pending', reason = null, due = now()")
    world.deliver(run)

    assert done == [*CLEANED[:3], *CLEANED[2:]]
    assert world.state(run) == ("cancelled", "cancelled")
    assert world.runs.get(run).rollbacks == []
    with pytest.raises(RunStateError, match="cleaned up"):
        world.runs.resume(run)


def test_a_clean_up_that_fails_behind_its_retries_is_no_clean_end(world: World) -> None:
    fails["give back flight"] = 4
    run = world.start(reserved(world))
    while world.row(run)["finished_at"] is None:
        execute(world.store, "update durable.run set state = 'pending', reason = null, due = now()")
        world.deliver(run)

    assert world.state(run) == ("failed", None)
    assert repr(world.outcome(run).result) == "ValueError('give back flight fails')"
    with pytest.raises(RunStateError, match="taken back"):
        world.runs.resume(run)


def test_a_clean_up_goes_on_elsewhere_when_its_worker_shuts_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> None:
        book("flight")
        if "told by its checkpoint" not in done:
            world.runs.cancel(durable.current_run().id)
        try:
            book("told by its checkpoint")
            book("never")
        except durable.RunCancelled:
            monkeypatch.setattr("celery_durable.attempt.hooks.draining", lambda: "drained" not in done)
            book("give back")
            raise

    run = world.start(body)
    assert world.runs.get(run).state is RunState.CANCELLING
    done.append("drained")
    world.deliver(run)

    assert done == ["flight", "told by its checkpoint", "drained", "give back"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_what_a_run_was_cancelled_for_is_its_reason_whoever_notices_it(world: World) -> None:
    def body() -> None:
        book("flight")
        world.store.inspection.cancel(
            [durable.current_run().id], operation=uuid.uuid4(), actor=None, reason=None, cause="deadline"
        )
        effect("between steps")
        book("told by its checkpoint")
        book("never")

    told = world.start(body)
    dies["between steps"] = 1
    lost = world.start(body)
    world.lose(lost)
    world.deliver(lost)

    assert world.state(told) == world.state(lost) == ("cancelled", "deadline")
    assert str(world.outcome(lost).result) == "deadline"


def test_a_run_that_is_cancelled_while_it_waits_for_a_retry_tells_of_that_and_not_of_its_last_error(
    world: World,
) -> None:
    def retries(self: Any) -> None:
        raise self.retry(exc=ValueError("no"), countdown=60)

    run = str(world.task(retries, bind=True).delay().id)
    world.body = world.app.tasks[world.row(run)["task"]]
    world.args = ()
    world.deliver(run)
    assert world.row(run)["reason"] == "retry"
    world.runs.cancel(run)

    assert repr(world.outcome(run).result) == "TaskRevokedError('cancelled')"


def test_a_replay_that_was_to_find_out_what_there_is_to_take_back_is_given_up_if_asked_twice(
    world: World,
) -> None:
    """As one hangs that hung between its steps: nobody else could end it."""

    def hangs() -> None:
        book("flight")
        effect("between steps")

    dies["between steps"] = 2
    run = world.start(hangs)
    world.runs.cancel(run)
    world.store.runs.revoke(run, token=world.token, terminated=True)
    assert world.runs.get(run).state is RunState.CANCELLING
    world.deliver(run)
    world.store.runs.revoke(run, token=world.token, terminated=True)  # as a late message would
    assert world.runs.get(run).state is RunState.CANCELLING
    dies["between steps"] = 1
    world.deliver(run)
    world.store.inspection.cancel(
        [run], operation=uuid.uuid4(), actor="ada", reason="it hangs", terminate=True
    )
    world.store.runs.revoke(run, token=world.token, terminated=True)

    assert world.state(run) == ("cancelled", "cancelled")
    assert "gives up" in [event.kind for event in world.runs.get(run).events]
    dies.clear()
    world.runs.resume(run)
    world.deliver(run)
    assert world.state(run) == ("succeeded", None)


def test_a_cancelled_run_whose_compensation_fails_has_failed_and_ends_cancelled_when_resumed(
    world: World,
) -> None:
    fails["undo flight"] = 1
    run = world.start(sleeping)
    world.runs.cancel(run)
    world.deliver(run)

    assert world.state(run) == ("failed", "rollback")
    assert type(world.outcome(run).result).__name__ == "RollbackError"
    world.runs.resume(run)
    world.deliver(run)

    assert done == ["flight", "undo flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_a_run_that_is_exhausted_takes_back_what_its_replay_registers(world: World) -> None:
    """The store does not know of it: nothing was written behind the last on_rollback."""
    dies["pay"] = 9
    run = world.start(travel)
    for recoveries in range(3):
        world.lose(run, max_recoveries=2)
        if recoveries < 2:
            world.deliver(run)
    assert world.row(run)["ending"] == "failed"
    world.deliver(run)

    assert done == ["flight", "hotel", "pay", "pay", "pay", *BACK]
    assert world.state(run) == ("failed", "exhausted")
    assert world.row(run)["recoveries"] == 3
    assert "exhausted" in str(world.outcome(run).result)


def test_an_exhausted_run_without_compensations_is_asked_and_stays_resumable(world: World) -> None:
    def plain() -> str:
        book("flight")
        return book("pay")

    dies["pay"] = 1
    run = world.start(plain)
    world.lose(run, max_recoveries=0)
    assert world.row(run)["ending"] == "failed"
    world.deliver(run)
    assert world.state(run) == ("failed", "exhausted")

    world.runs.resume(run)
    world.deliver(run)
    assert world.state(run) == ("succeeded", None)
    assert done == ["flight", "pay", "pay"]


def test_a_run_whose_replay_is_lost_as_it_was_itself_is_exhausted_and_can_be_resumed(world: World) -> None:
    """It kills its worker between its steps: nobody can find out whether it has something to take back."""

    def poison() -> str:
        book("flight")
        return effect("between steps")

    dies["between steps"] = 4
    run = world.start(poison)
    for _ in range(4):
        world.lose(run, max_recoveries=1)
        world.deliver(run)

    assert world.state(run) == ("failed", "exhausted")
    assert "exhausted" in str(world.outcome(run).result)
    assert world.row(run)["recoveries"] == 4
    assert "gives up" in [event.kind for event in world.runs.get(run).events]
    world.runs.resume(run)
    world.deliver(run)
    assert world.state(run) == ("succeeded", None)


def test_an_exhausted_run_without_finished_steps_ends_at_once(world: World) -> None:
    dies["flight"] = 1
    run = world.start(travel)
    world.lose(run, max_recoveries=0)

    assert world.state(run) == ("failed", "exhausted")


def prudent() -> str:
    """Say what takes a step back in front of it: it may have done something though it fails."""
    durable.on_rollback(undo, "flight")
    effect("between")
    return book("flight")


def test_what_is_registered_in_front_of_the_first_step_is_taken_back_when_that_is_exhausted(
    world: World,
) -> None:
    dies["flight"] = 1
    run = world.start(prudent)
    world.lose(run, max_recoveries=0)
    world.deliver(run)

    assert world.state(run) == ("failed", "exhausted")
    assert done == ["between", "flight", "between", "undo flight"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_so_it_is_when_the_run_is_ended_from_outside_during_that_step(world: World, attempts: int) -> None:
    """Also if the attempt behind it dies before it comes to it."""
    dies["flight"] = 1
    run = world.start(prudent)
    world.lose(run)
    if attempts == 2:
        dies["between"] = 1
        world.deliver(run)
        world.lose(run)
    assert str(world.runs.cancel(run).state) == "cancelling"
    world.until_over(run)

    assert world.state(run) == ("cancelled", "cancelled")
    assert done[-1] == "undo flight"


def test_what_a_failed_attempt_did_not_come_to_again_is_taken_back_all_the_same(world: World) -> None:
    """Its retry waits, and is cancelled meanwhile: the attempt before had registered something."""

    def body(self: Any) -> str:
        try:
            effect("start")
        except ValueError as error:
            raise self.retry(exc=error, countdown=3600) from error
        book("flight")
        durable.on_rollback(undo, "flight")
        return book("hotel")

    dies["hotel"] = 1
    run = world.start(body, bind=True)
    fails["start"] = 1
    world.lose(run)
    world.deliver(run)
    assert world.state(run) == ("waiting", "retry")
    world.runs.cancel(run)
    world.until_over(run)
    assert done[-1] == "undo flight"


def test_a_step_in_flight_as_another_branch_waits_is_taken_back(world: World) -> None:
    """It is finished, and nobody has heard of it when the run leaves its worker."""

    @durable.step
    async def reserve(what: str) -> str:
        await asyncio.sleep(0.05)
        return effect(what)

    async def books() -> None:
        await asyncio.gather(reserve("flight"))
        durable.on_rollback(undo, "flight")

    async def waits() -> None:
        await asyncio.sleep(0.01)
        durable.sleep(3600)

    async def body() -> None:
        await asyncio.gather(books(), waits())

    run = world.start(body)
    assert world.state(run) == ("waiting", "sleep")
    assert done == ["flight"]
    world.runs.cancel(run)
    world.until_over(run)
    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_a_worker_that_dies_too_often_while_it_takes_back_leaves_it_to_the_operator(world: World) -> None:
    fails["pay"], dies["undo hotel"] = 1, 9
    run = world.start(travel)
    for _ in range(3):
        world.lose(run, max_recoveries=2)
        world.deliver(run)

    assert world.state(run) == ("failed", "rollback")
    assert repr(world.outcome(run).result) == "ValueError('pay fails')"
    dies.clear()
    world.runs.resume(run)
    world.deliver(run)
    assert world.state(run) == ("failed", None)
    assert done[-2:] == BACK


def test_a_cancelled_run_that_kills_its_worker_while_it_takes_back_is_left_to_the_operator_too(
    world: World,
) -> None:
    def cancelled() -> None:
        book("flight")
        durable.on_rollback(undo, "flight")
        world.runs.cancel(durable.current_run().id)
        book("told by its checkpoint")
        book("never")

    dies["undo flight"] = 9
    run = world.start(cancelled)
    assert world.row(run)["cancel_requested"]
    for _ in range(3):
        world.lose(run, max_recoveries=2)
        world.deliver(run)

    assert world.state(run) == ("failed", "rollback")
    assert done.count("undo flight") == 3
    dies.clear()
    world.runs.resume(run)
    world.deliver(run)
    assert world.state(run) == ("cancelled", "cancelled")


def test_so_is_one_whose_whole_worker_is_lost(world: World) -> None:
    def cancelled() -> None:
        book("flight")
        durable.on_rollback(undo, "flight")
        world.runs.cancel(durable.current_run().id)
        book("told by its checkpoint")
        book("never")

    dies["undo flight"] = 1
    run = world.start(cancelled)
    execute(world.store, "delete from durable.worker")
    other = uuid.uuid4()
    with world.store.connections.dedicated() as connection:
        keeper = world.store.keeper(connection)
        keeper.register(other, hostname="other", pid=2, version="0")
        term = keeper.lead(other, timedelta(minutes=1)).term
        assert term is not None
        keeper.recover_orphans(term, limit=10, max_recoveries=0, result=b"{}", result_type="application/json")

    assert world.state(run) == ("failed", "rollback")


def test_what_a_resumed_run_has_done_before_is_taken_back_when_it_is_cancelled_before_its_claim(
    world: World,
) -> None:
    changed: list[str] = []

    def changing() -> None:
        book("flight")
        durable.on_rollback(undo, "flight")
        if not changed:
            changed.append("the code")
            message = "the code is another one"
            raise durable.NondeterminismError(message)

    run = world.start(changing)
    assert world.state(run) == ("failed", "NondeterminismError")
    assert "what stands: 'book'." in str(world.outcome(run).result)
    assert done == ["flight"]
    world.runs.resume(run)
    world.runs.cancel(run)
    world.deliver(run)

    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_the_keeper_and_a_clean_shutdown_hand_on_a_run_that_takes_back(world: World) -> None:
    fails["pay"], dies["undo hotel"] = 1, 2
    run = world.start(travel)
    with world.store.connections.dedicated() as connection:
        assert world.store.keeper(connection).retire(world.token) == [run]
    assert world.row(run)["ending"] == "failed"
    world.register()
    world.deliver(run)
    execute(world.store, "delete from durable.worker")
    world.register()
    other = uuid.uuid4()
    with world.store.connections.dedicated() as connection:
        keeper = world.store.keeper(connection)
        keeper.register(other, hostname="other", pid=2, version="0")
        term = keeper.lead(other, timedelta(minutes=1)).term
        assert term is not None
        (recovered,) = keeper.recover_orphans(
            term, limit=10, max_recoveries=5, result=b"{}", result_type="application/json"
        )
        assert (recovered.id, recovered.state) == (run, "pending")
        assert [stored.id for stored in keeper.publishable(10)] == [run]
    world.deliver(run)

    assert done == [*FORWARD, "undo hotel", "undo hotel", *BACK]
    assert world.state(run) == ("failed", None)


def test_a_cancel_of_a_run_that_takes_back_changes_nothing(world: World) -> None:
    fails["pay"], dies["undo hotel"] = 1, 1
    run = world.start(travel)
    world.runs.cancel(run)
    world.lose(run)
    world.runs.cancel(run)
    world.deliver(run)

    assert done == [*FORWARD, "undo hotel", *BACK]
    assert world.state(run) == ("failed", None)


def test_a_worker_that_drains_leaves_a_run_that_takes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails["pay"] = 1

    drains: list[bool] = []
    monkeypatch.setattr("celery_durable.attempt.hooks.draining", lambda: bool(drains))

    def draining(what: str) -> None:
        effect(f"undo {what}")
        drains.append(True)

    run = world.start(travel, draining)
    assert done == [*FORWARD, "undo hotel"]
    assert world.state(run) == ("pending", None)
    drains.clear()
    world.deliver(run)

    assert done == FORWARD + BACK
    assert world.state(run) == ("failed", None)


# -- the code changed ---------------------------------------------------------------------------------------


def misconfigured() -> None:
    raise KeyError("config is gone")


def asks_for_more(more: str) -> None:
    sleeping()
    book(more)


def ends_early() -> None:
    book("flight")


def inserts_a_step() -> None:
    book.options(name="insure")("flight")
    sleeping()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (misconfigured, "raised KeyError: 'config is gone', before it came to 'book'"),
        (asks_for_more, "1 required positional argument: 'more', before it came to 'book'"),
        (ends_early, "returned before it came to 'sleep'"),
        (inserts_a_step, "came to something new before it came to 'book'"),
    ],
)
def test_a_cancelled_run_whose_replay_ends_early_says_what_stands_and_why(
    world: World, changed: Callable[..., None], why: str
) -> None:
    run = world.start(sleeping)
    world.runs.cancel(run)
    world.deploy(changed)
    world.deliver(run)

    assert done == ["flight"]
    assert world.state(run) == ("failed", "rollback")
    problem = world.outcome(run).result
    assert type(problem).__name__ == "RollbackError"
    assert why in str(problem)
    assert "Nothing is taken back; what stands: 'book'." in str(problem)
    assert f"durable resume {run}" in str(problem)
    view = world.runs.get(run)
    assert view.attempts[-1].error == f"RollbackError: {problem}"
    found = rollback_of(view)
    assert found is not None
    assert "could not be found out" in found.sentence

    world.deploy(sleeping)
    world.runs.resume(run)
    world.deliver(run)
    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_branches_that_wait_take_back_what_each_has_done(world: World) -> None:
    async def branch(what: str) -> None:
        book(what)
        durable.on_rollback(undo, what)
        durable.wait_for_signal(what)

    async def branches() -> None:
        await asyncio.gather(*(branch(what) for what in ("flight", "hotel", "car")))

    run = world.start(branches)  # the first one waits; the others have not come to their step
    world.runs.cancel(run)
    world.deliver(run)
    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")

    done.clear()
    run = world.start(branches)
    durable.send_signal(run, "flight", app=world.app)
    world.deliver(run)
    durable.send_signal(run, "hotel", app=world.app)
    world.deliver(run)
    world.runs.cancel(run)
    world.deliver(run)
    assert done == ["flight", "hotel", "car", "undo car", "undo hotel", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_a_cancelled_run_whose_body_raises_at_its_end_is_taken_back(world: World) -> None:
    """The replay came by all that is stored: nothing can have been registered behind that."""

    def cleans_up() -> None:
        try:
            sleeping()
        except durable.RunCancelled:
            raise ValueError("as it always did") from None

    run = world.start(cleans_up)
    world.runs.cancel(run)
    world.deliver(run)

    assert done == ["flight", "undo flight"]
    assert world.state(run) == ("cancelled", "cancelled")


def test_what_a_replay_had_registered_when_it_left_its_history_is_not_taken_for_all_of_it(
    world: World,
) -> None:
    def longer() -> None:
        book("flight")
        durable.on_rollback(undo, "flight")
        book("hotel")
        durable.on_rollback(undo, "hotel")
        durable.sleep(3600)

    def other() -> None:
        book("flight")
        durable.on_rollback(undo, "flight")
        book("another hotel")

    run = world.start(longer)
    world.runs.cancel(run)
    world.deploy(other)
    world.deliver(run)
    assert world.state(run) == ("failed", "rollback")
    assert done == ["flight", "hotel"]

    world.deploy(longer)
    world.runs.resume(run)
    world.deliver(run)
    assert done == ["flight", "hotel", *BACK]


def test_a_run_that_does_not_fit_its_parameters_any_more_fails_with_that_and_says_what_stands(
    world: World,
) -> None:
    run = world.start(sleeping)
    world.deploy(asks_for_more, autoretry_for=(Exception,), max_retries=3)
    execute(
        world.store,
        "update durable.run set state = 'pending', reason = null, due = now() where id = %s returning key",
        run,
    )
    world.deliver(run)

    error = world.outcome(run).result
    assert type(error) is TypeError
    assert "missing 1 required positional argument: 'more'" in str(error)
    told = world.runs.get(run).attempts[-1].error
    assert told is not None
    assert told.startswith("TypeError: ")
    assert told.endswith("Nothing is taken back; what stands: 'book'")


# -- what one must not do ---------------------------------------------------------------------------------


def test_a_body_that_left_its_history_takes_nothing_back(world: World) -> None:
    """The code changed: that is mended and the run resumed."""
    bodies = [travel]

    def changing() -> Any:
        return bodies[-1]()

    dies["pay"] = 1
    run = world.start(changing)
    world.lose(run)

    def other() -> None:
        durable.on_rollback(undo, "another flight")
        book("another flight")

    bodies.append(other)  # type: ignore[arg-type]
    world.deliver(run)

    assert world.state(run) == ("failed", "NondeterminismError")
    assert "undo" not in " ".join(done)
    error = world.outcome(run).result
    assert "Nothing is taken back; what stands: 'book', 'book#2'. Mend the code and resume" in str(error)
    bodies.append(travel)
    world.runs.resume(run)
    world.runs.cancel(run)
    world.deliver(run)
    assert world.state(run) == ("cancelled", "cancelled")
    assert done[-2:] == ["undo hotel", "undo flight"]


def test_a_body_that_has_registered_nothing_and_left_its_history_says_what_stands_and_no_more(
    world: World,
) -> None:
    changed: list[str] = []

    def changing() -> None:
        book("hotel" if changed else "flight")
        durable.sleep(hours=1)

    run = world.start(changing)
    changed.append("the code")
    execute(
        world.store,
        "update durable.run set state = 'pending', reason = null, due = now() where id = %s returning key",
        run,
    )
    world.deliver(run)

    assert world.state(run) == ("failed", "NondeterminismError")
    told = str(world.outcome(run).result).splitlines()[-1]
    assert told == "What stands: 'book'. Mend the code and resume the run"


def test_registering_in_a_step_is_refused_and_outside_of_a_run_does_nothing(world: World) -> None:
    @durable.step
    def registers() -> None:
        durable.on_rollback(undo, "x")

    run = world.start(registers.function)
    assert world.state(run) == ("succeeded", None)

    def calls() -> None:
        registers()

    failed = world.start(calls)
    assert isinstance(world.outcome(failed).result, StepUsageError)
    durable.on_rollback(undo, "outside")
    assert done == []


def test_a_partial_takes_back_under_the_name_and_with_the_options_of_its_function(world: World) -> None:
    fails["undo b"] = 2  # the step has retries

    def body() -> None:
        durable.on_rollback(functools.partial(undo, "a"))
        durable.on_rollback(functools.partial(undo_stubbornly, what="x"), what="b")
        raise durable.Fatal("no")

    run = world.start(body)

    assert done == ["undo b", "undo b", "undo b", "undo a"]
    assert world.steps(run) == {"rollback:undo_stubbornly": ("ok", 3), "rollback:undo": ("ok", 1)}


class Callable_:  # noqa: N801
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "wrong", ["undo", None, undo_stubbornly.s("x"), signature("undo", (5,)), Callable_(), os], ids=type
)
def test_what_cannot_be_registered_is_refused_with_what_can(world: World, wrong: Any) -> None:
    def body() -> None:
        durable.on_rollback(wrong)

    error = world.outcome(world.start(body)).result

    assert type(error) is StepUsageError
    assert str(error).endswith("it takes a function (also a step, or a functools.partial) and its arguments")


@durable.transaction
def undo_there(connection: Any, what: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [(undo, (), {}), (undo, ("a", "b"), {}), (undo, ("a",), {"nosuch": 3}), (undo_there, (), {})],
)
def test_arguments_that_do_not_fit_are_refused_where_they_are_registered(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Not when it is too late."""
    with pytest.raises(
        StepUsageError, match=r"on_rollback\(undo.*\): it could not be called when it is needed"
    ):
        durable.on_rollback(function, *args, **kwargs)
    durable.on_rollback(undo_there, "a")
    durable.on_rollback(max, 1, 2)


def test_registering_costs_no_statement(world: World) -> None:
    counts: list[int] = []

    def body() -> None:
        book("flight")
        before = len(execute(world.store, "select from durable.checkpoint"))
        for number in range(100):
            durable.on_rollback(undo, number)
        counts.append(len(execute(world.store, "select from durable.checkpoint")) - before)

    world.start(body)
    assert counts == [0]


def test_the_doctor_tells_runs_to_be_resumed_from_those_that_were_taken_back(world: World) -> None:
    fails["undo flight"], fails["pay"] = 1, 2
    stuck = world.start(travel)
    back = world.start(travel)
    execute(world.store, "update durable.run set reason = 'exhausted' where id = %s", back)
    lost = world.start(work_until_killed)
    execute(
        world.store,
        "update durable.run set state = 'failed', reason = 'exhausted', finished_at = now(), due = null,"
        " compensates = false where id = %s",
        lost,
    )

    examined = HealthStore(world.store.connections, schema=world.store.settings.schema).examine()
    ailing = {one.kind: list(one.ids or ()) for one in examined.ailing if one.runs}

    assert ailing == {"rollback": [stuck], "taken back": [back], "exhausted": [lost]}
    assert world.runs.resume(stuck).changed
    with pytest.raises(RunStateError, match="taken back"):
        world.runs.resume(back)


def work_until_killed() -> None:
    durable.sleep(hours=1)


@pytest.mark.parametrize("by", ["step", "child"])
def test_a_compensation_that_an_error_has_led_to_is_found_again_when_the_rest_is_resumed(
    world: World, by: str
) -> None:
    """Put aside, the error would not come back, and the body would register one compensation less."""
    register(world.app)
    fails["undo late"] = 1

    def no_way() -> None:
        raise durable.Fatal("no way on")

    child = world.task(no_way)
    failing = {"step": durable.step(no_way), "child": lambda: durable.call(child.s())}[by]

    def body() -> None:
        book("early")
        durable.on_rollback(undo, "early")
        try:
            failing()
        except durable.Fatal:
            durable.on_rollback(undo, "late")
            raise

    run = world.start(body)
    if by == "child":
        parent, world.body = world.body, child
        (row,) = execute(world.store, "select id from durable.run where wait is not null")
        world.deliver(row["id"])
        world.body = parent
        world.deliver(run)
    assert world.state(run) == ("failed", "rollback")

    assert world.runs.resume(run).children == 0
    world.deliver(run)

    assert world.state(run) == ("failed", "Fatal")
    assert done == ["early", "undo late", "undo late", "undo early"]
