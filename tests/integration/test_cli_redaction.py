"""The command line shows what the redaction function of the app leaves, as the Flower pages do."""

from __future__ import annotations

import json
import sys
import types
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command
from click.testing import CliRunner
from inspecting import Worker

from celery_durable import DurableTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

SECRET = "s3cret"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, store: Store) -> Iterator[Callable[..., str]]:
    """Return the celery command on an app with the redaction function that it is given first."""
    apps: list[Celery] = []

    def run(redact: str | None, *arguments: str) -> str:
        app = Celery(
            "media", broker="redis://127.0.0.1:1/0", backend=f"durable+{store.url}", set_as_current=False
        )
        app.conf.update(durable_redact=redact)

        @app.task(name="media.process", base=DurableTask)
        def process(token: str) -> None:
            """Do nothing with it."""

        module: Any = types.ModuleType(f"cli_app_{uuid.uuid4().hex}")
        module.app = app
        monkeypatch.setitem(sys.modules, module.__name__, module)
        apps.append(app)
        line = ["-A", module.__name__, "durable", *arguments]
        result = CliRunner().invoke(celery_command, line, env={"COLUMNS": "160"})
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    yield run
    for app in apps:
        backend: Any = app.backend
        backend.store.close()
        app.close()


@pytest.fixture
def run_id(store: Store) -> str:
    """A failed run with a secret wherever one can be."""
    worker = Worker(store)
    claim = worker.start(
        task="media.process",
        body=json.dumps([[SECRET], {"token": SECRET}, {}]).encode(),
        message=json.dumps(
            {"content_type": "application/json", "content_encoding": "utf-8", "headers": {"note": SECRET}}
        ).encode(),
    )
    worker.step(claim, "charge", 1, "trying", error=f"ValueError: {SECRET} 1", tries=1)
    worker.step(claim, "charge", 1, arguments=f"('{SECRET}',)", output=f'"{SECRET}"'.encode(), tries=2)
    worker.step(claim, "ship", 2, "error", error=f"ValueError: {SECRET}")
    return worker.fail(claim, error=f"ValueError: {SECRET}")


COMMANDS = [("show",), ("show", "--json"), ("runs",), ("runs", "--json"), ("export",)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_the_function_hides_is_not_printed(
    cli: Callable[..., str], run_id: str, command: tuple[str, ...]
) -> None:
    name, *options = command
    arguments = (name, *(() if name == "runs" else (run_id,)), *options)
    assert SECRET in cli(None, *arguments)

    text = cli("flowering.without_secrets", *arguments)

    assert run_id in text
    assert SECRET not in text
    assert "***" in text


def test_a_function_that_cannot_be_loaded_hides_everything_it_would_have_been_asked(
    cli: Callable[..., str], run_id: str
) -> None:
    text = cli("flowering.no_such_function", "export", run_id)

    assert SECRET not in text
    assert "the redaction function failed" in text


def test_an_archive_is_exported_as_it_is_stored_if_it_is_asked_for(
    cli: Callable[..., str], run_id: str
) -> None:
    document = json.loads(cli("flowering.without_secrets", "export", run_id, "--no-redact"))

    assert document["run"]["payloads"]["args"] == [SECRET]
