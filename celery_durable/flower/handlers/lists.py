"""The list of runs: as a page, and the parts of it that change."""

from __future__ import annotations

from typing import Any

from tornado.web import authenticated

from celery_durable.exceptions import SchemaMissingError
from celery_durable.flower.asking import COUNTED, counts, runs_page, stuck_keys
from celery_durable.flower.filters import PAGE, VIEWS, Wanted
from celery_durable.flower.handlers.base import Page
from celery_durable.flower.words import moment
from celery_durable.operations.redaction import summarised

_ROWS = 500


class RunsPage(Page):
    """The list of runs."""

    @authenticated
    async def get(self) -> None:
        """Show the runs that the URL asks for."""
        wanted = Wanted.of(self.arguments)
        limit = self.number("limit", PAGE, most=_ROWS) or PAGE
        before = self.number("before", None)
        try:
            stuck = await stuck_keys(self.site)
            page = await runs_page(self.site, wanted, limit=limit, before=before, stuck=stuck)
            found = await counts(self.site, stuck)
            tasks = [row["task"] for row in await self.site.watching.rows("tasks", most=500)]
        except SchemaMissingError as error:
            self.show(
                "Durable runs", await self.fragment("empty.html", words=str(error)), script="durable.js"
            )
            return
        runs = [summarised(run, self.site.redaction) for run in page.runs]
        shown: dict[str, Any] = {
            "wanted": wanted,
            "views": VIEWS,
            "counts": found,
            "stuck": frozenset(stuck),
            "counted": COUNTED,
            "runs": runs,
            "next": page.next,
            "partial": page.partial,
            "before": before,
            "limit": limit,
        }
        if self.argument("part") == "live":
            rows = await self.fragment("rows.html", d=shown)
            chips = await self.fragment("views.html", d=shown)
            self.set_header("Content-Type", "application/json; charset=UTF-8")
            self.finish({"sections": {"views": chips, "rows": rows}})
            return
        shown["tasks"] = tasks
        shown["no_actions"] = self.site.why_no_actions
        body = await self.fragment("list.html", d=shown, moment=moment, tab="runs")
        self.show("Durable runs", body, script="durable.js")
