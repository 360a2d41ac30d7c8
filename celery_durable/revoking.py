"""Celery's revoke, for runs: what it says is written down, so that it outlives every worker that heard it."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel

from celery_durable.backend import DurableBackend
from celery_durable.exceptions import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

logger = logging.getLogger(__name__)

_BUDGET = 3.0  # seconds that the main process may wait for Postgres; its event loop stands still meanwhile


def install() -> None:
    """Let this worker write a revoke down: Celery's own command knows no run that waits in the database."""
    heard: Callable[..., Any] = Panel.data["revoke"]
    if getattr(heard, "writes_down", False):
        return

    def revoke(state: Any, task_id: Any, terminate: bool = False, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        ids = [str(one) for one in maybe_list(task_id) or []]
        if (
            terminate
        ):  # first, for behind the termination an operator may resume the run, which this would end
            write_down(state.app, ids)
        answer = heard(state, task_id, terminate, *args, **kwargs)
        if not terminate:
            write_down(state.app, ids)
        return answer

    revoke.writes_down = True  # type: ignore[attr-defined]
    Panel.data["revoke"] = revoke


def write_down(app: Celery, ids: list[str]) -> None:
    """Cancel runs that were revoked: at once if they wait, at their next step if they are executed."""
    if not ids or not isinstance(app.backend, DurableBackend):
        return
    try:
        app.backend.store.inspection.cancel(
            ids, operation=uuid.uuid4(), actor="revoke", reason=None, cause="revoked", budget=_BUDGET
        )
    except StoreError:
        logger.exception("A revoke of %s could not be written down", ", ".join(ids))
