"""Adding routes and the tab to Flower: checked first, then done in place, never half."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

logger = logging.getLogger(__name__)

_OLDEST, _NEXT = (2, 2), (3,)


def attach() -> None:
    """Put the pages in front of Flower's catch-all route, and the tab into its navigation bar."""
    from flower import urls

    problem = _unsupported(urls)
    if problem:
        logger.error("The Durable tab is not installed: %s", problem)
        return
    if any(getattr(route, "name", None) == "durable" for route in urls.handlers):
        return
    from celery_durable.flower import brokers, metrics
    from celery_durable.flower.nav import NavTemplate
    from celery_durable.flower.routes import routes

    ours = routes()
    modules = urls.settings.get("ui_modules") or []
    others = list(modules) if isinstance(modules, (list, tuple)) else [modules]
    urls.handlers[-1:-1] = ours  # the last one catches everything
    urls.settings["ui_modules"] = [*others, {"Template": NavTemplate}]
    metrics.register()
    brokers.register()


def _unsupported(urls: Any) -> str | None:
    """Return why this Flower cannot have the tab."""
    found = version("flower")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not _OLDEST <= numbers < _NEXT:
        return f"Flower {found} is not supported, use 'flower>=2.2,<3'"
    handlers, settings = getattr(urls, "handlers", None), getattr(urls, "settings", None)
    if not isinstance(handlers, list) or not isinstance(settings, dict) or not handlers:
        return f"Flower {found} keeps its routes elsewhere; please report it to celery-durable"
    return None
