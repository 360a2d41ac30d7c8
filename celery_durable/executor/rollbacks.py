"""Compensations that a body has registered: what takes back its steps, in the order of registration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable.exceptions import NondeterminismError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.executor.keys import Keys
    from celery_durable.steps import Step

PREFIX = "rollback:"


def is_compensation(key: str) -> bool:
    """Whether this is the key of a compensation, also of one of an inlined task: `inner/rollback:refund`."""
    return key.rpartition("/")[2].startswith(PREFIX)


class Compensation(NamedTuple):
    """A call that is made when the run ends badly."""

    key: str
    step: Step[Any, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Rollbacks:
    """The compensations of one attempt: registered anew at each replay, for they are kept nowhere.

    Arguments:
        keys: where they get their keys.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._registered: dict[str, Compensation] = {}

    def __bool__(self) -> bool:
        return bool(self._registered)

    def register(
        self, scope: str, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note a compensation; it costs no write."""
        base = f"{scope}{PREFIX}{step.step_options.key or step.name}"
        key = self._keys.begin(base, keyed=step.step_options.key is not None)
        self._keys.end(base)
        self._registered[key] = Compensation(key, step, args, kwargs)

    @property
    def keys(self) -> list[str]:
        """Their keys, in the order of registration."""
        return list(self._registered)

    def backwards(self, keys: Sequence[str]) -> list[Compensation]:
        """Return those that are to be made, the last one first.

        Raises `NondeterminismError` for one that the replay has not registered again.
        """
        if missing := [key for key in keys if key not in self._registered]:
            message = (
                f"The body has registered the compensation {missing[0]!r} before and not at its replay: its "
                f"code changed, or it depends on something that is not a step"
            )
            raise NondeterminismError(message, step=missing[0])
        return [self._registered[key] for key in reversed(keys)]
