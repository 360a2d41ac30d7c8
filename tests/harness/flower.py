"""A real Flower, and requests to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from harness import brokers, postgres
from harness.authority import CLIENT, CLIENT_SECRET
from harness.setup import Setup
from harness.waiting import eventually
from harness.workers import environment
from harness.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

BASIC = "--basic_auth=ada:secret"
ADA = ("ada", "secret")
OAUTH = (
    "--auth=ada@example.com",
    f"--oauth2_key={CLIENT}",
    f"--oauth2_secret={CLIENT_SECRET}",
    "--oauth2_redirect_uri={url}/login",
    "--cookie_secret=the same for every Flower",
)


class FlowerServer:
    """`celery flower` on a port of its own.

    Arguments:
        setup: the app.
        options: further arguments of the command; `{url}` in one is where Flower is reached.
        variables: environment variables.
        app: the module that holds the app; None starts Flower without one.
    """

    def __init__(
        self,
        setup: Setup,
        *options: str,
        variables: dict[str, str] | None = None,
        app: str | None = "harness.app",
    ) -> None:
        self.port = brokers.free_port()
        self.log = Path(setup.folder) / f"flower-{self.port}.log"
        prefix = next((one.partition("=")[2] for one in options if one.startswith("--url_prefix")), "")
        self.url = f"http://127.0.0.1:{self.port}" + (f"/{prefix.strip('/')}" if prefix else "")
        command = [sys.executable, "-m", "celery", *(["-A", app] if app else ["-b", setup.broker]), "flower"]
        command += [f"--port={self.port}", "--address=127.0.0.1", "--inspect_timeout=500"]
        command += [one.replace("{url}", self.url) for one in options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=setup.folder,
                env={**environment(), **setup.environment(), **(variables or {})},
                start_new_session=True,
            )
        try:
            eventually(self._answers, what=lambda: f"Flower to answer:\n{self.output}", timeout=40)
        except AssertionError:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"Flower ended:\n{self.output}"
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthcheck").status_code == httpx.codes.OK
        return False

    @property
    def output(self) -> str:
        """What it logged so far."""
        return self.log.read_text(errors="replace")

    def client(self, auth: tuple[str, str] | None = None, **options: Any) -> httpx.Client:
        """Return a client whose paths begin at Flower's prefix."""
        return httpx.Client(base_url=self.url, auth=auth, timeout=30, **options)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(timeout=10)


@contextmanager
def flower_world(postgres_url: str, **settings: Any) -> Iterator[World]:
    """Yield an app on Redis with an empty, migrated database of its own."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="durable-flower-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = stack.enter_context(postgres.fresh_database(postgres_url))
        broker = brokers.service("DURABLE_TEST_REDIS")
        queue, apart = stack.enter_context(brokers.queue_of_ones_own(broker))
        chosen = {"durable_lease": 5.0, "durable_check_interval": 2.0, **apart, **settings}
        world = World(Setup(broker, f"durable+{url}", folder, queue, chosen), url)
        stack.callback(world.leave)
        backend: Any = world.app.backend
        backend.store.migrate()
        yield world


@contextmanager
def flower(world: World, *options: str, **more: Any) -> Iterator[FlowerServer]:
    """Yield a Flower over a world."""
    server = FlowerServer(world.setup, *options, **more)
    try:
        yield server
    finally:
        server.stop()
