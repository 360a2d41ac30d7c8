"""Ids of what a run starts: the same in every attempt of a generation, so that nothing starts twice."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_durable.run import Claim


class DerivedIds:
    """Ids derived from a run.

    Arguments:
        claim: the run's lease.
    """

    def __init__(self, claim: Claim) -> None:
        count = claim.replacements
        #: The run's id, told apart from those tasks that it replaced (`Task.replace` keeps the id).
        self.run = f"{claim.id}/{count}" if count else claim.id
        self._generation = claim.generation

    def wait(self, key: str) -> uuid.UUID:
        """Return the id of a wait for children: each generation starts its own."""
        return uuid.uuid5(self._namespace, f"wait:{key}")

    def of(self, what: str) -> str:
        """Return the id of what this run starts under a name that it has within the run."""
        return str(uuid.uuid5(self._namespace, what))

    @property
    def _namespace(self) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run}/{self._generation}")
