"""What holds after any chaos, by the tables and the ledger. Each check returns what violates it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from harness.ledger import Ledger
    from harness.tables import Tables

_ATTEMPTS = " from durable.attempt a join durable.run r on r.key = a.run_key "
_AND_THE_NEXT = " join durable.attempt b on b.run_key = a.run_key and b.number = a.number + 1 "


def one_outcome_each(tables: Tables, ids: Iterable[str]) -> list[str]:
    """Every run is over, by exactly one attempt: its last one; no attempt is left open."""
    wrong = []
    for run in tables.rows("select * from durable.run where id = any(%s)", list(ids)):
        attempts = tables.attempts(run["id"])
        ends = [attempt["outcome"] for attempt in attempts]
        final = [outcome for outcome in ends if outcome in ("succeeded", "failed", "cancelled")]
        by_keeper = run["state"] in ("failed", "cancelled") and not final
        if [attempt["number"] for attempt in attempts] != list(range(1, len(attempts) + 1)):
            wrong.append(f"{run['id']}: attempts are numbered {[attempt['number'] for attempt in attempts]}")
        if None in ends or not (by_keeper or (ends[-1:] == final == [run["state"]])):
            wrong.append(f"{run['id']} is {run['state']}, its attempts ended {ends}")
    return wrong


def same_result_for_every_caller(app: Celery, ids: Iterable[str]) -> list[str]:
    """Two callers that ask get the same answer."""
    wrong = []
    for run_id in ids:
        first, second = (app.backend.get_task_meta(run_id, cache=False) for _ in range(2))
        if (first["status"], repr(first["result"])) != (second["status"], repr(second["result"])):
            wrong.append(f"{run_id}: {first} and then {second}")
    return wrong


def finished_steps_never_start_again(tables: Tables, ledger: Ledger) -> list[str]:
    """No attempt after the one that stored a step has started that step's body."""
    stored = {
        (row["id"], row["key"]): row["attempt"]
        for row in tables.rows(
            "select r.id, c.key, c.attempt from durable.checkpoint c join durable.run r on r.key = c.run_key"
            " where c.outcome = 'ok'"
        )
    }
    return [
        f"{entry.run}: attempt {entry.detail['attempt']} began {entry.detail['key']} again"
        for entry in ledger.entries("start")
        if isinstance(entry.detail, dict)
        and entry.detail["attempt"] > stored.get((entry.run, entry.detail["key"]), entry.detail["attempt"])
    ]


def only_holders_store(tables: Tables) -> list[str]:
    """Every checkpoint bears the fence of the attempt that it says it belongs to."""
    rows = tables.rows(
        f"select r.id, c.key, c.attempt {_ATTEMPTS}"
        " join durable.checkpoint c on c.run_key = r.key and c.attempt = a.number where c.fence <> a.fence"
    )
    return [f"{row['id']}: {row['key']} of attempt {row['attempt']} was stored by another" for row in rows]


def bodies_start_only_for_a_reason(tables: Tables, ledger: Ledger) -> list[str]:
    """A step's body starts once per attempt, and only as often as attempts were retried, lost or released."""
    attempts = Counter(row["id"] for row in tables.rows(f"select r.id {_ATTEMPTS}"))
    starts = [entry for entry in ledger.entries("start") if isinstance(entry.detail, dict)]
    per_attempt = Counter((entry.run, entry.detail["key"], entry.detail["attempt"]) for entry in starts)
    per_run = Counter((entry.run, entry.detail["key"]) for entry in starts)
    twice = [f"{place}: {n} starts in one attempt" for place, n in per_attempt.items() if n > 1]
    often = [
        f"{place}: {n} starts in {attempts[str(place[0])]} attempts"
        for place, n in per_run.items()
        if n > attempts[str(place[0])]
    ]
    return twice + often


def nobody_is_forgotten(tables: Tables) -> list[str]:
    """A run that is not over has a living owner, a due time, or somebody who will wake it."""
    return [
        f"{row['id']} is {row['state']} ({row['reason']}) without owner, due time or waiter"
        for row in tables.rows(
            "select r.id, r.state, r.reason from durable.run r where finished_at is null and not ("
            " (state in ('running', 'cancelling')"
            "  and exists (select from durable.worker w where w.id = r.worker))"
            " or (state in ('pending', 'waiting') and due is not null)"
            " or (state = 'waiting' and reason in ('signal', 'children', 'turn', 'slot', 'replaced')))"
        )
    ]


def no_timer_is_early(tables: Tables, countdowns: dict[str, float], retry_delay: float) -> list[str]:
    """A countdown and a retry's delay have passed, by the database's clock, before the next claim."""
    wrong = []
    for run_id, countdown in countdowns.items():
        early = tables.rows(
            f"select a.started_at - r.created_at as after {_ATTEMPTS}"
            " where r.id = %s and a.started_at < r.created_at + %s * interval '1 s'",
            run_id,
            countdown,
        )
        wrong += [f"{run_id} started after {row['after']} instead of {countdown} s" for row in early]
    early = tables.rows(
        f"select r.id, b.started_at - a.ended_at as after {_ATTEMPTS} {_AND_THE_NEXT}"
        " where a.outcome = 'retry' and b.started_at < a.ended_at + %s * interval '1 s'",
        retry_delay,
    )
    return wrong + [f"{row['id']} was retried after {row['after']}" for row in early]


def links_start_once(tables: Tables) -> list[str]:
    """A run has started each of the runs that follow it once."""
    rows = tables.rows(
        "select parent, task, count(*) as n from durable.run where parent is not null and wait is null"
        " group by parent, task having count(*) > 1"
    )
    return [f"{row['parent']} started {row['task']} {row['n']} times" for row in rows]


def nothing_is_left_over(tables: Tables) -> list[str]:
    """No row belongs to a run that is not there."""
    wrong = []
    for table in ("checkpoint", "attempt", "event", "signal"):
        rows = tables.rows(
            f"select count(*) as n from durable.{table} x"
            " where not exists (select from durable.run r where r.key = x.run_key)"
        )
        if rows[0]["n"]:
            wrong.append(f"{rows[0]['n']} rows of {table} belong to no run")
    return wrong


class Witness:
    """Looks on while things happen: what was committed once must be there, unchanged, ever after."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._steps: dict[Any, Any] = {}
        self._outcomes: dict[str, Any] = {}
        self.wrong: list[str] = []

    def look(self) -> None:
        """Compare everything with what was seen before."""
        steps = self._tables.rows(
            "select run_key, key, output, fence, stored_at from durable.checkpoint where outcome = 'ok'"
        )
        self._steps = self._unchanged(
            self._steps, {(row.pop("run_key"), row.pop("key")): repr(sorted(row.items())) for row in steps}
        )
        outcomes = self._tables.rows(
            "select id, state, reason, result, finished_at from durable.run where finished_at is not null"
        )
        self._outcomes = self._unchanged(
            self._outcomes, {row.pop("id"): repr(sorted(row.items())) for row in outcomes}
        )

    def _unchanged(self, before: dict[Any, str], now: dict[Any, str]) -> dict[Any, str]:
        self.wrong += [
            f"{what}: {was} became {now.get(what)}" for what, was in before.items() if now.get(what) != was
        ]
        return now


def check_all(
    app: Celery,
    tables: Tables,
    ledger: Ledger,
    ids: Iterable[str],
    *,
    countdowns: dict[str, float] | None = None,
    retry_delay: float = 0.0,
) -> None:
    """Fail with everything that is wrong."""
    known = list(ids)
    wrong = [
        *one_outcome_each(tables, known),
        *same_result_for_every_caller(app, known),
        *finished_steps_never_start_again(tables, ledger),
        *only_holders_store(tables),
        *bodies_start_only_for_a_reason(tables, ledger),
        *nobody_is_forgotten(tables),
        *no_timer_is_early(tables, countdowns or {}, retry_delay),
        *links_start_once(tables),
        *nothing_is_left_over(tables),
    ]
    assert not wrong, f"{len(wrong)} violations:\n" + "\n".join(wrong[:20])
