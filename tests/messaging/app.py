"""What a worker is started with: `celery -A messaging.app worker`."""

from __future__ import annotations

import os

from messaging.setup import MessagingSetup

app = MessagingSetup.of_environment(os.environ).app()
