"""Transaction steps on a real Postgres: a user's writes and their checkpoint, both or neither, and once."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from contending import background, step_write, wait_until_blocked
from delivering import delivering
from harness import postgres
from harness.brokers import free_port
from harness.proxy import proxied
from inspecting import Worker, execute
from replaying import inside, seam
from sqlalchemy import orm

import celery_durable as durable
from celery_durable.config import Settings
from celery_durable.exceptions import (
    ConfigurationError,
    LeaseLostError,
    SerializationError,
    StepUsageError,
)
from celery_durable.executor import Execution
from celery_durable.seam import Suspended
from celery_durable.serialization import digest
from celery_durable.store import Store
from celery_durable.store.forms import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

begun: list[str] = []


class Killed(BaseException):
    """The process ends here."""


@durable.transaction
def book(connection: psycopg.Connection[Any], account: str, cents: int) -> int:
    begun.append(account)
    connection.execute("insert into ledger values (%s, %s)", (account, cents))
    row = connection.execute("select sum(cents) from ledger where account = %s", (account,)).fetchone()
    assert row is not None
    return int(row[0])


@durable.transaction(max_retries=2, default_retry_delay=0)
def booking_that_fails(connection: psycopg.Connection[Any], failures: int) -> str:
    begun.append("try")
    connection.execute("insert into ledger values ('try', 1)")
    if len(begun) <= failures:
        message = f"failure {len(begun)}"
        raise ValueError(message)
    return "booked"


@durable.transaction
def read_and_add(
    connection: psycopg.Connection[Any], account: str, between: Callable[[], object] | None = None
) -> int:
    """Read all, then write what follows from it: two of these at once are not to be in any order."""
    begun.append(account)
    row = connection.execute("select coalesce(sum(cents), 0) from ledger").fetchone()
    assert row is not None
    if between is not None and len(begun) == 1:
        between()
    connection.execute("insert into ledger values (%s, %s)", (account, row[0] + 1))
    return int(row[0])


@pytest.fixture(autouse=True)
def ledger(store: Store) -> Iterator[None]:
    """A table of the user's."""
    begun.clear()
    execute(store, "create table ledger (account text not null, cents bigint not null)")
    yield
    execute(store, "drop table ledger")


class Story:
    """One run, attempt after attempt."""

    def __init__(self, store: Store) -> None:
        self.store, self.worker = store, Worker(store)
        self.id = self.worker.enqueue()

    def claimed(self, store: Store | None = None) -> Execution:
        store = store or self.store
        outcome = store.runs.claim(self.id, fence=uuid.uuid4(), token=self.worker.token, pid=7, revision=0)
        assert isinstance(outcome, tuple), outcome
        return Execution(*outcome, runs=store.runs, settings=Settings(), seam=seam(store))

    def attempt(self, body: Callable[[], Any]) -> Any:
        execution = self.claimed()
        try:
            value = inside(execution, body)
            execution.conclude()
        finally:
            self.take_away()
        return value

    def take_away(self) -> None:
        self.store.runs.release_strays(self.worker.token, self.store.runs.owned(self.worker.token))

    def ledger(self) -> list[tuple[str, int]]:
        rows = execute(self.store, "select account, cents from ledger order by account, cents")
        return [(row["account"], row["cents"]) for row in rows]

    def steps(self) -> dict[str, tuple[str, int]]:
        rows = execute(self.store, "select key, outcome, tries from durable.checkpoint order by seq")
        return {row["key"]: (row["outcome"], row["tries"]) for row in rows}


@pytest.fixture
def story(store: Store) -> Iterator[Story]:
    """Return a run that was enqueued."""
    yield Story(store)
    for transactions in store._transactions.values():
        transactions.close()


def test_a_transaction_and_its_checkpoint_are_there_together_and_a_replay_does_nothing(story: Story) -> None:
    for _ in range(2):
        assert story.attempt(lambda: [book("a", 5), book("b", 7), book("a", 1)]) == [5, 7, 6]

    assert begun == ["a", "b", "a"]
    assert story.ledger() == [("a", 1), ("a", 5), ("b", 7)]
    assert story.steps() == {"book": ("ok", 1), "book#2": ("ok", 1), "book#3": ("ok", 1)}


def test_a_body_that_raises_leaves_nothing_but_its_failed_tries(story: Story) -> None:
    assert story.attempt(lambda: booking_that_fails(2)) == "booked"

    assert story.ledger() == [("try", 1)]
    assert story.steps() == {"booking_that_fails": ("ok", 3)}
    run = story.store.inspection.get(story.id)
    assert run is not None
    assert [one.error for one in run.steps[0].earlier] == ["ValueError: failure 1", "ValueError: failure 2"]

    other = Story(story.store)
    begun.clear()
    with pytest.raises(ValueError, match="failure 3"):
        other.attempt(lambda: booking_that_fails(9))
    assert story.ledger() == [("try", 1)]


def test_a_body_that_raises_fatal_is_not_tried_again(story: Story) -> None:
    @durable.transaction(max_retries=2, default_retry_delay=0)
    def refused(connection: psycopg.Connection[Any]) -> None:
        begun.append("refused")
        raise durable.Fatal("the card does not cover it")

    with pytest.raises(durable.Fatal, match="does not cover"):
        story.attempt(refused)
    assert begun == ["refused"]
    assert list(story.steps().values()) == [("error", 1)]


def test_a_value_that_cannot_be_stored_leaves_nothing(story: Story) -> None:
    @durable.transaction
    def opaque(connection: Any) -> Any:
        connection.execute("insert into ledger values ('opaque', 1)")
        return object()

    with pytest.raises(SerializationError):
        story.attempt(opaque)

    assert story.ledger() == []
    assert story.steps() == {"opaque": ("error", 1)}


def test_a_process_that_dies_in_the_body_leaves_nothing(story: Story) -> None:
    @durable.transaction
    def dying(connection: Any) -> None:
        connection.execute("insert into ledger values ('dying', 1)")
        raise Killed

    with pytest.raises(Killed):
        story.attempt(dying)

    assert (story.ledger(), story.steps()) == ([], {})


def test_an_attempt_that_lost_its_lease_in_the_body_commits_nothing(story: Story) -> None:
    """Not even when nobody has claimed the run since."""

    @durable.transaction
    def overtaken(connection: Any) -> None:
        connection.execute("insert into ledger values ('overtaken', 1)")
        story.take_away()

    execution = story.claimed()
    with pytest.raises(LeaseLostError):
        inside(execution, overtaken)

    assert execution.lost
    assert (story.ledger(), story.steps()) == ([], {})


def test_an_attempt_that_has_lost_its_lease_does_not_begin(story: Story) -> None:
    execution = story.claimed()
    story.take_away()

    with pytest.raises(LeaseLostError):
        inside(execution, lambda: book("late", 1))

    assert (begun, story.ledger()) == ([], [])


def test_the_run_can_be_taken_and_cancelled_while_a_body_lasts(story: Story) -> None:
    """Its row is not locked before the end: a frozen worker keeps nobody from its run."""

    @durable.transaction
    def long(connection: Any) -> bool:
        connection.execute("insert into ledger values ('long', 1)")
        (change,) = story.store.inspection.cancel(
            [story.id], operation=uuid.uuid4(), actor="ada", reason=None
        )
        return change.changed

    execution = story.claimed()
    assert inside(execution, long) is True

    assert execution.cancelled
    assert story.ledger() == [("long", 1)]


def test_two_attempts_in_one_step_at_once_leave_one_effect(story: Story) -> None:
    """The first one is frozen in front of its commit; the second has the run by then."""
    first = story.claimed()

    @durable.transaction(name="contended")
    def frozen(connection: Any) -> str:
        connection.execute("insert into ledger values ('first', 1)")
        story.take_away()
        assert story.attempt(contended) == "second"
        return "first"

    @durable.transaction
    def contended(connection: Any) -> str:
        connection.execute("insert into ledger values ('second', 1)")
        return "second"

    with pytest.raises(LeaseLostError):
        inside(first, frozen)

    assert story.ledger() == [("second", 1)]
    assert story.steps() == {"contended": ("ok", 1)}


def test_a_commit_whose_answer_is_lost_is_recognised_and_its_body_is_not_run_again(
    story: Story, shared_url: str
) -> None:
    with proxied(shared_url) as proxy:
        through = type(story.store)(proxy.url, Settings())
        execution = story.claimed(through)
        inside(execution, lambda: book("before", 1))  # opens the connections and prepares the statements

        def body() -> int:
            proxy.lose_answer("transactions", "keep")
            return book("once", 3)

        assert inside(execution, body) == 3
        for transactions in through._transactions.values():
            transactions.close()
        through.close()

    story.take_away()
    assert begun == ["before", "once"]
    assert story.ledger() == [("before", 1), ("once", 3)]
    assert story.attempt(lambda: [book("before", 1), book("once", 3)]) == [1, 3]


def test_a_commit_still_under_way_when_the_step_is_tried_again_is_waited_for(story: Story) -> None:
    """Its connection is gone and its answer lost, and the server has not finished it yet."""
    execution = story.claimed()
    transactions = story.store.transactions()
    claim = execution.claim
    place = Place(claim.key, claim.id, claim.attempt, claim.fence, "book")
    with story.store.connections.dedicated() as under_way:
        under_way.execute("begin")
        under_way.execute(transactions._sql["look"], {**transactions._names(place), "idle": None})
        under_way.execute("insert into ledger values ('a', 5)")
        write = step_write("book", 1, output=b"5", digest=digest({"account": "a", "cents": 5})[0])
        under_way.execute(transactions._sql["keep"], {**write.__dict__, **transactions._names(place)})
        again = background(lambda: inside(execution, lambda: book("a", 5)))
        wait_until_blocked(story.store)
        under_way.execute("commit")

    assert again.result(20) == 5
    assert story.ledger() == [("a", 5)]
    story.take_away()
    assert story.attempt(lambda: book("a", 5)) == 5


def test_a_body_whose_connection_is_lost_is_run_again(story: Story) -> None:
    @durable.transaction
    def cut_off(connection: psycopg.Connection[Any]) -> str:
        begun.append("cut off")
        connection.execute("insert into ledger values ('cut', %s)", (len(begun),))
        if len(begun) == 1:
            with suppress(psycopg.Error):
                connection.execute("select pg_terminate_backend(pg_backend_pid())")
            message = "whatever the body makes of it"
            raise RuntimeError(message)
        return "done"

    assert story.attempt(cut_off) == "done"
    assert begun == ["cut off"] * 2
    assert story.ledger() == [("cut", 2)]
    assert story.steps() == {"cut_off": ("ok", 1)}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_serialisation_failure_is_tried_again_and_is_no_retry(story: Story, isolation: str) -> None:
    execute(story.store, "insert into ledger values ('sum', 0)")

    @durable.transaction(isolation=isolation)
    def summing(connection: psycopg.Connection[Any]) -> int:
        begun.append("try")
        connection.execute("select sum(cents) from ledger").fetchall()
        if len(begun) == 1:
            execute(story.store, "update ledger set cents = cents + 10")
        connection.execute("update ledger set cents = cents + 1")
        return len(begun)

    assert story.attempt(summing) == 2
    assert story.ledger() == [("sum", 11)]
    assert story.steps() == {"summing": ("ok", 1)}


def test_of_two_serializable_transactions_that_contradict_each_other_one_is_done_again(story: Story) -> None:
    """The conflict is found at the COMMIT, which travels with the checkpoint."""
    other = Story(story.store)
    step = read_and_add.options(isolation="serializable")

    def between() -> None:
        assert other.attempt(lambda: step("other")) == 0

    assert story.attempt(lambda: step("mine", between)) == 1
    assert begun == ["mine", "other", "mine"]
    assert story.ledger() == [("mine", 2), ("other", 1)]


def test_a_deadlock_is_tried_again(story: Story) -> None:
    execute(story.store, "insert into ledger values ('left', 0), ('right', 0)")
    add = "update ledger set cents = cents + 1 where account = %s"
    blocked: list[Any] = []

    @durable.transaction
    def crossing(connection: psycopg.Connection[Any]) -> int:
        begun.append("try")
        connection.execute("set local deadlock_timeout = '10ms'")
        connection.execute(add, ("left",))
        if len(begun) == 1:

            def cross() -> None:
                with story.store.connections.dedicated() as mine, mine.transaction():
                    mine.execute("set local deadlock_timeout = '1h'")
                    mine.execute(add, ("right",))
                    mine.execute(add, ("left",))

            blocked.append(background(cross))
            wait_until_blocked(story.store)
        connection.execute(add, ("right",))
        return len(begun)

    assert story.attempt(crossing) == 2
    blocked[0].result(10)
    assert story.ledger() == [("left", 2), ("right", 2)]


def test_a_constraint_that_is_checked_at_the_commit_is_an_error_of_the_step(story: Story) -> None:
    execute(
        story.store, "alter table ledger add constraint once unique (account) deferrable initially deferred"
    )

    with pytest.raises(psycopg.errors.UniqueViolation):
        story.attempt(lambda: [book("a", 1), book("a", 2)])

    assert story.ledger() == [("a", 1)]
    assert story.steps() == {"book": ("ok", 1), "book#2": ("error", 1)}


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_the_handle_refuses_to_end_the_transaction(story: Story, end: str) -> None:
    @durable.transaction
    def ending(connection: psycopg.Connection[Any]) -> None:
        connection.execute("insert into ledger values ('ending', 1)")
        getattr(connection, end)()

    with pytest.raises(StepUsageError, match="when its function returns"):
        story.attempt(ending)

    assert story.ledger() == []


@pytest.mark.parametrize("statement", ["commit", "rollback", "commit; begin"])
def test_a_body_that_ends_its_transaction_by_a_statement_is_found_out(story: Story, statement: str) -> None:
    @durable.transaction
    def ending(connection: psycopg.Connection[Any]) -> None:
        for part in statement.split("; "):
            connection.execute(part.encode())
        connection.execute("insert into ledger values ('after', 1)")

    with pytest.raises(StepUsageError, match="ended its transaction itself"):
        story.attempt(ending)

    assert story.steps() == {"ending": ("error", 1)}
    if statement == "commit; begin":
        assert story.ledger() == []


def test_a_body_that_hides_a_failed_statement_commits_nothing_and_hears_of_savepoints(story: Story) -> None:
    def hiding(connection: psycopg.Connection[Any], *, savepoint: bool) -> str:
        connection.execute("insert into ledger values ('kept', 1)")
        with suppress(psycopg.errors.NotNullViolation):
            if savepoint:
                with connection.transaction():
                    connection.execute("insert into ledger values (null, 1)")
            else:
                connection.execute("insert into ledger values (null, 1)")
        return "hidden"

    step = durable.transaction(hiding)
    with pytest.raises(StepUsageError, match="savepoint"):
        story.attempt(lambda: step(savepoint=False))
    assert story.ledger() == []

    assert Story(story.store).attempt(lambda: step(savepoint=True)) == "hidden"
    assert story.ledger() == [("kept", 1)]


def test_what_a_body_leaves_in_its_session_does_not_reach_the_stores_writes(story: Story) -> None:
    @durable.transaction
    def careless(connection: psycopg.Connection[Any]) -> None:
        connection.execute("set search_path = 'elsewhere'")
        connection.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]

    @durable.step
    def slow() -> str:
        return "stored"

    assert story.attempt(lambda: [careless(), slow()]) == [None, "stored"]
    row = story.store.connections.once(lambda c: c.execute("show search_path").fetchone())
    assert row == {"search_path": '"$user", public'}


def test_a_step_that_lies_idle_longer_than_its_limit_is_ended_by_the_server(story: Story) -> None:
    """A worker frozen in a body must not hold the user's rows for ever."""
    seen: list[str] = []

    @durable.transaction(time_limit=7.5)
    def looking(connection: psycopg.Connection[Any]) -> None:
        row = connection.execute("show idle_in_transaction_session_timeout").fetchone()
        assert row is not None
        seen.append(row[0])

    story.attempt(looking)
    assert seen == ["7500ms"]


# -- SQLAlchemy -------------------------------------------------------------------------------------------


class Base(orm.DeclarativeBase):
    """The user's models."""


class Entry(Base):
    """A row of the ledger."""

    __tablename__ = "ledger"
    account: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    cents: orm.Mapped[int]


@durable.transaction
def book_entry(session: orm.Session, account: str, cents: int | None) -> str:
    begun.append(account)
    session.add(Entry(account=account, cents=cents))
    return account


@durable.transaction
def book_row(connection: sqlalchemy.Connection, account: str) -> int:
    connection.execute(sqlalchemy.insert(Entry).values(account=account, cents=2))
    total = connection.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(Entry))
    assert total is not None
    return total


def test_a_session_or_connection_of_sqlalchemy_is_committed_with_the_checkpoint(story: Story) -> None:
    for _ in range(2):
        assert story.attempt(lambda: [book_entry("a", 1), book_row("b"), book_row("c")]) == ["a", 2, 3]

    assert begun == ["a"]
    assert story.ledger() == [("a", 1), ("b", 2), ("c", 2)]


def test_an_error_at_the_sessions_flush_is_the_steps_and_leaves_nothing(story: Story) -> None:
    with pytest.raises(Exception, match="null value in column") as raised:
        story.attempt(lambda: book_entry("null", None))

    assert "IntegrityError" in type(raised.value).__name__
    assert story.ledger() == []


@pytest.mark.parametrize("kind", ["session", "connection"])
@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_sqlalchemys_handle_refuses_to_end_the_transaction(story: Story, kind: str, end: str) -> None:
    """At once, in the line that wants it."""

    @durable.transaction(handle=kind)
    def ending(handle: Any) -> None:
        handle.execute(sqlalchemy.text("insert into ledger values ('ending', 1)"))
        getattr(handle, end)()
        begun.append("behind it")

    with pytest.raises(StepUsageError, match=rf"^{end}\(\) inside a transaction step.* savepoint"):
        story.attempt(ending)

    assert story.ledger() == []
    assert story.steps() == {"ending": ("error", 1)}
    assert begun == []


def test_a_sessions_serialisation_failure_is_tried_again(story: Story) -> None:
    execute(story.store, "insert into ledger values ('sum', 0)")

    @durable.transaction(isolation="repeatable read")
    def summing(session: orm.Session) -> int:
        begun.append("try")
        entry = session.get(Entry, "sum")
        assert entry is not None
        if len(begun) == 1:
            execute(story.store, "update ledger set cents = 10")
        entry.cents += 1
        return len(begun)

    assert story.attempt(summing) == 2
    assert story.ledger() == [("sum", 11)]


# -- a database on another server -------------------------------------------------------------------------


@pytest.fixture
def elsewhere(postgres_url: str) -> Iterator[str]:
    """Return the URL of a user's database that is set up for transaction steps."""
    with postgres.fresh_database(postgres_url) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table ledger (account text not null, cents bigint not null)")
        yield url


def rows_of(url: str, table: str = "ledger") -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(f"select * from {table} order by 1".encode()).fetchall()


def test_a_database_that_is_not_set_up_is_named_with_the_command(story: Story, elsewhere: str) -> None:
    with pytest.raises(StepUsageError, match="durable init --database"):
        story.attempt(lambda: book.options(database=elsewhere)("a", 1))


def test_a_step_in_another_database_is_done_there_once_whenever_the_process_dies(
    story: Story, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between its commit there and its checkpoint in the store."""
    story.store.transactions(elsewhere).install()
    step = book.options(database=elsewhere)
    execution = story.claimed()
    with monkeypatch.context() as patch:
        patch.setattr(story.store.runs, "checkpoint", killed)
        with pytest.raises(Killed):
            inside(execution, lambda: step("a", 1))
    story.take_away()
    assert (rows_of(elsewhere), story.steps()) == ([("a", 1)], {})

    assert story.attempt(lambda: step("a", 1)) == 1

    assert (begun, rows_of(elsewhere)) == (["a"], [("a", 1)])
    assert story.steps() == {"book": ("ok", 1)}


def test_a_run_leaves_its_worker_when_another_database_is_away_and_says_why(story: Story) -> None:
    nobody = f"postgresql://postgres@127.0.0.1:{free_port()}/nobody"

    impatient = Store(story.store.url, Settings(outage_budget=0.2))
    try:
        with pytest.raises(Suspended) as left:
            inside(story.claimed(impatient), lambda: book.options(database=nobody)("a", 1))
    finally:
        impatient.close()

    assert (left.value.reason, left.value.delay) == ("retry", timedelta(seconds=30))
    assert "The database of 'book': " in str(left.value.error)
    assert "onnection refused" in str(left.value.error)


def killed(*_: Any, **__: Any) -> None:
    raise Killed


def test_an_older_attempt_in_another_database_can_neither_commit_nor_take_the_step_back(
    story: Story, elsewhere: str
) -> None:
    story.store.transactions(elsewhere).install()
    first = story.claimed()

    @durable.transaction(database=elsewhere, name="contended", max_retries=0)
    def frozen(connection: Any) -> str:
        begun.append("first")
        connection.execute("insert into ledger values ('first', 1)")
        story.take_away()
        with pytest.raises(ValueError, match="second fails"):
            story.attempt(contended)
        return "first"

    @durable.transaction(database=elsewhere)
    def contended(connection: Any) -> str:
        begun.append("second")
        message = "second fails"
        raise ValueError(message)

    with pytest.raises(LeaseLostError):
        inside(first, frozen)
    assert begun == ["first", "second"]
    assert rows_of(elsewhere) == []
    late = Execution(first.claim, [], runs=story.store.runs, settings=Settings(), seam=seam(story.store))
    with pytest.raises(LeaseLostError):
        inside(late, contended)
    assert begun == ["first", "second"]


def test_conflicts_and_lost_answers_in_another_database_are_recognised(story: Story, elsewhere: str) -> None:
    with proxied(elsewhere) as proxy:
        transactions = story.store.transactions(proxy.url)
        transactions.install()
        step = book.options(database=proxy.url)
        execution = story.claimed()
        inside(execution, lambda: step("before", 1))

        def body() -> int:
            proxy.lose_answer("elsewhere", "keep")
            return step("once", 3)

        assert inside(execution, body) == 3
        transactions.close()
        del story.store._transactions[proxy.url]

    assert begun == ["before", "once"]
    assert rows_of(elsewhere) == [("before", 1), ("once", 3)]


# -- where it is not a step -------------------------------------------------------------------------------


def test_inside_another_step_a_transaction_is_refused(story: Story) -> None:
    @durable.step
    def outer() -> int:
        return book("inner", 1)

    with pytest.raises(StepUsageError, match="not be done exactly once"):
        story.attempt(outer)
    assert story.ledger() == []


@pytest.mark.parametrize(
    "retries", [{}, {"max_retries": 3, "default_retry_delay": 0}], ids=["none", "its own"]
)
def test_a_database_that_has_no_such_name_fails_the_run_at_once(
    store: Store, retries: dict[str, Any]
) -> None:
    @durable.transaction(database="nowhere", **retries)
    def write(connection: Any) -> None: ...

    def body() -> None:
        write()

    with delivering(store) as world:
        run = world.run(world.task(body))

        assert world.state(run) == ("failed", "ConfigurationError")
        assert type(world.result(run)) is ConfigurationError
        assert execute(store, "select tries from durable.checkpoint") == [{"tries": 1}]
