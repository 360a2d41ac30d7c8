"""A child process that executes runs, and is killed with SIGKILL on the way."""

from __future__ import annotations

import json
import os
import signal
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

from celery_durable.exceptions import DurableError
from celery_durable.testing.boundaries import Boundary

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.testing.crashes import Place
    from celery_durable.testing.player import Player


def in_children(player: Player, place: Place, when_waiting: Callable[[str], object] | None) -> None:
    """Play in a child process until all runs are over; in a second one when the first was killed."""
    with player.worker():
        while (killed := _child(player, place, when_waiting)) is not None:
            if place.struck:
                message = f"Process {killed}, which was to finish the runs, was killed too"
                raise DurableError(message)
            place.struck = True
            player.recover_all(killed)


def _child(player: Player, place: Place, when_waiting: Callable[[str], object] | None) -> int | None:
    """Fork and play there; return the child's pid if it was killed, None if it came to the end."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        child = os.fork()
    if not child:
        _play(player, place, when_waiting, write_end)
    os.close(write_end)
    problem = None
    with os.fdopen(read_end, encoding="utf-8") as reports:
        for line in reports:
            report: dict[str, Any] = json.loads(line)
            if "problem" in report:
                problem = report["problem"]
            else:
                place.seen.append(Boundary(**report))
    _, status = os.waitpid(child, 0)
    if problem is not None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL):
        message = f"The process that executes the runs failed ({status}):\n{problem or ''}"
        raise DurableError(message)
    return child if os.WIFSIGNALED(status) else None


def _play(
    player: Player, place: Place, when_waiting: Callable[[str], object] | None, write_end: int
) -> NoReturn:
    def report(**facts: Any) -> None:
        os.write(write_end, json.dumps(facts).encode() + b"\n")

    status = 1
    try:
        place.tell = lambda boundary: report(key=boundary.key, text=boundary.text)
        player.play(when_waiting=when_waiting)
        status = 0
    except BaseException:  # noqa: BLE001  (told to the parent, which raises it)
        report(problem=traceback.format_exc())
    finally:
        os._exit(status)  # nothing of the parent's is to be cleaned up here
