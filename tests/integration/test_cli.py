"""`celery -A app durable …`, against a real Postgres and, where a message is sent, a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command
from click.testing import CliRunner
from harness.brokers import queue_of_ones_own, service
from harness.waiting import eventually
from inspecting import Worker, execute

from celery_durable import DurableTask, envelope
from celery_durable.config import Settings
from celery_durable.run import RunState
from celery_durable.store import Store, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NEWEST, NUMBERS = migrate.newest(), [migration.number for migration in migrate.migrations()]
NO_BROKER = "redis://127.0.0.1:1/0"


class Cli:
    """The celery command with an app of one's own."""

    def __init__(self, app: Celery, module: str) -> None:
        self.app = app
        self._module = module

    def __call__(self, *arguments: str, status: int = 0, width: int = 160) -> str:
        result = CliRunner().invoke(
            celery_command, ["-A", self._module, "durable", *arguments], env={"COLUMNS": str(width)}
        )
        assert result.exit_code == status, (result.output, result.exception)
        return result.output

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cli]]:
    monkeypatch.setattr(envelope, "breaker", envelope.Breaker())
    apps = []

    def make(backend: str, broker: str = NO_BROKER, **settings: Any) -> Cli:
        app = Celery("media", broker=broker, backend=backend, set_as_current=False)
        app.conf.update(task_publish_retry=False, **settings)
        module = types.ModuleType(f"cli_app_{uuid.uuid4().hex}")
        module.app = app  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        apps.append(app)
        return Cli(app, module.__name__)

    yield make
    for app in apps:
        if isinstance(store := getattr(app.backend, "store", None), Store):
            store.close()
        app.close()


@pytest.fixture
def cli(command: Callable[..., Cli], store: Store) -> Cli:
    return command(f"durable+{store.url}")


def app_file(folder: Path, database_url: str) -> dict[str, Any]:
    """Write an app; return how to start a process in its folder."""
    made = f"Celery('media', broker={NO_BROKER!r}, backend='durable+{database_url}')"
    (folder / "media.py").write_text(f"from celery import Celery\napp = {made}\n")
    return {"cwd": folder, "env": {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": ""}, "text": True}


def test_init_creates_the_schema_and_a_second_one_finds_nothing_to_do(
    command: Callable[..., Cli], database_url: str
) -> None:
    cli = command(f"durable+{database_url}")

    assert "would apply 0001 initial" in cli("init", "--dry-run")
    first = cli.json("init")
    second = cli.json("init")

    assert (first["from"], first["to"], [one["number"] for one in first["applied"]]) == (0, NEWEST, NUMBERS)
    assert (second["from"], second["to"], second["applied"]) == (NEWEST, NEWEST, [])
    assert "Nothing to do" in cli("init")


def test_init_before_a_deploy_leaves_out_what_old_workers_cannot_live_with(
    command: Callable[..., Cli], database_url: str
) -> None:
    cli = command(f"durable+{database_url}")

    assert [one["phase"] for one in cli.json("init", "--phase", "pre")["applied"]] == ["pre"] * len(NUMBERS)


def test_init_makes_the_table_of_transaction_steps_in_a_users_database(
    command: Callable[..., Cli], database_url: str
) -> None:
    cli = command(
        "durable+postgresql://localhost:1/away", durable_databases={"billing": database_url}
    )  # the store itself is not asked

    def tables() -> list[str]:
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "select tablename from pg_tables where schemaname = 'durable'"
            ).fetchall()
        return [name for (name,) in rows]

    assert "Would create durable.transaction_step" in cli("init", "--database", "billing", "--dry-run")
    assert tables() == []
    assert cli.json("init", "--database", "billing")["table"] == "durable.transaction_step"
    assert "There is now durable.transaction_step" in cli("init", "--database", database_url)
    assert tables() == ["transaction_step"]
    assert "durable_databases has no 'biling'; it has 'billing'" in cli(
        "init", "--database", "biling", status=1
    )


def test_init_by_several_at_once_applies_everything_once(tmp_path: Path, database_url: str) -> None:
    options = app_file(tmp_path, database_url)
    line = [sys.executable, "-m", "celery", "-A", "media", "durable", "init", "--json"]

    def init(_: int) -> Any:
        done = subprocess.run(line, capture_output=True, check=True, timeout=60, **options)
        return json.loads(done.stdout)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(init, range(3)))

    assert sorted(len(result["applied"]) for result in results) == [0, 0, len(NUMBERS)]


def test_without_a_schema_every_command_names_the_one_that_makes_it(
    command: Callable[..., Cli], database_url: str
) -> None:
    cli = command(f"durable+{database_url}")

    for arguments in (["runs"], ["show", "x"], ["resume", "x"], ["cancel", "x"], ["keeper"]):
        assert "durable init" in cli(*arguments, status=1)
    assert "durable init" in cli("doctor", status=1)


def test_another_result_backend_is_an_error_that_names_the_setting(command: Callable[..., Cli]) -> None:
    cli = command("rpc://")

    assert "result_backend = 'durable+postgresql://" in cli("runs", status=1)
    assert cli.json("runs", status=1)["error"]["type"] == "ConfigurationError"


def test_runs_lists_and_filters(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    failed = worker.fail(worker.start(task="media.import_"))
    waiting = worker.retry(worker.start())
    execute(store, "update durable.run set created_at = created_at - interval '1 day' where id = %s", failed)

    assert [run["id"] for run in cli.json("runs")["runs"]] == [waiting, failed]
    assert [run["id"] for run in cli.json("runs", "--state", "failed")["runs"]] == [failed]
    assert [run["id"] for run in cli.json("runs", "--errors", "--until", "2h")["runs"]] == [failed]
    assert [run["id"] for run in cli.json("runs", "--since", "2h")["runs"]] == [waiting]
    assert cli.json("runs", "--task", "media.nothing") == {"runs": [], "next": None}
    text = cli("runs")
    assert "waits for a retry until" in text
    assert "retry 1 after ValueError: no" in text
    assert "\x1b" not in text


def test_runs_pages(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    made = [worker.enqueue() for _ in range(3)]

    first = cli.json("runs", "-n", "2")
    second = cli.json("runs", "-n", "2", "--before", str(first["next"]))

    assert [run["id"] for run in first["runs"] + second["runs"]] == made[::-1]
    assert second["next"] is None
    assert f"--before {first['next']}" in cli("runs", "-n", "2")


def test_runs_counts(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    worker.enqueue()
    worker.fail(worker.start(), reason="exhausted")

    assert cli.json("runs", "--counts") == {
        "counts": [
            {"state": "failed", "reason": "exhausted", "runs": 1},
            {"state": "pending", "reason": None, "runs": 1},
        ],
        "total": 2,
    }
    assert "exhausted" in cli("runs", "--counts")


def test_wrong_usage_has_status_two(cli: Cli) -> None:
    assert "neither like" in cli("runs", "--since", "soon", status=2)
    assert "Which runs?" in cli("resume", status=2)
    assert "not both" in cli("cancel", "x", "--state", "failed", status=2)
    assert "not JSON" in cli("fork", "x", "--set", "step=abc", status=2)
    assert "no JSON array" in cli("fork", "x", "--args", "{}", status=2)
    assert "how long ago" in cli("prune", "--older-than", "2026-01-01", status=2)
    assert "terminal" in cli("runs", "--watch", status=2)


def test_show_tells_the_story_of_a_run(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    claim = worker.start("video-1")
    worker.step(claim, "fetch", 1, seconds=2.0)
    worker.step(claim, "probe", 2, "error", tries=3)
    worker.retry(claim)

    text = cli("show", "video")
    document = cli.json("show", "video-1")

    assert "waits for a retry until" in text
    assert all(word in text for word in ("fetch", "probe", "worker@one", "2.0 s", "█", "ValueError: no"))
    assert document["run"]["state"] == "waiting"
    assert document["run"]["celery_state"] == "RETRY"
    assert [(step["key"], step["outcome"], step["tries"]) for step in document["steps"]] == [
        ("fetch", "ok", 1),
        ("probe", "discarded", 3),
    ]
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["retry"]
    narrow = cli("show", "video-1", width=50)
    assert all(len(line) <= 50 for line in narrow.splitlines())


def test_show_prints_the_traceback_of_a_failed_run(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    failed = worker.fail(worker.start(), error="KeyError: 'size'")

    text = cli("show", failed)

    assert "Traceback\nKeyError: 'size'" in text


def test_the_beginning_of_several_ids_lists_them(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    for run_id in ("video-1", "video-2"):
        worker.enqueue(run_id)

    text = cli("show", "video", status=1)

    assert "video-1" in text
    assert "video-2" in text
    assert cli.json("show", "audio", status=1)["error"]["type"] == "RunNotFoundError"


def test_resume_by_filter_counts_first_and_then_does_it(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    failed = [worker.fail(worker.start(), reason="exhausted") for _ in range(12)]
    worker.fail(worker.start(task="media.other"))

    text = cli("resume", "--why", "exhausted", "--since", "2h", "--dry-run")
    document = cli.json("resume", "--why", "exhausted", "--dry-run")
    assert "12 runs match; nothing was changed" in text
    assert "and 2 more" in text
    assert document == {"dry_run": True, "matching": 12, "children": 0, "runs": failed[::-1]}

    assert "12 of 12 matching runs changed; 12 messages are sent later" in cli("resume", "--why", "exhausted")
    assert len(cli.json("runs", "--state", "pending")["runs"]) == 12
    assert len(cli.json("cancel", "--state", "pending", "--task", "media.process")["runs"]) == 12


def test_fork_says_what_runs_again_and_show_tells_both_ends(cli: Cli, store: Store) -> None:
    @cli.app.task(base=DurableTask, name="media.process", shared=False)
    def process(source: str) -> None: ...

    run_id = process.delay("a.mp4").id
    worker = Worker(store)
    claim = worker.claim(run_id)
    worker.step(claim, "fetch", 1)
    worker.step(claim, "probe", 2, "error")
    worker.fail(claim)

    text = cli("fork", run_id, "--from", "probe", "--dry-run")
    assert "would be kept: fetch" in text
    assert "would run again: probe" in text
    assert cli.json("fork", run_id, "--set", 'probe={"~decimal": "1"}', "--dry-run")["overridden"] == [
        "probe"
    ]

    forked = cli.json("fork", run_id, "--from", "probe", "--args", '["b.mp4"]')
    assert (forked["kept"], forked["again"], forked["published"]) == (["fetch"], ["probe"], False)
    assert f"fork of {run_id}" in cli("show", forked["id"])
    assert f"forked as {forked['id']}" in cli("show", run_id)
    assert cli.json("export", forked["id"])["run"]["payloads"]["args"] == ["b.mp4"]
    assert "payloads" not in json.loads(cli("export", run_id, "--no-payloads"))["run"]
    refused = cli("fork", run_id, "--args", "[1, 2, 3]", status=2)
    assert "The task does not take these arguments" in refused
    assert "3 were given" in refused
    error = cli.json("fork", run_id, "--from", "prob", status=1)["error"]
    assert error["type"] == "StepNotFoundError"


def test_check_names_the_runs_that_would_break_and_fails(cli: Cli, store: Store) -> None:
    @cli.app.task(base=DurableTask, name="media.process", shared=False)
    def process(source: str) -> None: ...

    worker = Worker(store)
    fine = process.delay("a.mp4").id
    broken = worker.claim(process.delay("b.mp4").id)
    worker.step(broken, "fetch", 1)

    text = cli("check", status=1)
    document = cli.json("check", status=1)

    assert f"{broken.id}  media.process would break" in text
    assert "ended without the steps 'fetch'" in text
    assert "2 runs replayed: 1 end, 1 would break." in text
    assert {run["id"]: run["outcome"] for run in document["runs"]} == {fine: "ends", broken.id: "breaks"}
    assert cli.json("check", fine[:8])["ok"]
    assert cli.json("check", "--limit", "1", status=1)["runs"][0]["id"] == broken.id
    assert "0 runs replayed: none." in cli("check", "--runs", "resumable")


_PRINTING = """
import asyncio, threading
from celery_durable import DurableTask

@app.task(base=DurableTask)
def plainly():
    print("from a body")
    thread = threading.Thread(target=print, args=["from its thread"])
    thread.start()
    thread.join()

@app.task(base=DurableTask)
async def on_a_loop():
    print("from the event loop")
    await asyncio.to_thread(print, "from beside it")
"""


def test_what_bodies_print_while_they_are_checked_is_not_among_the_verdicts(
    tmp_path: Path, store: Store
) -> None:
    options = app_file(tmp_path, store.url)
    with (tmp_path / "media.py").open("a") as file:
        file.write(_PRINTING + "\napp.conf.task_publish_retry = False\n")
    call = "import media; media.plainly.delay(); media.on_a_loop.delay()"
    subprocess.run([sys.executable, "-c", call], check=True, timeout=60, **options)

    line = [sys.executable, "-m", "celery", "-A", "media", "durable", "check", "--json"]
    done = subprocess.run(line, capture_output=True, check=False, timeout=60, **options)

    assert {run["outcome"] for run in json.loads(done.stdout)["runs"]} == {"ends"}, done.stderr
    for words in ("from a body", "from its thread", "from the event loop", "from beside it"):
        assert words in done.stderr


def test_check_of_resumable_runs_leaves_out_those_that_were_taken_back(cli: Cli, store: Store) -> None:
    @cli.app.task(base=DurableTask, name="media.process", shared=False)
    def process(source: str) -> None: ...

    worker = Worker(store)
    failed, undone, in_part = (process.delay(name).id for name in ("a.mp4", "b.mp4", "c.mp4"))
    for run_id in (failed, undone, in_part):
        worker.fail(worker.claim(run_id))
    execute(store, "update durable.run set ending = 'failed' where id = %s", undone)
    execute(store, "update durable.run set ending = 'failed', reason = 'rollback' where id = %s", in_part)

    found = cli.json("check", "--runs", "resumable")["runs"]

    assert {run["id"] for run in found} == {failed, in_part}
    assert cli.json("check", undone)["ok"]


def test_prune_and_stats(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    worker.fail(worker.start())
    worker.enqueue()

    stats = cli.json("stats", "--window", "1d")
    text = cli("stats")

    assert [task["failed"] for task in stats["tasks"]] == [1]
    assert stats["window_seconds"] == 86_400
    assert all(word in text for word in ("media.process", "worker@one", "PENDING", "the last 1 h"))
    assert "1 runs would be deleted" in cli("prune", "--older-than", "0s", "--dry-run")
    assert cli.json("prune", "--older-than", "0s") == {"dry_run": False, "runs": 1}


def test_cancel_does_what_it_can_and_says_what_it_cannot(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    pending, running = worker.enqueue("pending"), worker.start("running").id
    worker.succeed(worker.start("over"))

    document = cli.json(
        "cancel", "pend", "run", "over", "nobody", "--reason", "wrong", "--as", "ada", status=1
    )

    outcomes = {one["id"]: one for one in document["runs"]}
    assert (outcomes[pending]["before"], outcomes[pending]["state"]) == ("pending", "cancelled")
    assert (outcomes[running]["state"], outcomes[running]["changed"]) == ("running", True)
    assert outcomes["over"]["error"]["type"] == "RunStateError"
    assert outcomes["nobody"]["error"]["type"] == "RunNotFoundError"
    [event] = cli.json("show", pending)["events"]
    assert (event["actor"], event["detail"]["reason"]) == ("ada", "wrong")
    assert cli.app.AsyncResult(pending).state == "REVOKED"
    assert "has been asked to stop before" in cli("cancel", running)


def test_resume_sends_the_message_again_and_the_same_run_goes_on(
    command: Callable[..., Cli], store: Store
) -> None:
    broker = service("DURABLE_TEST_REDIS")
    with queue_of_ones_own(broker) as (queue, apart):
        cli = command(f"durable+{store.url}", broker, task_default_queue=queue, **apart)

        @cli.app.task(base=DurableTask, name="media.process", shared=False)
        def process(source: str) -> str:
            return source

        run_id = process.delay("a.mp4").id
        worker = Worker(store)
        worker.fail(worker.claim(run_id))
        with cli.app.connection_for_read() as connection, connection.SimpleQueue(queue) as messages:
            messages.get(timeout=5).ack()

            assert f"{run_id}  failed → pending" in cli("resume", run_id, "--reason", "again")

            again = messages.get(timeout=5)
            again.ack()
            assert again.headers["id"] == run_id
        assert worker.claim(run_id).generation == 1


def test_resume_with_the_broker_away_leaves_the_message_to_the_keeper(cli: Cli, store: Store) -> None:
    @cli.app.task(base=DurableTask, name="media.process", shared=False)
    def process() -> None: ...

    run_id = process.delay().id
    worker = Worker(store)
    worker.fail(worker.claim(run_id))

    assert "sent later" in cli("resume", run_id)

    [run] = cli.json("runs")["runs"]
    assert (run["state"], run["published_at"]) == ("pending", None)


def test_a_run_that_cannot_be_resumed_says_why(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    worker.succeed(worker.start("over"))

    assert "Only failed and cancelled runs can be resumed" in cli("resume", "over", status=1)


def test_doctor_finds_a_lonely_but_sound_database(cli: Cli) -> None:
    document = cli.json("doctor", status=1)  # there is no broker

    levels = {finding["check"]: finding["level"] for finding in document["findings"]}
    assert not document["ok"]
    assert levels["broker"] == "error"
    assert levels["schema"] == levels["connection"] == levels["clock"] == levels["runs"] == "ok"
    assert levels["workers"] == "warning"


def test_doctor_finds_runs_that_nobody_moves_on(cli: Cli, store: Store) -> None:
    worker = Worker(store)
    worker.start("orphan")
    worker.vanish()
    worker.enqueue("late", countdown=timedelta(hours=1))
    execute(store, "update durable.run set due = now() - interval '5 min' where id = 'late'")
    worker.enqueue("unsent")
    execute(
        store,
        "update durable.run set published_at = null, due = now() - interval '5 min' where id = 'unsent'",
    )

    findings = {one["check"]: one for one in cli.json("doctor", status=1)["findings"]}

    for check, run_id in (("orphaned", "orphan"), ("overdue", "late"), ("unpublished", "unsent")):
        assert findings[check]["level"] == "error"
        assert run_id in findings[check]["message"]
        assert findings[check]["advice"]


def test_doctor_works_for_a_role_that_may_only_read_and_says_so(
    command: Callable[..., Cli], store: Store
) -> None:
    role = f"reader_{uuid.uuid4().hex[:8]}"
    parts = urlsplit(store.url)
    reader = parts._replace(netloc=f"{role}:secret@{parts.netloc.rpartition('@')[2]}")
    execute(store, f"create role {role} login password 'secret'")
    try:
        execute(store, f"grant usage on schema durable to {role}")
        execute(store, f"grant select on all tables in schema durable to {role}")
        document = command(f"durable+{urlunsplit(reader)}").json("doctor", status=1)
    finally:
        execute(store, f"drop owned by {role}")
        execute(store, f"drop role {role}")

    findings = {one["check"]: one for one in document["findings"]}
    assert "may only read" in findings["privileges"]["message"]
    assert findings["runs"]["level"] == "ok"


def test_doctor_without_postgres_says_so_and_hides_the_password(command: Callable[..., Cli]) -> None:
    cli = command("durable+postgresql://me:secret@127.0.0.1:1/media")

    text = cli("doctor", status=1)

    assert "FAIL" in text
    assert "secret" not in text


def test_keeper_wakes_runs_until_it_is_told_to_stop_and_leaves_no_worker_behind(
    tmp_path: Path, store: Store
) -> None:
    run_id = Worker(store).enqueue(countdown=timedelta(seconds=0.2))
    line = [sys.executable, "-m", "celery", "-A", "media", "durable", "keeper", "--json"]
    options = app_file(tmp_path, store.url)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            eventually(lambda: _state(store, run_id) is RunState.PENDING, what="the keeper to wake the run")
        finally:
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=30)

    assert process.returncode == 0, errors
    assert [json.loads(one)["event"] for one in output.splitlines()] == ["started", "stopped"]
    assert execute(store, "select id from durable.worker where hostname like 'keeper@%%'") == []


def _state(store: Store, run_id: str) -> RunState:
    run = store.inspection.get(run_id)
    assert run is not None
    return run.state


def test_the_schema_may_have_another_name(command: Callable[..., Cli], database_url: str) -> None:
    cli = command(f"durable+{database_url}", durable_schema="Media Runs")
    cli("init")
    store = Store(database_url, Settings(schema="Media Runs"))
    try:
        worker = Worker(store)
        failed = worker.fail(worker.start())
        assert [run["id"] for run in cli.json("runs", "--errors")["runs"]] == [failed]
        assert cli.json("cancel", worker.enqueue())["runs"][0]["state"] == "cancelled"
    finally:
        store.close()
    assert cli.json("doctor", status=1)["findings"]
