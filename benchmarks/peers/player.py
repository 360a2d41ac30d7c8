"""How the benchmarks talk with a peer's process: one JSON line there, one back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

import psycopg

from benchmarks.setting import Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_STOP = 20.0


def serve(verbs: Mapping[str, Callable[[int], object]]) -> None:
    """Answer the commands on stdin until it ends; a peer's own output goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        verb, argument = json.loads(line)
        print(json.dumps(verbs[verb](argument)), file=answers, flush=True)


class Player:
    """A peer's process.

    Arguments:
        process: the process, started.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._to: IO[str] = process.stdin  # type: ignore[assignment]
        self._from: IO[str] = process.stdout  # type: ignore[assignment]

    def ask(self, verb: str, argument: int) -> Any:
        """Let it do something and return what it measured."""
        print(json.dumps([verb, argument]), file=self._to, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """Return what it says next."""
        line = self._from.readline()
        if not line:
            message = "The peer's process ended"
            raise RuntimeError(message)
        return json.loads(line)


@contextmanager
def playing(peer: str, database: str) -> Iterator[Player]:
    """Start a peer's process and yield it when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.peers.{peer}_player"],
        env={**os.environ, "BENCH_DATABASE": database},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        player = Player(process)
        player.answer()
        yield player
    finally:
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def prepare_absurd(database: str) -> str:
    """Create Absurd's schema, which its command-line tool carries; return the database's URL."""
    if find_spec("absurd_sdk") is None or find_spec("absurdctl") is None:
        reason = "absurd-sdk and absurdctl are not installed (pip install --group bench)"
        raise Skipped(reason)
    import absurdctl  # type: ignore[import-untyped]

    # `absurdctl init` does the same through psql, which may not be there.
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(absurdctl.BUNDLED_SCHEMA_SQL.encode())
    return database


def need_dbos() -> None:
    """Raise `Skipped` when DBOS is not installed."""
    if find_spec("dbos") is None:
        reason = "dbos is not installed (pip install --group bench)"
        raise Skipped(reason)
