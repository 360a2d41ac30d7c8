"""The options of the tab: `--durable_…` on Flower's command line, `FLOWER_DURABLE_…`, `flowerconfig.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tornado.options import define, options

if TYPE_CHECKING:
    from flower.app import Flower

GROUP = "durable"
AUTO, SHOW, HIDE = "auto", "show", "hide"

_OPTIONS: dict[str, tuple[type, Any, str]] = {
    "durable_tab": (bool, True, "show the Durable tab"),
    "durable_dsn": (
        str,
        None,
        "where the runs are, such as postgresql://user@host/database; default: the app's result backend",
    ),
    "durable_schema": (str, None, "the Postgres schema; default: the app's durable_schema"),
    "durable_payloads": (
        str,
        AUTO,
        "arguments and results: 'show', 'hide', or 'auto' for shown only when Flower has authentication",
    ),
    "durable_redact": (
        str,
        None,
        "a function redact(kind, name, value) by its dotted path; what it returns is shown instead",
    ),
    "durable_connections": (int, 4, "connections to Postgres at most"),
    "durable_poll": (float, 1.0, "seconds between two looks for changes while somebody watches"),
    "durable_timeout": (float, 5.0, "seconds that a page waits for Postgres"),
}


def define_options() -> None:
    """Define each option that is not defined yet."""
    for name, (kind, default, words) in _OPTIONS.items():
        if not hasattr(options, name):
            define(name, type=kind, default=default, help=words, group=GROUP)


def option(application: Flower, name: str) -> Any:
    """Return an option's value; of an application built by hand, with options of its own, its default."""
    value = getattr(application.options, f"durable_{name}", None)
    return _OPTIONS[f"durable_{name}"][1] if value is None else value


def has_authentication(application: Flower) -> bool:
    """Whether Flower asks its users who they are."""
    return bool(application.options.basic_auth or application.options.auth)


def shows_payloads(application: Flower) -> bool:
    """Whether arguments and results may be shown: by the option, else where there is authentication."""
    chosen = option(application, "payloads")
    if chosen == SHOW:
        return True
    return bool(chosen == AUTO and has_authentication(application))
