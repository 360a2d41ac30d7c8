"""What the body of a request may hold: known fields of their types. What is misspelt changes nothing."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError

if TYPE_CHECKING:
    from collections.abc import Iterable

_TYPES: dict[str, type] = {
    "action": str,
    "args": list,
    "dry_run": bool,
    "filter": dict,
    "from_step": str,
    "idempotency_key": str,
    "ids": list,
    "kwargs": dict,
    "name": str,
    "overrides": dict,
    "payload": object,
    "reason": str,
}
_MAY_BE_NULL = frozenset({"args", "from_step", "idempotency_key", "kwargs", "overrides"})
_WORDS: dict[type, str] = {
    bool: "neither true nor false",
    dict: "no JSON object",
    list: "no JSON array",
    str: "no JSON string",
}


def checked(sent: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return a body if it is an object with no other fields than `names`, each of its type; else 400."""
    if not isinstance(sent, dict):
        raise HTTPError(400, "The body is not a JSON object")
    for name, value in sent.items():
        if name not in names:
            raise HTTPError(400, "%s", no_such("field", name, names))
        kind = _TYPES[name]
        if not isinstance(value, kind) and not (value is None and name in _MAY_BE_NULL):
            raise HTTPError(400, "%s is %s", name, _WORDS[kind])
    return sent


def no_such(what: str, name: str, known: Iterable[str]) -> str:
    """Return what to say of a name that is none of those which are known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"There is no {what} {name!r}; {hint}"
