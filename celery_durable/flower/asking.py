"""What the pages ask of the store, put together from named statements: lists, counts, one run's facts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable.operations.compensations import rollback_of
from celery_durable.operations.diagnosis import Diagnosis, Facts, diagnose
from celery_durable.operations.redaction import redacted
from celery_durable.run import RunState
from celery_durable.store.questions import Filter, list_runs, whole_run
from celery_durable.store.views import Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.flower.filters import Wanted
    from celery_durable.flower.sites import Site
    from celery_durable.store.connections import Row
    from celery_durable.store.views import RunView

STUCK_AFTER = timedelta(seconds=60)
COUNTED = 10_000  # runs of one state that a list counts; beyond it says "more than"
MOST_STUCK = 1_000
MOST_CHILDREN = 500
_BEHIND_ALL = "\U0010ffff"


async def stuck_keys(site: Site) -> list[int]:
    """Return the keys of runs that something should have moved on."""
    lease = timedelta(seconds=site.place.settings.lease)
    rows = await site.watching.rows("stuck", lease=lease, grace=STUCK_AFTER, most=MOST_STUCK)
    return [row["key"] for row in rows]


async def runs_page(
    site: Site, wanted: Wanted, *, limit: int, before: int | None = None, stuck: Sequence[int] | None = None
) -> Page:
    """Return one page of a list; a text that begins an id finds that run whatever its age."""
    watching, sql = site.watching, site.watching.queries("inspection")
    keys = None
    if wanted.view == "stuck":
        keys = await stuck_keys(site) if stuck is None else stuck
    asked = replace(wanted.filter(keys), in_errors=not site.redaction.active)
    page = await watching.ask(list_runs(sql, asked, limit, before))
    if not wanted.q or before is not None:
        return page
    matches = await watching.rows(
        "resolve", "inspection", prefix=wanted.q, end=wanted.q + _BEHIND_ALL, limit=limit
    )
    missing = {row["id"] for row in matches} - {run.id for run in page.runs}
    if not missing:
        return page
    found = await watching.ask(list_runs(sql, Filter(ids=sorted(missing)), limit, None))
    return Page((*found.runs, *page.runs), page.next, page.partial)


async def counts(site: Site, stuck: Sequence[int] | None = None) -> dict[str, int]:
    """Return how many runs each view has; `COUNTED` stands for as many or more."""
    states = [state.value for state in RunState]
    rows = await site.watching.rows("tally", states=states, most=COUNTED)
    found: dict[str, int] = dict.fromkeys(states, 0)
    found.update(retrying=0, exhausted=0)
    for row in rows:
        found[row["state"]] += row["runs"]
        if (row["state"], row["reason"]) == ("waiting", "retry"):
            found["retrying"] += row["runs"]
        if (row["state"], row["reason"]) == ("failed", "exhausted"):
            found["exhausted"] += row["runs"]
    found["stuck"] = len(await stuck_keys(site) if stuck is None else stuck)
    return found


@dataclass(frozen=True)
class Story:
    """Everything a run's page says."""

    run: RunView
    diagnosis: Diagnosis
    facts: Facts
    children: Sequence[Row]
    parent: Row | None
    root: Row | None
    max_retries: int | None


async def story_of(site: Site, run_id: str) -> Story | None:
    """Return a run's whole story; None when there is no such run."""
    watching = site.watching
    run = await watching.ask(whole_run(watching.queries("inspection"), run_id))
    if run is None:
        return None
    # First: nothing below sees more.
    hide = partial(redacted, run, site.redaction, payloads=site.payloads)
    run = await asyncio.get_running_loop().run_in_executor(site.threads, hide)
    lease = site.place.settings.lease
    relatives = [one for one in (run.parent, run.root) if one and one != run.id]
    around, children, known = await watching.several(
        ("surroundings", {"id": run_id, "lease": timedelta(seconds=lease)}),
        ("children", {"id": run_id, "most": MOST_CHILDREN}),
        ("relatives", {"ids": relatives}),
    )
    if not around:
        return None
    by_id = {row["id"]: row for row in known}
    facts = _facts(site, run, around[0], children, lease)
    return Story(
        run=run,
        diagnosis=diagnose(facts, site.app.timezone),
        facts=facts,
        children=children,
        parent=_relative(run.parent, run.id, by_id),
        root=_relative(run.root if run.root != run.parent else None, run.id, by_id),
        max_retries=facts.max_retries,
    )


def _facts(site: Site, run: RunView, around: Row, children: Sequence[Row], lease: float) -> Facts:
    over = sum(1 for child in children if child["finished_at"] is not None)
    return Facts(
        run=run,
        steps=run.steps,
        lease=lease,
        silent=around["silent"],
        workers=around["workers"],
        led_for=around["led_for"],
        ahead=around["ahead"],
        queues=site.queues(),
        max_retries=site.max_retries(run.task),
        children=(over, len(children)),
        unfinished=[
            f"{child['task']} {child['id'][:8]} ({child['state']})"
            for child in children
            if child["finished_at"] is None
        ][:3],
        of_its_version=around["of_its_version"],
        slot=run.slot,
        slot_limit=run.slot_limit,
        slot_taken=around["slot_taken"],
        rollback=rollback_of(run),
    )


def _relative(run_id: str | None, own: str, known: dict[str, Any]) -> Row | None:
    if not run_id or run_id == own:
        return None
    return known.get(run_id) or {"id": run_id, "task": None, "state": None}
