"""Money that is moved once, although the worker dies right after it was moved."""

from __future__ import annotations

import os
import signal

import psycopg
from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "pay_once",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)


@durable.transaction(isolation="serializable")
def transfer(connection: psycopg.Connection, source: str, target: str, cents: int) -> str:
    move = "update account set cents = cents + %s where name = %s"
    connection.execute(move, (-cents, source))
    connection.execute(move, (cents, target))
    connection.execute("insert into transfer (what) values (%s)", (f"{source} to {target}",))
    ship.apply_async((target,), transaction=connection)  # this run comes with the transfer, or not at all
    return f"{cents} cents moved"


@app.task
def pay(source: str, target: str, cents: int) -> str:
    moved = transfer(source, target, cents)
    if durable.current_run().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return moved


@app.task
def ship(to: str) -> str:
    return f"shipped to {to}"


@durable.transaction
def open_accounts(connection: psycopg.Connection) -> None:
    connection.execute("drop table if exists account, transfer")
    connection.execute("create table account (name text primary key, cents integer not null)")
    connection.execute("create table transfer (what text not null)")
    connection.execute("insert into account values ('ada', 100), ('bob', 0)")


@durable.transaction
def accounts(connection: psycopg.Connection) -> list[tuple]:
    rows = connection.execute("select name, cents from account order by name").fetchall()
    return [*rows, *connection.execute("select count(*) from transfer").fetchall()]


if __name__ == "__main__":
    open_accounts()  # outside of a run: a transaction of its own
    print(accounts())
    paid = pay.delay("ada", "bob", 30)
    print(paid.get(), "in attempt", durable.Runs(app).get(paid.id).attempt)
    print(accounts())
