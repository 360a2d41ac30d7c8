"""What belongs to one Flower application: the store it shows, the operations it calls, who may do what."""

from __future__ import annotations

import logging
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery_durable import config
from celery_durable.backend import DurableBackend, durable_settings
from celery_durable.flower.live import Live
from celery_durable.flower.settings import has_authentication, option, shows_payloads
from celery_durable.operations import Runs
from celery_durable.operations.redaction import Redaction
from celery_durable.store.url import strip_prefix
from celery_durable.store.watching import Watching

if TYPE_CHECKING:
    from celery import Celery
    from flower.app import Flower

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where the runs are."""

    url: str
    settings: config.Settings


class Site:
    """One Flower application's view of one store.

    Arguments:
        application: the Flower application.
        place: where the runs are.
    """

    def __init__(self, application: Flower, place: Place) -> None:
        self.application = application
        self.place = place
        self.watching = Watching(
            place.url,
            schema=place.settings.schema,
            prepare=place.settings.prepare_statements,
            size=option(application, "connections"),
            patience=option(application, "timeout"),
        )
        self.redaction = Redaction(option(application, "redact") or place.settings.redact)
        self.live = Live(self.watching, place.settings.lease, option(application, "poll"))
        # Never on the event loop; and what waits for Postgres and the broker never in front of a page.
        self.threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="durable")
        self.operating = ThreadPoolExecutor(max_workers=4, thread_name_prefix="durable-operations")

    @property
    def app(self) -> Celery:
        """The Celery app that Flower was started with."""
        app: Celery = self.application.capp
        return app

    @cached_property
    def acting(self) -> Celery:
        """The app that operations go through: Flower's own, or one like it on the store that is shown."""
        if isinstance(_backend(self.app), DurableBackend) and not option(self.application, "dsn"):
            return self.app
        from celery import Celery

        app = Celery(set_as_current=False)
        app.conf.update(self.app.conf.without_defaults())
        app.conf.update(
            result_backend=f"durable+{strip_prefix(self.place.url)}",
            durable_schema=self.place.settings.schema,
        )
        return app

    @cached_property
    def runs(self) -> Runs:
        """The operations, on the store that the pages show."""
        return Runs(self.acting)

    @property
    def payloads(self) -> bool:
        """Whether arguments and results are shown."""
        return shows_payloads(self.application)

    @property
    def why_no_actions(self) -> str | None:
        """Why nothing can be done from the pages; None when it can."""
        from flower.utils import strtobool

        if self.application.options.read_only:
            return "Flower is in read-only mode"
        if has_authentication(self.application):
            return None
        if strtobool(os.environ.get("FLOWER_UNAUTHENTICATED_API") or "false"):
            return None
        return "Flower has no authentication: start it with --basic_auth or --auth to act on runs"

    def queues(self) -> frozenset[str] | None:
        """Return the queues that live workers consume, as far as Flower has heard; None if it has not."""
        found = {
            queue["name"]
            for info in self.application.workers.values()
            for queue in info.get("active_queues") or ()
        }
        return frozenset(found) or None

    def max_retries(self, task: str) -> int | None:
        """Return how often a task is retried, if this Flower knows the task."""
        known = self.app.tasks.get(task)
        return getattr(known, "max_retries", None)


_sites: weakref.WeakKeyDictionary[Any, Site] = weakref.WeakKeyDictionary()


def _backend(app: Celery) -> Any:
    """Return an app's result backend; None when there is none, or none that can be loaded."""
    try:
        return app.backend if app.conf.result_backend else None
    except Exception:
        logger.exception("The app's result backend cannot be loaded")
        return None


def _place(application: Flower) -> Place | None:
    dsn = option(application, "dsn")
    app = application.capp
    backend = _backend(app)
    if not dsn and not isinstance(backend, DurableBackend):
        return None
    chosen = durable_settings(app)
    if schema := option(application, "schema"):
        chosen["durable_schema"] = schema
    return Place(dsn or backend.url, config.load(chosen))


def enabled(application: Any) -> bool:
    """Whether this Flower has something to show; decided per request, as options may come late."""
    return bool(option(application, "tab")) and site_of(application) is not None


def site_of(application: Any) -> Site | None:
    """Return what belongs to a Flower application; None when it has no durable store."""
    if application not in _sites:
        place = _place(application)
        if place is None:
            return None
        _sites[application] = Site(application, place)
    return _sites[application]


class _Unvisited:
    """What stands for the Flower application until one of its pages was asked for: `/metrics` knows none."""

    def __init__(self) -> None:
        from celery import current_app
        from tornado.options import options

        self.options, self.capp = options, current_app
        self.workers: dict[str, Any] = {}


_unvisited: list[_Unvisited] = []


def any_site() -> Site | None:
    """Return the site of this process' Flower, also before anybody has looked at a page."""
    for application, site in _sites.items():
        if not isinstance(application, _Unvisited):
            return site
    if not _unvisited:
        _unvisited.append(_Unvisited())
    return site_of(_unvisited[0])
