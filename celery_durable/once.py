"""Keys that stand for one run at a time: what a call or a task says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.callkeys import bound, checked, of_task, span
from celery_durable.exceptions import ConfigurationError
from celery_durable.serialization import digest
from celery_durable.store.writes import Key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_durable.task import DurableTask

_OPTIONS = frozenset({
    "idempotency_key", "ttl", "throttle_key", "throttle", "debounce_key", "debounce", "debounce_max",
})  # fmt: skip
_BESIDE = {
    "idempotency": frozenset({"ttl"}),
    "throttle": frozenset({"throttle"}),
    "debounce": frozenset({"debounce", "debounce_max"}),
}


def taken_from(task: DurableTask, args: Any, kwargs: Any, options: dict[str, Any]) -> Key | None:
    """Take what names a key out of a caller's options; return the key, None for a call without one.

    Raises `ConfigurationError` for options that do not go together or cannot be meant.
    """
    given = {name: options.pop(name) for name in _OPTIONS & options.keys()}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return _singleton(task, args or (), kwargs or {}) if task.singleton else None
    kinds = [name for name in ("idempotency_key", "throttle_key", "debounce_key") if name in given]
    if len(kinds) != 1:
        message = f"{task.name}: {', '.join(given)}: name one of idempotency_key, throttle_key, debounce_key"
        raise ConfigurationError(message)
    kind = kinds[0].removesuffix("_key")
    key = checked(task, kinds[0], given.pop(kinds[0]))
    if wrong := given.keys() - _BESIDE[kind]:
        message = f"{task.name}: {', '.join(sorted(wrong))} has no meaning beside {kinds[0]}"
        raise ConfigurationError(message)
    if kind != "idempotency" and kind not in given:
        message = f"{task.name}: {kinds[0]} needs {kind}=, a length of time in seconds"
        raise ConfigurationError(message)
    if kind == "debounce" and options.keys() & {"countdown", "eta"}:
        message = f"{task.name}: debounce says when the run starts: leave countdown and eta away"
        raise ConfigurationError(message)
    spans = {name: span(task, name, value) for name, value in given.items()}
    if "debounce_max" in spans and spans["debounce_max"] < spans["debounce"]:
        message = (
            f"{task.name}: debounce_max = {given['debounce_max']!r} is shorter than "
            f"debounce = {given['debounce']!r}: it is the longest that the run is put off"
        )
        raise ConfigurationError(message)
    return Key(
        kind,
        key,
        ttl=spans.get("ttl", spans.get("throttle")),
        delay=spans.get("debounce"),
        longest=spans.get("debounce_max"),
    )


def _singleton(task: DurableTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Key:
    key = of_task(task, "singleton", args, kwargs)
    return Key("singleton", key or digest(bound(task, args, kwargs))[0].hex())
