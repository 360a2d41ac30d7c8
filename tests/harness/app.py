"""What a worker is started with: `celery -A harness.app worker`."""

from __future__ import annotations

from harness.setup import Setup

app = Setup.of_environment().app()
