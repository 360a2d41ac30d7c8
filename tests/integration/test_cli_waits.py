"""What the command line shows of waits, and how it sends signals."""

from __future__ import annotations

import json
import sys
import types
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from attempting import Story
from celery import Celery
from celery.bin.celery import celery as celery_command
from click.testing import CliRunner
from contending import move_clock
from inspecting import Worker

import celery_durable as durable
from celery_durable import envelope

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.store import Store


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, store: Store) -> Callable[..., str]:
    """Return the celery command on an app of one's own, whose broker is away."""
    monkeypatch.setattr(envelope, "breaker", envelope.Breaker())
    app = Celery(
        "media", broker="redis://127.0.0.1:1/0", backend=f"durable+{store.url}", set_as_current=False
    )
    app.conf.update(task_publish_retry=False)
    module: Any = types.ModuleType(f"cli_app_{uuid.uuid4().hex}")
    module.app = app
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def run(*arguments: str, status: int = 0) -> str:
        line = ["-A", module.__name__, "durable", *arguments]
        result = CliRunner().invoke(celery_command, line, env={"COLUMNS": "160"})
        app.backend.store.close()  # the next command sees a clock that was moved
        assert result.exit_code == status, (result.output, result.exception)
        return result.output

    return run


def waiting() -> Any:
    durable.sleep(hours=1)
    return durable.wait_for_signal("approved", timeout=3600)


def test_show_says_what_a_run_waits_for_and_until_when(cli: Callable[..., str], store: Store) -> None:
    story = Story(store)
    story.leaves(waiting)
    assert "sleeps until" in cli("show", story.id)
    move_clock(store, "2 hours")
    story.wake()
    story.leaves(waiting)
    store.signals.deliver(story.id, "other", b"1", codec="json", actor="grace")

    text = cli("show", story.id)

    sleep, _ = json.loads(cli("show", story.id, "--json"))["steps"]
    assert sleep["seconds"] == 3600.0, "as long as it was to be, not 0 s and not until now"
    assert "waits for the signal 'approved' until" in text
    assert "SUSPENDED" in text
    assert any(line.split()[:2] == ["sleep", "slept"] for line in text.splitlines())
    assert any(line.split()[:2] == ["wait_for_signal:approved", "waiting"] for line in text.splitlines())
    (signal,) = (line for line in text.splitlines() if "grace" in line)
    assert "other" in signal
    assert "nobody yet" in signal
    assert story.id in cli("runs", "--reason", "signal", "--json")


def test_a_signal_is_sent_once_per_key_and_wakes_the_run(cli: Callable[..., str], store: Store) -> None:
    story = Story(store)
    story.leaves(lambda: durable.wait_for_signal("approved"))
    send = ("signal", story.id[:13], "approved", "--payload", '{"by": "ada"}', "--idempotency-key", "form-1")

    assert "approved: delivered" in cli(*send, "--as", "ada")
    assert json.loads(cli(*send, "--json")) == {"id": story.id, "name": "approved", "delivered": False}
    assert "was delivered before" in cli(*send)
    assert story.attempt(lambda: durable.wait_for_signal("approved")) == {"by": "ada"}
    document = json.loads(cli("show", story.id, "--json"))
    assert [one["actor"] for one in document["signals"]] == ["ada"]
    assert document["signals"][0]["taken_by"] == document["steps"][0]["key"] == "wait_for_signal:approved"
    assert document["steps"][0]["kind"] == "signal"


def test_a_signal_that_cannot_be_sent_says_why(cli: Callable[..., str], store: Store) -> None:
    story = Story(store)
    cli("cancel", story.id)

    assert "is over, it has cancelled" in cli("signal", story.id, "approved", status=1)
    assert "No run's id begins with" in cli("signal", "nobody", "approved", status=1)
    assert "A text needs its quotes" in cli("signal", story.id, "approved", "--payload", "yes", status=2)
    assert "no name of a signal" in cli("signal", story.id, "", status=1)


def test_show_lists_children_with_those_that_did_not_succeed_first(
    cli: Callable[..., str], store: Store
) -> None:
    worker = Worker(store)
    parent = worker.enqueue(root=None)
    family = {"parent": parent, "root": parent}
    good = [worker.succeed(worker.start(**family)) for _ in range(25)]
    bad, waiting_ = worker.fail(worker.start(**family)), worker.enqueue(**family)

    text = cli("show", parent)

    assert "Children (27)" in text
    shown = [line.split()[0] for line in text.partition("Children")[2].splitlines()[2:]]
    assert shown[:3] == [bad, waiting_, good[0]]
    assert shown[-1] == "…"
    document = json.loads(cli("show", parent, "--json"))
    assert [one["state"] for one in document["children"][:3]] == ["failed", "pending", "succeeded"]
    assert document["children"][0]["siblings"] == 27
