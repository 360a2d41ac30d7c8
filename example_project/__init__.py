"""A small media app: one durable Celery task that turns a video into previews and a report."""

from __future__ import annotations
