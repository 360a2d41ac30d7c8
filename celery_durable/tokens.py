"""Tokens: whoever holds one may send one signal to one run, until it expires."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable.exceptions import ConfigurationError, SignalTokenError, StepUsageError

if TYPE_CHECKING:
    from itsdangerous import URLSafeSerializer

_SALT = "celery-durable.signal"
_LONGEST_NAME = 200


class Token(NamedTuple):
    """What a token says: which signal may be sent to which run until when, and where it was made.

    A run makes the same token at every replay, and all that it makes in one place stand for one signal.
    """

    run: str
    name: str
    place: str
    until: datetime


def checked_name(name: str) -> str:
    """Return a signal's name; raise `StepUsageError` for what cannot be one."""
    told: Any = name
    if not isinstance(told, str) or not told.isprintable() or not 0 < len(told) <= _LONGEST_NAME:
        message = f"{name!r} is no name of a signal: a printable string of at most {_LONGEST_NAME} characters"
        raise StepUsageError(message)
    return name


def sign(token: Token, secret: str | tuple[str, ...] | None) -> str:
    """Return a token as text that fits a URL; raise `ConfigurationError` without a secret."""
    told = [token.run, token.name, token.place, token.until.timestamp()]
    return str(_serializer(secret).dumps(told))


def read(text: str, secret: str | tuple[str, ...] | None) -> Token:
    """Return what a token says; raise `SignalTokenError` for one that was not signed with this secret."""
    from itsdangerous import BadData

    try:
        run, name, place, until = _serializer(secret).loads(text)
        return Token(run, name, place, datetime.fromtimestamp(until, timezone.utc))
    except (BadData, TypeError, ValueError) as error:
        message = "This token for a signal is damaged, or was not made here: ask for a new one"
        raise SignalTokenError(message, problem="invalid") from error


def _serializer(secret: str | tuple[str, ...] | None) -> URLSafeSerializer:
    if not secret:
        message = (
            "Tokens for signals are signed, and there is no key: set durable_signal_secret to a long random "
            "string, the same for workers and for what receives the tokens"
        )
        raise ConfigurationError(message, setting="durable_signal_secret")
    from itsdangerous import URLSafeSerializer

    return URLSafeSerializer([secret] if isinstance(secret, str) else list(secret), salt=_SALT)
