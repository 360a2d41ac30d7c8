"""A list's filters in its URL: what was asked for, and how to ask for something else."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from celery_durable.flower.bodies import no_such
from celery_durable.operations.moments import parse_moment
from celery_durable.run import RunState
from celery_durable.store.questions import Filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

MOST, PAGE = 10_000, 50


@dataclass(frozen=True)
class View:
    """One of the states that people look for, stored or derived.

    Attributes:
        name: in the URL.
        title: on the page.
        states: stored states.
        reason: with this reason only.
        icon: shown with its name, so that colour is never all that tells it from another.
    """

    name: str
    title: str
    states: tuple[RunState, ...]
    reason: str | None = None
    icon: str = ""


VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View("stuck", "Stuck", (), icon="!"),
        View("running", "Running", (RunState.RUNNING,), icon="▶"),
        View("waiting", "Waiting", (RunState.WAITING,), icon="◷"),
        View("retrying", "Retrying", (RunState.WAITING,), "retry", icon="↻"),
        View("pending", "Pending", (RunState.PENDING,), icon="…"),
        View("cancelling", "Cancelling", (RunState.CANCELLING,), icon="⊘"),
        View("failed", "Failed", (RunState.FAILED,), icon="✕"),
        View("exhausted", "Exhausted", (RunState.FAILED,), "exhausted", icon="✕"),
        View("cancelled", "Cancelled", (RunState.CANCELLED,), icon="⊘"),
        View("succeeded", "Succeeded", (RunState.SUCCEEDED,), icon="✓"),
    )
}


class FilterError(ValueError):
    """A filter in the URL cannot be understood."""


@dataclass(frozen=True)
class Wanted:
    """What a list is to show.

    Attributes:
        view: one of `VIEWS`, or empty for all.
        tags: `key=value` pairs, all of which a run must have.
        error: `1` for runs with an error, `0` for those without.
        ids: these runs only.
    """

    view: str = ""
    task: str = ""
    q: str = ""
    since: str = ""
    until: str = ""
    worker: str = ""
    version: str = ""
    tags: tuple[str, ...] = ()
    error: str = ""
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, Sequence[str]]) -> Wanted:
        """Return what the arguments of a URL ask for; unknown ones are left to others."""

        def one(name: str) -> str:
            values = arguments.get(name) or [""]
            return values[-1].strip()

        wanted = cls(
            view=one("state"),
            task=one("task"),
            q=one("q"),
            since=one("since"),
            until=one("until"),
            worker=one("worker"),
            version=one("version"),
            tags=tuple(tag.strip() for tag in arguments.get("tag") or () if tag.strip()),
            error=one("error"),
            ids=tuple(dict.fromkeys(one.strip() for one in arguments.get("id") or () if one.strip())),
        )
        wanted.check()
        return wanted

    @classmethod
    def of_document(cls, document: Mapping[str, object]) -> Wanted:
        """Return what a JSON object with the same names asks for; one that says nothing is refused."""

        def texts(name: str, value: object) -> list[str]:
            many = value if isinstance(value, list) and name in ("tag", "id") else [value]
            found = [str(one) for one in many if isinstance(one, (str, int)) and not isinstance(one, bool)]
            if not found or len(found) < len(many) or not all(one.strip() for one in found):
                raise FilterError(f"filter: {name} is no text, or says nothing; leave it out to mean all")
            return found

        known = {"state", "task", "q", "since", "until", "worker", "version", "tag", "error", "id"}
        if unknown := sorted(set(document) - known):
            raise FilterError(no_such("filter", unknown[0], known))
        return cls.of({name: texts(name, value) for name, value in document.items()})

    def check(self) -> None:
        """Raise `FilterError` for what cannot be meant."""
        if self.view and self.view not in VIEWS:
            raise FilterError(f"There is no state {self.view!r}; known are {', '.join(VIEWS)}")
        if self.error not in ("", "0", "1"):
            raise FilterError(f"error={self.error!r} is neither 0 nor 1")
        for tag in self.tags:
            if "=" not in tag:
                raise FilterError(f"The tag {tag!r} is not like key=value")
        for text in (self.since, self.until):
            if text:
                _moment(text)
        for text in (self.task, self.q, self.worker, self.version, *self.tags, *self.ids):
            if "\0" in text:
                raise FilterError("NUL characters are in no run")

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for in particular: all runs."""
        return self == Wanted()

    def filter(self, keys: Sequence[int] | None = None) -> Filter:
        """Return it as the store takes it; `keys` are those of stuck runs."""
        view = VIEWS.get(self.view)
        tags = dict(tag.split("=", 1) for tag in self.tags)
        return Filter(
            states=list(view.states) if view and view.states else None,
            reason=view.reason if view else None,
            task=self.task or None,
            since=_moment(self.since) if self.since else None,
            until=_moment(self.until) if self.until else None,
            has_error={"1": True, "0": False}.get(self.error),
            version=self.version or None,
            tags=json.dumps(tags) if tags else None,
            ran_on=self.worker or None,
            text=self.q or None,
            keys=keys,
            ids=self.ids or None,
        )

    def query(self, **changes: object) -> str:
        """Return the query string of this list, or of one that differs from it."""
        return urlencode(list(replace(self, **changes).pairs()))  # type: ignore[arg-type]

    def pairs(self) -> Iterable[tuple[str, str]]:
        """Yield names and values of the URL's arguments."""
        plain = ("task", "q", "since", "until", "worker", "version", "error")
        yield from ((name, value) for name, value in (("state", self.view),) if value)
        yield from ((name, getattr(self, name)) for name in plain if getattr(self, name))
        yield from (("tag", tag) for tag in self.tags)
        yield from (("id", run_id) for run_id in self.ids)

    @property
    def chips(self) -> list[tuple[str, str]]:
        """What is asked for beside state and text: words for each, and the query without it."""
        found = []
        for name, words in (
            ("task", "task"),
            ("since", "since"),
            ("until", "until"),
            ("worker", "worker"),
            ("version", "version"),
        ):
            if value := getattr(self, name):
                found.append((f"{words}: {value}", self.query(**{name: ""})))
        if self.error:
            found.append(("with error" if self.error == "1" else "without error", self.query(error="")))
        found += [
            (f"tag: {tag}", self.query(tags=tuple(one for one in self.tags if one != tag)))
            for tag in self.tags
        ]
        if self.ids:
            found.append((f"{len(self.ids)} chosen", self.query(ids=())))
        return found


def _moment(text: str) -> datetime | timedelta:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise FilterError(str(error)) from error
