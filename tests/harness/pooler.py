"""PgBouncer in transaction mode before a database, where it is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from harness.brokers import free_port, missing
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIGURATION = """
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
logfile = {folder}/log
"""


@contextmanager
def pooled(url: str, *, connections: int) -> Iterator[str]:
    """Yield the URL of a pooler that has so many connections to the database of `url`."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        missing("PgBouncer is not installed")
    parts, port = conninfo_to_dict(url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="durable-pooler-"))
    target = make_conninfo(**{name: value for name, value in parts.items() if value is not None})
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(target=target, port=port, connections=connections, folder=folder)
    )
    who = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for path in (folder, configuration):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    process = subprocess.Popen(
        [str(program), str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who
    )
    pooler = f"postgresql://{parts.get('user', 'postgres')}@127.0.0.1:{port}/{parts['dbname']}"
    try:
        eventually(lambda: _answers(pooler), what=lambda: (folder / "log").read_text()[-2000:])
        yield pooler
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
        return True
    return False
