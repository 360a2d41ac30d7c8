"""What the workers of the semantics tests are started with: `celery -A semantics.app worker`."""

from __future__ import annotations

from semantics.tasks import make_app

app = make_app()
