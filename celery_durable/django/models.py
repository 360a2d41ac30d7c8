"""No models: the tables are celery-durable's own. Django tells apps with this module when it has migrated."""

from __future__ import annotations
