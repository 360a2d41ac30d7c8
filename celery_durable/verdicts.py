"""Verdicts: what the code at hand makes of a stored run, also where its body raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable import texts

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTINUES, ENDS, FAILS, BREAKS = "continues", "ends", "fails", "breaks"

_FOREIGN = "DurableError: The body raised "
_NOT_THE_BODYS = frozenset({"celery_durable", "celery", "asyncio", "concurrent", "threading"})


@dataclass(frozen=True)
class Verdict:
    """What the code at hand makes of a stored run.

    Attributes:
        outcome: `continues` with something that is not stored yet, `ends` as the body returns or leaves,
            `fails` as it did, with an error that is stored of a step or of its last attempt, or `breaks`.
        at: the key of the step or wait that it would continue with, None where it does not get that far.
        problem: why it breaks, with what is stored and what was met.
        ahead: stored steps behind the place where it continues, of which it is not known whether they come.
    """

    id: str
    task: str
    version: str | None
    outcome: str
    at: str | None = None
    problem: str | None = None
    ahead: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run goes on, or ends, as its history allows."""
        return self.outcome != BREAKS


def of_error(error: BaseException, *, as_it_did: bool) -> dict[str, Any]:
    """Return outcome and problem of a body that raised.

    Arguments:
        error: what it raised.
        as_it_did: whether the run has failed with that before.
    """
    line = texts.line(error)
    if as_it_did:
        return {"outcome": FAILS, "problem": line}
    trace = _trace(error) if isinstance(error, Exception) else ""
    return {"outcome": BREAKS, "problem": f"The body raises {line}\n{trace}".rstrip()}


def comes_from(error: BaseException | None, stored: Sequence[BaseException]) -> bool:
    """Whether an error is one of those that are stored of steps, or was raised because of one."""
    while error is not None:
        if any(error is one for one in stored):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_told(error: BaseException, told: str | None) -> bool:
    """Whether a stored line, such as `OSError: no route`, tells of an error of this class."""
    name = type(error).__qualname__
    stored = (told or "").removeprefix(_FOREIGN).partition(":")[0]
    return stored == name or stored.endswith(f".{name}")


def _trace(error: BaseException) -> str:
    """Return an error's traceback from the body on; nothing for one that was raised in front of it."""
    place = error.__traceback__
    while place is not None and _package(place.tb_frame.f_globals) in _NOT_THE_BODYS:
        place = place.tb_next
    return "" if place is None else texts.trace(error.with_traceback(place))


def _package(frame_globals: dict[str, Any]) -> str:
    return str(frame_globals.get("__name__", "")).partition(".")[0]
