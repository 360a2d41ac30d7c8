"""Orders, and the runs that fulfil them, in one transaction."""

from __future__ import annotations

import os

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import celery_durable as durable

DATABASE = os.environ.get("BACKEND", "durable+postgresql://localhost/shop").removeprefix("durable+")
app = Celery(
    "place_orders",
    broker=os.environ.get("BROKER", "redis://localhost"),
    backend=f"durable+{DATABASE}",  # the runs are in the database of the orders
    task_cls=durable.DurableTask,
)
engine = create_engine(DATABASE.replace("postgresql", "postgresql+psycopg", 1))


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    receipt: Mapped[str | None]


@app.task
def fulfil(order_id: int) -> str:
    with Session(engine) as session:
        order = session.get_one(Order, order_id)  # always there: the run came with it
        order.receipt = f"receipt-{order_id}"
        session.commit()
        return order.receipt


def place_order(session: Session) -> str:
    order = Order()
    session.add(order)
    session.flush()
    result = fulfil.apply_async((order.id,), transaction=session)
    return result.id


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        run_id = place_order(session)
        session.commit()  # order and run are there now; the message follows
    print("committed:", app.AsyncResult(run_id).get(timeout=60))

    with Session(engine) as session:
        run_id = place_order(session)
        session.rollback()  # neither is there, and nothing is sent
    print("rolled back:", app.AsyncResult(run_id).state)
