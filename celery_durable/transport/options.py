"""`broker_transport_options` of `durable+postgresql://` and `durable+embedded://`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEAST = {"lease": 1.0, "pool_size": 1, "max_returns": 0}


@dataclass(frozen=True)
class BrokerOptions:
    """The transport's options; what else is in `broker_transport_options` is kombu's.

    Attributes:
        schema: the Postgres schema of the tables; the app's `durable_schema`.
        auto_migrate: create or upgrade the schema at first use; None means only for the embedded Postgres.
        lease: seconds without a sign of life after which a consumer's messages are handed to others.
        max_returns: how often a message may come back before it goes to the queue `<name>.dead`.
        pool_size: connections that one process holds for publishing at most.
        prepare_statements: off for PgBouncer in transaction mode.
        listen: whether consumers are woken by notifications; None means unless statements are not prepared.
    """

    schema: str = "durable"
    auto_migrate: bool | None = None
    lease: float = 30.0
    max_returns: int = 20
    pool_size: int = 4
    prepare_statements: bool = True
    listen: bool | None = None

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> BrokerOptions:
        """Return the transport's options among those of a kombu connection.

        Raises `ConfigurationError` for a value that cannot be meant.
        """
        known = {field.name: options[field.name] for field in fields(cls) if field.name in options}
        if isinstance(known.get("lease"), timedelta):
            known["lease"] = known["lease"].total_seconds()
        for name, least in _LEAST.items():
            value = known.get(name, least)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= least:
                message = f"broker_transport_options[{name!r}] = {value!r} is not valid: at least {least:g}"
                raise ConfigurationError(message, setting=name)
        return cls(**known)

    @property
    def listens(self) -> bool:
        """Whether a consumer's session is its own, so that notifications reach it."""
        return self.prepare_statements if self.listen is None else self.listen

    @property
    def grace(self) -> float:
        """Seconds in which a consumer whose session has ended may come back."""
        return min(self.lease, max(2.0, self.lease / 6))
