"""The overview as a page."""

from __future__ import annotations

from tornado.web import authenticated

from celery_durable.exceptions import SchemaMissingError
from celery_durable.flower.charts import bars, lines
from celery_durable.flower.handlers.base import Page
from celery_durable.flower.overview import WINDOWS, overview_of


class OverviewPage(Page):
    """How the system is doing."""

    @authenticated
    async def get(self) -> None:
        """Show charts, workers, costly steps and storage."""
        try:
            found = await overview_of(self.site, self.argument("window", "1h"))
        except SchemaMissingError as error:
            self.show("Overview", await self.fragment("empty.html", words=str(error)), script="durable.js")
            return
        shown = {
            "o": found,
            "windows": WINDOWS,
            "throughput": bars(
                found.slots, ("succeeded", "failed", "cancelled"), "Runs that ended, by state, over time"
            ),
            "trouble": bars(found.slots, ("failed", "recovered"), "Failed and recovered runs over time"),
            "took": lines(found.slots, "took", "How long runs took, over time"),
            "queued": lines(found.slots, "queued", "How long runs waited for their first claim, over time"),
        }
        body = await self.fragment("overview_body.html", d=shown)
        if self.argument("part") == "live":
            self.set_header("Content-Type", "application/json; charset=UTF-8")
            self.finish({"sections": {"overview": body}})
            return
        frame = await self.fragment("overview.html", d=shown, body=body, tab="overview")
        self.show("Durable overview", frame, script="durable.js")
