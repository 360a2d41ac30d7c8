"""The durable task for Django projects: keeps the `delay_on_commit` that Celery gives to their tasks."""

from __future__ import annotations

from typing import Any

from celery.contrib.django.task import DjangoTask

from celery_durable.task import DurableTask

_DjangoTask: Any = DjangoTask


class DjangoDurableTask(DurableTask, _DjangoTask):  # type: ignore[misc]  # (Celery's class has no stubs)
    """`DurableTask` with `delay_on_commit` and `apply_async_on_commit`."""

    abstract = True
