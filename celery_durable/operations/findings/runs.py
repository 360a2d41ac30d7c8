"""Workers, their leader, and runs that do not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.operations.findings.finding import Finding, Level
from celery_durable.operations.wording import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.config import Settings
    from celery_durable.store.health import Ailing, Health

_PATIENCE = 10.0  # seconds in which a healthy keeper gets to what is due


def about_workers(health: Health, settings: Settings) -> Iterator[Finding]:
    """Return whether workers are alive."""
    executing = [worker for worker in health.workers if not worker.hostname.startswith("keeper@")]
    silent = [worker for worker in health.workers if worker.silent > settings.lease]
    for worker in silent:
        yield Finding(
            "workers",
            "warning",
            f"{worker.hostname} (pid {worker.pid}, {worker.runs} runs) is silent for {span(worker.silent)}",
            "It is frozen, cut off or dead. The leader hands its runs on after a lease.",
        )
    if not executing:
        yield Finding(
            "workers",
            "warning",
            "No worker of an app with durable tasks is alive: no run is executed",
            "Start one: celery -A <app> worker. Does it use the same result_backend and durable_schema?",
        )
    elif not silent:
        oldest = max(worker.silent for worker in health.workers)
        message = f"{len(executing)} alive, the oldest heartbeat is {span(oldest)} old"
        yield Finding("workers", "ok", message)


def about_leader(health: Health) -> Iterator[Finding]:
    """Return whether somebody leads."""
    leader = health.leader
    if leader is not None and leader.remaining > 0:
        yield Finding("leader", "ok", f"{leader.hostname} leads, term {leader.term}")
        return
    level: Level = "error" if health.workers else "warning"
    yield Finding(
        "leader",
        level,
        "Nobody leads: timers, lost messages and runs of dead workers are left lying",
        "Start a worker (without durable_keeper = False), or: celery -A <app> durable keeper",
    )


def about_runs(health: Health) -> Iterator[Finding]:
    """Return runs that something should have moved on."""
    led = health.leader is not None and health.leader.remaining > 0
    quiet = True
    for ailing in health.ailing:
        finding = _ailing(ailing, led=led)
        if finding is not None:
            quiet = False
            yield finding
    if quiet:
        yield Finding("runs", "ok", "Every run is final, executed, due later or waited for")


_AILMENTS: dict[str, tuple[str, str, float]] = {
    "orphaned": (
        "{runs} executing runs have lost their worker ({ids})",
        "The leader hands them on within a second. If this stays: is a keeper running?",
        0.0,
    ),
    "sleepless": (
        "{runs} runs have neither owner nor due time nor waiter and would stay for ever ({ids})",
        "This is a bug: please report it with `durable show --json`. To end them: durable cancel.",
        0.0,
    ),
    "overdue": (
        "{runs} sleeping runs should have been woken, the first {age} ago ({ids})",
        "A keeper wakes them: start a worker, or celery -A <app> durable keeper.",
        _PATIENCE,
    ),
    "unpublished": (
        "{runs} runs have no message, the first for {age} ({ids})",
        "Is the broker up? The keeper sends them as soon as it is.",
        _PATIENCE,
    ),
    "unchecked": (
        "{runs} messages should have been looked for, the first {age} ago ({ids})",
        "The leader does that: start a worker, or celery -A <app> durable keeper.",
        _PATIENCE,
    ),
    "outbox": (
        "{runs} messages to plain tasks wait to be sent, the first for {age}",
        "Is the broker up? The keeper sends them as soon as it is.",
        _PATIENCE * 3,
    ),
    "stranded": (
        "{runs} runs wait for a worker of their version, and none is alive ({ids})",
        "Start one of the version `durable show` names, or allow any version if `durable check` agrees.",
        0.0,
    ),
    "exhausted": (
        "{runs} runs failed because they kept losing their worker ({ids})",
        "Look for the cause (memory, crashes) with `durable show`, then `durable resume` them.",
        0.0,
    ),
    "taken back": (
        "{runs} runs failed because they kept losing their worker, and were taken back ({ids})",
        "Look for the cause (memory, crashes) with `durable show`. Start others, or fork them.",
        0.0,
    ),
    "rollback": (
        "{runs} runs failed while they took back what they had done, and a part of it stands ({ids})",
        "`durable show` says what failed. Mend its cause, then `durable resume` takes back the rest.",
        0.0,
    ),
}


_FOR_OPERATORS = ("exhausted", "taken back", "rollback", "stranded")


def _ailing(ailing: Ailing, *, led: bool) -> Finding | None:
    message, advice, patience = _AILMENTS[ailing.kind]
    seconds = ailing.seconds or 0.0
    if ailing.runs == 0 or seconds < patience:
        return None
    ids = ", ".join(ailing.ids or ()) + (", …" if ailing.runs > len(ailing.ids or ()) else "")
    text = message.format(runs=ailing.runs, ids=ids, age=span(seconds))
    harmless = ailing.kind in _FOR_OPERATORS or (ailing.kind == "orphaned" and led)
    return Finding(ailing.kind, "warning" if harmless else "error", text, advice)
