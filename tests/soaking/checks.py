"""What holds after the soak, as SQL over all runs at once. Each check returns what violates it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import invariants

from soaking.tasks import LIMIT, tries_of

if TYPE_CHECKING:
    from harness.world import World

    from soaking.load import Sent

_SEEN = """
create table seen_step (run_key bigint, key text, row text, primary key (run_key, key));
create table seen_end (id text, generation integer, row text, primary key (id, generation));
"""
# A run that continues forgets its steps; a wait whose child failed is taken up again by a resume.
_STEPS = """
select c.run_key, c.key, md5(row(c.output, c.fence, c.stored_at, c.codec)::text) as row
from durable.checkpoint c join durable.run r on r.key = c.run_key
where c.outcome = 'ok' and r.task <> 'endless' and (r.task <> 'mending' or c.kind is null)
"""
_ENDS = """
select id, generation, md5(row(state, reason, result, finished_at)::text) as row
from durable.run where finished_at is not null
"""


class Witness:
    """Looks on: what was committed once must be there, unchanged, ever after. It notes it in the database.

    Arguments:
        world: whose tables.
    """

    def __init__(self, world: World) -> None:
        self._rows = world.tables.rows
        self.wrong: list[str] = []
        for statement in filter(None, _SEEN.strip().split("\n")):
            self._rows(statement)

    def look(self) -> None:
        """Compare everything with what was seen before."""
        for what, now, key in (
            ("seen_step", _STEPS, "run_key, key"),
            ("seen_end", _ENDS, "id, generation"),
        ):
            of_generation = "and r.generation = s.generation" if what == "seen_end" else ""
            join = (
                "durable.run r on r.id = s.id"
                if what == "seen_end"
                else "durable.checkpoint r on r.run_key = s.run_key"
            )
            changed = self._rows(
                f"select s.* from {what} s left join ({now}) n using ({key}) join {join} {of_generation}"
                f" where n.row is distinct from s.row limit 5"
            )
            self.wrong += [f"{what}: {row}" for row in changed]
            self._rows(f"insert into {what} ({key}, row) {now} on conflict do nothing")


def every_outcome_is_the_expected_one(world: World, sent: list[Sent]) -> list[str]:
    """Each run has the result that it was to have, for whoever asks."""
    wrong = []
    for one in sent:
        state = world.tables.state(one.id)
        if state is None and not one.certain:
            continue
        result = world.app.AsyncResult(one.id)
        found = result.state if isinstance(one.expected, str) and one.expected.isupper() else result.result
        if found != one.expected:
            wrong.append(f"{one.kind} {one.id}: {found!r} instead of {one.expected!r} ({state})")
    return wrong


def every_run_is_over_once(world: World) -> list[str]:
    """Attempts are numbered without a gap, all are over, and one of each generation at most ended its run."""
    rows = world.tables.rows(
        "select r.id, r.task, r.state, r.attempt, r.generation, count(a.number) as n, max(a.number) as last,"
        " count(*) filter (where a.number is not null and a.ended_at is null) as open,"
        " count(*) filter (where a.outcome in ('succeeded', 'failed', 'cancelled')) as ends"
        " from durable.run r left join durable.attempt a on a.run_key = r.key group by r.key"
    )
    return [
        f"{row}"
        for row in rows
        if row["state"] not in ("succeeded", "failed", "cancelled")
        or row["n"] != row["attempt"]
        or (row["last"] or 0) != row["n"]
        or row["open"]
        or row["ends"] > row["generation"] + 1
        or (row["state"] == "succeeded" and not row["ends"])
    ]


def no_sleep_ends_early(world: World) -> list[str]:
    """No step behind a sleep was stored before its time."""
    rows = world.tables.rows(
        "select r.id, s.key, s.due, c.key as step, c.stored_at"
        " from durable.checkpoint s join durable.run r on r.key = s.run_key"
        " join durable.checkpoint c on c.run_key = s.run_key and c.seq > s.seq and c.kind is null"
        " and not starts_with(c.key, 'rollback:') and r.task not in ('weave', 'hurried')"  # branches
        " where s.kind = 'sleep' and c.stored_at < s.due"
    )
    return [
        f"{row['id']}: {row['step']} at {row['stored_at']}, {row['key']} was due {row['due']}" for row in rows
    ]


def each_transaction_left_one_row(world: World) -> list[str]:
    """The user's table has exactly one row for each transaction step that is done."""
    rows = world.tables.rows(
        "with done as (select r.id || '/' || c.key as key from durable.run r join durable.checkpoint c"
        " on c.run_key = r.key where r.task = 'account' and c.outcome = 'ok'),"
        " there as (select key, count(*) as n from entry group by key)"
        " select coalesce(done.key, there.key) as key, coalesce(there.n, 0) as n"
        " from done full join there on there.key = done.key"
        " where done.key is null or there.n is distinct from 1"
    )
    return [f"{row['key']}: {row['n']} rows" for row in rows]


def children_are_started_once(world: World) -> list[str]:
    """Every wait has as many children as its parent asked for, and nobody else has any."""
    rows = world.tables.rows(
        "select p.id, p.task, c.wait, count(*) as n, count(distinct c.id) as ids"
        " from durable.run c join durable.run p on p.id = c.parent where c.wait is not null"
        " group by p.id, p.task, c.wait"
    )
    counts: dict[str, list[int]] = {}
    for row in rows:
        counts.setdefault(f"{row['task']} {row['id']}", []).append(row["n"])
    wrong = []
    for parent, found in counts.items():
        task = parent.split()[0]
        if (task == "mending" and found != [3]) or (task == "branch" and len(found) != 1):
            wrong.append(f"{parent} has waits for {found} children")
        if task == "tree" and (len(found) != 3 or min(found) != 1):
            wrong.append(f"{parent} has waits for {found} children")
    return wrong


def what_was_done_is_taken_back(world: World) -> list[str]:
    """Each step of a run that ended badly has its compensation, made in the reverse order."""
    rows = world.tables.rows(
        "select r.id, r.state, array_agg(c.key order by c.stored_at, c.seq) as keys"
        " from durable.run r join durable.checkpoint c on c.run_key = r.key"
        " where r.task = 'trip' and c.outcome = 'ok' and c.kind is null group by r.id, r.state"
    )
    wrong = []
    for row in rows:
        steps = [key for key in row["keys"] if not key.startswith("rollback:")]
        undone = [key for key in row["keys"] if key.startswith("rollback:")]
        names = ["rollback:take_back" + ("" if n == 0 else f"#{n + 1}") for n in range(len(steps))]
        if undone != names[::-1]:
            wrong.append(f"{row['id']} ({row['state']}): did {steps}, took back {undone}")
    return wrong


_SIDE_BY_SIDE = """
with slotted as (
    select a.* from durable.attempt a join durable.run r on r.key = a.run_key where r.slot is not null),
begun as (
    select s.*, (select min(c.stored_at - c.seconds * interval '1 s') from durable.checkpoint c
                 where c.run_key = s.run_key and c.attempt = s.number) as begun_at
    from slotted s)
select a.run_key, a.number, count(*) as n
from begun a join slotted b
  on b.run_key <> a.run_key and b.outcome <> 'lost'
  and b.started_at <= a.started_at and b.ended_at > a.begun_at
group by 1, 2 having count(*) >= %s
"""


def no_more_than_allowed_at_a_time(world: World) -> list[str]:
    """When an attempt with a slot began a step, fewer than the limit went on, of those that lost no worker.

    Not when its claim began: that waits for the lock of its key, and another one may end meanwhile.
    """
    rows = world.tables.rows(_SIDE_BY_SIDE, LIMIT)
    return [f"attempt {row['number']} of {row['run_key']} began beside {row['n']} others" for row in rows]


def bodies_start_as_often_as_they_may(world: World) -> list[str]:
    """A retried step's body has started once for each counted try, and once more for a lost attempt."""
    rows = world.tables.rows(
        "select r.id, r.attempt, c.key, c.tries"
        " from durable.run r join durable.checkpoint c on c.run_key = r.key"
        " where r.task = 'stubborn' and c.outcome = 'ok'"
    )
    wrong = []
    for row in rows:
        starts = tries_of(row["id"], row["key"]).stat().st_size
        if starts > row["tries"] + row["attempt"] - 1:
            wrong.append(
                f"{row['id']}/{row['key']}: {starts} starts, {row['tries']} tries, {row['attempt']} attempts"
            )
    return wrong


def violations(world: World, sent: list[Sent], witness: Witness) -> dict[str, list[str]]:
    """Return all that is wrong, by check."""
    tables, ledger = world.tables, world.ledger
    found: dict[str, Any] = {
        "witness": witness.wrong,
        "outcomes": every_outcome_is_the_expected_one(world, sent),
        "over once": every_run_is_over_once(world),
        "finished steps": invariants.finished_steps_never_start_again(tables, ledger),
        "holders": invariants.only_holders_store(tables),
        "starts": invariants.bodies_start_only_for_a_reason(tables, ledger),
        "tries": bodies_start_as_often_as_they_may(world),
        "forgotten": invariants.nobody_is_forgotten(tables),
        "timers": [*invariants.no_timer_is_early(tables, {}, 0.3), *no_sleep_ends_early(world)],
        "ledger": each_transaction_left_one_row(world),
        "children": children_are_started_once(world),
        "compensations": what_was_done_is_taken_back(world),
        "slots": no_more_than_allowed_at_a_time(world),
        "orphan rows": invariants.nothing_is_left_over(tables),
    }
    return {name: wrong for name, wrong in found.items() if wrong}
