"""What a worker of the soak is started with: `celery -A soaking.app worker`."""

from __future__ import annotations

from harness.setup import Setup

from soaking import tasks

app = tasks.register(Setup.of_environment())
