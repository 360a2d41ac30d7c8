"""Which directory a broker URL of the embedded default means, however kombu passes it on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kombu import Connection

from celery_durable.exceptions import ConfigurationError
from celery_durable.transport import register
from celery_durable.transport.embedded import EmbeddedTransport, broker_directory
from celery_durable.transport.spool import _name

register()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELERY_DURABLE_DIR", raising=False)
    return tmp_path


def test_without_a_path_the_queues_are_in_the_project_s_own_directory(project: Path) -> None:
    assert broker_directory(Connection("durable+embedded://")) == project / ".durable" / "broker"


def test_the_environment_may_name_the_project_s_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_DURABLE_DIR", "/srv/state")

    assert broker_directory(Connection("durable+embedded://")) == Path("/srv/state/broker")


def test_a_path_in_the_url_is_used_as_it_is() -> None:
    assert broker_directory(Connection("durable+embedded:///srv/media%20app")) == Path(
        "/srv/media app/broker"
    )


def test_a_url_means_the_same_in_a_list_of_alternatives_in_a_clone_and_after_a_switch() -> None:
    url = "durable+embedded:///srv/media"
    switched = Connection(["redis://localhost", url])
    switched.maybe_switch_next()

    for connection in (Connection([url, "redis://localhost"]), Connection(url).clone(), switched):
        assert connection.transport_cls in ("durable", "durable+embedded")
        assert isinstance(connection.transport, EmbeddedTransport)
        assert broker_directory(connection) == Path("/srv/media/broker")


def test_the_banner_of_a_worker_shows_the_url_as_it_was_given() -> None:
    for url in ("durable+embedded://", "durable+embedded:///srv/media"):
        assert Connection(url).as_uri() == url


@pytest.mark.parametrize("url", ["durable+postgresql://localhost/media", "durable+embedded://host/path"])
def test_a_url_that_means_something_else_is_an_error_that_says_what_to_use(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"use durable\+embedded://"):
        _ = Connection(url).transport


@pytest.mark.parametrize(
    "name", ["celery", "", ".", "..", "../../etc", "a/b", "w@h.pidbox", "é" * 200, "x" * 300]
)
def test_no_queue_name_leaves_its_folder_or_is_too_long_for_a_file(name: str) -> None:
    found = _name(name)

    assert os.sep not in found
    assert found not in ("", ".", "..")
    assert len(os.fsencode(f"{found}~0123456789abcdef.json")) < 255


def test_long_names_stay_different() -> None:
    assert _name("x" * 300) != _name("x" * 299 + "y")
