"""`durable keeper`: the keeper in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import click

from celery_durable.cli.output import app_of, as_json_option, reporting
from celery_durable.operations.stores import store_of

_EPILOG = """\b
Examples:
  celery -A proj durable keeper
  celery -A proj durable keeper --loglevel WARNING
"""


@click.command(epilog=_EPILOG)
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
)
@as_json_option
@click.pass_context
@reporting
def keeper(ctx: click.Context, *, loglevel: str, as_json: bool) -> None:
    """Wake, recover and publish runs in this process, until Ctrl-C or SIGTERM.

    Workers do this themselves. A keeper of its own is for times without workers, and for workers that run
    with `durable_keeper = False`. Any number of them get along: one leads.
    """
    from celery_durable.keeper import run_standalone

    app = app_of(ctx)
    store = store_of(app)
    store.inspection.resolve("", limit=1)  # a missing schema is said here, not in the log of a thread
    app.log.setup(loglevel=logging.getLevelName(loglevel), redirect_stdouts=False)
    stop = threading.Event()

    def end(*_: Any) -> None:
        # From a thread: the handler may interrupt the very wait whose lock it needs.
        threading.Thread(target=stop.set).start()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    _say("started", as_json=as_json, text=f"Keeper of {app.main or 'the app'} at work. Ctrl-C ends it.")
    run_standalone(app, stop)
    _say("stopped", as_json=as_json, text="Keeper stopped.")


def _say(event: str, *, as_json: bool, text: str) -> None:
    if as_json:
        click.echo(f'{{"event": "{event}", "pid": {os.getpid()}}}')
    else:
        click.echo(text)
