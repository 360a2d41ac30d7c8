"""One run: as a page, the parts of it that change, its payloads."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, authenticated

from celery_durable.exceptions import RunNotFoundError
from celery_durable.flower.asking import Story, story_of
from celery_durable.flower.handlers.base import Answer, Page
from celery_durable.flower.payloads import INLINE, called_with, for_download, readable
from celery_durable.flower.timeline import lay_out, thinned
from celery_durable.operations.calls import calls_of
from celery_durable.operations.compensations import rollback_of
from celery_durable.operations.reasons import why_so_many_attempts, why_so_many_tries
from celery_durable.run import RunState

if TYPE_CHECKING:
    from celery_durable.flower.payloads import Payload
    from celery_durable.store.connections import Row

STEPS = 2_000  # that a page shows at once
_CHUNK = 4 * 1024 * 1024
_LARGEST_STATE = 200
_SECTIONS = ("head", "timeline", "rollback", "calls", "attempts", "lineage", "events")
CALLS = 500  # external calls that a page shows: the latest ones
_ALL = 2**31 - 1


def unknown(run_id: str) -> RunNotFoundError:
    """Return the error for an id that no run has."""
    message = (
        f"No durable run has the id {run_id!r}: it was never a durable task's, or it was deleted after "
        f"durable_retention"
    )
    return RunNotFoundError(message, run_id=run_id)


class RunPage(Page):
    """A run's whole story."""

    @authenticated
    async def get(self, run_id: str) -> None:
        """Show a run, or with `part=live` those parts whose content the browser does not have yet."""
        story = await story_of(self.site, run_id)
        if story is None:
            raise unknown(run_id)
        shown = await self.in_thread(self._shown, story)
        if self.argument("part") == "live":
            await self._live(shown)
            return
        for name in _SECTIONS:
            shown[name] = await self.fragment(f"run_{name}.html", d=shown)
        shown["hashes"] = {name: _hash(shown[name]) for name in _SECTIONS}
        body = await self.fragment("run.html", d=shown, tab="run")
        self.show(f"{story.run.task} {story.run.id[:8]}", body, script="durable.js")

    def _shown(self, story: Story) -> dict[str, Any]:
        run = thinned(story.run)
        offset = self.number("offset", 0, most=_ALL) or 0
        calls = calls_of(run)
        return {
            "run": run,
            "why": story.diagnosis,
            "story": story,
            "attempts_why": why_so_many_attempts(run.attempts),
            "tries_why": why_so_many_tries(story.run.steps),
            "time": lay_out(run, story.children, alive=story.facts.alive),
            "sections": _SECTIONS,
            "calls": calls[-CALLS:],
            "all_calls": len(calls),
            "rollback": rollback_of(run),
            "steps": run.steps[offset : offset + STEPS],
            "offset": offset,
            "page": STEPS,
            "payloads": self.site.payloads,
            "no_actions": self.site.why_no_actions,
            "actions": actions_of(story),
        }

    async def _live(self, shown: dict[str, Any]) -> None:
        known = dict(part.split(":", 1) for part in self.argument("known").split(",") if ":" in part)
        sections = {}
        for name in _SECTIONS:
            text = await self.fragment(f"run_{name}.html", d=shown)
            if known.get(name) != _hash(text):
                sections[name] = text
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        hashes = {name: _hash(text) for name, text in sections.items()}
        self.finish({"sections": sections, "hashes": hashes, "final": shown["run"].state.final})


# What passes with time alone, which the browser counts itself.
_PASSING = re.compile(r"<time [^>]*>[^<]*</time>")


def _hash(text: str) -> str:
    return hashlib.sha256(_PASSING.sub("", text).encode()).hexdigest()[:16]


def actions_of(story: Story) -> list[str]:
    """Return the names of what can be done to a run in its state."""
    state = story.run.state
    waits_for = story.run.reason if story.run.stored_state is RunState.WAITING else None
    possible = {
        "resume": state in (RunState.FAILED, RunState.CANCELLED),
        "retry": waits_for == "retry",
        "signal": waits_for == "signal",
        "fork": True,
        "cancel": not (state.final or state is RunState.CANCELLING or story.run.cancel_requested),
    }
    return [name for name, now in possible.items() if now]


class _Payloads(Answer):
    """What reads payloads: refuses while they are hidden."""

    def prepare(self) -> None:
        """Refuse while payloads are hidden."""
        super().prepare()
        if not self.site.payloads:
            raise HTTPError(
                403,
                "Payloads are hidden because Flower has no authentication; "
                "--durable_payloads=show shows them to everybody",
            )

    async def read(self, run_id: str, start: int = 1, size: int = INLINE + 1) -> tuple[Row, str, str]:
        """Return a payload's row, the kind it is and its name."""
        part, key = self.argument("part"), self.argument("step")
        given: dict[str, Any] = {"id": run_id, "start": start, "size": size}
        if part in ("output", "input"):
            rows = await self.site.watching.rows("payload_of_step", key=key, **given)
        elif part == "arguments":
            rows = await self.site.watching.rows("payload_of_body", **given)
        elif part == "result":
            rows = await self.site.watching.rows("payload_of_result", **given)
        elif part == "signal":
            number = self.number("number", 0, most=_ALL) or 0
            rows = await self.site.watching.rows("payload_of_signal", number=number, **given)
        else:
            raise HTTPError(400, "part is one of arguments, result, output, input, signal")
        if not rows:
            named = {"signal": "There is no such signal", "arguments": "", "result": ""}
            words = named.get(part, f"There is no step {key!r}")
            raise HTTPError(404, words) if words else unknown(run_id)
        return rows[0], part, key or part


def codec_of(row: Row, part: str, data: bytes) -> tuple[bytes, str | None]:
    """Return a payload's bytes and what they are."""
    if part == "arguments":
        return called_with(data, bytes(row["message"]))
    return data, row.get("codec") or row.get("result_type")


class PayloadAnswer(_Payloads):
    """A payload, or the beginning of a large one, as text."""

    @authenticated
    async def get(self, run_id: str) -> None:
        """Answer with the payload that `part` and `step` name."""
        row, part, name = await self.read(run_id)
        if part == "input":
            shown = str(self.site.redaction("arguments", name, row["arguments"]))
            self.answer(
                {"text": shown, "form": "text", "bytes": len(shown.encode()), "whole": True, "note": None}
            )
            return
        payload = await self.in_thread(self._readable, row, part, name)
        self.answer(payload)

    def _readable(self, row: Row, part: str, name: str) -> Payload | dict[str, Any]:
        if row["data"] is None:
            note = row.get("error") or "There is no value"
            shown = self.site.redaction.text("error", name, note)
            return {"text": shown, "form": "text", "bytes": 0, "whole": True, "note": None}
        data, size = bytes(row["data"]), row["bytes"]
        cut = len(data) < size
        if not cut:
            data, codec = codec_of(row, part, data)
            size = len(data) if part == "arguments" else size
        else:
            codec = None
        return readable(data, size=size, codec=codec, kind=part, name=name, redaction=self.site.redaction)


class RawPayload(_Payloads):
    """A payload as a download: the stored bytes, or what the redaction function leaves of them."""

    @authenticated
    async def get(self, run_id: str) -> None:
        """Send the payload that `part` and `step` name, in pieces."""
        redaction = self.site.redaction
        row, part, name = await self.read(run_id, 1, _ALL - 1 if redaction.active else _CHUNK)
        if part == "input":
            data = str(redaction("arguments", name, row["arguments"])).encode("utf-8", "backslashreplace")
            self._begin(run_id, part, name, "txt", len(data))
            self.finish(data)
            return
        if row["data"] is None:
            raise HTTPError(404, "There is no value")
        if redaction.active:
            data = await self.in_thread(self._redacted, row, part, name)
            self._begin(run_id, part, name, "txt", len(data))
            self.finish(data)
            return
        _, codec = (b"", None) if part == "arguments" else codec_of(row, part, b"")
        self._begin(
            run_id, part, name, "json" if codec in ("json", "application/json") else "bin", row["bytes"]
        )
        sent = 0
        while row["data"]:
            self.write(bytes(row["data"]))
            await self.flush()
            sent += len(row["data"])
            if sent >= row["bytes"]:
                break
            row, _, _ = await self.read(run_id, sent + 1, _CHUNK)
        self.finish()

    def _redacted(self, row: Row, part: str, name: str) -> bytes:
        data, codec = codec_of(row, part, bytes(row["data"]))
        return for_download(data, codec=codec, kind=part, name=name, redaction=self.site.redaction)

    def _begin(self, run_id: str, part: str, name: str, ending: str, size: int) -> None:
        plain = re.sub(r"[^\w.#-]+", "_", f"{run_id[:36]}-{name if name != part else part}", flags=re.ASCII)
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", f'attachment; filename="{plain}.{ending}"')
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("Content-Length", str(size))


class StateAnswer(_Payloads):
    """What a run knew when it called a step: the outcomes of all steps before it."""

    @authenticated
    async def get(self, run_id: str) -> None:
        """Answer with the values known at `step`."""
        rows = await self.site.watching.rows(
            "payload_of_step", id=run_id, key=self.argument("step"), start=1, size=1
        )
        if not rows:
            raise HTTPError(404, f"There is no step {self.argument('step')!r}")
        known = await self.site.watching.rows(
            "state_at", id=run_id, seq=rows[0]["seq"], size=16 * 1024, most=_LARGEST_STATE
        )
        self.answer({"steps": await self.in_thread(self._values, known)})

    def _values(self, rows: list[Row]) -> list[dict[str, Any]]:
        values = []
        for row in reversed(rows):
            shown: dict[str, Any] = {"key": row["key"], "outcome": row["outcome"]}
            if row["data"] is None:
                shown["text"] = self.site.redaction.text("error", row["key"], row["error"]) or ""
            else:
                payload = readable(
                    bytes(row["data"]),
                    size=row["bytes"],
                    codec=row["codec"],
                    kind="output",
                    name=row["key"],
                    redaction=self.site.redaction,
                )
                shown.update(text=payload.text, bytes=payload.bytes, whole=payload.whole)
            values.append(shown)
        return values
