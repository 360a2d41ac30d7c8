"""Tokens: one signal to one run for whoever holds one, until it expires."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import move_clock
from delivering import World, delivering

import celery_durable as durable
from celery_durable.config import load
from celery_durable.exceptions import ConfigurationError, RunStateError, SignalTokenError, StepUsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

SECRET = "a long random string, or so"
mailed: list[str] = []


@durable.step
def mail(token: str) -> None:
    mailed.append(token)


def body() -> Any:
    mail(durable.current_run().signal_token("approved", expires=timedelta(hours=1)))
    return durable.wait_for_signal("approved")


@pytest.fixture(autouse=True)
def _nothing_mailed() -> None:
    mailed.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store, durable_signal_secret=SECRET) as made:
        yield made


def send(world: World, token: str, payload: Any = None) -> bool:
    return durable.send_signal_with_token(token, payload, app=world.app)


def test_whoever_has_the_token_may_send_the_signal_once(world: World) -> None:
    run_id = world.run(world.task(body))
    (token,) = mailed

    assert send(world, token, {"by": "ada"})
    assert not send(world, token, {"by": "eve"})
    world.deliver(run_id)
    assert world.result(run_id) == {"by": "ada"}
    assert not send(world, token), "also when the run is over"


def test_a_token_is_the_same_at_every_replay(world: World) -> None:
    run_id = world.run(world.task(body))
    send(world, mailed[0], 1)
    world.deliver(run_id)

    assert world.state(run_id)[0] == "succeeded", "the step that mails it was called with the same one"


def test_a_token_expires_by_the_databases_clock(world: World, store: Store) -> None:
    world.run(world.task(body))
    move_clock(store, "61 minutes")
    world.app.backend.store.close()

    with pytest.raises(SignalTokenError) as error:
        send(world, mailed[0])

    assert error.value.facts["problem"] == "expired"


def test_the_time_of_a_token_may_be_given_in_seconds_and_is_refused_where_it_is_none(world: World) -> None:
    def in_seconds() -> None:
        mail(durable.current_run().signal_token("approved", expires=3600))
        with pytest.raises(StepUsageError, match="not a timedelta, nor seconds"):
            durable.current_run().signal_token("approved", expires="soon")  # type: ignore[arg-type]
        durable.wait_for_signal("approved")

    world.run(world.task(in_seconds))

    assert send(world, mailed[0])


@pytest.mark.parametrize("expires", [0, -1, timedelta(0), 10**12, timedelta.max, float("inf"), float("nan")])
def test_a_token_that_would_never_be_good_or_for_ever_is_refused(world: World, expires: Any) -> None:
    def forever() -> None:
        durable.current_run().signal_token("approved", expires=expires)

    error = world.result(world.run(world.task(forever)))

    assert type(error) is StepUsageError
    assert str(error).startswith("signal_token('approved', expires=")


@pytest.mark.parametrize("name", ["", None, "a\0", "a" * 201])
def test_a_token_for_a_signal_that_nobody_can_wait_for_is_not_made(world: World, name: Any) -> None:
    def misnamed() -> None:
        durable.current_run().signal_token(name)

    error = world.result(world.run(world.task(misnamed)))

    assert type(error) is StepUsageError
    assert "is no name of a signal" in str(error)


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-2], lambda t: "x" + t, lambda _: "", lambda _: "a.b"], ids="abcd"
)
def test_a_damaged_token_is_refused(world: World, damage: Any) -> None:
    world.run(world.task(body))

    with pytest.raises(SignalTokenError, match="ask for a new one"):
        send(world, damage(mailed[0]))


def test_a_token_of_another_secret_is_refused_and_one_of_an_older_key_is_not(
    world: World, store: Store
) -> None:
    world.run(world.task(body))
    with (
        delivering(store, durable_signal_secret="another long random string") as other,
        pytest.raises(SignalTokenError),
    ):
        send(other, mailed[0])
    with delivering(store, durable_signal_secret=[SECRET, "the new long random string"]) as rotated:
        assert send(rotated, mailed[0])


def test_a_token_made_in_a_step_is_good_for_one_signal_however_often_it_is_made(world: World) -> None:
    @durable.step(max_retries=2, default_retry_delay=0)
    def mail_it() -> None:
        mailed.append(durable.current_run().signal_token("approved"))
        if len(mailed) == 1:
            raise ConnectionError

    def parent() -> Any:
        mail_it()
        return durable.wait_for_signal("approved")

    run_id = world.run(world.task(parent))

    assert [send(world, token, number) for number, token in enumerate(mailed)] == [True, False]
    world.deliver(run_id)
    assert world.result(run_id) == 0


def test_a_run_that_is_over_takes_no_signal_by_a_token_it_never_used(world: World) -> None:
    def hasty() -> None:
        mailed.append(durable.current_run().signal_token("approved"))

    world.run(world.task(hasty))

    with pytest.raises(RunStateError, match="is over"):
        send(world, mailed[0])


def test_without_a_secret_the_error_names_the_setting(store: Store) -> None:
    with delivering(store) as world:
        run_id = world.run(world.task(body, autoretry_for=()))

        assert "durable_signal_secret" in str(world.result(run_id))
        with pytest.raises(ConfigurationError, match="durable_signal_secret"):
            send(world, "x")


@pytest.mark.parametrize("secret", ["short", [], ["long enough, but", 7], 7], ids="abcd")
def test_a_secret_that_is_none_is_refused_and_never_shown(secret: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least 16 characters") as error:
        load({"durable_signal_secret": secret})

    assert "short" not in str(error.value)
    assert SECRET not in repr(load({"durable_signal_secret": SECRET}))
