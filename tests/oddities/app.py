"""What a worker is started with: `celery -A oddities.app worker`."""

from __future__ import annotations

import os

from harness.setup import VARIABLE

from oddities.world import OddSetup

if VARIABLE in os.environ:
    app = OddSetup.of_environment().app()
