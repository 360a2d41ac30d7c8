"""The byte formats: what a serializer must offer, and the JSON one that needs nothing else."""

from __future__ import annotations

import json
from typing import NoReturn, Protocol

PLAIN_TREE_FORMATS = frozenset({"json", "msgpack", "yaml"})
"""Names of formats that know only text, numbers, booleans, null, lists and objects: values are lowered."""


class Serializer(Protocol):
    """One content type, supplied from outside: kombu's registry, or a class of the user.

    `name` decides what it is given: "json", "msgpack" and "yaml" get a lowered tree; any other name, such as
    "pickle", gets the value itself and is answerable for its type.
    """

    @property
    def name(self) -> str:
        """The format's name, as in Celery's `serializer` option."""

    def dumps(self, value: object) -> bytes:
        """Turn a value into bytes."""

    def loads(self, data: bytes) -> object:
        """Turn bytes into the value they were made from."""


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise ValueError(message)


class JsonSerializer:
    """Compact UTF-8 JSON: NUL characters survive, NaN and infinities are refused (lowering tags them)."""

    name = "json"

    def __init__(self) -> None:
        # json.dumps and json.loads with options build a new encoder and decoder at every call.
        self._encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant).decode

    def dumps(self, value: object) -> bytes:
        """Turn a plain tree into JSON; ValueError or TypeError for anything else."""
        return self._encode(value).encode()

    def loads(self, data: bytes) -> object:
        """Turn JSON into a plain tree; ValueError for anything else."""
        return self._decode(data.decode())
