"""Tasks that let another one take their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task, chain, current_app, group

import celery_durable as durable

if TYPE_CHECKING:
    from celery import Celery
    from harness.ledger import Ledger

_ledgers: list[Ledger] = []
LAST = 3


@durable.step
def fetch() -> str:
    _ledgers[-1].write("fetch", "pages", run=durable.current_run().id)
    return durable.idempotency_key()


def pages(self: Task[..., Any], page: int) -> int:
    """Do one page, at its second attempt for good; then leave the rest to the same task."""
    child = self.app.tasks["plain"].delay(f"page {page}").id
    drawn = {
        "page": page,
        "retries": self.request.retries,
        "child": child,
        "uuid": str(durable.uuid4()),
        "now": durable.now().isoformat(),
        "key of the run": durable.current_run().idempotency_key,
        "key of the step": fetch(),
    }
    _ledgers[-1].write("page", "pages", run=self.request.id, detail=drawn)
    if not self.request.retries:
        raise self.retry(countdown=0)
    if page < LAST:
        raise self.replace(self.app.tasks["pages"].s(page + 1))
    return page


def steps_aside(self: Task[..., Any], *names: str) -> None:
    """Leave everything to plain tasks, one after the other, which need no time at all."""
    raise self.replace(chain(self.app.tasks[name].si() for name in names or ["hurries"]))


def calls(kind: str, *names: str) -> Any:
    """Call a plain task that leaves everything to other ones."""
    call = current_app.tasks["steps_aside_plainly"].s(kind, *names)
    return durable.call(call.set(link=current_app.tasks["follows"].s()))


def steps_aside_plainly(self: Task[..., Any], kind: str, *names: str) -> None:
    raise self.replace({"chain": chain, "group": group}[kind](self.app.tasks[name].si() for name in names))


def follows(result: Any) -> None:
    _ledgers[-1].write("body", "follows", detail={"result": result})


def hurries() -> str:
    _ledgers[-1].write("body", "hurries")
    return "done"


def forgets() -> str:
    return "whatever its task says of results"


def register(app: Celery, ledger: Ledger) -> None:
    """Give the app these tasks."""
    _ledgers.append(ledger)
    app.task(pages, name="pages", bind=True)
    app.task(steps_aside, name="steps_aside", bind=True)
    app.task(calls, name="calls")
    app.task(steps_aside_plainly, name="steps_aside_plainly", bind=True, base=Task)
    app.task(follows, name="follows")
    app.task(hurries, name="hurries", base=Task)
    app.task(forgets, name="forgets", base=Task, ignore_result=True)
