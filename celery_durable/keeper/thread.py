"""A thread of the keeper: one connection of its own, through any outage."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from celery_durable import context
from celery_durable.exceptions import StoreError
from celery_durable.store.patience import PASSING

if TYPE_CHECKING:
    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore

logger = logging.getLogger(__name__)

_OUTAGE_PAUSE = 0.5


class KeeperThread(ABC):
    """Calls `run_once` again and again, on a connection that nobody else uses.

    Arguments:
        store: the store.
        name: the thread's name.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.stopping = threading.Event()
        self._name = name
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self.run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Ask the thread to end, and wait for it for at most `timeout` seconds."""
        self.stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """Serve until stopped."""
        with context.outside():  # what it sends is no child of a run that happens to execute here
            self._run()

    def _run(self) -> None:
        told = False
        while not self.stopping.is_set():
            try:
                with self.store.connections.dedicated() as connection:
                    told = False
                    self._serve(self.store.keeper(connection))
            except PASSING as error:
                if not told:
                    logger.warning("%s lost Postgres and tries again: %s", self._name, error)
                    told = True
                self._rest()
            except StoreError:
                logger.exception("%s cannot work with this database", self._name)
                self._rest()
            except Exception:
                logger.exception("%s stumbled and goes on", self._name)
                self._rest()

    def _rest(self) -> None:
        self.interrupted()
        self.stopping.wait(_OUTAGE_PAUSE)

    def _serve(self, keeper: KeeperStore) -> None:
        self.begin(keeper)
        while not self.stopping.is_set():
            self.run_once(keeper)
            self.stopping.wait(self.pause)
        self.end(keeper)

    @property
    def pause(self) -> float:
        """Seconds until the next `run_once`."""
        return 1.0

    def begin(self, keeper: KeeperStore) -> None:  # noqa: B027  (not everybody has to)
        """Prepare, on each new connection."""

    def end(self, keeper: KeeperStore) -> None:  # noqa: B027
        """Finish, when asked to stop."""

    def interrupted(self) -> None:  # noqa: B027
        """Forget what an outage has made doubtful."""

    @abstractmethod
    def run_once(self, keeper: KeeperStore) -> dict[str, int]:
        """Do what there is to do; return counts."""
