"""The result backend `durable+postgresql://`: what Celery's result API sees of runs and of plain tasks."""

from __future__ import annotations

from datetime import timedelta
from json import JSONDecoder, JSONEncoder
from typing import TYPE_CHECKING, Any

from celery import states
from celery._state import get_current_worker_task
from celery.backends import base
from celery.backends.base import Backend
from celery.exceptions import TaskRevokedError
from celery.result import GroupResult, result_from_tuple
from celery.utils.saferepr import saferepr
from kombu import serialization
from kombu.utils import json

from celery_durable import chains, config, context, hooks, outgoing, texts
from celery_durable.chords import ChordMixin
from celery_durable.envelope import HEADER, as_bytes
from celery_durable.exceptions import ConfigurationError, StoreUnavailableError
from celery_durable.failures import FailureMixin
from celery_durable.run import celery_state
from celery_durable.serialization import ValueCodec
from celery_durable.store.url import redact
from celery_durable.waiting import WaitingMixin

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.store.connections import Row

_HIDDEN = "durable_result_ignored"


class KombuSerializer:
    """One serializer of kombu's registry, checked against the app's accept list when it reads."""

    def __init__(self, name: str, accept: frozenset[str]) -> None:
        self.name = name
        self._accept = accept
        self._content_type, self._encoding, _ = serialization.dumps(None, name)
        # Stored values are plain trees: kombu's hooks for other types, made anew for each call, are idle.
        self._plain = name == "json" and self._content_type in accept
        self._encode, self._decode = JSONEncoder().encode, JSONDecoder().decode

    def dumps(self, value: object) -> bytes:
        """Return `value` as bytes."""
        if self._plain:
            return self._encode(value).encode()
        return as_bytes(serialization.dumps(value, self.name)[2])

    def loads(self, data: bytes) -> object:
        """Return the value that `data` stands for; raise `ContentDisallowed` for a type not accepted."""
        if self._plain:
            return self._decode(str(data, "utf-8"))
        return serialization.loads(data, self._content_type, self._encoding, accept=self._accept)


class DurableBackend(ChordMixin, FailureMixin, WaitingMixin, Backend):
    """Results in Postgres; for durable tasks, a view on their runs.

    Arguments:
        app: the Celery app.
        url: `postgresql://…` or `embedded://…`; Celery has taken the `durable+` away.
    """

    # What Celery's base class sets, for the type checker
    app: Celery
    serializer: str
    content_type: str
    accept: set[str]
    expires: float | None
    if TYPE_CHECKING:
        _get_result_meta: Any
        prepare_expires: Any

    supports_autoexpire = False
    persistent = True
    supports_result_compression = True
    supports_failure_expires = True

    def __init__(self, app: Celery, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        self.thread_safe = True
        self.url = url or ""
        self._codecs: dict[str, ValueCodec] = {}
        self._store: Store | None = None

    @property
    def settings(self) -> config.Settings:
        """The app's durable settings, checked."""
        return self.store.settings

    @property
    def store(self) -> Store:
        """The store that this backend reads and writes."""
        if self._store is None:
            from celery_durable.store import Store  # with the database driver, so not before it is needed

            settings = config.load(durable_settings(self.app))
            # Threads that ask for the app's backend at the same time are given one each: it must not matter.
            stores: dict[Any, Store] = vars(self.app).setdefault("durable_stores", {})
            self._store = stores.setdefault((self.url, repr(settings)), Store(self.url, settings))
        return self._store

    def codec(self, serializer: str | None) -> tuple[str, ValueCodec]:
        """Return the name and the codec of a serializer; None means `result_serializer`.

        Raises `ConfigurationError` for one that is not registered with kombu.
        """
        name = serializer or self.serializer
        if name not in self._codecs:
            known: Any = serialization.registry.name_to_type  # type: ignore[attr-defined]
            if name not in known:
                message = (
                    f"There is no serializer {name!r}: kombu knows {', '.join(sorted(known))}. Register "
                    f"another one with kombu.serialization.register, in every worker"
                )
                raise ConfigurationError(message)
            accept = frozenset(self.accept) | ({name} if serializer == name else frozenset())
            content_types = frozenset(serialization.prepare_accept_content(accept) or ())
            limit = self.store.settings.max_payload
            self._codecs[name] = ValueCodec(KombuSerializer(name, content_types), max_bytes=limit)
        return name, self._codecs[name]

    def encoded(self, value: Any) -> bytes:
        """Return a value in `result_serializer`."""
        return as_bytes(self.encode(value))

    def decoded(self, data: bytes | None, content_type: str | None) -> Any:
        """Return a stored value; it may have been written under another `result_serializer`."""
        if data is None:
            return None
        kind = content_type or self.content_type
        encoding = "utf-8" if kind == "application/json" or kind.endswith("yaml") else "binary"
        return serialization.loads(decompressed(bytes(data)), kind, encoding, accept=self.accept)

    def extra_meta(self, request: Any, *, hidden: bool = False) -> bytes | None:
        """Return what a result says beside state and value: children, lineage, the extended fields.

        Celery shows nothing of a task whose result is ignored; `hidden` says so.
        """
        meta = self._get_result_meta(None, states.SUCCESS, None, request)
        for known in ("status", "result", "traceback", "date_done"):
            meta.pop(known, None)
        children = meta.get("children")
        if not children:
            meta.pop("children", None)
        if hidden:
            meta[_HIDDEN] = True
        return _dumped(meta) if meta else None

    # -- Celery's contract ------------------------------------------------------------------------------

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Store a state; for a run only what its own writes have not stored already.

        That is a custom state set inside the body, and Celery's revoke, which any process may announce.
        """
        frame = context.current(older=True)  # a pool's thread between two runs is in none
        if frame is not None and frame.execution.rehearsed:
            return result
        if not _is_run(request):
            return super().store_result(task_id, result, state, traceback, request, **kwargs)
        if frame is not None and frame.execution.id == task_id:
            encoded = self.encoded(self.encode_result(result, state))
            claim = frame.execution.claim
            self.store.runs.update_state(claim.key, claim.fence, state, encoded, self.content_type)
        elif state == states.REVOKED:
            self.store.runs.revoke(task_id, token=hooks.worker_token(), terminated=False)
        return result

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        if state == states.REVOKED:
            # Every worker that hears of a revoke announces it, also of ids it knows nothing about.
            self.store.runs.revoke(task_id, token=hooks.worker_token(), terminated=False)
        data = self.encoded(result)
        text = texts.storable(traceback) if isinstance(traceback, str) else None
        patient = (
            get_current_worker_task() is not None
        )  # nobody but its own process waits for what a task did
        row = (task_id, state, data, self.content_type, text, self.extra_meta(request))
        self.store.results.store(*row, patient=patient)
        return result

    def mark_as_failure(self, task_id: str, exc: Exception, *args: Any, **kwargs: Any) -> Any:
        """Store a failure and tell error callbacks, chain and chord; note of a run that they were told.

        A failure in front of the claim, such as a `before_start` that raises, ends a run that is pending; met
        with the duplicate of a message it says nothing about the run.
        """
        request: Any = kwargs.get("request") or (args[1] if len(args) > 1 else None)
        if not _is_run(request):
            return super().mark_as_failure(task_id, exc, *args, **kwargs)
        claimed = getattr(request, "durable", False)
        traceback = kwargs.get("traceback") or (args[0] if args else None)
        if not claimed and not self._fail_unclaimed(task_id, exc, traceback):
            return None
        request.chain = chains.all_of(self.app, request.chain)  # where Celery before 5.7 reads it
        outcome = super().mark_as_failure(task_id, exc, *args, **kwargs)
        if has_dependents(request):
            self.store.runs.reported(task_id)
        return outcome

    def _fail_chain(self, chain: Any, *args: Any, **kwargs: Any) -> None:
        fail: Any = getattr(super(), "_fail_chain")  # noqa: B009  (only Celery 5.7 has it, and calls it)
        fail(chains.all_of(self.app, chain), *args, **kwargs)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,  # noqa: FBT001, FBT002  (Celery's signature)
        state: str = states.REVOKED,
    ) -> Any:
        """Store that a task was revoked and count it in its chord; note of a run that it was told."""
        outcome: Any = super().mark_as_revoked(task_id, reason, request, store_result, state)
        if _is_run(request) and has_dependents(request):
            self.store.runs.reported(task_id)
        return outcome

    def _fail_unclaimed(self, task_id: str, error: Exception, traceback: Any) -> bool:
        text = texts.storable(traceback) if isinstance(traceback, str) else None
        return self.store.runs.fail_unclaimed(task_id, self.error_meta(error), self.content_type, text)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        rows = self.store.results.get([task_id])
        if not rows:
            return {"status": states.PENDING, "result": None, "task_id": task_id}
        return self.meta_of(rows[0])

    def meta_of(self, row: Row) -> dict[str, Any]:
        """Return what Celery's result API shows of a stored row."""
        status = row["custom_state"]
        if row["state"] is not None and (status is None or row["state"] != "running"):
            ignored = row["state"] == "cancelled" and row["reason"] == "ignored"
            status = (status or "IGNORED") if ignored else celery_state(row["state"], row["reason"])
        meta: dict[str, Any] = json.loads(bytes(row["meta"])) if row["meta"] else {}
        if meta.pop(_HIDDEN, False):
            return {"status": states.PENDING, "result": None, "task_id": row["task_id"]}
        meta.update(
            task_id=row["task_id"],
            status=status,
            result=self._result_of(row, status),
            traceback=row["traceback"] if status in self.EXCEPTION_STATES else None,
            date_done=row["date_done"].isoformat() if row["date_done"] else None,
        )
        meta.setdefault("children", [])
        return self.meta_from_decoded(meta)

    def _result_of(self, row: Row, status: str) -> Any:
        if status == states.STARTED and row["state"] is not None:
            return {"pid": row["pid"], "hostname": row["hostname"]}
        if status in (states.PENDING, "SUSPENDED"):
            return None
        if status == states.REVOKED and (row["result"] is None or row["state"] is not None):
            return self.prepare_exception(TaskRevokedError(row["reason"] or "revoked"))
        return self.decoded(row["result"], row["result_type"])

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Rebuild the exception and the child results of a stored row."""
        meta = super().meta_from_decoded(meta)
        children = meta.get("children")
        if children:
            meta["children"] = [
                result_from_tuple(tuple(child), app=self.app) if isinstance(child, list) else child
                for child in children
            ]
        return meta

    def task_result_exists(self, task_id: str) -> bool:
        """Say whether the store knows this id: also of a run that no worker has taken yet."""
        return bool(self.store.results.get([task_id]))

    def _forget(self, task_id: str) -> None:
        self.store.results.forget(task_id)

    def _save_group(self, group_id: str, result: GroupResult) -> GroupResult:
        self.store.results.save_group(group_id, self.encoded(result.as_tuple()), self.content_type)
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        row = self.store.results.restore_group(group_id)
        if row is None:
            return None
        value = self.decoded(row["result"], row["result_type"])
        return {"result": result_from_tuple(value, app=self.app), "date_done": row["date_done"]}

    def _delete_group(self, group_id: str) -> None:
        self.store.results.delete_group(group_id)

    def cleanup(self) -> None:
        """Delete what is past `result_expires`, and final runs past `durable_retention`."""
        from celery_durable.keeper.retention import prune

        failures = self._seconds("result_failure_expires")
        if self.expires:
            self.store.results.expire(timedelta(seconds=self.expires), failed_age=timedelta(seconds=failures))
        if chords := self._seconds("result_chord_expires"):
            self.store.chords.expire(timedelta(seconds=chords))
        prune(self.store, result_expires=self.expires, failure_expires=failures)

    def _seconds(self, setting: str) -> float:
        """Return a setting that is `result_expires` where it is not set, 0 for never."""
        chosen = self.app.conf.get(setting)  # not in every Celery release
        return (self.expires if chosen is None else self.prepare_expires(chosen, type=int)) or 0

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether `result_backend_always_retry` may try again: Postgres was away."""
        return isinstance(exc, StoreUnavailableError)

    def process_cleanup(self) -> None:
        """Nothing: connections stay open between tasks."""

    def on_task_call(self, producer: Any, task_id: str) -> None:  # noqa: ARG002
        """Watch what the app sends; a result needs no preparation."""
        outgoing.watch(self.app)

    def as_uri(self, include_password: bool = False) -> str:  # noqa: FBT001, FBT002  (Celery's signature)
        """Return the URL as configured, without the password unless asked for."""
        return "durable+" + (self.url if include_password else redact(self.url))

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        reduce: Any = super().__reduce__
        return reduce(args, {**(kwargs or {}), "url": self.url})


def decompressed(data: bytes) -> bytes:
    """Return a stored result as it was before `result_compression`."""
    # Celery 5.7 marks what `result_compression` has compressed; older ones do not compress.
    decompress = getattr(base, "decompress_payload", None)
    return decompress(data) if decompress else data


def has_dependents(request: Any) -> bool:
    """Whether somebody is to be told when this request fails."""
    return bool(request.errbacks or request.chain or request.chord)


def tell_revoked(backend: DurableBackend, request: Any, reason: str) -> None:
    """Count a run that is cancelled already in its chord."""
    if has_dependents(request):
        backend.mark_as_revoked(request.id, reason, request=request, store_result=False)


def durable_backend(app: Celery) -> DurableBackend:
    """Return the app's backend; raise `ConfigurationError` when it is not a durable one."""
    backend: Any = app.backend
    if isinstance(backend, DurableBackend):
        return backend
    message = (
        f"DurableTask keeps its runs in the result backend, and {app.main or 'this app'} uses "
        f"{app.conf.result_backend or 'none'}. Set result_backend = 'durable+postgresql://…' "
        f"(or 'durable+embedded://' for a server of its own)"
    )
    raise ConfigurationError(message)


def _dumped(meta: dict[str, Any]) -> bytes:
    try:
        return json.dumps(meta).encode()
    except (TypeError, ValueError):  # arguments that only another serializer can carry are shown, not kept
        shown = {name: saferepr(value) for name, value in meta.items() if name in ("args", "kwargs")}
        return json.dumps({**meta, **shown}).encode()


def _is_run(request: Any) -> bool:
    return request is not None and (
        getattr(request, "durable", False) or getattr(request, HEADER, None) is not None
    )


def durable_settings(app: Celery) -> dict[str, Any]:
    """Return the app's settings that begin with `durable_`, also under a namespace such as CELERY_."""
    conf: Any = app.conf
    _ = conf.result_backend  # configuration is loaded at the first look at it
    name_space = getattr(app, "namespace", None)
    namespace = f"{name_space.lower()}_" if name_space else ""
    found: dict[str, Any] = {}
    for layer in reversed(conf.maps):
        for name in layer:
            plain = str(name).lower().removeprefix(namespace)
            meant = not namespace or str(name).islower() or str(name).lower() != plain
            if plain.startswith(config.PREFIX) and meant:
                found[plain] = layer[name]
    return found
