"""The JSON API under `/api/durable`: reading, by the rules of Flower's own API."""

from __future__ import annotations

import os
from typing import Any

from flower.utils import strtobool
from tornado.web import HTTPError, authenticated

from celery_durable.flower.asking import COUNTED, counts, runs_page, story_of
from celery_durable.flower.documents import story_document
from celery_durable.flower.filters import PAGE, Wanted
from celery_durable.flower.handlers.base import Answer
from celery_durable.flower.handlers.runs import unknown
from celery_durable.flower.overview import overview_of
from celery_durable.flower.settings import has_authentication
from celery_durable.operations.redaction import summarised

_MOST = 1_000


class Api(Answer):
    """An answer that needs authentication, or `FLOWER_UNAUTHENTICATED_API` as Flower's own API does."""

    def prepare(self) -> None:
        """Refuse the anonymous."""
        super().prepare()
        opened = strtobool(os.environ.get("FLOWER_UNAUTHENTICATED_API") or "false")
        if not has_authentication(self.application) and not opened:
            raise HTTPError(
                401, "Flower has no authentication: start it with --basic_auth or --auth to use its API"
            )

    def problem(self, error: BaseException | None) -> tuple[int, str, str]:
        """Tell whoever has no session, or none any more, what to do about the 403 that Tornado sends then."""
        status, name, words = super().problem(error)
        if status == 403 and self.application.options.auth and not self.get_secure_cookie("user"):  # noqa: PLR2004
            words = "You are not logged in, or no longer: log in and reload the page"
        return status, name, words


class RunsAnswer(Api):
    """A page of runs."""

    @authenticated
    async def get(self) -> None:
        """Answer with the runs that the URL asks for, and how to ask for the next ones."""
        wanted = Wanted.of(self.arguments)
        limit = self.number("limit", PAGE, most=_MOST) or PAGE
        page = await runs_page(self.site, wanted, limit=limit, before=self.number("before", None))
        runs = [summarised(run, self.site.redaction) for run in page.runs]
        await self.answer_large({"runs": runs, "next": page.next, "partial": page.partial})


class CountsAnswer(Api):
    """How many runs there are."""

    @authenticated
    async def get(self) -> None:
        """Answer with a number for each state; `counted` stands for as many or more."""
        self.answer({"counts": await counts(self.site), "counted": COUNTED})


class RunAnswer(Api):
    """One run."""

    @authenticated
    async def get(self, run_id: str) -> None:
        """Answer with a run's whole story, without payloads."""
        story = await story_of(self.site, run_id)
        if story is None:
            raise unknown(run_id)
        await self.answer_large(await self.in_thread(story_document, story))


class OverviewAnswer(Api):
    """How the system is doing."""

    @authenticated
    async def get(self) -> None:
        """Answer with throughput, latencies, failures, workers, costly steps and storage."""
        window = self.argument("window", "1h")
        found: Any = await overview_of(self.site, window)
        self.answer(found)
