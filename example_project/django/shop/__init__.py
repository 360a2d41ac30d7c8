"""The project and its only app. Its Celery app is made with it, so that tasks always find it."""

from __future__ import annotations

from shop.celery import app as celery_app

__all__ = ["celery_app"]
