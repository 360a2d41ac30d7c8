"""One database with a durable schema, and the sets of statements that work on it."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from celery_durable.exceptions import ConfigurationError
from celery_durable.store import migrate
from celery_durable.store.chords import ChordStore
from celery_durable.store.connections import Connections
from celery_durable.store.in_hand import database_of
from celery_durable.store.keeping import KeeperStore
from celery_durable.store.results import ResultStore
from celery_durable.store.runs import RunStore
from celery_durable.store.signals import SignalStore
from celery_durable.store.url import strip_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.config import Settings
    from celery_durable.store.callers import CallersStore
    from celery_durable.store.chains import ChainStore
    from celery_durable.store.connections import Connection
    from celery_durable.store.forking import ForkStore
    from celery_durable.store.inspection import InspectionStore
    from celery_durable.store.once import OnceStore
    from celery_durable.store.posting import PostingStore
    from celery_durable.store.slots import SlotStore
    from celery_durable.store.transactions import TransactionStore

_PRUNED_AT_ONCE = 500


class Store:
    """One database with a durable schema, and the sets of statements that work on it.

    Arguments:
        url: the backend URL, with or without its `durable+`.
        settings: the app's durable settings.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.connections = Connections(
            url,
            size=settings.pool_size,
            prepare=settings.prepare_statements,
            outage_budget=settings.outage_budget,
            on_open=self._check,
        )
        self._transactions: dict[str | None, TransactionStore] = {}
        lease = timedelta(seconds=settings.lease)
        self.runs = RunStore(
            self.connections,
            schema=settings.schema,
            check=settings.check,
            lease=lease,
            version=settings.only_version,
        )
        self.chords = ChordStore(self.connections, self.runs, schema=settings.schema, lease=lease)
        self.results = ResultStore(self.connections, schema=settings.schema)

    @cached_property
    def posting(self) -> PostingStore:
        """Runs and their messages in one commit, where the broker is this database."""
        from celery_durable.store.posting import PostingStore

        settings = self.settings
        return PostingStore(self.connections, schema=settings.schema, check=settings.check)

    @property
    def identity(self) -> str:
        """What tells this database and schema from another."""
        return database_of(self.url, self.settings.schema)

    def transactions(self, database: str | None = None) -> TransactionStore:
        """Return the transactions of steps: in this database, or in one that the settings or a URL name.

        Raises `ConfigurationError` for a name that `durable_databases` does not have.
        """
        if database not in self._transactions:
            from celery_durable.store import transactions

            elsewhere = database is not None
            kind = transactions.ElsewhereTransactions if elsewhere else transactions.TransactionStore
            self._transactions[database] = kind(
                self.url if database is None else self.url_of(database),
                schema=self.settings.schema,
                size=self.settings.pool_size,
                prepare=self.settings.prepare_statements,
                outage_budget=self.settings.outage_budget,
            )
        return self._transactions[database]

    def close(self) -> None:
        """Close the connections of this process, those of transactions too."""
        for transactions in self._transactions.values():
            transactions.close()
        self.connections.close()

    def url_of(self, database: str) -> str:
        """Return the URL of a user's database, given by its name in `durable_databases` or as a URL."""
        databases = self.settings.databases or {}
        if database in databases:
            return databases[database]
        if "://" in database:
            return database
        known = ", ".join(map(repr, sorted(databases))) or "none"
        message = f"durable_databases has no {database!r}; it has {known}. A URL does as well"
        raise ConfigurationError(message)

    @cached_property
    def signals(self) -> SignalStore:
        """The statement that delivers signals."""
        return SignalStore(self.connections, schema=self.settings.schema, check=self.settings.check)

    @cached_property
    def inspection(self) -> InspectionStore:
        """The statements of people: lists, one run's history, operator actions, health."""
        from celery_durable.store.inspection import InspectionStore

        return InspectionStore(self.connections, schema=self.settings.schema)

    @cached_property
    def chains(self) -> ChainStore:
        """The statements that read the links of long chains."""
        from celery_durable.store.chains import ChainStore

        return ChainStore(self.connections, schema=self.settings.schema)

    @cached_property
    def forks(self) -> ForkStore:
        """The statements that fork a run."""
        from celery_durable.store.forking import ForkStore

        return ForkStore(self.connections, schema=self.settings.schema, check=self.settings.check)

    @cached_property
    def slots(self) -> SlotStore:
        """The statements of runs that need a slot."""
        from celery_durable.store.slots import SlotStore

        return SlotStore(
            self.connections,
            self.runs,
            schema=self.settings.schema,
            check=self.settings.check,
            version=self.settings.only_version,
        )

    @cached_property
    def once(self) -> OnceStore:
        """The statements that store a run unless its key has one."""
        from celery_durable.store.once import OnceStore

        return OnceStore(self.connections, self.runs, schema=self.settings.schema)

    @cached_property
    def callers(self) -> CallersStore:
        """The statements that run in transactions of the caller's."""
        from celery_durable.store.callers import CallersStore

        return CallersStore(self.connections, schema=self.settings.schema, check=self.settings.check)

    def keeper(self, connection: Connection) -> KeeperStore:
        """Return the keeper's statements on a connection of its own."""
        return KeeperStore(connection, schema=self.settings.schema, check=self.settings.check)

    def prune(
        self,
        age: timedelta,
        *,
        failed_age: timedelta | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Delete final runs older than `age`, whole trees of them, in batches; return how many.

        Failed runs are kept for `failed_age`, if there is one.
        """
        total = 0
        while True:
            pruned = self.connections.patiently(
                lambda connection: self.keeper(connection).prune(age, _PRUNED_AT_ONCE, failed_age=failed_age)
            )
            total += pruned
            if progress is not None:
                progress(total)
            if pruned < _PRUNED_AT_ONCE:
                return total

    def prunable(self, age: timedelta) -> int:
        """Return how many runs `prune` would delete."""
        return self.connections.patiently(lambda connection: self.keeper(connection).prunable(age))

    @property
    def embedded(self) -> bool:
        """Whether the database is a server of our own."""
        return strip_prefix(self.url).startswith("embedded:")

    def migrate(self) -> list[migrate.Migration]:
        """Create the schema or bring it up to date; return what was applied."""
        with self.connections.dedicated() as connection:
            return migrate.migrate(connection, self.settings.schema)

    def _check(self, connection: Connection) -> None:
        schema = self.settings.schema
        wanted = self.settings.auto_migrate
        may_migrate = wanted or (wanted is None and self.embedded)
        if may_migrate and migrate.installed(connection, schema) < migrate.newest():
            migrate.migrate(connection, schema)
        migrate.check(connection, schema)
