"""Why a value cannot be stored, where inside it the reason lies, and what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.exceptions import PayloadTooLargeError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_DEPTH = 100
"""Levels of lists, dicts and records inside each other; the interpreter's own limit is out of reach of it."""

_PATH_ENDS = (8, 3)  # segments shown of a long path: its beginning and its end

_HINTS = {
    "coroutine": "was an `await` forgotten?",
    "generator": "it can be consumed only once: return list(...) of it",
    "map": "it can be consumed only once: return list(...) of it",
    "filter": "it can be consumed only once: return list(...) of it",
    "zip": "it can be consumed only once: return list(...) of it",
    "memoryview": "return bytes(...) of it",
}


class Refused(Exception):  # noqa: N818  (a verdict that lowering catches, never seen by a user)
    """A part of a value cannot be lowered; each container it passes through adds its step of the path."""

    def __init__(self, value: object, reason: str = "", *, too_deep: bool = False) -> None:
        super().__init__(reason)
        self.type = type_name(type(value))
        self.reason = reason or _hint(type(value))
        self.too_deep = too_deep
        self._trail: list[tuple[str, int]] = []  # innermost first: (step of the path, id of the container)

    def inside(self, container: object, segment: str) -> None:
        """Note that the refused part sits at `segment` of `container`."""
        self._trail.append((segment, id(container)))

    def error(self, where: str, *, serializer: str) -> SerializationError:
        """Build what the user sees: the path inside the value, its type and the ways out."""
        segments = [segment for segment, _ in reversed(self._trail)]
        if self.too_deep:
            return self._depth_error(where, segments)
        path = value_path(segments)
        because = f" ({self.reason})" if self.reason else ""
        return SerializationError(
            f"{where}: {path} is of type {self.type} and cannot be stored as {serializer}{because}. "
            "Three ways out: return something plain in its place, such as an id or path; make it a dataclass "
            "or another supported type and name it in the return annotation; or, if all who can write to the "
            'database are trusted, set serializer="pickle" on this step.',
            where=where,
            path=path,
            type=self.type,
        )

    def _depth_error(self, where: str, segments: list[str]) -> SerializationError:
        first_seen: dict[int, int] = {}
        for depth, (_, container) in enumerate(reversed(self._trail)):
            if container in first_seen:
                path, outer = value_path(segments[:depth]), value_path(segments[: first_seen[container]])
                message = f"{where}: the value contains itself and cannot be stored: {path} is {outer} again."
                break
            first_seen[container] = depth
        else:
            path = value_path(segments)
            message = f"{where}: the value is nested more than {MAX_DEPTH} levels deep, at {path}."
        return SerializationError(
            f"{message} Return a flat form, such as a list of ids.", where=where, path=path, type=self.type
        )


def index_segment(index: int) -> str:
    """Name an element of a sequence in a path."""
    return f"[{index}]"


def key_segment(key: object) -> str:
    """Name a dict's value in a path by its key, shortened when it is long."""
    if type(key) is str:
        text = key if len(key) <= 40 else key[:39] + "…"  # noqa: PLR2004  (enough to recognise a key)
        return '["' + text.encode("utf-8", "backslashreplace").decode() + '"]'
    return f"[{key}]" if type(key) in {int, bool, float} else f"[<{type_name(type(key))}>]"


def value_path(segments: Sequence[str]) -> str:
    """Join steps of a path into `value["frames"][3].handle`, leaving out the middle of a very long one."""
    first, last = _PATH_ENDS
    if len(segments) > first + last + 1:
        segments = [*segments[:first], "…", *segments[-last:]]
    return "value" + "".join(segments)


def type_name(kind: type) -> str:
    """Name a type as `module.qualname`; builtins without their module."""
    module, qualname = kind.__module__, kind.__qualname__
    return str(qualname) if module == "builtins" else f"{module}.{qualname}"


def too_large(size: int, limit: int, where: str) -> PayloadTooLargeError:
    """Build the error for `size` stored bytes where `limit` are allowed."""
    return PayloadTooLargeError(
        f"{where}: the value takes {_human(size)} when stored and the limit is {_human(limit)}. "
        "Keep the data in a file or an object store and return its path, or raise `durable_max_payload`.",
        where=where,
        size=size,
        limit=limit,
    )


def not_a_result(value: object, where: str, takes: Callable[[object], bool]) -> SerializationError:
    """Build the error for what a task returns and its result's serializer does not take.

    Args:
        value: What it returns.
        where: Words that begin the message, such as "the result of media.process".
        takes: Says whether the serializer takes a value.
    """
    path, ways = _refused_part(value, takes)
    part, shown = ways[-1], value_path(path)
    kind = type_name(type(part))
    outer = next((depth for depth, way in enumerate(ways[:-1]) if way is part), None)
    if outer is not None:
        what = f"the value contains itself and cannot be stored: {shown} is {value_path(path[:outer])} again"
        advice = "Return a flat form, such as a list of ids."
    elif len(path) == MAX_DEPTH or _is_deep(part):
        what = f"{shown} is nested too deep for result_serializer"
        advice = "Return a flat form, such as a list of ids."
    else:
        what = f"{shown} is of type {kind}, which result_serializer cannot store"
        advice = (
            "Return plain values from a task (a step may return any supported type), or choose another "
            "result_serializer."
        )
    return SerializationError(
        f"{where}: {what}. {advice} The steps of the run are kept: resume it when the task is mended.",
        where=where,
        path=shown,
        type=kind,
    )


def _refused_part(value: object, takes: Callable[[object], bool]) -> tuple[list[str], list[object]]:
    """Return the way to the innermost part that is not taken, and the parts on it, from the value on.

    It ends also at a part that is one of those in front of it.
    """
    path: list[str] = []
    ways = [value]
    while len(path) < MAX_DEPTH and all(way is not ways[-1] for way in ways[:-1]):
        for segment, part in _parts(ways[-1]):
            if not takes(part):
                path.append(segment)
                ways.append(part)
                break
        else:
            break
    return path, ways


def _is_deep(value: object) -> bool:
    """Whether a value without a cycle, whose parts are taken, is nested deeper than a step's could be."""
    level: dict[int, object] = {id(value): value}
    for _ in range(MAX_DEPTH):
        level = {id(part): part for one in level.values() for _, part in _parts(one)}
    return bool(level)


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((key_segment(key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((index_segment(index), part) for index, part in enumerate(value))


def missing_field(cls: type, name: str) -> SerializationError:
    """Build the error for a stored record that lacks a field its class requires by now."""
    return SerializationError(
        f"The stored {type_name(cls)} has no field {name!r}, which the class requires. "
        "Give the new field a default, so that runs which began before it can go on.",
        type=type_name(cls),
    )


def _human(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004  (the step between binary units)
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _hint(kind: type) -> str:
    if kind.__module__.partition(".")[0] == "numpy":
        return "call .tolist() on it"
    return _HINTS.get(kind.__qualname__, "") if kind.__module__ == "builtins" else ""
