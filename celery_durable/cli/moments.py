"""The type of options that take a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from celery_durable.operations.moments import parse_moment

if TYPE_CHECKING:
    from datetime import datetime, timedelta


def moment(text: str) -> datetime | timedelta:
    """Return what `parse_moment` makes of an option; raise `click.BadParameter` for what is no moment."""
    try:
        return parse_moment(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
