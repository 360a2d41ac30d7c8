"""Long chains: what is left of one is stored once, and messages of its runs carry a reference to it.

Celery puts the whole rest of a chain into the message of each of its tasks, so a chain of a thousand stores
half a million signatures. Here a message names the chain and how many of its links are left, in the place of
the links it stands for: what Celery puts around them (`chain + tasks`, `chain[:-1]`) still holds.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kombu import serialization

from celery_durable.envelope import as_bytes
from celery_durable.exceptions import StoreError, StoreUnavailableError
from celery_durable.store.writes import NewChain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from celery import Celery

logger = logging.getLogger(__name__)

INLINE = 8
"""Links that a message may carry itself: reading them costs less than a look into the store."""

_KEY = "durable-chain"


@dataclass(frozen=True)
class Reference:
    """Stands for the last `left` links of a stored chain."""

    chain: str
    root: str
    left: int

    def marker(self) -> dict[str, Any]:
        """Return what a message carries."""
        return {_KEY: self.chain, "root": self.root, "left": self.left}


def _part(value: Any) -> Any:
    """Return a reference for its marker, and a signature as it is."""
    if isinstance(value, dict) and _KEY in value:
        return Reference(value[_KEY], value["root"], value["left"])
    return value


class Loader:
    """Reads links from the store that an app's backend is on."""

    def __init__(self, app: Celery) -> None:
        backend: Any = app.backend
        self._chains = backend.store.chains
        self._accept = serialization.prepare_accept_content(list(app.conf.accept_content))

    def all(self, reference: Reference) -> list[Any]:
        """Return the links that a reference stands for, the last of the chain first."""
        return self._decoded(reference, self._chains.links(reference.chain, reference.left), reference.left)

    def next(self, reference: Reference) -> Any:
        """Return the link that is to be executed first."""
        return self._decoded(reference, self._chains.link(reference.chain, reference.left), 1)[0]

    def decoded(self, row: Mapping[str, Any]) -> Any:
        """Return the signature in a row."""
        content_type, encoding = row["content_type"], row["content_encoding"]
        return serialization.loads(bytes(row["signature"]), content_type, encoding, accept=self._accept)

    def _decoded(self, reference: Reference, rows: Sequence[Mapping[str, Any]], number: int) -> list[Any]:
        if len(rows) != number:
            message = (
                f"{number - len(rows)} of {number} links of the chain {reference.chain} are not stored: they "
                f"were deleted with the runs of {reference.root}, or this message is of another database"
            )
            raise StoreError(message)
        return [self.decoded(row) for row in rows]


class Rest(Sequence[Any]):
    """What is left of a chain, read when it is looked at; the next link is its last, as Celery has it.

    Arguments:
        parts: references and signatures.
        load: where the links that they stand for come from.
    """

    def __init__(self, parts: Sequence[Any], load: Loader) -> None:
        self.parts = tuple(parts)
        self._load = load
        self._next: Any = None

    def __len__(self) -> int:
        return sum(part.left if isinstance(part, Reference) else 1 for part in self.parts)

    def __getitem__(self, index: Any) -> Any:
        if index == slice(None, -1):
            return self._without_next()
        if index == -1 and self.parts:
            return self._next_link()
        return self._links[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._links)

    def __reversed__(self) -> Iterator[Any]:
        yield from reversed(self._links)

    def __add__(self, more: Iterable[Any]) -> Rest:
        return Rest([*self.parts, *parts_of(more)], self._load)

    def __deepcopy__(self, memo: Any) -> Rest:
        return self

    def __reduce__(self) -> Any:
        return list, (self._links,)

    def __json__(self) -> list[Any]:
        return self._links

    def __repr__(self) -> str:
        return f"<rest of a chain: {len(self)} links>"

    @property
    def wanted(self) -> tuple[str, int] | None:
        """Chain and number of the next link, if it has to be read from the store."""
        last = self.parts[-1] if self.parts else None
        return (last.chain, last.left) if isinstance(last, Reference) else None

    def found(self, row: Mapping[str, Any] | None) -> None:
        """Take the row of the next link, read with something else."""
        if row is not None:
            self._next = self._load.decoded(row)

    def _next_link(self) -> Any:
        last = self.parts[-1]
        if not isinstance(last, Reference):
            return last
        if self._next is None:
            self._next = self._load.next(last)
        return self._next

    def _without_next(self) -> Rest:
        others, last = self.parts[:-1], self.parts[-1:]
        shorter = [
            replace(one, left=one.left - 1) for one in last if isinstance(one, Reference) and one.left > 1
        ]
        return Rest([*others, *shorter], self._load)

    @cached_property
    def _links(self) -> list[Any]:
        links: list[Any] = []
        for part in self.parts:
            links.extend(self._load.all(part) if isinstance(part, Reference) else [part])
        return links


def parts_of(chain: Iterable[Any]) -> Sequence[Any]:
    """Return references and signatures of a chain as Celery or a message has it."""
    return chain.parts if isinstance(chain, Rest) else [_part(one) for one in chain]


def rest(app: Celery, chain: Any) -> Any:
    """Return a message's chain as Celery may read it: as it is, unless it has references."""
    if not isinstance(chain, list) or not any(isinstance(_part(one), Reference) for one in chain):
        return chain
    return Rest(parts_of(chain), Loader(app))


def all_of(app: Celery, chain: Any) -> Any:
    """Return a chain with all its links read; None where they are gone and nobody can be told any more."""
    chain = rest(app, chain)
    if not isinstance(chain, Rest):
        return chain
    try:
        return list(chain)
    except StoreUnavailableError:
        raise
    except StoreError:
        logger.exception("Nobody can be told of a failure in front of them")
        return None


def whole(app: Celery, embed: dict[str, Any]) -> dict[str, Any]:
    """Return the canvas part of a message with all links in it, for a task that cannot look them up."""

    def links(chain: Any) -> Any:
        chain = rest(app, chain)
        return list(chain) if isinstance(chain, Rest) else chain

    return _changed(embed, links, links)


def referring(
    app: Celery, embed: dict[str, Any], *, root: str, serializer: str | None, keep: bool
) -> tuple[dict[str, Any], tuple[NewChain, ...]]:
    """Return the canvas part of a durable task's message with references in it, and what to store with it.

    Arguments:
        app: the Celery app.
        embed: as Celery has made it.
        root: the tree of runs that the message belongs to; links of another tree may be gone before it.
        serializer: the message's.
        keep: whether chains can be stored with the message; without, its links stay in it.
    """
    new: list[NewChain] = []

    def stored(chain: Any) -> Any:
        parts = _in_tree(app, chain, root)
        if not keep:
            return _markers(parts)
        lowered: list[Any] = []
        for are_references, run in groupby(parts, lambda part: isinstance(part, Reference)):
            links = list(run)
            if are_references or len(links) <= INLINE:
                lowered.extend(links)
            else:
                new.append(_new_chain(links, root, serializer))
                lowered.append(Reference(new[-1].id, root, len(links)))
        return _markers(lowered)

    return _changed(embed, stored, lambda chain: _markers(_in_tree(app, chain, root))), tuple(new)


def storable(signature: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chord's body for the store, its chain by reference if it has one."""
    options = signature.get("options") or {}
    if isinstance(options.get("chain"), Rest):
        options = {**options, "chain": _markers(options["chain"].parts)}
    return {**signature, "options": options}


def _changed(
    embed: dict[str, Any], chain: Callable[[Any], Any], chain_of_body: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return a message's canvas part with its own chain changed, and the one behind its chord's body."""
    changed = embed
    if embed.get("chain"):
        changed = {**changed, "chain": chain(embed["chain"])}
    body: Any = embed.get("chord")
    options: Any = body.get("options") if isinstance(body, dict) else None
    if options and options.get("chain"):
        behind = {**options, "chain": chain_of_body(options["chain"])}
        changed = {**changed, "chord": {**body, "options": behind}}
    return changed


def _in_tree(app: Celery, chain: Any, root: str) -> list[Any]:
    """Return parts whose references are all to chains of this tree."""
    parts: list[Any] = []
    for part in parts_of(chain):
        foreign = isinstance(part, Reference) and part.root != root
        parts.extend(Loader(app).all(part) if foreign else [part])
    return parts


def _markers(parts: Iterable[Any]) -> list[Any]:
    return [part.marker() if isinstance(part, Reference) else part for part in parts]


def _new_chain(links: Sequence[Any], root: str, serializer: str | None) -> NewChain:
    """Return links to be stored; the same ones get the same id, so that storing them again adds nothing."""
    digest = hashlib.sha256(root.encode())
    content_type, encoding, _ = serialization.dumps(None, serializer)
    dumped = []
    for link in links:
        data = as_bytes(serialization.dumps(link, serializer)[2])
        digest.update(b"%d:" % len(data) + data)
        dumped.append(data)
    chain = str(uuid.UUID(bytes=digest.digest()[:16]))
    return NewChain(chain, root, content_type, encoding, tuple(dumped))
