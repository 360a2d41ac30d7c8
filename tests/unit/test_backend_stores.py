"""However many backends an app is given, it has one store for each database and configuration."""

from __future__ import annotations

from celery import Celery

from celery_durable.backend import DurableBackend
from celery_durable.exceptions import StoreUnavailableError

URL = "postgresql://db/app"


def test_threads_that_each_make_a_backend_share_one_store_and_its_connections() -> None:
    app = Celery("app", set_as_current=False)
    first, second = DurableBackend(app, url=URL), DurableBackend(app, url=URL)

    assert first.store is second.store
    assert DurableBackend(app, url="postgresql://db/other").store is not first.store


def test_another_configuration_is_another_store() -> None:
    app = Celery("app", set_as_current=False)
    first = DurableBackend(app, url=URL)
    assert first.store.settings.lease == 30

    app.conf.durable_lease = 7
    assert DurableBackend(app, url=URL).store.settings.lease == 7


def test_an_error_for_the_pool_s_pipe_need_not_be_what_the_result_serializer_takes() -> None:
    backend = DurableBackend(Celery("app", set_as_current=False), url=URL)
    error = StoreUnavailableError("away")

    assert backend.prepare_exception(error, "pickle") is error
    assert backend.prepare_exception(error)["exc_type"] == "StoreUnavailableError"
