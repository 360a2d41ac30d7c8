"""For Django projects: a task with `delay_on_commit`, and an app whose tables come with `manage.py migrate`.

`task_cls="celery_durable.django:DjangoDurableTask"` and `INSTALLED_APPS += ["celery_durable.django"]` are
all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.django.task import DjangoDurableTask

__all__ = ["DjangoDurableTask"]


def __getattr__(name: str) -> Any:
    # Loaded at first use: Django imports this package before it is ready.
    if name != "DjangoDurableTask":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from celery_durable.django.task import DjangoDurableTask

    return DjangoDurableTask
