"""Forks: which checkpoints a new run begins with, which steps run again, and its message."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.utils.saferepr import saferepr
from kombu import serialization
from kombu.utils import json

from celery_durable import chains, envelope
from celery_durable.checkpoint import CHILDREN, ERROR, OK, SLEEP, STARTED, WAITING
from celery_durable.exceptions import SerializationError, StepNotFoundError
from celery_durable.executor.keys import branch
from celery_durable.executor.rollbacks import is_compensation
from celery_durable.store.forking import NewFork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from celery import Celery

    from celery_durable.store.forking import Source, SourceStep

# An at-most-once step that was begun is not begun again by copying its run; a wait with later steps is over.
_KEPT = (OK, ERROR, STARTED, WAITING)


@dataclass(frozen=True)
class Plan:
    """What a fork takes over.

    Attributes:
        kept: keys of the checkpoints that it begins with, in their order.
        overridden: those among them that get another value.
        again: keys of stored steps that are left out, and so run again if the body still calls them.
        clock: the times that the source has read up to the last kept step, or to the one it begins from.
    """

    kept: tuple[str, ...]
    overridden: tuple[str, ...]
    again: tuple[str, ...]
    clock: tuple[datetime, ...]


@dataclass(frozen=True)
class Fork:
    """What a fork is, or would be.

    Attributes:
        id: the new run's id, None for a dry run.
        source: the run it was made from.
        kept: keys of the steps it does not run again.
        overridden: those among them that have another value.
        again: steps of the source that are left out: they run again, if the body still calls them.
        published: False when the broker did not take its message; the keeper sends it later.
        taken_back: whether the source has taken back what it had done, so that steps which are kept say of
            something that it is done, and it may not be.
    """

    id: str | None
    source: str
    kept: tuple[str, ...]
    overridden: tuple[str, ...]
    again: tuple[str, ...]
    published: bool = True
    taken_back: bool = False


def plan(
    source: Source, steps: Sequence[SourceStep], from_step: str | None, overrides: Mapping[str, Any]
) -> Plan:
    """Decide what a fork of `source` keeps.

    Without `from_step` it begins at the first overridden step, or at the very beginning.
    Raises `StepNotFoundError` for a step that the run has not stored, `TypeError` for what is no key of one,
    and `SerializationError` for another value of one that cannot have one. Compensations are no steps of the
    body: a fork takes over none.
    """
    steps = [step for step in steps if not is_compensation(step.key)]
    known = {step.key: step for step in steps}
    for key in (*overrides, *([from_step] if from_step is not None else [])):
        told: Any = key
        if not isinstance(told, str):
            message = f"{key!r} is no key of a step: those are texts, as `durable show` lists them"
            raise TypeError(message)
        if key not in known:
            raise _no_such_step(source, key, list(known))
    for key in overrides:
        _refuse_what_only_the_run_can_give(known[key])
    if from_step is not None:
        begin: float = known[from_step].seq
    else:
        begin = min((known[key].seq for key in overrides), default=float("-inf"))
    kept = [step for step in steps if step.key in overrides or (step.seq < begin and step.outcome in _KEPT)]
    _refuse_waits_behind_others([step for step in steps if step.kind is not None], kept, overrides)
    end = max([begin, *(step.seq for step in kept)])
    return Plan(
        kept=tuple(step.key for step in kept),
        overridden=tuple(step.key for step in kept if step.key in overrides),
        again=tuple(step.key for step in steps if step.key not in {one.key for one in kept}),
        clock=tuple(moment for step in steps if step.seq <= end for moment in step.clock),
    )


def _refuse_what_only_the_run_can_give(step: SourceStep) -> None:
    """Raise `SerializationError` for another value of what is no call of a step, and no signal."""
    of_children = step.kind == CHILDREN or (step.outcome == OK and step.codec == CHILDREN)
    if step.kind != SLEEP and not of_children and (step.outcome != OK or step.codec is not None):
        return
    where = f"the override of step {step.key!r}"
    value = "what its children returned" if of_children else "an id that only the run can give"
    message = f"{where}: this step is no call of yours, its value is {value}"
    if step.kind == SLEEP:
        message = (
            f"{where}: a sleep has no value; fork from it (`from_step={step.key!r}`) to have it begun anew"
        )
    elif of_children:
        message += f"; fork from it (`from_step={step.key!r}`) to have them started anew"
    raise SerializationError(message, where=where)


def _refuse_waits_behind_others(
    waits: Sequence[SourceStep], kept: Sequence[SourceStep], overrides: Mapping[str, Any]
) -> None:
    """Raise `SerializationError` for another value of a wait in front of which one is left out.

    The waits of a body, or of each of its asyncio tasks, keep their order: the fork would come to the one
    that is left out, find the other one stored, and end there.
    """
    left_out: dict[str, str] = {}
    for wait in waits:
        before = left_out.get(branch(wait.key))
        if wait.key in overrides and before is not None:
            where = f"the override of step {wait.key!r}"
            message = (
                f"{where}: the fork begins in front of {before!r}, and comes to that wait first. Fork from a "
                f"step behind it"
            )
            raise SerializationError(message, where=where)
        if wait not in kept:
            left_out.setdefault(branch(wait.key), wait.key)


def _no_such_step(source: Source, key: str, known: list[str]) -> StepNotFoundError:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(map(repr, known)) or 'none'}"
    message = f"The run {source.id} has no stored step {key!r}. {hint}"
    return StepNotFoundError(message, run_id=source.id, step=key)


def check_arguments(app: Celery, source: Source, args: Any, kwargs: Any) -> None:
    """Raise `TypeError` for other arguments than the source's that a call of its task would refuse.

    A task that is not known here, or whose `typing` is off, takes any.
    """
    if args is not None and (isinstance(args, (str, bytes)) or not isinstance(args, Sequence)):
        message = f"args={args!r}: the positional arguments of a fork are a list or a tuple"
        raise TypeError(message)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        message = f"kwargs={kwargs!r}: the keyword arguments of a fork are a dict"
        raise TypeError(message)
    task = app.tasks.get(source.task)
    header = getattr(task, "__header__", None)
    if (args is None and kwargs is None) or header is None or not getattr(task, "typing", False):
        return
    stored_args, stored_kwargs, _ = _stored(app, source)
    header(*(stored_args if args is None else args), **(stored_kwargs if kwargs is None else kwargs))


def encoded(
    app: Celery, steps: Sequence[SourceStep], values: Mapping[str, Any]
) -> dict[str, tuple[bytes, str]]:
    """Return values as they are stored, with the codecs of their steps.

    Raises `SerializationError` for one that cannot be.
    """
    backend: Any = app.backend
    known = {step.key: step for step in steps}

    def stored(key: str, value: Any) -> tuple[bytes, str]:
        step, where = known[key], f"the override of step {key!r}"
        name, codec = backend.codec(step.codec if step.outcome == OK else None)
        return codec.encode(value, where=where), name

    return {key: stored(key, value) for key, value in values.items()}


def new_fork(
    app: Celery,
    source: Source,
    chosen: Plan,
    values: dict[str, tuple[bytes, str]],
    *,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> NewFork:
    """Return a fork as it is to be stored."""
    backend: Any = app.backend
    new_id = str(uuid.uuid4())
    message, body = message_of_fork(app, source, new_id, args=args, kwargs=kwargs)
    return NewFork(
        id=new_id,
        message=message,
        body=body,
        version=backend.store.settings.version,
        kept=chosen.kept,
        values=values,
        clock=chosen.clock,
        carrier=chosen.kept[-1] if chosen.kept else None,
    )


def message_of_fork(
    app: Celery,
    source: Source,
    new_id: str,
    *,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[bytes, bytes]:
    """Return message and body of a fork: its own id and tree, links of its own, no part in a chord.

    Ids that a chain or a link was given when it was sent are replaced by ids derived from the new run's, or
    the fork would start nothing that its source has started.
    """
    sent = json.loads(source.message)
    stored_args, stored_kwargs, embed = _stored(app, source)
    own = chains.whole(app, {**embed, "chord": None})
    frozen = {old: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{new_id}/{old}")) for old in _ids(own)}
    content = (
        stored_args if args is None else list(args),
        stored_kwargs if kwargs is None else dict(kwargs),
        _renamed(own, frozen),
    )
    headers = sent["headers"]
    headers.update(id=new_id, root_id=new_id, parent_id=None, group=None, group_index=None, retries=0)
    headers[envelope.HEADER] = 0
    for told in envelope.TIMES.values():
        headers.pop(told, None)
    if args is not None:
        headers["argsrepr"] = saferepr(list(args))
    if kwargs is not None:
        headers["kwargsrepr"] = saferepr(dict(kwargs))
    if "correlation_id" in sent:
        sent["correlation_id"] = new_id
    return json.dumps(sent).encode(), _dumped(content, sent["content_type"])


def _stored(app: Celery, source: Source) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    return envelope.body_of(source.message, bytes(source.body), list(app.conf.accept_content))


def _dumped(content: Any, content_type: str) -> bytes:
    registry: Any = serialization.registry  # type: ignore[attr-defined]
    name = registry.type_to_name[content_type]
    return envelope.as_bytes(serialization.dumps(content, name)[2])


def _ids(value: Any) -> Iterator[str]:
    """Yield every id that a signature in `value` was frozen with."""
    if isinstance(value, dict):
        options = value.get("options")
        if isinstance(options, dict):
            yield from (options[name] for name in ("task_id", "group_id") if options.get(name))
        for part in value.values():
            yield from _ids(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _ids(part)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {key: _renamed(part, names) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(part, names) for part in value]
    return value
