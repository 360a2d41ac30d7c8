"""Settings: Celery settings with the prefix `durable_`, each with a default that is right for production."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from datetime import timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from celery_durable.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "durable_"
_PACKAGE = "package:"
Nondeterminism = Literal["error", "warn", "ignore"]
PublishErrors = Literal["store", "raise"]
VersionPolicy = Literal["any", "same"]

_SECONDS_AT_LEAST = {
    "lease": 1.0,
    "outage_budget": 0.0,
    "check_interval": 1.0,
    "lost_after": 1.0,
    "step_sleep": 0.0,
}


@dataclass(frozen=True)
class Settings:
    """Every setting of celery-durable, without its prefix.

    Attributes:
        schema: the Postgres schema that holds the tables.
        auto_migrate: create or upgrade the schema at first use; None means only for the embedded Postgres.
        lease: seconds without a heartbeat after which a worker counts as dead.
        max_recoveries: how often a run may lose its worker before it fails as exhausted.
        autoretry: whether a task that says nothing itself is retried when it raises.
        outage_budget: seconds a write waits for Postgres to come back before the attempt gives up.
        check_interval: seconds after a publish at which the keeper first looks for a lost message.
        lost_after: seconds after which an unclaimed message counts as lost whatever the broker says.
        step_sleep: the longest sleep or retry delay of a step, in seconds, that is waited for on the worker.
        publish_errors: `store` keeps a run whose message could not be sent, `raise` tells the caller.
        nondeterminism: what a body that leaves its history causes: `error`, `warn` or `ignore`.
        max_payload: the largest stored value, in bytes.
        retention: seconds that final runs are kept; None means `result_expires`.
        pool_size: connections that one process holds at most.
        prepare_statements: off for PgBouncer in transaction mode.
        keeper: whether workers run the keeper services themselves.
        version: the code's version, recorded with every run; `package:NAME` is that of an installed package.
        version_policy: `any` worker executes any run, or only those of the `same` version.
        redact: dotted path of a function that is given everything before pages and command line show it.
        databases: URLs of further databases by name, for transaction steps.
        signal_secret: what tokens for signals are signed with; of several keys the last signs, all verify.
    """

    schema: str = "durable"
    auto_migrate: bool | None = None
    lease: float = 30.0
    max_recoveries: int = 10
    autoretry: bool = True
    outage_budget: float = 300.0
    check_interval: float = 30.0
    lost_after: float = 3600.0
    step_sleep: float = 2.0
    publish_errors: PublishErrors = "store"
    nondeterminism: Nondeterminism = "error"
    max_payload: int = 64 * 1024 * 1024
    retention: float | None = None
    pool_size: int = 10
    prepare_statements: bool = True
    keeper: bool = True
    version: str | None = None
    version_policy: VersionPolicy = "any"
    redact: str | None = None
    databases: Mapping[str, str] | None = field(default=None, hash=False)
    signal_secret: str | tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def only_version(self) -> str | None:
        """The version whose runs alone may be executed here; None for all of them."""
        return self.version if self.version_policy == "same" else None

    @property
    def check(self) -> timedelta:
        """`check_interval` as the store takes it."""
        return timedelta(seconds=self.check_interval)


_CHOICES = {
    "publish_errors": get_args(PublishErrors),
    "nondeterminism": get_args(Nondeterminism),
    "version_policy": get_args(VersionPolicy),
}
_KINDS: dict[str, tuple[type, ...]] = {
    "schema": (str,),
    "version": (str,),
    "redact": (str,),
    "auto_migrate": (bool,),
    "autoretry": (bool,),
    "prepare_statements": (bool,),
    "keeper": (bool,),
    "max_recoveries": (int,),
    "max_payload": (int,),
    "pool_size": (int,),
}
_SHORTEST_SECRET = 16
_LONGEST_VERSION = 200
_DIALECTS = frozenset({"postgresql", "postgres", "django", "embedded"})
_OPTIONAL = frozenset({"auto_migrate", "databases", "redact", "retention", "signal_secret", "version"})


def load(values: Mapping[str, Any]) -> Settings:
    """Return the settings among `values` (names with the prefix), checked.

    Raises `ConfigurationError` for a name that does not exist, naming the nearest one that does, and for a
    value that cannot be meant.
    """
    known = {one.name for one in fields(Settings)}
    chosen = {}
    for name, value in values.items():
        if not name.startswith(PREFIX):
            continue
        short = name.removeprefix(PREFIX)
        if short not in known:
            raise _unknown(name, known)
        chosen[short] = _checked(short, value)
    if str(chosen.get("version")).startswith(_PACKAGE):
        chosen["version"] = _version_of(chosen["version"].removeprefix(_PACKAGE))
    if chosen.get("version_policy") == "same" and chosen.get("version") is None:
        message = (
            "durable_version_policy = 'same' needs durable_version: set it, for example to 'package:NAME'"
        )
        raise ConfigurationError(message, setting="durable_version")
    return Settings(**chosen)


def _unknown(name: str, known: set[str]) -> ConfigurationError:
    near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=0.4)
    hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known are: {', '.join(sorted(known))}"
    return ConfigurationError(f"There is no setting {name!r}; {hint}", setting=name)


def _checked(name: str, value: Any) -> Any:
    if value is None and name in _OPTIONAL:
        return value
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise _invalid(name, value, "one of " + ", ".join(map(repr, _CHOICES[name])))
        return value
    if name in _SECRET:
        return _SECRET[name](name, value)
    if isinstance(value, timedelta) and name not in _KINDS:
        value = value.total_seconds()
    kinds = _KINDS.get(name, (int, float))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _invalid(name, value, "a number of seconds" if float in kinds else kinds[0].__name__)
    least = _SECONDS_AT_LEAST.get(name, 1 if name in ("pool_size", "max_payload") else 0)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not value >= least:
        raise _invalid(name, value, f"at least {least:g}")
    if name == "schema" and not value:
        raise _invalid(name, value, "a schema name")
    if name == "version" and not (0 < len(str(value)) <= _LONGEST_VERSION and str(value).isprintable()):
        raise _invalid(name, value, f"a printable text of 1 to {_LONGEST_VERSION} characters")
    return value


def _databases(name: str, value: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in (*value, *value.values())):
        raise _invalid(name, "…", "a dict of URLs by name")  # they hold passwords
    for key, url in value.items():
        dialect = urlsplit(url.removeprefix("durable+")).scheme.partition("+")[0]
        if dialect not in _DIALECTS:
            expected = f"for {key!r} a URL such as postgresql://user:password@host:5432/database"
            raise _invalid(name, "…", expected)
    return value


def _secrets(name: str, value: Any) -> tuple[str, ...]:
    keys = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if not keys or not all(isinstance(one, str) and len(one) >= _SHORTEST_SECRET for one in keys):
        raise _invalid(name, "…", f"a string of at least {_SHORTEST_SECRET} characters, or a list of them")
    return keys


_SECRET = {"databases": _databases, "signal_secret": _secrets}


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        message = f"durable_version names the package {package!r}, which is not installed here"
        raise ConfigurationError(message, setting="durable_version") from error


def _invalid(name: str, value: object, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{PREFIX}{name} = {value!r} is not valid: expected {expected}", setting=name)
