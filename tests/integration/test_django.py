"""A real Django project: its own database is the store, web servers start runs, and a worker does them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from checkout import ROOT
from harness.brokers import free_port
from harness.postgres import fresh_database
from harness.tables import Tables
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = ROOT / "example_project" / "django"
CONNECTIONS = (
    "select pid::text || backend_start from pg_stat_activity"
    " where datname = current_database() and application_name = 'celery-durable'"
)


class Site:
    """The example project, with a database and a broker of its own.

    Arguments:
        url: the database.
        folder: where broker and logs are.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.tables = Tables(url)
        self._folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        self._environment = {
            **kept,
            "PYTHONPATH": str(PROJECT),
            "SHOP_DATABASE_URL": url,
            "SHOP_BROKER_URL": f"durable+{url}",
            "SHOP_SECRET_KEY": "a test",
        }

    def run(self, *command: str) -> str:
        """Run a command of the project; return what it prints."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=PROJECT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def running(self, name: str, *command: str, ready: str) -> Iterator[Path]:
        """Keep a program running for a while; yield its log when it is ready."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=PROJECT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(
                lambda: ready in log.read_text() or process.poll() is not None,
                timeout=40,
                what=lambda: f"{name}:\n{log.read_text()}",
            )
            assert process.poll() is None, log.read_text()
            yield log
        finally:
            left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            process.wait(30)
            for one in psutil.wait_procs(left, timeout=10)[1]:
                one.kill()


@pytest.fixture(scope="module")
def site(postgres_url: str) -> Iterator[Site]:
    """Return the project after `manage.py migrate`."""
    with fresh_database(postgres_url) as url, tempfile.TemporaryDirectory(prefix="durable-django-") as folder:
        made = Site(url, Path(folder))
        made.run("manage.py", "migrate")
        yield made
        made.tables.close()


@pytest.fixture(scope="module")
def worker(site: Site) -> Iterator[Path]:
    """Keep a worker running; return its log."""
    command = ["celery", "-A", "shop", "worker", "-c1", "-l", "INFO"]
    with site.running("worker", *command, ready=" ready.") as log:
        yield log


@contextmanager
def served(site: Site, kind: str) -> Iterator[httpx.Client]:
    """Serve the site as WSGI (processes forked after the app was loaded and used, threads) or as ASGI."""
    port = free_port()
    if kind == "wsgi":
        used = site._folder / "gunicorn.conf.py"
        # The parent has a connection when it forks: its children must leave that alone.
        used.write_text(
            "def when_ready(server):\n"
            "    from shop.celery import app\n"
            "    app.backend.get_task_meta('nobody')\n"
        )
        command = ["gunicorn", "-c", str(used), "--preload", "-w", "2", "--threads", "4", "-b"]
        command += [f"127.0.0.1:{port}", "shop.wsgi"]
        ready = "Listening at"
    else:
        command = ["uvicorn", "--port", str(port), "--lifespan", "off", "shop.asgi:application"]
        ready = "Uvicorn running"
    with (
        site.running(kind, *command, ready=ready),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        eventually(lambda: _answers(client), what=f"{kind} to answer")
        yield client


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/orders/0/").status_code == 404
    except httpx.TransportError:
        return False


def test_migrate_makes_the_tables_and_says_so_once(site: Site) -> None:
    assert site.tables.one("select count(*) from durable.migration") > 0
    assert "celery_durable" not in site.run("manage.py", "migrate")


def test_the_command_line_knows_the_database_of_the_project(site: Site) -> None:
    assert "Nothing to do." in site.run("-m", "celery", "-A", "shop", "durable", "init")
    assert '"ok": true' in site.run("-m", "celery", "-A", "shop", "durable", "doctor", "--json")


@pytest.mark.parametrize(("kind", "most"), [("wsgi", 2 * 4), ("asgi", 10)])
def test_a_web_server_keeps_its_connections_and_opens_none_per_call(site: Site, kind: str, most: int) -> None:
    def place(client: httpx.Client) -> int:
        return client.get("/orders/?item=tea").status_code

    seen: set[Any] = set()
    with served(site, kind) as client, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(place, [client] * 30)) == {201}  # each thread has looked at the schema now
        for _ in range(6):
            assert set(threads.map(place, [client] * 15)) == {201}
            seen.update(row["?column?"] for row in site.tables.rows(CONNECTIONS))

    assert 1 <= len(seen) <= most + 1  # the parent's own is one more


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_orders_taken_by_a_web_server_are_fulfilled_once_and_those_rolled_back_never(
    site: Site, worker: Path, kind: str
) -> None:
    runs = site.tables.one("select count(*) from durable.run")
    with served(site, kind) as client:
        placed = client.get("/orders/?item=tea").json()
        refused = client.get("/orders/?item=unicorn")

        receipt = eventually(lambda: client.get(f"/orders/{placed['order']}/").json()["receipt"], what="it")

    assert receipt == f"receipt-{placed['order']}"
    assert refused.status_code == 409
    assert site.tables.one("select count(*) from durable.run") == runs + 1
    assert site.tables.wait_for_state(placed["run"], "succeeded")["attempt"] == 1


def test_a_web_process_killed_right_after_its_commit_loses_no_run(site: Site, worker: Path) -> None:
    program = (
        "import os, signal\n"
        "from django.test import Client\n"
        "from celery_durable.store.callers import CallersStore\n"
        "CallersStore.committed = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Client().get('/orders/?item=coffee')\n"
    )
    with pytest.raises(AssertionError, match="-9"):
        site.run("manage.py", "shell", "-c", program)
    order = site.tables.one("select id from shop_order where item = 'coffee'")

    receipt = eventually(
        lambda: site.tables.one("select receipt from shop_order where item = 'coffee'"), what="a receipt"
    )
    assert receipt == f"receipt-{order}"


def test_its_own_tests_run_in_a_database_that_can_be_dropped_afterwards(site: Site) -> None:
    output = site.run("manage.py", "test", "--noinput")

    assert "OK" in output
    assert "Destroying test database" in output
