"""The connections of one process: the first one, the pool beside it, and what becomes of broken ones."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from celery_durable.store.connections import Connections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store.connections import Connection


def backend(connection: Connection) -> int:
    row = connection.execute("select pg_backend_pid() as pid").fetchone()
    assert row is not None
    return int(row["pid"])


@pytest.fixture
def connections(database_url: str) -> Iterator[Connections]:
    made = Connections(database_url, size=3)
    yield made
    made.close()


def test_one_thread_keeps_to_one_connection(connections: Connections) -> None:
    assert len({connections.once(backend) for _ in range(5)}) == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_as_many_threads_work_at_once_as_the_size_says(database_url: str, size: int) -> None:
    connections = Connections(database_url, size=size)
    together = threading.Barrier(size)

    def meet(connection: Connection) -> int:
        together.wait(10)  # breaks unless `size` threads hold a connection at the same time
        return backend(connection)

    with ThreadPoolExecutor(size) as threads:
        used = set(threads.map(lambda _: connections.once(meet), range(size)))
        used |= set(ThreadPoolExecutor(9).map(lambda _: connections.once(backend), range(50)))
    connections.close()
    assert len(used) == size


def test_a_connection_that_the_server_ended_is_replaced(connections: Connections) -> None:
    ended = connections.once(backend)
    with connections.dedicated() as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [ended])

    assert connections.patiently(backend, budget=10) != ended


def test_a_connection_left_in_a_transaction_is_not_used_again(connections: Connections) -> None:
    left = connections.once(lambda connection: (connection.execute("begin"), backend(connection))[1])
    assert connections.once(backend) != left


def test_an_error_of_a_statement_costs_no_connection(connections: Connections) -> None:
    before = connections.once(backend)
    with pytest.raises(psycopg.errors.DivisionByZero):
        connections.once(lambda connection: connection.execute("select 1 / 0"))
    assert connections.once(backend) == before


def test_closing_while_a_thread_works_leaves_no_connection_open(connections: Connections) -> None:
    inside, closed = threading.Event(), threading.Event()
    held: list[Any] = []

    def work(connection: Connection) -> None:
        held.append(connection)
        inside.set()
        assert closed.wait(10)

    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(connections.once, work)
        assert inside.wait(10)
        connections.close()
        closed.set()
        working.result(10)
    assert held[0].closed


def test_a_forked_child_uses_a_connection_of_its_own(connections: Connections) -> None:
    parents = connections.once(backend)
    answer, question = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(question, str(connections.once(backend)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    childs = int(os.read(answer, 20))
    os.close(answer)
    os.close(question)

    assert childs != parents
    assert connections.once(backend) == parents
