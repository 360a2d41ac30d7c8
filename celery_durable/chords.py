"""Native chords: Celery's side of parts that Postgres counts, and of the body that one of them starts."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from celery import states
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result, result_from_tuple

from celery_durable import chains, outgoing
from celery_durable.exceptions import StoreUnavailableError
from celery_durable.store.writes import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.store.connections import Row
    from celery_durable.store.writes import Look

logger = logging.getLogger(__name__)

_NO_POSITION = -1


class ChordMixin:
    """What a result backend needs for chords without `celery.chord_unlock`.

    A part is stored once, with the finish of its run or by itself; a look behind its commit claims the chord
    that is complete; the claim joins the results, stores the body and closes the chord in one transaction.
    Whoever dies on the way leaves an open chord, which the keeper's leader looks at again.
    """

    if TYPE_CHECKING:
        app: Celery
        content_type: str
        encode_result: Any
        encoded: Any
        decoded: Any
        exception_to_python: Any
        chord_error_from_stack: Any

        @property
        def store(self) -> Store:
            """The store."""
            ...

    def ensure_chords_allowed(self) -> None:
        """Nothing: chords need no more than the database."""

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:
        """Remember the body of a chord, and the shape of a header that is no plain list of tasks."""
        group_id, results = header_result_args
        # A header that is made while it is sent (a subclass of list) must not be unrolled for a look at it.
        nested = type(results) in (list, tuple) and any(isinstance(one, GroupResult) for one in results)
        header = self.encoded(GroupResult(group_id, results).as_tuple()) if nested else None
        self.store.chords.expect(group_id, self._storable(body), header, self.content_type)

    def _storable(self, body: Any) -> bytes | None:
        try:
            return self.encoded(chains.storable(body))  # type: ignore[no-any-return]
        except Exception:  # arguments that only another serializer can carry
            logger.exception("The body of a chord cannot be stored; a crash at its end would lose it")
            return None

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Say how many parts a chord has; they may all be there already."""
        token = uuid.uuid4()
        self.follow_chord(group_id, self.store.chords.resize(group_id, chord_size, token), token)

    def add_to_chord(self, group_id: str, result: Any) -> None:  # noqa: ARG002  (Celery's signature)
        """Say that a chord has one part more."""
        self.store.chords.extend(group_id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Store a part that is over, and start the chord's body if it was the last."""
        part = self.part_of(request, state, result)
        if part is not None:
            token = uuid.uuid4()
            self.follow_chord(part.chord, self.store.chords.part(part, token), token, request.chord)

    def part_of(self, request: Any, state: str, result: Any) -> Part | None:
        """Return how a task counts in its chord, None when it is in none."""
        if not request.chord or not request.group or not request.id:
            return None
        position = getattr(request, "group_index", None)
        return Part(
            chord=request.group,
            task_id=request.id,
            position=_NO_POSITION if position is None else int(position),
            state=state,
            result=self.encoded(self.encode_result(result, state)),
            result_type=self.content_type,
        )

    def look_at_chord(self, group_id: str) -> bool:
        """Start the body of a chord that is complete and that nobody follows up; return whether it was."""
        token = uuid.uuid4()
        look = self.store.chords.look(group_id, token)
        self.follow_chord(group_id, look, token)
        return look.complete

    def follow_chord(self, group_id: str, look: Look, token: uuid.UUID, body: Any = None) -> None:
        """Go on behind a look: start the body of a chord that it found complete, else keep looks short."""
        if look.complete:
            self._complete(group_id, look, token, body)
        else:
            self.store.chords.add_up(group_id, look)

    def _complete(self, group_id: str, look: Look, token: uuid.UUID, body: Any) -> None:
        """Start a claimed chord's body, or tell its failure; then close it."""
        stored = self.decoded(look.body, look.content_type)
        callback = maybe_signature(body if stored is None else stored, app=self.app)
        if callback is None:
            logger.error("Chord %s is complete, and its body is not known", group_id)
            return
        try:
            self._start(group_id, token, callback, self._joined(group_id, look))
        except StoreUnavailableError:
            raise
        except Exception as error:
            logger.exception("Chord %s raised", group_id)
            self.chord_error_from_stack(callback, error if isinstance(error, ChordError) else _wrapped(error))
            self.store.chords.finish(group_id, token)

    def _joined(self, group_id: str, look: Look) -> list[Any]:
        """Return the results of the header, in its order and shape; raise `ChordError` for a failed part."""
        header = self.decoded(look.header, look.content_type)
        if header is None:
            return [self._part_value(row) for row in self.store.chords.results(group_id)]
        result: Any = result_from_tuple(header, app=self.app)
        result.on_ready()  # every part is there: joining it reads, and waits for nobody
        with allow_join_result():
            joined: list[Any] = result.join(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
        return joined

    def _part_value(self, row: Row) -> Any:
        value = self.decoded(row["result"], row["result_type"])
        if row["state"] in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)
        if row["state"] in states.PROPAGATE_STATES:
            raise ChordError(f"Dependency {row['task_id']} raised {value!r}") from value
        return value

    def _start(self, group_id: str, token: uuid.UUID, callback: Any, results: Sequence[Any]) -> None:
        with outgoing.collecting(group_id, everything_of=self.app) as caught:
            callback.delay(results)
        stored = self.store.chords.finish(group_id, token, caught.messages)
        if stored is None:
            logger.warning("Chord %s: somebody else starts its body, this worker took too long", group_id)
            return
        try:
            outgoing.send_collected(self.app, self.store, caught.messages, stored)
        except Exception:  # it is stored: what goes wrong now is no failure of the chord, the keeper sends it
            logger.exception("Chord %s: its body is left to the keeper", group_id)


def _wrapped(error: Exception) -> ChordError:
    wrapped = ChordError(f"Join error: {error!r}")
    wrapped.__cause__ = error
    return wrapped
