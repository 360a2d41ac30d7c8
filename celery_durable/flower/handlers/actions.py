"""What changes runs: each with a reason that is kept, by the rules of Flower's own API and stricter ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, authenticated

from celery_durable.flower import bodies
from celery_durable.flower.asking import runs_page
from celery_durable.flower.filters import MOST, FilterError, Wanted
from celery_durable.flower.handlers.api import Api
from celery_durable.flower.handlers.base import Answer
from celery_durable.operations.selection import CANCELLABLE, RESUMABLE, RETRYABLE
from celery_durable.operations.sending import send_signal_with_token

if TYPE_CHECKING:
    from celery_durable.operations import Outcome
    from celery_durable.run import RunState
    from celery_durable.store.views import RunSummary

HEADER = "X-Durable-Action"
_LONGEST_REASON = 500
_AT_ONCE = 500
_LARGEST_BODY = 4 * 1024 * 1024


class Change(Api):
    """A change: refused in read-only mode, across sites, and without a reason."""

    def prepare(self) -> None:
        """Refuse what Flower would refuse, and what another site may have sent."""
        super().prepare()
        if self.application.options.read_only:
            raise HTTPError(403, "Flower is in read-only mode")
        # Also where Flower, opened by FLOWER_UNAUTHENTICATED_API, would take it: a form cannot set a header,
        # and a script of another site may not set this one.
        if HEADER not in self.request.headers:
            raise HTTPError(403, f"The header {HEADER}: 1 is missing")
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise HTTPError(403, "Cross-site request forbidden")

    def body(self, *names: str) -> dict[str, Any]:
        """Return the JSON object that was sent, which has no other fields than these."""
        return bodies.checked(_json(self.request.body or b"{}"), names)

    def reason(self, sent: dict[str, Any]) -> str:
        """Return why, which people will ask."""
        reason = sent.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise HTTPError(400, "Say why: a reason is kept with the run")
        return reason.strip().replace("\0", "")[:_LONGEST_REASON]

    def operation(self, name: str) -> Any:
        """Return what does `name` to many runs."""
        runs = self.site.runs
        known = {"resume": runs.resume_many, "retry": runs.retry_now_many, "cancel": runs.cancel_many}
        if name not in known:
            raise HTTPError(404, f"There is no action {name!r}; known are {', '.join(known)}")
        return known[name]


class RunChange(Change):
    """Resume, retry or cancel one run."""

    @authenticated
    async def post(self, run_id: str, name: str) -> None:
        """Do it; answer with what became of the run."""
        change = self.operation(name)
        reason = self.reason(self.body("reason"))
        (outcome,) = await self.operate(change, [run_id], reason=reason, actor=self.user)
        if outcome.error is not None:
            self.answer({"error": _error(outcome)}, 404 if outcome.before is None else 409)
            return
        self.answer(_document(outcome))


class Fork(Change):
    """Fork a run from a step."""

    _GIVEN = ("from_step", "args", "kwargs", "overrides")

    @authenticated
    async def post(self, run_id: str) -> None:
        """Start the fork; with `dry_run` only answer which steps it keeps and which run again."""
        sent = self.body("reason", "dry_run", *self._GIVEN)
        dry_run = sent.get("dry_run", False)
        reason = None if dry_run else self.reason(sent)
        if not dry_run and not self.site.payloads and ("args" in sent or "kwargs" in sent):
            raise HTTPError(403, "Payloads are hidden here, so they cannot be edited either")
        given = {name: sent.get(name) for name in self._GIVEN}
        fork = partial(self.site.runs.fork, run_id, dry_run=dry_run, reason=reason, actor=self.user, **given)
        try:
            forked = await self.operate(fork)
        except TypeError as error:  # as a call of the task says it
            raise HTTPError(400, "The task does not take these arguments: %s", error) from error
        self.answer(asdict(forked))


class Signal(Change):
    """Send a signal to a run."""

    @authenticated
    async def post(self, run_id: str) -> None:
        """Send the signal that the body names; its payload is what `wait_for_signal` returns."""
        sent = self.body("name", "payload", "idempotency_key")
        name, payload, key = (sent.get(one) for one in ("name", "payload", "idempotency_key"))
        if not name:
            raise HTTPError(400, "Name the signal")
        send = partial(self.site.runs.signal, run_id, name, payload, idempotency_key=key, actor=self.user)
        self.answer({"delivered": await self.operate(send)})


class TokenSignal(Answer):
    """Send the one signal that a token stands for: where a webhook goes to."""

    def prepare(self) -> None:
        """Refuse in read-only mode; nothing else is asked for: the token is for whoever holds it."""
        super().prepare()
        if self.application.options.read_only:
            raise HTTPError(403, "Flower is in read-only mode")

    def check_xsrf_cookie(self) -> None:
        """Let it come from anywhere: what a site cannot know is the token."""

    async def post(self, token: str) -> None:
        """Deliver the body, which is JSON or nothing, as the payload."""
        payload = _json(self.request.body) if self.request.body else None
        send = partial(send_signal_with_token, token, payload, app=self.site.acting)
        self.answer({"delivered": await self.operate(send)})


class Bulk(Change):
    """Change many runs: chosen ones, or all that match a filter that says something."""

    @authenticated
    async def post(self) -> None:
        """Change them, or with `dry_run` only say which; answer with what became of each."""
        sent = self.body("action", "ids", "filter", "dry_run", "reason")
        name = sent.get("action", "")
        change = self.operation(name)
        if ("ids" in sent) is ("filter" in sent):
            raise HTTPError(400, "Name runs in ids, or say which ones in filter: one of the two")
        if sent.get("dry_run", False):
            self.answer(await self._counted(sent, name))
            return
        reason, more = self.reason(sent), False
        if "filter" in sent:
            ids, more = await self._matching(sent["filter"], name)
        else:
            ids = _ids(sent["ids"])
        outcomes: list[Outcome] = []
        for start in range(0, len(ids), _AT_ONCE):
            batch = ids[start : start + _AT_ONCE]
            outcomes += await self.operate(change, batch, reason=reason, actor=self.user)
        changed = sum(outcome.changed for outcome in outcomes)
        self.answer({"changed": changed, "more": more, "runs": [_document(outcome) for outcome in outcomes]})

    async def _counted(self, sent: dict[str, Any], name: str) -> dict[str, Any]:
        unknown, more, children = [], False, 0
        if "filter" in sent:
            ids, more = await self._matching(sent["filter"], name)
        else:
            named = _ids(sent["ids"])
            page = await runs_page(self.site, Wanted(ids=tuple(named)), limit=MOST)
            known = {run.id: run for run in page.runs}
            ids = [one for one in named if one in known and _possible(name, known[one])]
            unknown = [one for one in named if one not in known]
        if name == "resume":
            counts = await self.in_thread(self.site.runs.children_to_resume, ids)
            children = sum(counts.values())
        return {"count": len(ids), "ids": ids, "unknown": unknown, "children": children, "more": more}

    async def _matching(self, sent: dict[str, Any], name: str) -> tuple[list[str], bool]:
        wanted = Wanted.of_document(sent)
        if wanted.empty:
            raise FilterError("An empty filter would change every run: say which ones")
        page = await runs_page(self.site, wanted, limit=MOST)
        ids = [run.id for run in page.runs if _possible(name, run)]
        return ids, page.next is not None


def _json(body: bytes) -> Any:
    if len(body) > _LARGEST_BODY:
        raise HTTPError(413, f"The body is larger than {_LARGEST_BODY:,} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, f"The body is not JSON: {error}") from error


def _possible(name: str, run: RunSummary) -> bool:
    if name == "retry":
        return run.state in RETRYABLE and run.reason == "retry"
    return run.state in (RESUMABLE if name == "resume" else CANCELLABLE)


def _ids(sent: list[Any]) -> list[str]:
    if not sent or not all(isinstance(one, str) for one in sent):
        raise HTTPError(400, "ids is an array of ids, one at least")
    if len(sent) > MOST:
        raise HTTPError(400, f"{len(sent):,} ids are too many for one request; send {MOST:,} at most")
    return [one.replace("\0", "") for one in dict.fromkeys(sent)]


def _error(outcome: Outcome) -> dict[str, str]:
    return {"type": type(outcome.error).__name__, "message": str(outcome.error)}


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "before": _word(outcome.before),
        "state": _word(outcome.state),
        "changed": outcome.changed,
        "published": outcome.published,
        "error": None if outcome.error is None else _error(outcome),
    }


def _word(state: RunState | None) -> str | None:
    return None if state is None else state.value
