"""`celery -A app durable queues`, `init --broker` and what `doctor` says of a Postgres broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from click.testing import CliRunner
from kombu import Producer

from celery_durable.cli import durable
from celery_durable.operations.findings import about_queues
from celery_durable.store.messages import MessageStore, NewMessage, QueueView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store


class Context:
    """What `celery` hands to its commands."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.no_color = True


@pytest.fixture
def cli(store: Store) -> Iterator[Callable[..., str]]:
    app = Celery("media", broker=f"durable+{store.url}", backend=f"durable+{store.url}", set_as_current=False)

    def run(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(durable, arguments, obj=Context(app))
        assert result.exit_code == status, (result.output, result.exception)
        return result.output

    yield run
    backend: Any = app.backend
    backend.store.close()
    app.close()


@pytest.fixture
def messages(store: Store) -> MessageStore:
    made = MessageStore(store.connections, schema="durable")
    for name in ("video", "video.dead"):
        made.declare(name, auto_delete=False, expires=None, ttl=None)
        made.send(NewMessage(name, b"{}"))
    return made


def test_queues_shows_what_waits_and_puts_dead_letters_back(
    cli: Callable[..., str], messages: MessageStore
) -> None:
    assert "video.dead" in cli("queues")

    assert "1 messages are back in video" in cli("queues", "--redrive", "video")

    states = {queue.name: queue.ready for queue in messages.queues()}
    assert states == {"video": 2, "video.dead": 0}


def test_the_doctor_names_the_dead_letters_and_how_to_put_them_back(
    cli: Callable[..., str], messages: MessageStore
) -> None:
    report = cli("doctor")

    assert "1 messages of video came back too often" in report
    assert "durable queues --redrive video" in report


def test_init_makes_the_schema_in_a_broker_of_its_own(database_url: str) -> None:
    app = Celery("media", broker=f"durable+{database_url}", backend="redis://", set_as_current=False)
    result = CliRunner().invoke(durable, ["init", "--broker"], obj=Context(app))
    assert result.exit_code == 0, (result.output, result.exception)
    assert "applied 0006 messages" in result.output

    with app.connection_for_write() as connection:
        Producer(connection.default_channel).publish("x", routing_key="q", headers={"task": "t"})
    app.close()


def test_another_broker_is_an_error_that_says_so() -> None:
    app = Celery("media", broker="memory://", backend="redis://", set_as_current=False)

    result = CliRunner().invoke(durable, ["queues"], obj=Context(app))

    assert result.exit_code == 1
    assert "memory" in result.output
    assert "is not durable+postgresql://" in result.output


def queue(name: str, **more: Any) -> QueueView:
    return QueueView(
        **{"name": name, "ready": 0, "held": 0, "consumers": 1, "waiting": None, "expires": None, **more}
    )


def test_a_queue_that_nobody_consumes_is_a_finding_once_a_message_has_waited_for_a_while() -> None:
    quiet = [queue("a", ready=5, waiting=900.0), queue("b", ready=1, consumers=0, waiting=3.0)]
    assert [finding.level for finding in about_queues(quiet)] == ["ok"]

    (finding,) = about_queues([*quiet, queue("c", ready=2, consumers=0, waiting=120.0)])

    assert finding.level == "warning"
    assert "2 messages wait in c" in finding.message
    assert finding.advice is not None
    assert "-Q c" in finding.advice


def test_a_queue_s_name_can_be_copied_from_the_advice_into_a_shell() -> None:
    (finding,) = about_queues([queue("extra q", ready=2, consumers=0, waiting=120.0)])
    assert "-Q 'extra q'," in str(finding.advice)
