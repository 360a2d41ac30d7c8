"""Where a soak takes place: servers, a folder and workers of its own."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from harness.brokers import private_redis
from harness.postgres import private_postgres
from harness.setup import Setup

from soaking.soak import SETTINGS, Soak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def soaking(seed: int, *, say: Callable[[str], None]) -> Iterator[Soak]:
    """Yield a soak that is ready to run; nothing of it is left at the end."""
    with ExitStack() as stack:
        server = stack.enter_context(private_postgres())
        broker = stack.enter_context(private_redis())
        folder = tempfile.mkdtemp(prefix="durable-soak-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        setup = Setup(broker.url, f"durable+{server.url}", folder, "soak", SETTINGS)
        soak = Soak(setup, server, broker, seed=seed, say=say)
        stack.callback(soak.leave)
        yield soak
