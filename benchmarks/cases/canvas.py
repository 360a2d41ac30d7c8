"""A large group and a long chain: what each of their tasks costs, and whether many are as cheap as few.

The group's base is the same group with each member stored by itself, as where Celery has another loop. The
messages of a chain are executed here, by Celery's tracer; its base is a chain of a tenth of its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import chain, group
from celery.app.trace import build_tracer

from benchmarks.app import make_app
from benchmarks.measuring import Spread, interleaved, ratio, timed
from benchmarks.report import Row
from celery_durable import hooks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from benchmarks.setting import Setting

_BATCHES, _ALONE = "member of a group, in batches", "member of a group, alone"


def run(setting: Setting) -> Iterable[Row]:
    """Send groups in both ways, and execute chains of two lengths."""
    store = setting.store("canvas")
    app = make_app("canvas", broker="memory://", backend=f"durable+{store.url}")
    setting.open_things.callback(app.close)
    token = hooks.become_worker()
    with store.connections.dedicated() as connection:
        store.keeper(connection).register(token, hostname="bench@here", pid=1, version="0")
    yield from _group(app, setting)
    yield from _chain(app, setting)


def _group(app: Celery, setting: Setting) -> Iterable[Row]:
    size = setting.rounds(2000, 600)
    in_batches: Any = group._apply_tasks  # type: ignore[attr-defined]  # noqa: SLF001
    loops = {_BATCHES: in_batches, _ALONE: in_batches.__wrapped__}
    task = app.tasks["benchmarks.nothing"]

    def send(name: str) -> float:
        group._apply_tasks = loops[name]  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            return timed(group([task.s()] * size).apply_async) / size
        finally:
            group._apply_tasks = in_batches  # type: ignore[attr-defined]  # noqa: SLF001
            _messages(app, execute=False)

    sides = {name: (lambda _, name=name: send(name)) for name in loops}
    took = interleaved(sides, setting.rounds(9, 3), warm_up=1)
    yield Row(_ALONE, Spread.of(took[_ALONE]).times(1e6), "µs", None, "")
    yield Row(
        _BATCHES, Spread.of(took[_BATCHES]).times(1e6), "µs", ratio(took[_BATCHES], took[_ALONE]), _ALONE
    )


def _chain(app: Celery, setting: Setting) -> Iterable[Row]:
    long = setting.rounds(1000, 300)
    names = {f"task of a chain of {length:,}": length for length in (long // 10, long)}
    task = app.tasks["benchmarks.nothing"]

    def execute(length: int) -> float:
        chain([task.si()] * length).apply_async()
        return timed(lambda: _messages(app, execute=True)) / length

    sides = {name: (lambda _, length=length: execute(length)) for name, length in names.items()}
    took = interleaved(sides, setting.rounds(3, 2), warm_up=1)
    short, full = names
    yield Row(short, Spread.of(took[short]).times(1e6), "µs", None, "")
    yield Row(full, Spread.of(took[full]).times(1e6), "µs", ratio(took[full], took[short]), short)


def _messages(app: Celery, *, execute: bool) -> None:
    """Take messages out of the broker until there are none; execute them if asked to."""
    tracers: dict[str, Any] = {}
    with app.connection_for_read() as connection, connection.channel() as channel:
        while (message := channel.basic_get(app.conf.task_default_queue, no_ack=True)) is not None:
            if execute:
                name, (args, kwargs, embed) = message.headers["task"], message.decode()
                tracer = tracers.setdefault(name, build_tracer(name, app.tasks[name], app=app))
                request = {**message.headers, **embed, "args": args, "kwargs": kwargs, "delivery_info": {}}
                tracer(message.headers["id"], args, kwargs, request)
