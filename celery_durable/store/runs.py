"""The hot path against Postgres: enqueue, claim, checkpoint, finish, release. One round trip each."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg import DataError

from celery_durable.checkpoint import Checkpoint, StepWrite
from celery_durable.exceptions import LeaseLostError, NondeterminismError, SerializationError
from celery_durable.run import Claim, Refusal, RunState
from celery_durable.store import in_hand, queries
from celery_durable.store.chords import look, store_part
from celery_durable.store.outside import RunsFromOutside
from celery_durable.store.waits import WaitStore, followed
from celery_durable.store.writes import (
    NO_SLOT,
    Finish,
    Finished,
    Look,
    NewRun,
    Part,
    PlainMessage,
    Release,
    Stored,
    closed,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence

    from celery_durable.store.connections import Connection, Connections

_ANY_VERSION = "and r.slot is null"
_THIS_VERSION = "and r.slot is null and (r.version is null or r.version = %(version)s)"
_LEASE = timedelta(seconds=30)
_SMALL = 64 * 1024  # bytes of a value that a connection's cursor may hold on to until the next one


def with_version(claim: str) -> str:
    """Return a claim that takes runs of one version only, and those of none."""
    return claim.replace(_ANY_VERSION, _THIS_VERSION)


class RunStore(RunsFromOutside):
    """Writes of one run, each fenced and each safe to repeat after a lost answer.

    Arguments:
        connections: where to write.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
        lease: how long who finds a chord complete has for starting its body.
        version: the only version of the code whose runs may be claimed; None for all of them.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        schema: str,
        check: timedelta,
        lease: timedelta = _LEASE,
        version: str | None = None,
    ) -> None:
        super().__init__(connections, schema=schema, check=check)
        self._lease = lease
        self._chords = queries.load("chords", schema)
        self._schema = schema
        self._version = version
        if version is not None:  # most workers execute runs of any version, and ask nothing
            self._sql["claim"] = with_version(self._sql["claim"])
        self.waits = WaitStore(connections, schema=schema, check=check)

    def claim(
        self,
        run_id: str,
        *,
        fence: uuid.UUID,
        token: uuid.UUID,
        pid: int,
        revision: int,
        task: str | None = None,
        link: tuple[str, int] | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> tuple[Claim, list[Checkpoint]] | Refusal:
        """Lease a pending run and read its whole history in one round trip; or say why not.

        `link` names a stored link of a chain, by chain and number, that is read on the way.

        Waits for Postgres as long as it takes, or until `give_up()`: the message stays unacknowledged
        meanwhile.
        """
        parameters = {
            "id": run_id,
            "task": task,
            "fence": fence,
            "token": token,
            "pid": pid,
            "revision": revision,
            "version": self._version,
        }

        def work(connection: Connection) -> tuple[Any, list[Any], Any]:
            with connection.pipeline():
                claimed = connection.execute(self._sql["claim"], parameters)
                history = connection.execute(self._sql["history"], parameters)
                if link is not None:
                    wanted = connection.execute(self._sql["link"], {"chain": link[0], "number": link[1]})
            return claimed.fetchone(), history.fetchall(), wanted.fetchone() if link is not None else None

        row, history, following = self._connections.patiently(work, budget=float("inf"), give_up=give_up)
        return self.refusal(parameters) if row is None else self.leased(row, history, following)

    @staticmethod
    def leased(
        row: dict[str, Any], history: Sequence[dict[str, Any]], following: Any
    ) -> tuple[Claim, list[Checkpoint]]:
        """Return what a claim was given."""
        return Claim(**row, link=following), [
            Checkpoint(**{**step, "clock": tuple(step["clock"] or ())}) for step in history
        ]

    def refusal(self, parameters: dict[str, Any]) -> Refusal:
        """Return why a claim was given nothing."""
        row = self._one("standing", parameters)
        if row["state"] is None:
            return Refusal.UNKNOWN if row["worker_alive"] else Refusal.NO_WORKER
        state = RunState(row["state"])
        if state is RunState.PENDING:
            return self._refused(parameters, row)
        if state.final:
            return Refusal.FINAL
        return Refusal.WAITING if state is RunState.WAITING else Refusal.OWNED

    def _refused(self, parameters: dict[str, Any], row: dict[str, Any]) -> Refusal:
        """Return why a pending run is not for this worker."""
        if row["expired"]:
            self._unclaimed("expire", parameters)
            return Refusal.EXPIRED
        if not row["worker_alive"]:
            return Refusal.NO_WORKER
        if self._version is not None and row["version"] not in (None, self._version):
            self._unclaimed("wait_for_version", {"id": parameters["id"], "version": self._version})
            return Refusal.VERSION
        return Refusal.SLOTTED if row["slotted"] else Refusal.OWNED

    def _unclaimed(self, name: str, parameters: dict[str, Any]) -> None:
        """End a run that was not given, or let it wait; its message goes with the same write."""

        def work(connection: Connection) -> None:
            with connection.pipeline():
                connection.execute(self._sql[name], parameters)
                in_hand.put_away_unclaimed(connection, self._schema, parameters["id"])

        self._connections.patiently(work)

    def checkpoint(self, run: int, fence: uuid.UUID, step: StepWrite, *, relaxed: bool = False) -> bool:
        """Store one step's outcome; return whether the run is asked to stop.

        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = {**step.__dict__, "run": run, "fence": fence}
        special = relaxed or step.calls is not None
        if not special and self._stored_at_once(parameters):
            return False
        row = (
            self._with_more(parameters, relaxed=relaxed)
            if special
            else self._one("checkpoint_told", parameters)
        )
        if row is None:
            raise LeaseLostError(step=step.key)
        if not row["stored"]:
            message = f"Step {step.key!r} is stored already with another outcome: two calls share its key"
            raise NondeterminismError(message, step=step.key)
        return bool(row["cancel_requested"])

    def note_too_late(self, run: int, fence: uuid.UUID, step: str) -> bool:
        """Note that a step was cancelled as its outcome was being stored; return as `checkpoint` does."""
        return self._told("note_too_late", {"run": run, "fence": fence, "key": step}, step=step)

    def note_compensates(self, run: int, fence: uuid.UUID) -> bool:
        """Note that the run has registered compensations; return whether it is asked to stop.

        Raises `LeaseLostError` when another attempt owns it.
        """
        return self._told("note_compensates", {"run": run, "fence": fence})

    def asked_to_stop(self, run: int, fence: uuid.UUID) -> bool:
        """Return whether the run is asked to stop; raise `LeaseLostError` when another attempt owns it."""
        return self._told("asked_to_stop", {"run": run, "fence": fence})

    def _told(self, statement: str, parameters: dict[str, Any], **facts: Any) -> bool:
        """Return what a statement of the run's holder says of a cancel."""
        row = self._one(statement, parameters)
        if row is None:
            raise LeaseLostError(**facts)
        return bool(row["cancel_requested"])

    def _stored_at_once(self, parameters: dict[str, Any]) -> bool:
        small = len(parameters["output"] or b"") < _SMALL

        def work(connection: Connection) -> bool:
            cursor = connection.kept if small else connection.cursor()
            return cursor.execute(self._sql["checkpoint"], parameters).rowcount == 1

        return self._connections.patiently(work)

    def _with_more(self, parameters: dict[str, Any], *, relaxed: bool) -> Any:
        def work(connection: Connection) -> Any:
            with connection.pipeline():  # one transaction, so that the setting ends with it
                if relaxed:
                    connection.execute(self._sql["relax"])
                stored = connection.execute(self._sql["checkpoint_told"], parameters)
                if parameters["calls"] is not None:
                    connection.execute(self._sql["note_calls"], parameters)
            return stored.fetchone()

        return self._connections.patiently(work)

    def enqueue_child(
        self, run: int, fence: uuid.UUID, step: StepWrite, child: NewRun
    ) -> tuple[bool, str | None]:
        """Store a child run and the step that says it was started, in one fenced transaction.

        Returns whether the run is asked to stop, and the child's state.
        """
        step_parameters = {**step.__dict__, "run": run, "fence": fence}

        def work(connection: Connection) -> tuple[Any, Any]:
            with connection.pipeline():
                stored = connection.execute(self._sql["checkpoint_told"], step_parameters)
                started = self._insert(connection, [child], run, fence)
            return stored.fetchone(), started.states()

        row, started = self._connections.patiently(work)
        if row is None:
            raise LeaseLostError(step=step.key)
        return bool(row["cancel_requested"]), self.to_send([child], started)[0]

    def finish(
        self,
        run: int,
        fence: uuid.UUID,
        outcome: Finish,
        links: Sequence[NewRun | PlainMessage] = (),
        *,
        part: Part | None = None,
        child: Claim | None = None,
    ) -> Finished:
        """End a run and store the runs its links start and its part of a chord, in one transaction.

        The looks at the chord, and at the parent that waits for this `child`, follow in the same round trip,
        behind the first one's commit.
        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = {**outcome.__dict__, "run": run, "fence": fence, "state": outcome.state.value}

        def work(connection: Connection) -> tuple[Any, list[str | None], Any, list[Stored]]:
            followed_up = part is not None or child is not None
            if not links and not followed_up and not in_hand.something():
                return connection.execute(self._sql["finish"], parameters).fetchone(), [], None, []
            looked, woken = None, []
            with connection.pipeline():
                if followed_up:
                    connection.execute("begin")
                finished = connection.execute(self._sql["finish"], parameters)
                linked = self._insert(connection, links, run, fence)
                in_hand.put_away(connection, self._schema, run, fence)
                if part is not None:
                    store_part(connection, self._chords, part, run, fence)
                if followed_up:
                    connection.execute("commit")
                if part is not None:
                    looked = look(connection, self._chords, part.chord, fence, self._lease)
                if child is not None:
                    woken = self.waits.follow(connection, child)
            at_chord = looked and looked.fetchone()
            return finished.fetchone(), linked.states(), at_chord, followed(woken)

        row, linked, looked, woken = self._connections.patiently(work)
        if row is None:
            raise LeaseLostError
        return Finished(self.to_send(links, linked), looked and Look(**looked), woken)

    def roll_back(self, run: int, fence: uuid.UUID, outcome: Finish, compensations: Sequence[str]) -> None:
        """Store how a run ends once its compensations are made; raise `LeaseLostError` without the lease."""
        parameters = {**outcome.__dict__, "run": run, "fence": fence, "state": outcome.state.value}
        if self._one("roll_back", {**parameters, "rollbacks": list(compensations)}) is None:
            raise LeaseLostError

    def rolled_back(
        self,
        run: int,
        fence: uuid.UUID,
        *,
        problem: str | None,
        failed: str | None,
        result: bytes | None,
        result_type: str | None,
        undone: bool,
        unreported: bool,
    ) -> str | None:
        """End a run whose compensations are made, or failed with a `problem`; return the reason of its end.

        `failed` is the error of a clean-up. `result` is kept for a cancelled run, whose caller has to hear of
        either. Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = {
            "run": run,
            "fence": fence,
            "problem": problem,
            "failed": failed,
            "result": result,
            "result_type": result_type,
            "undone": undone,
            "unreported": unreported,
        }

        def work(connection: Connection) -> Any:
            with connection.pipeline():
                ended = connection.execute(self._sql["rolled_back"], parameters)
                in_hand.put_away(connection, self._schema, run, fence)
            return ended.fetchone()

        row = self._connections.patiently(work)
        if row is None:
            raise LeaseLostError
        reason: str | None = row["reason"]
        return reason

    def release(self, run: int, fence: uuid.UUID, release: Release) -> RunState:
        """Leave the worker for a retry, a timer or another worker; return the state the run is left in.

        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = self._leaving(run, fence, release)

        def work(connection: Connection) -> Any:
            if not in_hand.something():
                return connection.execute(self._sql["release"], parameters).fetchone()
            with connection.pipeline():
                left = connection.execute(self._sql["release"], parameters)
                in_hand.put_away(connection, self._schema, run, fence)
            return left.fetchone()

        row = self._connections.patiently(work)
        if row is None:
            raise LeaseLostError
        return RunState(row["state"])

    def replace(
        self, run: int, fence: uuid.UUID, release: Release, by: Sequence[NewRun | PlainMessage]
    ) -> list[str | None]:
        """Leave the worker for other runs, and store those in the same transaction.

        Returns for each of them its state, None for one that is not to be started.
        Raises `LeaseLostError` when another attempt owns the run.
        """

        def work(connection: Connection) -> tuple[Any, list[str | None]]:
            with connection.transaction():
                left = connection.execute(self._sql["release"], self._leaving(run, fence, release)).fetchone()
                in_hand.put_away(connection, self._schema, run, fence)
                if left is None or RunState(left["state"]).final:
                    return left, [None for _ in by]
                with connection.pipeline():
                    stored = self._insert(connection, by, run, closed(fence))
                return left, stored.states()

        row, stored = self._connections.patiently(work)
        if row is None:
            raise LeaseLostError
        return self.to_send(by, stored)

    def _leaving(self, run: int, fence: uuid.UUID, release: Release) -> dict[str, Any]:
        slot = vars(release.slot or NO_SLOT)
        parameters = {**release.__dict__, **{f"slot_{name}": value for name, value in slot.items()}}
        return {**parameters, "run": run, "fence": fence, "closed": closed(fence), "check": self._check}

    def update_state(
        self, run: int, fence: uuid.UUID, state: str, result: bytes | None, result_type: str
    ) -> None:
        """Store a custom state of a running task; raise `LeaseLostError` when the lease is gone."""
        parameters = {
            "run": run,
            "fence": fence,
            "state": state,
            "result": result,
            "result_type": result_type,
        }
        if self._one("update_state", parameters) is None:
            raise LeaseLostError

    def annotate(self, run: int, fence: uuid.UUID, *, tags: str | None, progress: str | None) -> None:
        """Store labels and progress (JSON) of a run; raise `LeaseLostError` when the lease is gone."""
        parameters = {"run": run, "fence": fence, "tags": tags, "progress": progress}
        try:
            row = self._one("annotate", parameters)
        except DataError as error:
            message = f"Postgres does not take these tags or this progress as JSON: {error}"
            raise SerializationError(message) from error
        if row is None:
            raise LeaseLostError

    def note_calls(self, run: int, fence: uuid.UUID, calls: Sequence[str]) -> None:
        """Store evidence (JSON) of calls by itself, where a step's own write cannot carry it."""
        self._one("note_calls", {"run": run, "fence": fence, "calls": list(calls)}, fetch=False)


__all__ = ["Finish", "NewRun", "PlainMessage", "Release", "RunStore", "closed"]
