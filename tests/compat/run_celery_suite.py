"""Run Celery's own integration tests, unmodified, against this package.

    python tests/compat/run_celery_suite.py [--mode tasks] [--file test_canvas.py] [--broker postgres] [-- …]

`backend` runs plain tasks on the durable result backend, `tasks` runs every task as a `DurableTask`,
`baseline` is Celery alone on Redis, to tell what fails anyhow. The tests come from Celery's sdist.
About 130 of them ask for a result backend whose URL starts with `redis`: the backend gets an alias of that
kind, for this run only. A private Redis is the broker, or (`--broker postgres`) the database itself.
Each file runs in a process of its own, `--jobs` of them at a time, with a database and a Redis of its own;
what cannot pass is listed, with its reason, in `deselected.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import uuid
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import celery
import psycopg
from celery_suite_plugin import MODE, deselected, refused

from celery_durable.config import Settings
from celery_durable.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
MODES = ("backend", "tasks", "baseline")
BROKERS = ("redis", "rabbitmq", "postgres")
ALIAS = "redisdurable"
SETTINGS = {
    "durable_auto_migrate": True,
    "durable_autoretry": False,
    "durable_lease": 10,
    "broker_transport_options": {"auto_migrate": True},
}
TIMEOUT = 3600


@dataclass(frozen=True)
class Job:
    """One file of the suite in one mode on one broker."""

    mode: str
    broker: str
    file: str
    options: list[str]

    @property
    def name(self) -> str:
        """What its report and its log are called."""
        return f"{self.mode}-{self.broker}-{self.file}"


# The tests of the flag wait for minutes that nothing happens.
_QUICK = ["-k", "not allow_error_cb"]
SHORT = (
    Job("backend", "redis", "test_canvas.py", _QUICK),
    Job("tasks", "redis", "test_canvas.py", _QUICK),
    Job("tasks", "redis", "test_tasks.py", []),
    Job("backend", "rabbitmq", "test_group_chains.py", []),
    Job("tasks", "rabbitmq", "test_group_chains.py", []),
)

# Python 3.11 has the filter from 3.11.4 on, 3.10 from 3.10.12 on
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def fetch_suite(target: Path) -> None:
    """Download the sdist of the Celery that is installed and unpack its tests."""
    version = celery.__version__
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "celery"]
    subprocess.run([*pip, "--dest", target, f"celery=={version}"], check=True)
    (sdist,) = target.glob("celery-*.tar.gz")
    root = target / f"celery-{version}"
    with tarfile.open(sdist) as archive:
        wanted = [
            member
            for member in archive.getmembers()
            if member.name.startswith(f"{root.name}/t/") or member.name == f"{root.name}/pyproject.toml"
        ]
        archive.extractall(target, members=wanted, **SAFELY)
    (root / "integration-tests-config.json").write_text(json.dumps(SETTINGS))


def write_alias(target: Path) -> None:
    """Write the metadata of a distribution that gives the backend an alias starting with `redis`."""
    metadata = target / "alias" / "redisdurable-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: redisdurable\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        f"[celery.result_backends]\n{ALIAS} = celery_durable.backend:DurableBackend\n"
    )


@contextmanager
def private_redis() -> Iterator[int]:
    """Start a Redis whose database 0 nobody else uses; give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="celery-suite-redis-") as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield port
        finally:
            server.terminate()
            server.wait()


@contextmanager
def database(server: str) -> Iterator[str]:
    """Create a database for one file; give its URL."""
    name = f"celery_suite_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            connection.execute(f"drop database if exists {name} with (force)".encode())


def run_file(root: Path, job: Job, environment: dict[str, str]) -> tuple[Counter[str], str]:
    """Run one file of the suite; return its counts, and what is to be said of those that failed."""
    report, log = root / f"{job.name}.xml", root / f"{job.name}.log"
    report.unlink(missing_ok=True)
    plugins = ("pytest_timeout", "pytest_rerunfailures", "celery.contrib.pytest", "celery_suite_plugin")
    command = [sys.executable, "-m", "pytest", f"t/integration/{job.file}", "-q", "-rfE", "--tb=short"]
    command += ["--timeout=300", f"--junit-xml={report}", *(f"-p{plugin}" for plugin in plugins)]
    command += job.options
    with log.open("wb") as output:
        subprocess.run(
            command,
            cwd=root,
            env={**environment, MODE: job.mode},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=TIMEOUT,
        )
    if not report.exists():
        return Counter(failed=1), log.read_text(errors="replace")[-4000:]
    counts, failures = _read(report, f"{job.mode} {job.file}")
    return counts + Counter({"tests left out": len(refused(job.mode, job.file))}), failures


def _read(report: Path, where: str) -> tuple[Counter[str], str]:
    counts: Counter[str] = Counter()
    failures = []
    for case in ET.parse(report).getroot().iter("testcase"):
        outcomes = {child.tag: child for child in case}
        failed, skipped = outcomes.keys() & {"failure", "error"}, "skipped" in outcomes
        counts["failed" if failed else "skipped" if skipped else "passed"] += 1
        if failed:
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            failures.append(f"  FAILED {where}::{name}\n")
            failures += [indent(f"{outcomes[tag].text}\n", "    ") for tag in sorted(failed)]
    return counts, "".join(failures)


def files_of(root: Path, chosen: str) -> list[str]:
    """Return the file that was chosen, or all that are not refused as a whole."""
    if chosen:
        return [chosen]
    left_out = {one.test for one in deselected()}
    names = sorted(path.name for path in (root / "t/integration").glob("test_*.py"))
    return [name for name in names if name not in left_out]


def environment_of(mode: str, alias: Path, port: int, database_url: str, broker: str) -> dict[str, str]:
    """Return the variables that Celery's tests read, and what keeps the checkout away from them."""
    redis = f"redis://127.0.0.1:{port}/0"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(alias), str(HERE)]),
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(port),
        "TEST_BROKER": {
            "postgres": f"durable+{database_url}",
            "rabbitmq": os.environ.get("DURABLE_TEST_AMQP", ""),
            "redis": redis,
        }[broker],
        "TEST_BACKEND": redis if mode == "baseline" else f"{ALIAS}+{database_url}",
    }


def run(target: Path, plan: Sequence[Job], at_once: int) -> Counter[str]:
    """Run what is planned below `target`, a job without a file for every file; return the counts together."""
    root = target / f"celery-{celery.__version__}"
    if not root.exists():
        fetch_suite(target)
    alias = target / "alias"
    if not alias.exists():
        write_alias(target)
    shared_broker = threading.Lock()  # on RabbitMQ every app consumes from the same queue

    def counted(job: Job) -> Counter[str]:
        with (
            shared_broker if job.broker == "rabbitmq" else nullcontext(),
            private_redis() as port,
            database(os.environ["DURABLE_TEST_POSTGRES"]) as url,
        ):
            store = Store(url, Settings())
            store.migrate()  # some tests start workers without our settings
            store.close()
            environment = environment_of(job.mode, alias, port, url, job.broker)
            counts, failures = run_file(root, job, environment)
        text = ", ".join(f"{number} {name}" for name, number in counts.items())
        sys.stdout.write(f"{job.mode:8} {job.broker:8} {job.file:45} {text}\n{failures}")
        sys.stdout.flush()
        return counts

    every = [replace(job, file=file) for job in plan for file in files_of(root, job.file)]
    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(counted, every), start=Counter())


def main(given: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 1 when a test failed that is not listed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, action="append", help="default: backend and tasks")
    parser.add_argument("--file", action="append", help="a file of t/integration; default: all")
    parser.add_argument("--broker", choices=BROKERS, default="redis", help="default: redis")
    parser.add_argument("--short", action="store_true", help="the part that every change has to pass")
    parser.add_argument("--jobs", type=int, default=1, help="files at a time; default: 1")
    parser.add_argument("--keep", type=Path, help="a directory for the suite and its logs")
    arguments, options = parser.parse_known_args(given)
    options = [option for option in options if option != "--"]
    with tempfile.TemporaryDirectory(prefix="celery-suite-") as scratch:
        target = arguments.keep or Path(scratch)
        target.mkdir(parents=True, exist_ok=True)
        plan = [
            Job(mode, arguments.broker, file, options)
            for mode in arguments.mode or MODES[:2]
            for file in arguments.file or [""]
        ]
        total = run(target, SHORT if arguments.short else plan, arguments.jobs)
    sys.stdout.write(", ".join(f"{number} {name}" for name, number in total.items()) + "\n")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
