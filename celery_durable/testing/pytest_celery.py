"""A Postgres for the Docker clusters of pytest-celery, as the store under an app.

Name this module in a conftest's `pytest_plugins` and give `celery_postgres_backend` to a cluster. It needs
`pip install pytest-celery` and a Docker engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pytest_celery import CeleryTestBackend, CeleryTestContainer
from pytest_docker_tools import container, fxtr

from celery_durable.config import Settings
from celery_durable.exceptions import StoreError
from celery_durable.store import Store
from celery_durable.store.rehearsal import answers
from celery_durable.testing.apps import close_stores, forget_connections

if TYPE_CHECKING:
    from collections.abc import Iterator

CELERY_POSTGRES_BACKEND = "celery_postgres_backend"
"""The name of the fixture, to be a parameter of `celery_backend`."""

POSTGRES_IMAGE = "postgres:17"
POSTGRES_ENV = {"POSTGRES_USER": "durable", "POSTGRES_PASSWORD": "durable", "POSTGRES_DB": "durable"}
POSTGRES_PORTS: dict[str, Any] = {"5432/tcp": None}
POSTGRES_CONTAINER_TIMEOUT = 60


class PostgresContainer(CeleryTestContainer):  # type: ignore[misc]  # (pytest-celery ships no types)
    """A container of the official Postgres image, or of one that understands the same variables."""

    @property
    def client(self) -> Store:
        """The store in this container, as the test's process reaches it."""
        return Store(self.host_url, Settings(auto_migrate=True, outage_budget=10.0))

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """What Celery needs to know: the backend's URL for workers, and for the test."""
        return {
            "url": self.url,
            "host_url": self.host_url,
            "hostname": self.hostname,
            "port": self.port,
            "database": self.initial_env()["POSTGRES_DB"],
        }

    @classmethod
    def command(
        cls,
        *args: str,
        debugpy: bool = False,  # noqa: ARG003  (pytest-celery's signature)
        wait_for_client: bool = True,  # noqa: ARG003
        **_: Any,
    ) -> list[str]:
        """Return how the server is started; further settings as `"-c", "name=value"`."""
        return ["postgres", *args]

    @property
    def url(self) -> str:
        """The backend's URL inside the cluster's network."""
        return self._url_at(self.hostname, 5432)

    @property
    def host_url(self) -> str:
        """The backend's URL for the test's own process."""
        port = self.port  # waits for the container
        host: str = self.get_addr("5432/tcp")[0]  # another one where the tests themselves run in a container
        return self._url_at(host, port)

    @classmethod
    def _url_at(cls, host: str, port: int) -> str:
        env = cls.initial_env()
        user, password = env["POSTGRES_USER"], env["POSTGRES_PASSWORD"]
        return f"{cls.prefix()}{user}:{password}@{host}:{port}/{env['POSTGRES_DB']}"

    @property
    def hostname(self) -> str:
        """The container's name inside the cluster's network."""
        return str(self.attrs["Config"]["Hostname"])

    @property
    def port(self) -> int:
        """The port on this machine."""
        return int(self._wait_port("5432/tcp"))

    @classmethod
    def version(cls) -> str:
        """Return the version of Postgres."""
        return cls.image().rpartition(":")[2]

    @classmethod
    def initial_env(cls) -> dict[str, str]:
        """Return the variables that make user, password and database."""
        return dict(POSTGRES_ENV)

    @classmethod
    def image(cls) -> str:
        """Return the image's name."""
        return POSTGRES_IMAGE

    @classmethod
    def ports(cls) -> dict[str, Any]:
        """Return the ports that are published."""
        return dict(POSTGRES_PORTS)

    @classmethod
    def prefix(cls) -> str:
        """Return how the URL of this backend begins."""
        return "durable+postgresql://"

    @property
    def ready_prompt(self) -> str:
        """What the log says of a server that may be asked; of another one, that only initialises, too."""
        return "database system is ready to accept connections"

    def ready(self) -> bool:
        """Say whether the server answers here: the one that initialises the database does not."""
        return bool(super().ready()) and answers(self.host_url)


class PostgresTestBackend(CeleryTestBackend):  # type: ignore[misc]
    """The node: a Postgres with the tables of celery-durable in it."""

    def migrate(self) -> None:
        """Create the tables; workers of the cluster need not do it."""
        store = self.container.client
        store.migrate()
        store.close()

    def restart(self, reload_container: bool = True, force: bool = False) -> None:  # noqa: FBT001, FBT002
        """Restart the container, and let the app forget its connections to the one before."""
        if self.app is not None:
            close_stores(self.app)
        super().restart(reload_container, force)
        if self.app is not None:
            forget_connections(self.app)  # the port may be another one

    def teardown(self) -> None:
        """Close the app's connections before the container is gone."""
        if self.app is not None:
            close_stores(self.app)
        super().teardown()


@pytest.fixture
def celery_postgres_backend(default_postgres_backend: PostgresContainer) -> Iterator[PostgresTestBackend]:
    """The backend node, with the tables made; its container goes with the test."""
    backend = PostgresTestBackend(default_postgres_backend)
    try:
        backend.migrate()
    except StoreError as error:  # say which container it is: there may be several
        pytest.fail(f"{backend.name()} is no store: {error}\n{backend.logs()}")
    yield backend
    backend.teardown()


@pytest.fixture
def default_postgres_backend_cls() -> type[PostgresContainer]:
    """The container's class; override it for another image, user or command."""
    return PostgresContainer


default_postgres_backend = container(
    image="{default_postgres_backend_image}",
    ports=fxtr("default_postgres_backend_ports"),
    environment=fxtr("default_postgres_backend_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=PostgresContainer,
    timeout=POSTGRES_CONTAINER_TIMEOUT,
    command=fxtr("default_postgres_backend_command"),
)


@pytest.fixture
def default_postgres_backend_command(default_postgres_backend_cls: type[PostgresContainer]) -> list[str]:
    """The command of the container."""
    return default_postgres_backend_cls.command()


@pytest.fixture
def default_postgres_backend_env(default_postgres_backend_cls: type[PostgresContainer]) -> dict[str, str]:
    """The environment of the container."""
    return default_postgres_backend_cls.initial_env()


@pytest.fixture
def default_postgres_backend_image(default_postgres_backend_cls: type[PostgresContainer]) -> str:
    """The image of the container."""
    return default_postgres_backend_cls.image()


@pytest.fixture
def default_postgres_backend_ports(default_postgres_backend_cls: type[PostgresContainer]) -> dict[str, Any]:
    """The published ports of the container."""
    return default_postgres_backend_cls.ports()
