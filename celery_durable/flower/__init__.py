"""The **Durable** tab in Flower: runs, their timelines, and what to do about them.

Flower has no plugin interface, so this uses the two things that it has: it reads its options with Tornado's
parser, which calls back when it is done, and it builds its application from a list of routes and a dictionary
of settings. `bootstrap` registers options and the callback; nothing of Flower is replaced, and if anything is
not as expected, Flower starts without the tab and one line in its log says why.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

logger = logging.getLogger(__name__)

__all__ = ["bootstrap", "install"]

_done: list[bool] = []


def bootstrap() -> None:
    """Make `celery flower` install the tab; called when Celery loads this package's commands.

    Costs nothing where Flower is not installed. Never raises.
    """
    try:
        if _done or find_spec("flower") is None or find_spec("tornado") is None:
            return
        _done.append(True)
        from tornado.options import options

        from celery_durable.flower import settings

        settings.define_options()
        options.add_parse_callback(install)
    except Exception:
        logger.exception("The Durable tab could not be prepared; Flower works without it")


def install() -> None:
    """Add the pages to Flower, before its application is built. Safe to call twice, never raises.

    `celery flower` calls it by itself. Programs that build `flower.app.Flower` themselves, and a
    `flowerconfig.py`, may call it too:

        import celery_durable.flower
        celery_durable.flower.install()
    """
    try:
        from celery_durable.flower import settings
        from celery_durable.flower.attach import attach

        settings.define_options()
        attach()
    except Exception as error:
        logger.exception("The Durable tab is not installed (Flower %s): %s", _flower_version(), error)  # noqa: TRY401


def _flower_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flower")
    except PackageNotFoundError:
        return "is missing"
