"""What people ask, as statements and what their rows mean; who sends them may be a thread or an event loop.

A question is a generator: it yields the statements of one round trip, is sent their rows, and returns its
answer. So the command line, which waits, and Flower, which must not, read with the same code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from celery_durable.run import RunState
from celery_durable.store.queries import with_lines
from celery_durable.store.views import (
    AttemptView,
    ChildView,
    EventView,
    KeyView,
    Page,
    RunSummary,
    RunView,
    SignalView,
    StepView,
    TryView,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

# How long a transaction may have stayed open after it stored a run, for the run to be found by its time.
_SLACK = timedelta(hours=1)
_LAST_KEY = 2**63 - 1
_TAGS_ARE_LIKE = """say them like '{"customer": "42"}'"""
_LONGEST_AGO = timedelta(days=100 * 366)
# Filters that no index serves look at this many runs for one page; the next page goes on behind them.
_WINDOW = 50_000


class Statement(NamedTuple):
    """A statement and its parameters."""

    sql: str
    parameters: dict[str, Any]


Question = Generator[Sequence[Statement], Any, T]

_STATES_OF_REASON = {
    "exhausted": RunState.FAILED,
    "retry": RunState.WAITING,
    "timer": RunState.WAITING,
    "sleep": RunState.WAITING,
    "signal": RunState.WAITING,
    "children": RunState.WAITING,
    "turn": RunState.WAITING,
    "slot": RunState.WAITING,
    "version": RunState.WAITING,
    "replaced": RunState.WAITING,
    "cancelled": RunState.CANCELLED,
    "revoked": RunState.CANCELLED,
    "expired": RunState.CANCELLED,
    "deadline": RunState.CANCELLED,
    "parent": RunState.CANCELLED,
}


@dataclass(frozen=True)
class Filter:
    """Which runs to list; what is None does not matter.

    Attributes:
        states: any of these; a run that takes back what it has done is `cancelling`, whatever its row says.
        reason: why a run waits or ended: `retry`, `timer`, `exhausted`, `revoked`, ...
        since: only runs created then or later; a `timedelta` counts back from the database's now.
        until: only runs created before then.
        worker: host name of the worker that is executing the run.
        has_error: whether the run failed or waits for a retry.
        keys: only these keys.
        ids: only these ids.
        version: the code's version, as stored with the run.
        tags: a JSON object that the run's tags contain.
        ran_on: host name of a worker that executed one of its attempts.
        text: part of the id, the task's name, a tag or the latest error.
        in_errors: whether `text` may be part of the error alone; not where errors are redacted.

    Raises `ValueError` for what no run can be asked for.
    """

    states: Sequence[RunState] | None = None
    task: str | None = None
    reason: str | None = None
    since: datetime | timedelta | None = None
    until: datetime | timedelta | None = None
    worker: str | None = None
    has_error: bool | None = None
    keys: Sequence[int] | None = None
    ids: Sequence[str] | None = None
    version: str | None = None
    tags: str | None = None
    ran_on: str | None = None
    text: str | None = None
    in_errors: bool = True

    def __post_init__(self) -> None:
        for moment in (self.since, self.until):
            if isinstance(moment, timedelta) and abs(moment) > _LONGEST_AGO:
                message = f"{moment} ago is not within a hundred years: leave it out for runs of any age"
                raise ValueError(message)
        if self.tags is not None:
            self._checked_tags()

    def _checked_tags(self) -> dict[str, Any]:
        try:
            tags = json.loads(self.tags or "")
        except (TypeError, ValueError, RecursionError) as error:
            message = f"tags={self.tags!r} is not JSON ({error}): {_TAGS_ARE_LIKE}"
            raise ValueError(message) from error
        if not isinstance(tags, dict):
            message = f"tags={self.tags!r} is no JSON object: {_TAGS_ARE_LIKE}"
            raise ValueError(message)  # noqa: TRY004  (what is wrong is in the text)
        return tags

    @property
    def says_nothing(self) -> bool:
        """Whether every run matches, as with `Filter()`."""
        told = replace(self, in_errors=True, text=self.text or None)
        if self.tags is not None and not self._checked_tags():
            told = replace(told, tags=None)
        return told == Filter()

    @property
    def possible_states(self) -> list[str] | None:
        """The states that can match: an index finds them, where a reason alone would be a scan."""
        if self.states is not None:
            return [RunState(state).value for state in self.states]
        if self.worker is not None:
            return [RunState.RUNNING.value, RunState.CANCELLING.value]
        if self.has_error:
            return [RunState.FAILED.value, RunState.WAITING.value]
        if (reason := self.reason) in _STATES_OF_REASON:
            state = _STATES_OF_REASON[reason]
            # what waits while it rolls back is `cancelling`
            return [state.value] if state.final else [state.value, RunState.CANCELLING.value]
        return None

    @property
    def needs_a_window(self) -> bool:
        """Whether no index finds these runs, so that only so many of them are looked at for one page."""
        if self.keys is not None or self.ids is not None:
            return False
        return any(value is not None for value in (self.version, self.tags, self.ran_on, self.text or None))


def list_runs(sql: Mapping[str, str], wanted: Filter, limit: int, before: int | None) -> Question[Page]:
    """Ask for the newest runs that match, at most `limit`, with keys below `before`."""
    parameters: dict[str, Any] = {
        "task": wanted.task,
        "reason": wanted.reason,
        "worker": wanted.worker,
        "states": wanted.possible_states,
        "as_shown": True if wanted.states else None,
        "has_error": wanted.has_error or None,
        "has_no_error": True if wanted.has_error is False else None,
        "keys": None if wanted.keys is None else list(wanted.keys),
        "ids": None if wanted.ids is None else list(wanted.ids),
        "version": wanted.version,
        "tags": wanted.tags,
        "ran_on": wanted.ran_on,
        "text" if wanted.in_errors else "words": None if not wanted.text else f"%{_literally(wanted.text)}%",
        "limit": limit + 1,
    }
    bounds: dict[str, Any] = {"before": _LAST_KEY if before is None else before}
    if wanted.since is not None:
        ((moment,),) = yield [_moment(sql, wanted.since, -_SLACK)]
        bounds.update(since=moment["at"], after=moment["low"])
    if wanted.until is not None:
        ((moment,),) = yield [_moment(sql, wanted.until, _SLACK)]
        bounds.update(until=moment["at"], before=min(bounds["before"], moment["high"]))
    if wanted.needs_a_window:
        ((looked,),) = yield [Statement(sql["floor"], {"before": bounds["before"], "window": _WINDOW})]
        bounds["floor"] = looked["floor"]
    parameters = {name: value for name, value in (parameters | bounds).items() if value is not None}
    statements = [Statement(with_lines(sql["list"], parameters), {"states": ["any"], **parameters})]
    if wanted.states and RunState.CANCELLING in wanted.states:  # some of their rows say otherwise
        others = {name: value for name, value in parameters.items() if name not in {"states", "as_shown"}}
        others["rolling_back"] = True
        statements.append(Statement(with_lines(sql["list"], others), {"states": ["any"], **others}))
    found = yield statements
    rows = sorted((row for part in found for row in part), key=lambda row: -row["key"])[: limit + 1]
    runs = tuple(RunSummary(**row) for row in rows[:limit])
    if len(rows) > limit:
        return Page(runs, runs[-1].key)
    floor = bounds.get("floor") or 0
    more = floor > bounds.get("after", 0)  # before the time asked for there is nothing more to look through
    return Page(runs, floor if more else None, partial=more)


def _moment(sql: Mapping[str, str], when: datetime | timedelta, slack: timedelta) -> Statement:
    ago = isinstance(when, timedelta)
    return Statement(
        sql["moment"], {"at": None if ago else when, "ago": when if ago else None, "slack": slack}
    )


def _literally(text: str) -> str:
    """Return `text` for a LIKE pattern in which nothing has a special meaning."""
    return re.sub(r"([\\%_])", r"\\\1", text)


def _step(row: dict[str, Any]) -> StepView:
    earlier = tuple(TryView.of(stored) for stored in row["earlier"] or ())
    return StepView(**{**row, "earlier": earlier})


def whole_run(sql: Mapping[str, str], run_id: str) -> Question[RunView | None]:
    """Ask for a run's whole story in one round trip; None when there is no such run."""
    names = ("run", "attempts", "steps", "events", "signals", "children", "forks", "keys")
    run, attempts, steps, events, signals, children, forks, keys = yield [
        Statement(sql[name], {"id": run_id}) for name in names
    ]
    if not run:
        return None
    return RunView(
        **run[0],
        attempts=tuple(AttemptView(**row) for row in attempts),
        steps=tuple(_step(row) for row in steps),
        events=tuple(EventView(**{**row, "detail": row["detail"] or {}}) for row in events),
        signals=tuple(SignalView(**row) for row in signals),
        children=tuple(ChildView(**row) for row in children),
        forks=tuple(row["id"] for row in forks),
        keys=tuple(KeyView(**row) for row in keys),
    )
