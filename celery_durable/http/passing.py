"""A body as it passes: counted, and kept as far as it can be looked at. Nobody's stream is read for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.http import redaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Passing:
    """What is known of a body.

    Attributes:
        size: its bytes, as far as they have passed; None where nobody has read it, or it cannot be told.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self._kept = bytearray()

    def begin(self) -> None:
        """Note that somebody reads it from its beginning."""
        self.size = 0
        self._kept.clear()

    def part(self, chunk: object) -> None:
        """Note a part of it: bytes, or text as some libraries take it."""
        if self.size is None:
            return
        try:
            view = memoryview(chunk.encode() if isinstance(chunk, str) else chunk).cast("B")  # type: ignore[arg-type]
        except (TypeError, ValueError):
            self.size = None
            return
        self.size += len(view)
        if self.size <= redaction.LARGEST:
            self._kept += view
        else:
            self._kept.clear()  # too large to be judged

    def through(self, parts: Iterable[Any]) -> Iterator[Any]:
        """Hand on the parts of a body, from its beginning, and note each."""
        self.begin()
        for part in parts:
            self.part(part)
            yield part

    @property
    def data(self) -> bytes:
        """All that has passed; nothing where that is more than is looked at."""
        return bytes(self._kept)
