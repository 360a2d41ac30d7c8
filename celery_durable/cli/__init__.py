"""`celery -A app durable …`: the command line. Its commands are loaded when they are called for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from celery_durable import flower, transport

_COMMANDS = {
    "init": "setup:init",
    "runs": "listing:runs",
    "show": "show:show",
    "resume": "change:resume",
    "retry": "change:retry",
    "cancel": "change:cancel",
    "signal": "signal:signal",
    "fork": "fork:fork",
    "export": "export:export",
    "check": "check:check",
    "stats": "stats:stats",
    "prune": "prune:prune",
    "queues": "queues:queues",
    "keeper": "keeper:keeper",
    "doctor": "doctor:doctor",
}


class Commands(click.Group):
    """A group that imports a command when it is asked for: every `celery` command imports this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the commands in the order in which one meets them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, None for a name that is none."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"celery_durable.cli.{module}"), name)
        return command


@click.group(
    cls=Commands,
    epilog="Every command takes --json. Exit status: 0 done, 1 not done or errors found, 2 wrong usage.",
)
def durable(**_preload: Any) -> None:
    """Set up, look at and operate durable runs."""


transport.register()  # a command may meet the broker's URL before the task class of the app is imported
flower.bootstrap()  # `celery flower` loads the commands of every package, and its options after them

__all__ = ["durable"]
