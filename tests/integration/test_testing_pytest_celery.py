"""The component for the clusters of pytest-celery: what it says of itself, and a worker on it in Docker."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pytest_celery import CeleryBackendCluster, CeleryTestSetup

from celery_durable.testing.pytest_celery import (
    CELERY_POSTGRES_BACKEND,
    PostgresContainer,
    PostgresTestBackend,
)

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = os.environ.get("DURABLE_TEST_POSTGRES_IMAGE", "postgres:17")
CONFTEST = f"""
import pytest
from celery_durable.testing.pytest_celery import PostgresContainer
from pytest_celery import CeleryBackendCluster

pytest_plugins = ["celery_durable.testing.pytest_celery"]

@pytest.fixture
def celery_backend_cluster(celery_postgres_backend):
    cluster = CeleryBackendCluster(celery_postgres_backend)
    yield cluster
    cluster.teardown()

class Container(PostgresContainer):
    @classmethod
    def image(cls):
        return {IMAGE!r}

@pytest.fixture
def default_postgres_backend_cls():
    return Container
"""
TESTS = """
import celery_durable as durable
from celery import Celery
from celery.contrib.testing.worker import start_worker

@durable.step
def doubled(number):
    return number * 2

def test_a_worker_keeps_its_runs_in_the_cluster(celery_backend_cluster, celery_postgres_backend, tmp_path):
    config = celery_backend_cluster.config()
    app = Celery("docker", broker=f"durable+embedded://{tmp_path}", backend=config["host_urls"][0],
                 task_cls=durable.DurableTask)

    @app.task(name="double", shared=False)
    def double(number):
        return doubled(number)

    celery_postgres_backend._app = app  # what celery_setup does
    with start_worker(app, perform_ping_check=False):
        result = double.delay(4)
        assert result.get(timeout=30) == 8

    celery_postgres_backend.restart()
    assert celery_postgres_backend.ready()
    assert app.AsyncResult(result.id).get(timeout=30) == 8
"""


LOOK = """
import sys
import docker

image = sys.argv[1]
try:
    client = docker.from_env()
    client.ping()
    client.images.list(image) or client.images.pull(*image.split(":"))
except docker.errors.APIError as error:
    sys.exit(f"there is a Docker engine, but no image {image} (DURABLE_TEST_POSTGRES_IMAGE): {error}")
except docker.errors.DockerException as error:
    sys.exit(f"there is no Docker engine: {error}")
"""


def stand_in(hostname: str) -> PostgresContainer:
    """Return a container of which only the name is known, as docker describes it."""
    return PostgresContainer(SimpleNamespace(attrs={"Config": {"Hostname": hostname}}))


def at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Have containers be reached at a port of this machine."""
    monkeypatch.setattr(PostgresContainer, "_wait_port", lambda *_: port)
    monkeypatch.setattr(PostgresContainer, "get_addr", lambda *_: ("localhost", port))


def missing() -> str | None:
    """Return why nothing can be run in Docker here, None when it can."""
    # In a process of its own: docker leaves its socket open when nobody listens.
    done = subprocess.run(
        [sys.executable, "-c", LOOK, IMAGE], capture_output=True, text=True, timeout=120, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_the_container_tells_workers_and_the_test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 55432)
    container = stand_in("f00ba4")

    assert container.celeryconfig == {
        "url": "durable+postgresql://durable:durable@f00ba4:5432/durable",
        "host_url": "durable+postgresql://durable:durable@localhost:55432/durable",
        "hostname": "f00ba4",
        "port": 55432,
        "database": "durable",
    }
    assert container.client.url == container.host_url


def test_the_container_is_made_of_overridable_parts() -> None:
    class Mine(PostgresContainer):
        @classmethod
        def image(cls) -> str:
            return "registry.example/postgres:16.4"

        @classmethod
        def initial_env(cls) -> dict[str, str]:
            return {"POSTGRES_USER": "ada", "POSTGRES_PASSWORD": "secret", "POSTGRES_DB": "shop"}

    mine = Mine(SimpleNamespace(attrs={"Config": {"Hostname": "f00ba4"}}))

    assert Mine.version() == "16.4"
    assert Mine.command("-c", "fsync=off") == ["postgres", "-c", "fsync=off"]
    assert Mine.ports() == {"5432/tcp": None}
    assert mine.url == "durable+postgresql://ada:secret@f00ba4:5432/shop"


def test_a_server_that_only_initialises_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 1)  # where nobody listens
    monkeypatch.setattr(PostgresContainer.__mro__[1], "ready", lambda _: True)

    assert not stand_in("f00ba4").ready()


def test_a_setup_of_pytest_celery_takes_it_as_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 55432)
    node = PostgresTestBackend(stand_in("f00ba4"))
    cluster: Any = CeleryBackendCluster(node)
    config = CeleryTestSetup.config({"celery_backend_cluster_config": cluster.config()})

    app = CeleryTestSetup.create_setup_app(config, "shop")

    assert CELERY_POSTGRES_BACKEND == "celery_postgres_backend"
    assert app.backend.as_uri() == "durable+postgresql://durable:**@localhost:55432/durable"


def test_a_worker_keeps_its_runs_in_a_container(tmp_path: Path) -> None:
    # In CI, too: an engine is not to be had everywhere, and what needs none is tested above.
    if reason := missing():
        pytest.skip(reason)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_docker.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
