"""What all commands share: the console, JSON, errors, and the choice of runs by the beginning of their id."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import click
from rich.console import Console

from celery_durable.exceptions import ConfigurationError, DurableError, RunNotFoundError
from celery_durable.operations import RunSummary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery import Celery

    from celery_durable.operations import Runs

P = ParamSpec("P")

_WIDTH_OF_FILES = 160  # columns where there is no terminal to ask
_UUID_LENGTH, _SHORT = 36, 8

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def app_of(ctx: click.Context) -> Celery:
    """Return the app that `celery -A` found."""
    app: Celery = ctx.obj.app
    if app.main == "default" and not app.conf.result_backend:
        message = "There is no app here: name yours, as in `celery -A proj durable …`"
        raise ConfigurationError(message)
    return app


def console_of(ctx: click.Context) -> Console:
    """Return a console on standard output: colours on a terminal only, and not with `celery --no-color`."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    no_color = True if getattr(ctx.obj, "no_color", False) else None
    return Console(
        highlight=False,
        no_color=no_color,
        width=None if known else _WIDTH_OF_FILES,
        soft_wrap=False,
    )


def print_json(document: dict[str, Any]) -> None:
    """Print a document; moments are ISO 8601 in UTC."""
    click.echo(json.dumps(document, default=plain, indent=2))


def plain(value: object) -> object:
    """Return as plain JSON what JSON has no type for."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, RunSummary):
        return run_document(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def run_document(run: RunSummary) -> dict[str, Any]:
    """Return the documented JSON of a run: its fields, and what `AsyncResult` says of it."""
    document = {name: value for name, value in vars(run).items() if name not in ("key", "now")}
    return {"id": document.pop("id"), "celery_state": run.celery_state, **document}


def reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that celery-durable raises on purpose into a message and exit status 1."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except DurableError as error:
            if kwargs.get("as_json"):
                print_json({"error": {"type": type(error).__name__, "message": str(error)}})
            else:
                click.echo(f"Error: {error}", err=True)
            raise click.exceptions.Exit(1) from error

    return run


def choose(runs: Runs, prefix: str) -> str:
    """Return the id of the one run that begins with `prefix`.

    Raises `RunNotFoundError`, which lists them when there are several.
    """
    matches = runs.find(prefix)
    if len(matches) == 1:
        return matches[0].id
    if not matches:
        message = f"No run's id begins with {prefix!r}. `durable runs` lists those there are"
        raise RunNotFoundError(message, run_id=prefix)
    lines = "\n".join(f"  {match.id}  {match.task}  {match.state}" for match in matches[:5])
    more = "\n  …" if len(matches) > 5 else ""  # noqa: PLR2004  (as many as are listed)
    message = f"Several runs' ids begin with {prefix!r}; type more of it:\n{lines}{more}"
    raise RunNotFoundError(message, run_id=prefix)


def short(ids: Sequence[str]) -> dict[str, str]:
    """Return how to show ids: of a UUID as much as tells it from the others, anything else whole."""
    shown = {}
    for one in ids:
        length = _SHORT if len(one) == _UUID_LENGTH else len(one)
        while length < len(one) and any(other != one and other.startswith(one[:length]) for other in ids):
            length += 1
        shown[one] = one[:length]
    return shown
