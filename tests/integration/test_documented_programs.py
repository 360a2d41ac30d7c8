"""The programs of the how-to guides run as they are printed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery.contrib.testing.worker import start_worker
from harness.postgres import fresh_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = Path(__file__).parents[2] / "docs"


def program(page: str, name: str) -> str:
    """Return the program of a page that begins with a comment naming its file."""
    (found,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
        if block.startswith(f"# {name}\n")
    )
    return str(found)


@pytest.fixture
def printed(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], Any]]:
    """Return a function that imports a page's program, with a database and a broker of its own."""
    with fresh_database(postgres_url) as url:
        monkeypatch.setenv("DATABASE", url)
        monkeypatch.setenv("BROKER", f"durable+embedded://{tmp_path}")

        def load(page: str, name: str) -> Any:
            path = tmp_path / name
            path.write_text(program(page, name), "utf-8")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module

        yield load


def test_the_sqlalchemy_program_fulfils_what_it_has_committed(printed: Callable[[str, str], Any]) -> None:
    orders = printed("how-to/sqlalchemy.md", "orders.py")
    store = orders.app.backend.store
    store.migrate()
    orders.Base.metadata.create_all(orders.engine)

    with start_worker(orders.app, pool="solo", perform_ping_check=False):
        result = orders.app.AsyncResult(orders.place_order())
        assert result.get(timeout=20, disable_sync_subtasks=False) == "receipt-1"

    orders.engine.dispose()
    store.connections.close()
    orders.app.close()
