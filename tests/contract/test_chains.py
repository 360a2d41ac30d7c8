"""The links of a long chain are stored once, and nothing that Celery does with a chain notices."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Task, chain, chord, group, states
from celery.backends.base import Backend
from contending import keeper
from inspecting import execute, open_transaction
from linking import World

from celery_durable import Runs, chains, envelope
from celery_durable.exceptions import StoreError
from celery_durable.keeper import services
from celery_durable.rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

LONG = chains.INLINE + 5


def add(first: int = 0, second: int = 1) -> int:
    """Add."""
    return first + second


def plain_add(first: int, second: int = 1) -> int:
    """Add, in a plain task."""
    return first + second


def total(numbers: list[int]) -> int:
    """Sum up."""
    return sum(numbers)


def plain_total(numbers: list[int]) -> int:
    """Sum up, in a plain task."""
    return sum(numbers)


def fail(*_: Any) -> None:
    """Fail."""
    message = "broken link"
    raise LookupError(message)


class Chains(World):
    """A world with tasks to chain."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.start_worker()
        self.add = self.task(add)
        self.plain = self.task(plain_add, base=Task)
        self.total = self.task(total)
        self.plain_total = self.task(plain_total, base=Task)
        self.fail = self.task(fail, autoretry_for=())

    def links(self) -> list[tuple[str, int]]:
        """Return for each stored chain its tree and how many links it has."""
        rows = execute(
            self.store,
            "select c.root, count(l.number) as links from durable.chain c left join durable.chain_link l"
            " on l.chain = c.id group by c.id, c.root order by links desc",
        )
        return [(row["root"], row["links"]) for row in rows]

    def outcome(self, result: Any) -> Any:
        """Execute everything; return a result."""
        self.work()
        return result.get(timeout=20)


@pytest.fixture
def world(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chains]:
    """Return an app whose tasks can be chained; environment and breaker are as before at the end."""
    for name in ("CELERY_DURABLE_WORKER", "CELERY_DURABLE_DRAIN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(envelope, "breaker", envelope.Breaker())
    made = Chains(store)
    yield made
    made.leave()


def test_what_a_chain_stores_and_sends_grows_with_its_length_and_not_with_its_square(world: Chains) -> None:
    def bytes_of(length: int) -> tuple[int, int]:
        execute(world.store, "truncate durable.run, durable.chain, durable.chain_link")
        world.sizes.clear()
        assert world.outcome(chain(world.add.s(0), *[world.add.s()] * length).apply_async()) == length + 1
        (row,) = execute(
            world.store,
            "select (select sum(octet_length(body) + octet_length(message)) from durable.run)"
            " + (select sum(octet_length(signature)) from durable.chain_link) as stored",
        )
        return row["stored"], sum(world.sizes)

    (stored, sent), (twice_stored, twice_sent) = bytes_of(60), bytes_of(120)

    assert twice_stored < 2.1 * stored
    assert twice_sent < 2.1 * sent


def test_a_short_chain_is_in_its_messages(world: Chains) -> None:
    result = chain(world.add.s(0), *[world.add.s()] * chains.INLINE).apply_async()

    assert world.links() == []
    assert world.outcome(result) == chains.INLINE + 1


def test_each_link_is_executed_once_under_the_id_it_was_given(world: Chains) -> None:
    result = chain(world.add.s(0), *[world.add.s(n) for n in range(LONG)]).apply_async()
    ids = [result.id]
    above = result
    while (above := above.parent) is not None:
        ids.insert(0, above.id)
    first = ids[0]

    assert world.outcome(result) == 1 + sum(range(LONG))

    assert world.executed == ids == world.runs()
    assert world.links() == [(first, LONG)]
    roots = execute(world.store, "select distinct root from durable.run")
    assert roots == [{"root": first}]


def test_plain_tasks_in_a_chain_know_all_that_follows(world: Chains) -> None:
    links = [*[world.add.s()] * LONG, world.plain.s(), *[world.add.s()] * LONG]

    assert world.outcome(chain(world.add.s(0), *links).apply_async()) == 2 * LONG + 2

    assert sorted(number for _, number in world.links()) == [LONG - 1, 2 * LONG + 1]
    assert execute(world.store, "select id from durable.outbox") == []


@pytest.mark.parametrize("kind", ["add", "plain"])
def test_chords_in_a_chain_hand_on_what_follows_them(world: Chains, kind: str) -> None:
    member = getattr(world, kind)
    links = [
        *[world.add.s()] * LONG,
        group(member.s(n) for n in range(3)),
        (world.total if kind == "add" else world.plain_total).s(),
        *[world.add.s()] * LONG,
        group(member.s(n) for n in range(2)),
    ]
    before = LONG + 1
    after = 3 * before + 3 + LONG

    assert world.outcome(chain(world.add.s(0), *links).apply_async()) == [after, after + 1]

    (tree,) = {root for root, _ in world.links()}
    stored = sum(number for _, number in world.links())
    assert stored <= 2 * LONG + 2 + (LONG if kind == "plain" else 0)  # once more behind a plain task
    assert execute(world.store, "select id from durable.run where root <> %s", tree) == []


def test_a_long_chain_in_the_header_of_a_chord_is_one_part(world: Chains) -> None:
    long = chain(world.add.s(0), *[world.add.s()] * LONG)
    result = chord([long, world.add.s(1), long], world.total.s()).apply_async()

    assert world.outcome(result) == 2 * (LONG + 1) + 2


def test_the_chain_behind_a_chord_goes_on_in_one_place(world: Chains) -> None:
    header = group(world.add.s(n) for n in range(4))
    result = chain(header, world.total.s(), *[world.add.s()] * LONG).apply_async()

    assert world.outcome(result) == 10 + LONG
    assert [number for _, number in world.links()] == [LONG]


@pytest.mark.parametrize("told_by", ["worker", "keeper"])
def test_what_follows_a_failed_link_fails_with_it(
    world: Chains, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    links = [*[world.add.s()] * 3, world.fail.s(), *[world.add.s()] * LONG]
    result = chain(world.add.s(0), *links).apply_async()
    if told_by == "keeper":
        with monkeypatch.context() as dying:
            dying.setattr(type(world.app.backend), "mark_as_failure", lambda *_, **__: None)
            world.work()
        assert result.state == states.PENDING
        execute(world.store, "update durable.run set finished_at = finished_at - interval '1 minute'")
        with keeper(world.store) as statements:
            assert services.report_endings(world.app, statements) == 1
    else:
        world.work()

    for _ in range(LONG + 1):
        assert result.state == states.FAILURE
        result = result.parent
    assert result.state == states.SUCCESS
    assert execute(world.store, "select id from durable.run where unreported") == []


@pytest.mark.skipif(not hasattr(Backend, "_fail_chain"), reason="Celery before 5.7 tells only its body")
def test_what_follows_a_failed_chord_fails_with_it(world: Chains) -> None:
    header = group(world.add.s(1), world.fail.s())
    links = [*[world.add.s()] * 2, header, world.total.s(), *[world.add.s()] * LONG]
    result = chain(world.add.s(0), *links).apply_async()

    world.work()

    for _ in range(LONG + 1):
        assert result.state == states.FAILURE
        result = result.parent


def test_a_link_that_is_retried_with_other_arguments_goes_on(world: Chains) -> None:
    seen: list[int] = []

    def again(self: Any, first: int) -> int:
        seen.append(len(self.request.chain))
        if self.request.retries < 2:
            raise self.retry(args=(first + 100,), countdown=0)
        return first

    middle = world.task(again, bind=True)
    links = [*[world.add.s()] * 2, middle.s(), *[world.add.s()] * LONG]

    assert world.outcome(chain(world.add.s(0), *links).apply_async()) == 203 + LONG

    assert seen == [LONG] * 3
    assert [number for _, number in world.links()] == [LONG + 3]


def test_an_old_message_of_a_link_that_was_retried_finds_the_chain_again(world: Chains) -> None:
    seen: list[int] = []

    def again(self: Any, first: int) -> int:
        seen.append(len(self.request.chain))
        if not self.request.retries:
            raise self.retry(args=(first + 100,), countdown=0)
        return first

    middle = world.task(again, bind=True)
    links = [*[world.add.s()] * 2, middle.s(), *[world.add.s()] * LONG]
    result = chain(world.add.s(0), *links).apply_async()
    world.work(3)
    (old,) = world.messages()
    world.deliver(old)
    assert len(list(world.messages())) == 1  # the new one, lost

    world.deliver(old)

    assert world.outcome(result) == 103 + LONG
    assert seen == [LONG] * 2


@pytest.mark.parametrize("by", ["task", "chain", "chord", "plain"])
def test_a_link_that_is_replaced_goes_on(world: Chains, by: str) -> None:
    add, plain, total = world.add, world.plain, world.total
    replacements = {
        "task": lambda n: add.s(n, 10),
        "plain": lambda n: plain.s(n, 10),
        "chain": lambda n: chain(add.s(n, 4), add.s(6)),
        "chord": lambda n: chord([add.s(n, 5), add.s(0, 5)], total.s()),
    }

    def replaced(self: Any, first: int) -> Any:
        return self.replace(replacements[by](first))

    middle = world.task(replaced, bind=True)
    links = [*[add.s()] * 2, middle.s(), *[add.s()] * LONG]

    assert world.outcome(chain(add.s(0), *links).apply_async()) == 13 + LONG


def test_a_body_reads_and_hands_on_what_follows_it(world: Chains) -> None:
    seen: list[Any] = []

    def reads(self: Any, first: int) -> int:
        rest = self.request.chain
        seen.extend([len(rest), [link["task"] for link in rest], rest[-1]["args"], rest[0]["args"]])
        world.plain.apply_async((first,), chain=rest[:-1], task_id="plain")
        world.add.apply_async((first,), chain=rest[:-1], task_id="here")
        world.add.apply_async((first,), chain=rest[:-1], task_id="there", root_id="there")
        return first

    middle = world.task(reads, bind=True)
    links = [*[world.add.s()] * 2, middle.s(), *[world.add.s(n) for n in range(LONG)]]
    chain(world.add.s(0), *links).apply_async()
    first = world.runs()[0]

    world.work(4)

    assert seen == [LONG, ["add"] * LONG, [0], [LONG - 1]]
    assert world.links() == [(first, LONG + 3), ("there", LONG - 1)]
    handed_on = {message.headers["id"]: message.decode()[2]["chain"] for message in world.messages()}
    assert [link["task"] for link in handed_on["plain"]] == ["add"] * (LONG - 1)
    assert [[one["left"] for one in handed_on[run]] for run in ("here", "there")] == [[LONG - 1]] * 2


def test_a_chain_of_an_older_release_has_its_links_in_its_messages_and_goes_on(
    world: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(chains, "INLINE", 10**6)
        result = chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
        assert world.links() == []

    assert world.outcome(result) == LONG + 1
    assert [number for _, number in world.links()] == [LONG - 1]


def test_a_chain_that_is_sent_in_a_transaction_is_in_its_first_message_and_goes_on(world: Chains) -> None:
    with psycopg.connect(world.store.url) as connection:
        result = chain(world.add.s(0), *[world.add.s()] * LONG).apply_async(transaction=connection)
    with keeper(world.store) as statements:
        execute(world.store, "update durable.run set due = due - interval '1 hour'")
        services.publish_unpublished(world.app, statements)

    assert world.outcome(result) == LONG + 1
    assert [number for _, number in world.links()] == [LONG - 1]


def test_a_call_that_is_merged_into_a_debounced_run_brings_its_chain(world: Chains) -> None:
    def send(first: int) -> Any:
        return chain(
            world.add.s(first).set(debounce_key="same", debounce=60), *[world.add.s()] * LONG
        ).apply_async()

    send(0)
    result = send(100)
    execute(world.store, "update durable.run set due = durable.clock()")
    with keeper(world.store) as statements:
        assert services.wake(world.app, statements) == 1

    assert world.outcome(result) == 101 + LONG
    assert [number for _, number in world.links()] == [LONG - 1]


def test_a_rehearsal_reads_what_follows(world: Chains) -> None:
    seen: list[int] = []

    def reads(self: Any, first: int) -> int:
        seen.append(len(list(self.request.chain)))
        return first

    middle = world.task(reads, bind=True)
    chain(middle.s(0), *[world.add.s()] * LONG).apply_async()

    verdict = rehearse(world.app, world.runs()[0])

    assert verdict.problem is None
    assert seen == [LONG]


def test_a_run_that_is_resumed_goes_on_with_its_chain(world: Chains) -> None:
    broken = [True]

    def mended(first: int) -> int:
        if broken:
            raise LookupError
        return first

    middle = world.task(mended, autoretry_for=())
    links = [*[world.add.s()] * 2, middle.s(), *[world.add.s()] * LONG]
    result = chain(world.add.s(0), *links).apply_async()
    world.work()
    broken.clear()
    runs = Runs(world.app)
    (failed,) = runs.list(state="failed").runs

    runs.resume(failed.id)
    world.work()

    (last,) = execute(world.store, "select result from durable.run where id = %s", result.id)
    assert bytes(last["result"]) == str(3 + LONG).encode()


def test_a_fork_has_a_chain_of_its_own(world: Chains) -> None:
    result = chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    world.work()
    runs = Runs(world.app)
    source = world.runs()[2]

    forked = runs.fork(source)
    delete_tree(world)
    world.work()

    assert result.id not in world.runs()
    assert len(world.runs()) == LONG + 1 - 2
    assert execute(world.store, "select count(*) as runs from durable.run where state = 'succeeded'") == [
        {"runs": LONG - 1}
    ]
    assert [root for root, _ in world.links()] == [forked.id]


def test_an_export_of_a_run_has_its_whole_chain(world: Chains) -> None:
    chain(world.add.s(0), *[world.add.s(n) for n in range(LONG)]).apply_async()
    (run,) = world.runs()

    exported = Runs(world.app).export(run, payloads=True)

    canvas = exported["run"]["payloads"]["canvas"]
    assert [link["args"] for link in canvas["chain"]] == [[n] for n in reversed(range(LONG))]


def age(world: Chains) -> None:
    """Let runs be over for long."""
    execute(
        world.store,
        "update durable.run set finished_at = finished_at - interval '1 year' where finished_at is not null",
    )


def delete_tree(world: Chains) -> None:
    """Prune what is over, as if much time had passed."""
    age(world)
    world.store.prune(timedelta(days=1))


def test_links_are_deleted_with_the_last_run_of_their_tree(world: Chains) -> None:
    chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    world.work()
    chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    world.work(3)
    unfinished = world.runs()[-1]

    delete_tree(world)

    ((tree, number),) = world.links()
    assert number == LONG
    assert tree in world.runs()
    assert unfinished in world.runs()
    world.work()
    delete_tree(world)
    assert world.runs() == world.links() == []
    assert execute(world.store, "select chain from durable.chain_link") == []


@pytest.mark.parametrize("root_first", [False, True])
def test_links_stay_until_the_last_run_of_their_tree_is_forgotten(world: Chains, *, root_first: bool) -> None:
    result = chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    other = chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    world.work()
    ids = [result.id]
    while (result := result.parent) is not None:
        ids.append(result.id)
    tree = ids[-1]
    if root_first:
        ids.reverse()

    for run_id in ids:
        assert tree in dict(world.links())
        world.app.AsyncResult(run_id).forget()

    ((other_tree, _),) = world.links()
    assert other_tree != tree
    assert execute(world.store, "select count(*) as links from durable.chain_link") == [{"links": LONG}]
    assert other.get(timeout=20) == LONG + 1


def test_links_stay_with_a_tree_of_which_somebody_holds_a_run(world: Chains) -> None:
    chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    world.work()
    age(world)
    with open_transaction(world.store) as resuming:
        resuming.execute("select from durable.run where id = %s for no key update", (world.runs()[3],))

        world.store.prune(timedelta(days=1))

        assert [number for _, number in world.links()] == [LONG]
        assert len(world.runs()) == LONG + 1


def test_a_chain_whose_first_message_was_not_taken_leaves_nothing(store: Store, world: Chains) -> None:
    away = World(store, "redis://127.0.0.1:1", durable_publish_errors="raise")
    task = away.task(add)

    with pytest.raises(Exception, match="refused"):
        chain(task.s(0), *[task.s()] * LONG).apply_async()

    assert world.runs() == []
    assert world.links() == []
    away.leave()


def test_a_link_that_is_gone_fails_the_run_in_front_of_it_and_says_why(world: Chains) -> None:
    result = chain(world.add.s(0), *[world.add.s()] * LONG).apply_async()
    first = world.runs()[0]
    execute(world.store, "delete from durable.chain_link")

    world.work()

    error = world.app.AsyncResult(first).result
    assert isinstance(error, StoreError)
    assert f"deleted with the runs of {first}" in str(error)
    assert result.state == states.PENDING
