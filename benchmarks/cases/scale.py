"""Claim, results and keeper queries with more and more runs stored, and with sleepers: does size matter?

Three databases hold 1 thousand runs, 100 thousand runs, and 1 million runs with 1 million sleepers; each
query runs in turn on all of them, so that a ratio compares what was measured within the same milliseconds.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import Spread, each, interleaved, ratio, timed
from benchmarks.report import Row, Target
from celery_durable.run import RunState
from celery_durable.store.writes import Finish, NewRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.setting import Setting
    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore

# Nine in ten runs ended during the last day, after two steps each; the others wait for a worker.
_RUNS = """
insert into durable.run (id, task, queue, state, due, published_at, message, body, fence, attempt, result,
                         finished_at, created_at)
select 'run-' || n, 'media.process_' || mod(n, 20), 'queue_' || mod(n, 5),
       case when mod(n, 10) > 0 then 'succeeded' else 'pending' end,
       case when mod(n, 10) = 0 then now() + interval '1 hour' end,
       case when mod(n, 10) = 0 then now() end, '{"headers": {}}', '[[], {}, {}]', gen_random_uuid(), 1, '1',
       case when mod(n, 10) > 0 then now() - (1 - n::float8 / %(runs)s) * interval '1 day' end,
       now() - interval '1 day'
from generate_series(1, %(runs)s) as n"""
_SLEEPERS = """
insert into durable.run (id, task, queue, state, reason, due, message, body, fence, attempt)
select 'sleeper-' || n, 'media.remind', 'celery', 'waiting', 'timer',
       now() + interval '1 day' + n * interval '1 ms', '{"headers": {}}', '[[], {}, {}]', gen_random_uuid(), 1
from generate_series(1, %(sleepers)s) as n"""
_STEPS = """
insert into durable.checkpoint
    (run_key, key, seq, outcome, output, codec, digest, arguments, fence, attempt, tries, seconds)
select r.key, 'step#' || s, s, 'ok', '1', 'json', '0123456789abcdef', '{}', gen_random_uuid(), 1, 1, 0.1
from durable.run r, generate_series(1, 2) as s where r.state = 'succeeded'"""
_LEASE = timedelta(hours=1)
_FLAT = Target(at_most=2)
_BOUNDED = {"keeper: claims_of_queue"}  # reads the newest 5,000 runs that are over: flat from there on


class _Place:
    """One database of a given size, and what is asked of it."""

    def __init__(self, store: Store, keeper: KeeperStore) -> None:
        self._store = store
        self._keeper = keeper
        self._token = uuid.uuid4()
        keeper.register(self._token, hostname="benchmark", pid=0, version="0")
        self._term = keeper.lead(self._token, _LEASE) or 0

    def _queued(self, **options: Any) -> str:
        run_id = str(uuid.uuid4())
        self._store.runs.enqueue(
            NewRun(run_id, "media.remind", "celery", None, message=b"{}", body=b"[]", **options)
        )
        return run_id

    def _claim(self, run_id: str) -> Any:
        return self._store.runs.claim(run_id, fence=uuid.uuid4(), token=self._token, pid=0, revision=0)

    def enqueue(self, _: int) -> float:
        return timed(self._queued)

    def claim(self, _: int) -> float:
        run_id = self._queued()
        return timed(lambda: self._claim(run_id))

    def finish(self, _: int) -> float:
        claim, _history = self._claim(self._queued())
        outcome = Finish(RunState.SUCCEEDED, b"1", "application/json")
        return timed(lambda: self._store.runs.finish(claim.key, claim.fence, outcome))

    def result(self, turn: int) -> float:
        return timed(lambda: self._store.results.get([f"run-{turn % 900 + 1}"]))

    def look(self, _: int) -> float:
        return timed(lambda: self._keeper.look(self._term))

    def beat(self, _: int) -> float:
        return timed(lambda: self._keeper.beat(self._token, reserved=0))

    def wake(self, _: int) -> float:
        """One run is due: in the past for the store, which takes a due time from its caller as it is."""
        run_id = self._queued(countdown=timedelta(milliseconds=1))
        self._keeper.connection.execute("select pg_sleep(0.002)")
        woken: list[Any] = []
        seconds = timed(lambda: woken.extend(self._keeper.wake(500)))
        if [run.id for run in woken] != [run_id]:
            message = f"expected one run to wake, and {len(woken)} did"
            raise RuntimeError(message)
        return seconds

    def recover(self, _: int) -> float:
        return timed(
            lambda: self._keeper.recover_orphans(
                self._term, limit=500, max_recoveries=10, result=b"{}", result_type="application/json"
            )
        )

    def unclaimed(self, _: int) -> float:
        return timed(lambda: self._keeper.unclaimed(200))

    def evidence(self, _: int) -> float:
        return timed(lambda: self._keeper.claimed_up_to("queue_1", None, timedelta(seconds=5)))


_QUESTIONS: dict[str, Callable[[_Place, int], float]] = {
    "enqueue": _Place.enqueue,
    "claim": _Place.claim,
    "finish": _Place.finish,
    "results.get": _Place.result,
    "keeper: look": _Place.look,
    "keeper: beat": _Place.beat,
    "keeper: wake one run": _Place.wake,
    "keeper: recover_orphans, none": _Place.recover,
    "keeper: unclaimed, none": _Place.unclaimed,
    "keeper: claims_of_queue": _Place.evidence,
}


def run(setting: Setting) -> Iterable[Row]:
    """Ask the same of every size."""
    sizes = {"1 k runs": (1_000, 0), "100 k runs": (100_000, 0), "1 M runs, 1 M sleepers": (10**6, 10**6)}
    if setting.quick:
        sizes = {"1 k runs": (1_000, 0), "50 k runs, 50 k sleepers": (50_000, 50_000)}
    places = {name: _filled(setting, *size) for name, size in sizes.items()}
    base, *larger = places
    for question, ask in _QUESTIONS.items():
        samples = _samples(places, ask, setting.rounds(150, 50))
        yield Row(f"{question}, {base}", Spread.of(samples[base]).times(1e6), "µs")
        for name in larger:
            yield Row(
                f"{question}, {name}",
                Spread.of(samples[name]).times(1e6),
                "µs",
                ratio(samples[name], samples[base]),
                base,
                None if question in _BOUNDED else _FLAT,
            )


def _samples(
    places: dict[str, _Place], ask: Callable[[_Place, int], float], rounds: int
) -> dict[str, list[float]]:
    return interleaved(each(places, lambda name, turn: ask(places[name], turn)), rounds, warm_up=15)


def _filled(setting: Setting, runs: int, sleepers: int) -> _Place:
    store = setting.store(f"scale{runs}")
    connection = setting.open_things.enter_context(store.connections.dedicated())
    connection.execute("set synchronous_commit = off")  # only to fill it
    connection.execute(_RUNS, {"runs": runs})
    connection.execute(_STEPS)
    if sleepers:
        connection.execute(_SLEEPERS, {"sleepers": sleepers})
    connection.execute("reset synchronous_commit")
    connection.execute("vacuum analyze durable.run, durable.checkpoint, durable.attempt")
    connection.execute("checkpoint")
    return _Place(store, store.keeper(connection))
