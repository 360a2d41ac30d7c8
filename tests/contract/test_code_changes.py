"""New code meets runs of the old: branches they keep to, and rehearsals that say which would break."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import celery
import pytest
from delivering import World, delivering
from inspecting import execute

import celery_durable as durable
from celery_durable import driving, plain
from celery_durable.rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store
    from celery_durable.verdicts import Verdict

done: list[str] = []


@durable.step
def pack(order: int) -> str:
    done.append("pack")
    return f"parcel {order}"


@durable.step
def mail(parcel: str) -> str:
    done.append("mail")
    return "mailed"


@durable.step
def text(parcel: str) -> str:
    done.append("text")
    return "texted"


@durable.step
def fail_once() -> None:
    done.append("fail_once")
    raise durable.Fatal("no")


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


class Task:
    """A task whose code changes between the attempts of its runs."""

    def __init__(self, world: World, body: Callable[..., Any], **options: Any) -> None:
        self.world, self.now = world, body

        def current(*args: Any) -> Any:
            return self.now(*args)

        self.task = world.task(current, name="shop.order", shared=False, **options)

    def start(self, *args: Any) -> str:
        run_id: str = self.task.delay(*args).id
        self.world.deliver(run_id)
        return run_id

    def deploy(self, body: Callable[..., Any]) -> None:
        self.now = body

    def wake(self, run_id: str) -> None:
        """Let the time of its sleep be over."""
        execute(self.world.store, "update durable.checkpoint set due = now() where kind = 'sleep'")
        execute(
            self.world.store,
            "update durable.run set state = 'pending', reason = null, due = now() + interval '1 minute'"
            " where id = %s",
            run_id,
        )
        self.world.deliver(run_id)

    def check(self, run_id: str) -> Verdict:
        before = self.everything()
        verdict = rehearse(self.world.app, run_id)
        assert self.everything() == before, "a rehearsal has left a trace in the store"
        return verdict

    def everything(self) -> list[Any]:
        return [
            execute(self.world.store, f"select count(*), max(t::text) from durable.{table} t")
            for table in ("run", "checkpoint", "attempt", "event", "result", "outbox")
        ]


def old(order: int) -> str:
    parcel = pack(order)
    durable.sleep(hours=1)
    return mail(parcel)


def new(order: int) -> str:
    parcel = pack(order)
    durable.sleep(hours=1)
    return text(parcel) if durable.patched("texts") else mail(parcel)


def patched_early(order: int) -> str:
    said = "new" if durable.patched("early") else "old"
    parcel = pack(order)
    durable.sleep(hours=1)
    return said + parcel


# -- patched ----------------------------------------------------------------------------------------------


def test_a_run_that_comes_to_a_change_for_the_first_time_takes_the_new_branch_and_keeps_to_it(
    world: World,
) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(new)
    task.wake(run_id)

    assert done == ["pack", "text"]
    assert world.result(run_id) == "texted"
    assert list(world.steps(run_id)) == ["pack", "sleep", "patched:texts", "text"]


def test_a_run_whose_history_goes_on_behind_a_change_stays_on_the_old_branch(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(patched_early)
    task.wake(run_id)

    assert world.result(run_id) == "oldparcel 1"
    assert "patched:early" not in world.steps(run_id)
    assert world.result(task_end(task, world)) == "newparcel 2"


def task_end(task: Task, world: World) -> str:
    run_id = task.start(2)
    task.wake(run_id)
    return run_id


def test_a_step_that_was_tried_or_begun_behind_a_change_keeps_the_old_branch_too(world: World) -> None:
    """What it did outside is done: the new branch would do it again in another way."""
    task = Task(world, lambda: None)
    run_id = task.start()
    for outcome in ("trying", "started"):
        execute(world.store, "delete from durable.checkpoint")
        execute(
            world.store,
            "insert into durable.checkpoint (run_key, key, seq, outcome, digest, arguments, fence, attempt,"
            " tries, seconds) select key, 'mail', 1, %s, '', '', gen_random_uuid(), 1, 1, 0 from durable.run",
            outcome,
        )
        said: list[bool] = []
        task.deploy(lambda said=said: said.append(durable.patched("x")))
        task.check(run_id)
        assert said == [False]


def test_one_attempt_hears_one_answer_however_often_it_asks(world: World) -> None:
    def asks(order: int) -> list[bool]:
        first = durable.patched("x")
        pack(order)
        return [first, durable.patched("x")]

    task = Task(world, asks)

    assert world.result(task.start(1)) == [True, True]


def test_the_question_may_go_when_no_run_of_the_old_code_is_left(world: World) -> None:
    task = Task(world, patched_early)
    run_id = task.start(1)
    task.deploy(lambda order: [pack(order), durable.sleep(hours=1)][0])
    task.wake(run_id)

    assert world.result(run_id) == "parcel 1"


def test_outside_a_run_and_inside_a_step_it_is_the_new_branch(world: World) -> None:
    @durable.step
    def asks() -> bool:
        return durable.patched("x")

    assert durable.patched("x")
    assert world.result(Task(world, asks).start()) is True
    with pytest.raises(durable.StepUsageError, match="a change is named by"):
        durable.patched("")
    with pytest.raises(durable.StepUsageError, match="a change is named by"):
        durable.patched(5)  # type: ignore[arg-type]


# -- rehearsals -------------------------------------------------------------------------------------------


def test_a_run_that_the_code_at_hand_continues_says_where_and_runs_no_step(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    execute(world.store, "update durable.checkpoint set outcome = 'ok' where key = 'sleep'")
    task.deploy(new)
    done.clear()

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.ok, verdict.ahead) == ("continues", True, ())
    assert done == []
    task.deploy(old)
    assert task.check(run_id).at == "mail"


def test_a_run_that_would_break_says_what_is_stored_and_what_was_met(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)

    task.deploy(lambda order: pack(order + 1))
    other_arguments = task.check(run_id)
    task.deploy(lambda order: "nothing")
    dropped = task.check(run_id)

    assert not other_arguments.ok
    assert "stored: " in (other_arguments.problem or "")
    assert "called: " in (other_arguments.problem or "")
    assert "ended without the steps 'pack', 'sleep'" in (dropped.problem or "")


def test_another_order_of_waits_would_break(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda order: [pack(order), durable.wait_for_signal("go")])

    assert "waits in another order" in (task.check(run_id).problem or "")


def test_a_body_that_cannot_be_called_as_the_run_was_would_break(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda: None)

    verdict = task.check(run_id)

    assert not verdict.ok
    assert "TypeError" in (verdict.problem or "")


def test_a_task_that_is_gone_would_break(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    del world.app.tasks["shop.order"]

    assert "There is no durable task 'shop.order' in this code" in (task.check(run_id).problem or "")


def test_behind_a_new_step_the_stored_ones_still_come(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda order: [text("x"), old(order)])

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.at, verdict.ahead) == ("continues", "text", ())
    assert done == ["pack"]


def test_a_step_that_was_renamed_would_break(world: World) -> None:
    """What the new one returns goes on into stored ones, whose arguments nobody can compare then."""

    def renamed(order: int) -> str:
        parcel = pack.options(name="wrap")(order)
        mail(parcel)
        durable.sleep(hours=1)
        return parcel

    task = Task(world, lambda order: [mail(pack(order)), durable.sleep(hours=1)])
    run_id = task.start(1)
    task.deploy(renamed)

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.at) == ("breaks", None)
    assert "comes to 'sleep' without 'pack'" in (verdict.problem or "")
    assert "execute 'wrap', which is not stored" in (verdict.problem or "")


@pytest.mark.parametrize(
    "look",
    [
        lambda value: value == "parcel 1",
        lambda value: value.upper(),
        lambda value: f"{value}!",
        lambda value: isinstance(value, str),
        lambda value: [*value],
    ],
    ids=["compared", "asked for a method", "formatted", "asked for its type", "taken apart"],
)
def test_whoever_looks_at_what_a_new_step_returns_is_told_how_far_it_came(
    world: World, look: Callable[[Any], Any]
) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda order: [look(text("x")), old(order)])

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.at, verdict.ahead) == ("continues", "text", ("pack", "sleep"))


@durable.step
def perhaps() -> str | None:
    done.append("perhaps")
    return None


@durable.step
def nothing() -> None:
    done.append("nothing")


def test_a_new_step_that_may_return_none_ends_the_rehearsal_and_one_that_does_does_not(world: World) -> None:
    """`is None` asks nothing of the value that stands in."""
    task = Task(world, old)
    run_id = task.start(1)

    task.deploy(lambda order: [pack(order), durable.sleep(hours=1)] if perhaps() is None else [])
    assert task.check(run_id).ahead == ("pack", "sleep")
    task.deploy(lambda order: [pack(order), durable.sleep(hours=1)] if nothing() is None else [])
    assert task.check(run_id).ahead == ()
    task.deploy(lambda order: [] if nothing() is None else [pack(order), durable.sleep(hours=1)])
    assert task.check(run_id).outcome == "breaks"


def test_a_loop_of_new_steps_that_knows_no_end_is_left(world: World) -> None:
    def endless(order: int) -> None:
        while True:
            nothing()

    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(endless)

    assert task.check(run_id).at == "nothing"


@durable.step(max_retries=0)
def send() -> None:
    raise durable.Fatal("no")


@pytest.mark.parametrize(
    ("now", "outcome"),
    [
        (lambda order: [pack(order), mail("x"), send()], "continues"),
        (lambda order: [pack(order), send()], "breaks"),
        (lambda order: [pack(order), text("x"), send()], "breaks"),
    ],
    ids=["unchanged", "removed", "renamed"],
)
def test_a_run_that_failed_is_replayed_as_a_resume_would(
    world: World, now: Callable[[int], Any], outcome: str
) -> None:
    """Its last error is put aside: behind that step may be what its body has stored, or not."""
    task = Task(world, lambda order: [pack(order), mail("x"), send()])
    run_id = task.start(1)
    assert world.state(run_id)[0] == "failed"
    task.deploy(now)

    verdict = task.check(run_id)

    assert verdict.outcome == outcome
    assert ("mail" in (verdict.problem or "")) is (outcome == "breaks")


def test_a_wait_that_is_gone_would_break(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda order: mail(pack(order)))

    verdict = task.check(run_id)

    assert "ended without the steps 'sleep'" in (verdict.problem or "")
    assert "execute 'mail', which is not stored" in (verdict.problem or "")


def test_a_step_that_was_renamed_in_a_gather_would_break(world: World) -> None:
    task = Task(world, lambda order: [durable.gather(pack.s(order), mail.s("x")), durable.sleep(hours=1)])
    run_id = task.start(1)
    task.deploy(lambda order: [durable.gather(pack.s(order), text.s("x")), durable.sleep(hours=1)])

    assert "comes to 'sleep' without 'mail'" in (task.check(run_id).problem or "")


def test_what_a_gather_calls_with_other_arguments_breaks_beside_a_new_step(world: World) -> None:
    task = Task(world, lambda order: [durable.gather(pack.s(1), mail.s("x")), durable.sleep(hours=1)])
    run_id = task.start(1)
    task.deploy(lambda order: [durable.gather(pack.s(2), pack.s(1), mail.s("x")), durable.sleep(hours=1)])

    verdict = task.check(run_id)

    assert "Step 'pack'" in (verdict.problem or "")


def branches(*calls: list[str]) -> Callable[[int], Any]:
    """Return a body that packs in branches side by side, and sleeps then."""

    @durable.step
    async def a() -> None: ...

    @durable.step
    async def b() -> None: ...

    steps = {"a": a, "b": b}

    async def one(names: list[str]) -> None:
        for name in names:
            await steps[name]()

    async def body() -> None:
        await asyncio.gather(*(one(names) for names in calls))
        durable.sleep(hours=1)

    return lambda _: driving.completed(here.task, body())


class here:  # noqa: N801
    """The task that is tested."""

    task: Any = None


@pytest.mark.parametrize(
    ("now", "missed"),
    [
        ([["a", "b"], ["a"]], "'[2]/b'"),
        ([["a", "b"]], "'[2]/a', '[2]/b'"),
        ([], "'[1]/a', '[2]/a', '[1]/b', '[2]/b'"),
    ],
    ids=["a step", "a branch", "all branches"],
)
def test_a_branch_that_is_over_without_what_it_has_stored_would_break(
    world: World, now: list[list[str]], missed: str
) -> None:
    task = Task(world, branches(["a", "b"], ["a", "b"]))
    here.task = task.task
    run_id = task.start(1)
    assert task.check(run_id).outcome == "continues"
    task.deploy(branches(*now))

    verdict = task.check(run_id)

    assert f"comes to 'sleep' without {missed}" in (verdict.problem or "")


def test_a_branch_more_is_none(world: World) -> None:
    task = Task(world, branches(["a"]))
    here.task = task.task
    run_id = task.start(1)
    task.deploy(branches(["a"], ["b"]))

    assert (task.check(run_id).outcome, task.check(run_id).at) == ("continues", "[2]/b")


def test_what_breaks_in_one_branch_is_told_though_another_one_waits(world: World) -> None:
    def body(number: int) -> Callable[[int], Any]:
        async def waits() -> None:
            durable.sleep(hours=1)

        async def packs() -> None:
            pack(number)

        async def both() -> None:
            packing = asyncio.ensure_future(packs())
            await asyncio.sleep(0)
            await asyncio.gather(asyncio.ensure_future(waits()), packing)

        async def waits_first() -> None:
            await asyncio.gather(asyncio.ensure_future(packs()), asyncio.ensure_future(waits()))

        return lambda _: driving.completed(here.task, (both if number == 1 else waits_first)())

    task = Task(world, body(1))
    here.task = task.task
    run_id = task.start(1)
    task.deploy(body(2))

    assert "Step '[1]/pack'" in (task.check(run_id).problem or "")


def removed(order: int) -> str:
    pack(order)
    mail("parcel")
    durable.sleep(hours=1)
    return text("parcel")


def test_a_step_that_is_gone_from_in_front_of_a_wait_would_break(world: World) -> None:
    task = Task(world, removed)
    run_id = task.start(1)
    assert task.check(run_id).at == "sleep"

    task.deploy(lambda order: old(order) and None)
    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.at) == ("breaks", None)
    assert "comes to 'sleep' without 'mail', which its history holds in front of it" in (
        verdict.problem or ""
    )


def test_a_new_wait_in_front_of_stored_steps_is_told(world: World) -> None:
    task = Task(world, lambda order: [pack(order), fail_once.options(name="call")(), text("x")])
    run_id = task.start(1)
    task.deploy(lambda order: [durable.wait_for_signal("go"), pack(order)])

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.at, verdict.ahead) == (
        "continues",
        "wait_for_signal:go",
        ("pack",),  # a resume puts the error aside
    )


def test_what_other_branches_have_stored_in_front_of_a_wait_may_come_later(world: World) -> None:
    async def beside(order: int) -> str:
        await asyncio.sleep(0)
        return pack(order)

    async def body(order: int) -> Any:
        task = asyncio.ensure_future(beside(order))
        if not done:  # as if it had been faster, this time
            await task
        durable.sleep(hours=1)

    task = Task(world, lambda order: driving.completed(task.task, body(order)))
    run_id = task.start(1)

    assert list(world.steps(run_id)) == ["[1]/pack", "sleep"]
    assert (task.check(run_id).outcome, task.check(run_id).at) == ("continues", "sleep")


def test_a_failure_that_is_stored_and_stays_so_is_no_break(world: World) -> None:
    def fails() -> None:
        try:
            fail_once()
        finally:
            nothing()  # it went on from that error: a resume keeps it

    task = Task(world, fails)
    run_id = task.start()

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.ok) == ("fails", True)
    assert "no" in (verdict.problem or "")


class DownError(OSError):
    """A partner of the shop is."""


def breaks_between(order: int) -> None:
    pack(order)
    message = "partner down"
    raise DownError(message)


def is_declined(order: int) -> None:
    pack(order)
    raise durable.Fatal("card declined")


def is_taken_back(order: int) -> None:
    pack(order)
    durable.on_rollback(unpack, order)
    raise durable.Fatal("card declined")


def unpack(order: int) -> None: ...


def is_no_exception(order: int) -> None:
    class Gone(BaseException):
        pass

    pack(order)
    raise Gone


@pytest.mark.parametrize("body", [breaks_between, is_declined, is_taken_back, is_no_exception])
def test_a_body_that_raises_between_its_steps_as_it_did_fails_and_does_not_break(
    world: World, body: Callable[..., None]
) -> None:
    task = Task(world, body)
    run_id = task.start(1)
    (stored,) = execute(world.store, "select error from durable.attempt")

    verdict = task.check(run_id)

    assert (verdict.outcome, verdict.ok) == ("fails", True)
    assert stored["error"].endswith(verdict.problem or "nothing")


def test_a_body_that_raises_another_error_than_it_did_would_break(world: World) -> None:
    task = Task(world, breaks_between)
    run_id = task.start(1)
    task.deploy(lambda order: [pack(order), int("x")])

    verdict = task.check(run_id)

    assert verdict.outcome == "breaks"
    assert verdict.problem is not None
    assert verdict.problem.startswith("The body raises ValueError: invalid literal")


def test_a_body_that_raises_as_it_did_in_front_of_what_is_stored_would_break(world: World) -> None:
    task = Task(world, breaks_between)
    run_id = task.start(1)
    task.deploy(lambda order: (_ for _ in ()).throw(DownError("partner down")))

    assert task.check(run_id).outcome == "breaks"


@pytest.mark.parametrize(
    "change",
    [
        "update durable.attempt set error = 'shop.partners.' || error",
        """
        insert into durable.attempt (run_key, number, fence, worker, hostname, pid, ended_at, outcome, error)
        select run_key, 2, gen_random_uuid(), worker, hostname, pid, now(), 'lost', 'the worker was lost'
        from durable.attempt
        """,
    ],
    ids=["named by its module", "lost in the next attempt"],
)
def test_how_it_failed_is_known_also_when_it(world: World, change: str) -> None:
    task = Task(world, breaks_between)
    run_id = task.start(1)
    execute(world.store, change)

    assert task.check(run_id).outcome == "fails"


def test_a_run_whose_worker_was_lost_while_it_took_back_fails_as_it_did(world: World) -> None:
    task = Task(world, is_taken_back)
    run_id = task.start(1)
    execute(world.store, "update durable.attempt set outcome = 'lost', error = 'the worker was lost'")

    assert task.check(run_id).outcome == "fails"


def test_the_traceback_of_a_break_begins_with_the_body(world: World) -> None:
    def raises(order: int) -> None:
        int("x")

    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(raises)

    problem = task.check(run_id).problem

    assert problem is not None
    assert problem.splitlines()[1] == "Traceback (most recent call last):"
    assert __file__ in problem.splitlines()[2]


def test_a_run_that_is_over_ends_again(world: World) -> None:
    task = Task(world, lambda order: mail(pack(order)))
    run_id = task.start(1)

    assert task.check(run_id).outcome == "ends"


def test_a_body_that_catches_everything_does_not_get_past_the_end_of_its_history(world: World) -> None:
    def catches(order: int) -> str:
        pack(order)
        try:
            return mail("x")
        except BaseException:  # noqa: BLE001
            return text("y")

    task = Task(world, lambda order: [pack(order), durable.sleep(hours=1)])
    run_id = task.start(1)
    execute(world.store, "delete from durable.checkpoint where key = 'sleep'")
    task.deploy(catches)
    done.clear()

    assert task.check(run_id).at == "mail"
    assert done == []


def test_whatever_else_a_body_does_to_the_world_is_not_done(world: World) -> None:
    """It sends plain tasks, tells its progress and its state, starts a child, and asks for a retry."""
    from celery import Task as Plain

    plain = world.task(ping, base=Plain)
    child = world.task(ping)

    def busy(order: int) -> None:
        pack(order)
        durable.current_run().set_progress(1)
        plain.delay()
        task.task.update_state(state="PROGRESS")
        child.delay()

    task = Task(world, lambda order: [pack(order), durable.sleep(hours=1)])
    run_id = task.start(1)
    execute(world.store, "delete from durable.checkpoint where key = 'sleep'")
    task.deploy(busy)
    with world.app.connection_for_read() as connection, connection.channel() as channel:
        channel.queue_purge(world.app.conf.task_default_queue)
        verdict = task.check(run_id)
        sent = channel.queue_purge(world.app.conf.task_default_queue)

    assert (verdict.outcome, sent) == ("continues", 0)
    assert (verdict.at or "").startswith("delay:")


def ping() -> None: ...


def test_a_body_that_asks_for_a_retry_leaves(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda order: [pack(order), task.task.retry(countdown=5)])

    assert task.check(run_id).outcome == "ends"


def test_a_plain_child_is_not_called_by_a_rehearsal_and_goes_on(world: World) -> None:
    called: list[str] = []

    def note(what: str) -> None:
        called.append(what)

    task = world.task(note, base=celery.Task)
    plain.register(world.app)

    def parent() -> None:
        durable.call(task.s("x"))

    world.run(world.task(parent))
    (child,) = execute(world.store, "select id from durable.run where parent is not null")

    assert rehearse(world.app, child["id"]).outcome == "continues"
    assert called == []


def test_an_async_body_is_rehearsed_on_an_event_loop_and_awaits_no_step(world: World) -> None:
    @durable.step
    async def ask(number: int) -> int:
        done.append("ask")
        return number

    async def old_body() -> int:
        return await ask(1)

    async def longer() -> list[int]:
        return [await ask(1), await ask(2)]

    task = world.task(old_body, name="shop.ask", shared=False)
    run_id = world.run(task)
    same = rehearse(world.app, run_id)
    world.app.tasks.unregister("shop.ask")
    world.task(longer, name="shop.ask", shared=False)
    done.clear()
    verdict = rehearse(world.app, run_id)

    assert same.outcome == "ends"
    assert (verdict.outcome, verdict.at) == ("continues", "ask#2")
    assert done == []


def test_a_body_that_goes_on_as_its_successor_ends(world: World) -> None:
    task = Task(world, old)
    run_id = task.start(1)
    task.deploy(lambda order: [pack(order), durable.sleep(hours=1), durable.continue_as(order + 1)])
    execute(world.store, "update durable.checkpoint set outcome = 'ok' where key = 'sleep'")

    assert task.check(run_id).ok
