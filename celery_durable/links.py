"""What a successful run starts next: links and the rest of its chain, caught before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.canvas import group, maybe_signature

from celery_durable import outgoing

if TYPE_CHECKING:
    from celery_durable.executor import Execution
    from celery_durable.store.writes import NewRun, PlainMessage
    from celery_durable.task import DurableTask


def of_success(
    task: DurableTask,
    request: Any,
    execution: Execution,
    value: Any,
) -> list[NewRun | PlainMessage]:
    """Return the messages that Celery's tracer would send after a success.

    Their ids are derived from the run, so that every attempt of a generation starts the same ones; they are
    stored with the finish, which only the attempt that holds the lease can write.
    """
    if not request.callbacks and not request.chain:
        return []
    options: dict[str, Any] = {"parent_id": request.id, "root_id": request.root_id or request.id}
    if task.app.conf.task_inherit_parent_priority:
        options["priority"] = (request.delivery_info or {}).get("priority")
    with outgoing.collecting(request.id, everything_of=task.app) as caught:
        for signature in _callbacks(task, request):
            _named(signature, execution).apply_async((value,), **options)
        if request.chain:
            following: Any = maybe_signature(request.chain[-1], app=task.app)
            _named(following, execution).apply_async((value,), chain=request.chain[:-1], **options)
    return caught.messages


def _callbacks(task: DurableTask, request: Any) -> list[Any]:
    signatures: list[Any] = [maybe_signature(one, app=task.app) for one in request.callbacks or ()]
    if len(signatures) < 2:  # noqa: PLR2004
        return signatures
    groups = [one for one in signatures if isinstance(one, group)]
    singles = [one for one in signatures if not isinstance(one, group)]
    return [*groups, group(singles, app=task.app)] if singles else groups


def _named(signature: Any, execution: Execution) -> Any:
    """Give a link that has no id yet one that every attempt would give it."""
    tasks = getattr(signature, "tasks", None)
    for number, one in enumerate(tasks if isinstance(tasks, (list, tuple)) else [signature]):
        if "task_id" not in one.options and not hasattr(one, "tasks"):
            one.options["task_id"] = execution.linked_id(f"{one.task}/{number}")
    return signature
