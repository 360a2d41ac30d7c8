"""Random interleavings of everything that can happen to runs, against the store and a model of it."""

from __future__ import annotations

import copy
import os
import uuid
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import One, changed, step_write
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from modelling import EXECUTED, FINAL, Attempt, Run, Step, Worker

from celery_durable.exceptions import LeaseLostError
from celery_durable.run import Refusal, RunState
from celery_durable.store.inspection import InspectionStore
from celery_durable.store.keeping import KeeperStore
from celery_durable.store.runs import Finish, NewRun, Release, RunStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

CHECK = timedelta(minutes=20)
RETENTION = 7 * 24 * 60
MAX_RECOVERIES = 2
EXHAUSTED = b"exhausted"
EXAMPLES = int(os.environ.get("DURABLE_TEST_EXAMPLES", "120"))
COLUMNS = (
    "id, state, fence, attempt, worker, retries, recoveries, generation, cancel_requested, result,"
    " published_at is not null as published, due is null as idle"
)
EMPTY = ["run", "checkpoint", "attempt", "event", "worker", "leader"]
MINUTES = st.sampled_from([0, 20, 60, 180])


class Interleavings(RuleBasedStateMachine):
    """Workers, zombies, operators and the keeper, one statement after the other.

    Arguments:
        connection: to an empty migrated database; nobody else uses it.
        planted: a bug: noun, query, what it says, what it should not say.
    """

    runs = Bundle("runs")
    workers = Bundle("workers")
    attempts = Bundle("attempts")

    def __init__(self, connection: Any, planted: tuple[str, str, str, str] | None = None) -> None:
        super().__init__()
        self.connection, one = connection, One(connection)
        adapter: Any = one
        self.store = RunStore(adapter, schema="durable", check=CHECK)
        self.people = InspectionStore(adapter, schema="durable")
        self.keeper = KeeperStore(connection, schema="durable", check=CHECK)
        if planted is not None:
            noun, query, good, bad = planted
            statements: Any = self.store if noun == "runs" else self.keeper
            statements._sql = {**statements._sql, query: changed(statements._sql[query], (good, bad))}
        self.clock = self.count = 0
        self.all_runs: list[Run] = []
        self.all_workers: list[Worker] = []
        self.values: dict[tuple[int, str], bytes] = {}
        for table in EMPTY:
            connection.execute(f"delete from durable.{table}".encode())
        self._set_clock()
        self.leader = self._new_worker()

    # -- enqueue and claim ------------------------------------------------------------------------------

    @rule(target=runs, delay=MINUTES, publish=st.booleans(), expires=st.sampled_from([None, None, 60]))
    def enqueue(self, delay: int, publish: bool, expires: int | None) -> Run:  # noqa: FBT001
        state = "waiting" if delay else "pending"
        run = Run(
            id=str(uuid.uuid4()),
            state=state,
            due=self.clock + delay,
            published=publish and not delay,
            expires=None if expires is None else self.clock + expires,
        )
        assert self.store.enqueue(self._new_run(run, delay, publish=publish, expires=expires)) == state
        self.all_runs.append(run)
        return run

    @rule(run=runs)
    def enqueue_again(self, run: Run) -> None:
        if not run.deleted:
            assert self.store.enqueue(self._new_run(run, 0)) is None
            unclaimed = run.state == "pending" and run.attempts == 0
            assert self.store.unclaimed([run.id]) == ({run.id} if unclaimed else set())

    @rule(target=attempts, run=runs, worker=workers)
    def claim(self, run: Run, worker: Worker) -> Any:
        fence, self.count = uuid.uuid4(), self.count + 1
        outcome = self.store.claim(run.id, fence=fence, token=worker.token, pid=self.count, revision=0)
        if isinstance(outcome, Refusal):
            self._check_refusal(run, worker, outcome)
            return multiple()
        assert worker.row is not None
        assert run.state == "pending"
        assert run.attempts or run.expires is None or run.expires > self.clock
        claim, history = outcome
        run.claim(fence, worker.row)
        known = {
            step.key: Step(step.outcome, step.output or b"", step.tries, step.spent, step.seq)
            for step in history
        }
        assert known == run.steps
        assert (claim.attempt, claim.generation) == (run.attempts, run.generation)
        started = next((key for key, step in known.items() if step.outcome == "started"), None)
        seq = max((step.seq for step in known.values()), default=0)
        assert claim.ending == run.ending
        taking_back = run.ending is not None
        return Attempt(run, claim.key, fence, worker, self.count, known, seq, started, taking_back)

    def _check_refusal(self, run: Run, worker: Worker, refusal: Refusal) -> None:
        if run.state == "pending" and not run.deleted and worker.row is not None:
            assert refusal is Refusal.EXPIRED
            assert run.expires is not None
            assert run.expires <= self.clock
        if refusal is Refusal.EXPIRED:
            run.end("cancelled", self.clock)
        elif run.deleted or run.state == "pending":
            assert refusal is (Refusal.NO_WORKER if worker.row is None else Refusal.UNKNOWN)
        else:
            expected = Refusal.WAITING if run.state == "waiting" else Refusal.OWNED
            assert refusal is (Refusal.FINAL if run.state in FINAL else expected)

    @rule(attempt=attempts)
    def claim_again_after_a_lost_answer(self, attempt: Attempt) -> None:
        if not attempt.holds or attempt.worker.row is None:
            return
        outcome = self.store.claim(
            attempt.run.id, fence=attempt.fence, token=attempt.worker.token, pid=attempt.pid, revision=0
        )
        assert isinstance(outcome, tuple)
        assert outcome[0].attempt == attempt.run.attempts
        attempt.run.row = attempt.worker.row

    @rule(target=attempts, attempt=attempts, worker=workers, crash=st.booleans())
    def another_worker_takes_over(self, attempt: Attempt, worker: Worker, crash: bool) -> Any:  # noqa: FBT001
        """What makes a zombie: its run is released behind its back and claimed by somebody else."""
        if crash:
            self.child_is_killed(attempt)
        else:
            self.worker_releases_a_stray(attempt.worker, attempt.run)
        return self.claim(attempt.run, worker)

    @initialize(target=attempts)
    def begin_with_one_attempt(self) -> Any:
        return self.claim(self.enqueue(0, publish=True, expires=None), self.start_worker())

    @initialize(target=workers)
    def begin_with_one_worker(self) -> Worker:
        return self._new_worker()

    # -- steps ------------------------------------------------------------------------------------------

    @rule(
        attempt=attempts,
        outcome=st.sampled_from(["ok", "ok", "error", "trying", "started"]),
        twice=st.booleans(),
    )
    def step(self, attempt: Attempt, outcome: str, twice: bool) -> None:  # noqa: FBT001
        key = attempt.next_key
        known = attempt.view.get(key)
        if attempt.foreign_start == key:
            self.finish(attempt, success=False, twice=twice)  # never started again: an error of the run
            return
        if outcome == "started" and known is not None:
            return
        attempt.seq += 1
        tries = 1 if known is None else known.tries + (known.outcome != "started")
        self.count += 1
        step = Step(outcome, f"value {self.count}".encode(), tries, known.spent if known else 0, attempt.seq)
        write = step_write(key, step.seq, outcome, output=step.value, tries=tries, spent=step.spent)
        if not attempt.holds:
            with pytest.raises(LeaseLostError):
                self.store.checkpoint(attempt.key, attempt.fence, write)
            return
        for _ in range(1 + twice):
            assert self.store.checkpoint(attempt.key, attempt.fence, write) is attempt.run.cancel
        attempt.view[key] = step
        attempt.run.steps[key] = copy.copy(step)

    @rule(attempt=attempts, steps=st.integers(1, 3), delay=MINUTES)
    def a_step_fails_and_the_body_with_it(self, attempt: Attempt, steps: int, delay: int) -> None:
        for number in range(steps):
            self.step(attempt, "error" if number else "ok", twice=False)
        self.release(attempt, delay, retry=True, twice=False)

    # -- leaving ----------------------------------------------------------------------------------------

    @rule(attempt=attempts, success=st.booleans(), twice=st.booleans())
    def finish(self, attempt: Attempt, success: bool, twice: bool) -> None:  # noqa: FBT001
        run = attempt.run
        if attempt.takes_back:
            self._take_back(attempt, success=success, twice=twice)
            return
        state = RunState.SUCCEEDED if success else RunState.FAILED
        self.count += 1
        finish = Finish(state, f"result {self.count}".encode(), "application/json")
        if not attempt.holds:
            if attempt.finish is not None and run.closed_by == attempt.fence and not run.deleted:
                before = Finish(RunState(attempt.finish[0]), attempt.finish[1], "application/json")
                assert self.store.finish(attempt.key, attempt.fence, before).links == []
                finish = Finish(RunState.CANCELLED, b"another", "application/json")
            with pytest.raises(LeaseLostError):
                self.store.finish(attempt.key, attempt.fence, finish)
            return
        for _ in range(1 + twice):
            self.store.finish(attempt.key, attempt.fence, finish)
        attempt.finish = (state.value, finish.result or b"")
        run.compensates = False
        run.end(state.value, self.clock, finish.result)

    def _take_back(self, attempt: Attempt, *, success: bool, twice: bool) -> None:
        """End a run that was to end otherwise: its body, replayed, has told what there was to take back."""
        self.count += 1
        result, problem = f"result {self.count}".encode(), None if success else "there is no way back"
        told = attempt.run.closed_by == attempt.fence and not attempt.run.deleted
        if not attempt.holds and not told:
            with pytest.raises(LeaseLostError):
                self._rolled_back(attempt, result, problem)
        elif attempt.holds:
            for _ in range(1 + twice):
                self._rolled_back(attempt, result, problem)
            attempt.run.take_back(self.clock, result, success=success)

    def _rolled_back(self, attempt: Attempt, result: bytes, problem: str | None) -> None:
        self.store.rolled_back(
            attempt.key,
            attempt.fence,
            problem=problem,
            failed=None,
            result=result,
            result_type="application/json",
            undone=False,
            unreported=False,
        )

    @rule(attempt=attempts, delay=MINUTES, retry=st.booleans(), twice=st.booleans())
    def release(self, attempt: Attempt, delay: int, retry: bool, twice: bool) -> None:  # noqa: FBT001
        run = attempt.run
        release = Release(
            outcome="retry" if retry else "suspended",
            delay=timedelta(minutes=delay),
            reason="retry",
            publish=retry,
            retries=run.retries + 1 if retry else None,
            discard="errors" if retry else "none",
            compensates=attempt.takes_back,
        )
        if not attempt.holds:
            if run.left_by == attempt.fence and not run.deleted:
                assert self.store.release(attempt.key, attempt.fence, release).value == run.state
                return
            with pytest.raises(LeaseLostError):
                self.store.release(attempt.key, attempt.fence, release)
            return
        states = [self.store.release(attempt.key, attempt.fence, release) for _ in range(1 + twice)]
        run.compensates = attempt.takes_back
        if retry:
            run.retries += 1
            run.discard_errors()
        run.leave(
            "waiting" if delay else "pending",
            self.clock,
            due=self.clock + delay,
            published=retry and not delay,
        )
        run.left_by = attempt.fence
        assert {state.value for state in states} == {run.state}

    # -- deaths -----------------------------------------------------------------------------------------

    @rule(target=workers)
    def start_worker(self) -> Worker:
        return self._new_worker()

    @rule(worker=workers)
    def worker_begins_anew(self, worker: Worker) -> None:
        worker.row = self.keeper.register(worker.token, hostname="worker@one", pid=1, version="0")

    @rule(worker=workers)
    def worker_is_buried(self, worker: Worker) -> None:
        beats = self.keeper.lead(self.leader.token, timedelta(hours=1)).beats
        seen = {worker.row: beats[worker.row]} if worker.row is not None else {}
        assert self.keeper.bury(self._term(), seen) == list(seen)
        worker.row = None
        assert self.keeper.beat(worker.token, reserved=0) is None

    @rule(worker=workers)
    def worker_ends_cleanly(self, worker: Worker) -> None:
        owned = [run for run in self.all_runs if run.row is not None and run.row == worker.row]
        assert sorted(self.keeper.retire(worker.token)) == sorted(run.id for run in owned)
        for run in owned:
            run.leave("pending", self.clock, due=self.clock)
        worker.row = None

    @rule(attempt=attempts)
    def child_is_killed(self, attempt: Attempt) -> None:
        run, owner = attempt.run, attempt.worker
        row = self.store.recover_child(
            run.id,
            token=owner.token,
            pid=attempt.pid,
            error="signal 9",
            max_recoveries=MAX_RECOVERIES,
            result=EXHAUSTED,
            result_type="json",
            budget=1,
        )
        expected = attempt.holds and owner.row is not None and run.row == owner.row
        assert (row is not None) is expected
        if expected:
            run.lose(self.clock, MAX_RECOVERIES, EXHAUSTED, published=True)

    @rule(attempt=attempts, worker=workers, times=st.integers(1, MAX_RECOVERIES))
    def child_after_child_is_killed(self, attempt: Attempt, worker: Worker, times: int) -> None:
        """Lose a run once too often: it is exhausted, or takes back first what it may have registered."""
        for _ in range(times):
            self.child_is_killed(attempt)
            claimed = self.claim(attempt.run, worker)
            if not isinstance(claimed, Attempt):
                return
            attempt = claimed
        self.child_is_killed(attempt)

    @rule(worker=workers, run=runs)
    def worker_releases_a_stray(self, worker: Worker, run: Run) -> None:
        owns = run.row is not None and run.row == worker.row
        seen = [one for one in self.store.owned(worker.token) if one[0] == run.id]
        assert self.store.release_strays(worker.token, seen) == ([run.id] if owns else [])
        if owns:
            run.leave("pending", self.clock, due=self.clock)

    @rule()
    def recover(self) -> None:
        rows = {worker.row for worker in self.all_workers}
        orphans = [run for run in self.all_runs if run.state in EXECUTED and run.row not in rows]
        recovered = self.keeper.recover_orphans(
            self._term(), limit=1000, max_recoveries=MAX_RECOVERIES, result=EXHAUSTED, result_type="json"
        )
        assert {run.id for run in recovered} == {run.id for run in orphans}
        for run in orphans:
            run.lose(self.clock, MAX_RECOVERIES, EXHAUSTED, published=False)

    # -- time -------------------------------------------------------------------------------------------

    @rule(minutes=st.sampled_from([20, 40, 180]))
    def clock_jumps(self, minutes: int) -> None:
        self.clock += minutes
        self._set_clock()

    @rule()
    def wake(self) -> None:
        due = [run for run in self.all_runs if run.state == "waiting" and (run.due or 0) <= self.clock]
        assert {run.id for run in self.keeper.wake(1000)} == {run.id for run in due}, "early, late or twice"
        for run in due:
            run.state, run.published = "pending", True

    @rule()
    def publish(self) -> None:
        due = [run for run in self.all_runs if run.state == "pending" and not run.published]
        assert {run.id for run in self.keeper.publishable(1000)} == {run.id for run in due}
        for run in due:
            run.published = True

    @rule(run=runs)
    def broker_refuses(self, run: Run) -> None:
        self.store.unpublish([run.id], timedelta(0))
        if run.state == "pending" and not run.deleted:
            run.published = False

    @rule(lost=st.booleans())
    def look_for_lost_messages(self, lost: bool) -> None:  # noqa: FBT001
        verdicts = {run.id: lost for run in self.keeper.unclaimed(1000)}
        pending = {run.id for run in self.all_runs if run.state == "pending" and run.published}
        assert set(verdicts) <= pending
        assert {run.id for run in self.keeper.recheck(verdicts)} == (set(verdicts) if lost else set())

    @rule(wait=st.booleans())
    def prune(self, wait: bool) -> None:  # noqa: FBT001
        if wait:
            self.clock_jumps(RETENTION)
        old = [
            run
            for run in self.all_runs
            if run.finished is not None and run.finished <= self.clock - RETENTION
        ]
        assert self.keeper.prune(timedelta(minutes=RETENTION), 1000) == len(old)
        for run in old:
            run.deleted = True
            self.all_runs.remove(run)

    # -- people -----------------------------------------------------------------------------------------

    @rule(run=runs)
    def cancel(self, run: Run) -> None:
        self.people.cancel([run.id], operation=uuid.uuid4(), actor="ada", reason=None)
        if run.state in ("pending", "waiting"):
            run.end("cancelled", self.clock, run.result)
        elif run.state in EXECUTED:
            run.cancel = True

    @rule(run=runs, worker=workers, terminated=st.booleans())
    def revoke(self, run: Run, worker: Worker, terminated: bool) -> None:  # noqa: FBT001
        mine = run.state in EXECUTED and terminated and worker.row is not None and run.row == worker.row
        ends = not run.deleted and (run.state in ("pending", "waiting") or mine)
        assert self.store.revoke(run.id, token=worker.token, terminated=terminated) is ends
        if ends:
            run.end("cancelled", self.clock, run.result)

    @rule(run=runs)
    def resume(self, run: Run) -> None:
        self.people.resume([run.id], operation=uuid.uuid4(), actor="ada", reason=None, check=CHECK)
        if run.state in ("failed", "cancelled") and not run.deleted:
            run.resume()

    # -- what holds at any time -------------------------------------------------------------------------

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        rows = {row["id"]: row for row in self._rows(f"select {COLUMNS} from durable.run")}
        assert set(rows) == {run.id for run in self.all_runs}
        for run in self.all_runs:
            row = rows[run.id]
            assert (row["state"], row["attempt"], row["worker"]) == (run.state, run.attempts, run.row)
            assert (row["retries"], row["recoveries"]) == (run.retries, run.recoveries)
            assert (row["generation"], row["cancel_requested"]) == (run.generation, run.cancel)
            assert row["result"] == run.result
            assert row["fence"] == run.fence or run.state not in EXECUTED
            assert row["published"] == run.published or run.state not in ("pending", "waiting")
            assert row["idle"] == (run.state not in ("pending", "waiting")), "the wake rule"

    @invariant()
    def a_committed_step_never_changes(self) -> None:
        sql = "select r.id, c.* from durable.checkpoint c join durable.run r on r.key = c.run_key"
        stored: dict[str, dict[str, Step]] = {run.id: {} for run in self.all_runs}
        for row in self._rows(sql):
            step = Step(row["outcome"], row["output"], row["tries"], row["spent"], row["seq"])
            stored[row["id"]][row["key"]] = step
            if step.outcome == "ok":
                assert self.values.setdefault((row["run_key"], row["key"]), step.value) == step.value
        assert stored == {run.id: run.steps for run in self.all_runs}

    @invariant()
    def at_most_one_attempt_is_open_and_it_is_the_holders(self) -> None:
        tables = "durable.attempt a join durable.run r on r.key = a.run_key"
        sql = f"select r.id, a.fence from {tables} where a.ended_at is null"
        holders = {run.id: run.fence for run in self.all_runs if run.state in EXECUTED}
        rows = self._rows(sql)
        assert len(rows) == len(holders)
        assert {row["id"]: row["fence"] for row in rows} == holders

    @invariant()
    def nothing_is_left_of_deleted_runs(self) -> None:
        for table in ("checkpoint", "attempt", "event"):
            orphans = "run_key not in (select key from durable.run)"
            assert self._rows(f"select run_key from durable.{table} where {orphans} limit 1") == []

    def teardown(self) -> None:
        """Heal everything: the backlog drains."""
        for worker in list(self.all_workers):
            if worker is not self.leader:
                self.worker_is_buried(worker)
        self.recover()
        self.clock_jumps(180)
        self.wake()
        for run in list(self.all_runs):
            if run.state == "pending":
                claimed = self.claim(run, self.leader)
                if isinstance(claimed, Attempt):
                    self.finish(claimed, success=True, twice=False)
        assert [run.state for run in self.all_runs if run.state not in FINAL] == []
        self.the_tables_say_what_the_model_says()

    # -- small things -----------------------------------------------------------------------------------

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.connection.execute(sql.encode()).fetchall()
        return rows

    def _set_clock(self) -> None:
        self.connection.execute(f"set durable.clock_offset = '{self.clock} minutes'".encode())

    def _new_worker(self) -> Worker:
        token = uuid.uuid4()
        worker = Worker(token, self.keeper.register(token, hostname="worker@one", pid=1, version="0"))
        self.all_workers.append(worker)
        return worker

    def _term(self) -> int:
        term = self.keeper.lead(self.leader.token, timedelta(hours=1)).term
        assert term is not None
        return term

    def _new_run(self, run: Run, delay: int, *, publish: bool = True, expires: int | None = None) -> NewRun:
        return NewRun(
            id=run.id,
            task="media.process",
            queue="celery",
            priority=None,
            message=b"{}",
            body=b"[]",
            countdown=timedelta(minutes=delay) if delay else None,
            expires=None if expires is None else timedelta(minutes=expires),
            publish=publish,
        )


@contextmanager
def playing(store: Store) -> Iterator[Any]:
    """Yield a connection whose commits need not reach the disk: here only their order matters."""
    with store.connections.dedicated() as connection:
        connection.execute("set synchronous_commit = off")
        yield connection


def profile(examples: int, *phases: Phase, derandomize: bool = False) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=phases or (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        derandomize=derandomize,
    )


@pytest.mark.timeout(900)  # thousands of commits, each as slow as the disk
def test_whatever_happens_in_whatever_order_the_invariants_hold(store: Store) -> None:
    with playing(store) as connection:
        run_state_machine_as_test(lambda: Interleavings(connection), settings=profile(EXAMPLES))


PLANTED = {
    "a checkpoint without a fence": (
        "runs",
        "checkpoint",
        "and r.fence = %(fence)s",
        "and %(fence)s is not null",
    ),
    "a claim of what is running": (
        "runs",
        "claim",
        "r.state = 'pending' or",
        "r.state in ('pending', 'running') or",
    ),
    "a timer that fires early": (
        "keeper",
        "wake",
        "due <= durable.clock()",
        "due <= durable.clock() + interval '1 hour'",
    ),
    "a recovery that takes any run": (
        "keeper",
        "recover_orphans",
        "w.id = r.worker)",
        "w.id = r.worker and w.beat > 0)",
    ),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_found(store: Store, planted: tuple[str, str, str, str]) -> None:
    with playing(store) as connection, pytest.raises(BaseException):  # noqa: B017, PT011  (whatever notices it)
        run_state_machine_as_test(
            lambda: Interleavings(connection, planted),
            settings=profile(400, Phase.generate, derandomize=True),
        )
